"""Forced acceptance: a given number of drafted tokens stays in a round, whatever they are.

It measures the work of a round without trained weights: the text is nonsense, the forwards, the moves in the
cache and the drafter's steps are those of a method that guesses that well. Never lossless.

Shapes: B sequences, n drafted nodes.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor

from harness.config import configurable
from harness.decoding.acceptance import Accepted, Acceptor, choices
from harness.decoding.acceptance_trace import read_trace
from harness.decoding.sampling import Chooser
from harness.drafting.draft import Draft


@configurable
class Forced(Acceptor):
    """Ends rounds at planned places of the output, as far as the draft is deep enough.

    tau: a round emits this many tokens on average (the bonus token is one of them), `floor(tau)` or one more,
    spread evenly; `seed` shifts the pattern, for every sequence by another amount. trace: the rounds of a
    recorded run in its order, begun at another round in every sequence and again when it is used up: the
    folder of a finished run, or JSON or JSONL with lists of accepted lengths, or objects with such a list
    `accepted` (a run's records.jsonl). arm: whose rounds of it.

    A round emits the tokens up to the next planned place; where the draft is shallower it keeps its deepest
    path, and the next round has the rest to go, so that the tau reached is lower than planned.
    """

    lossless: ClassVar[bool] = False
    coupled: ClassVar[bool] = False
    forced: ClassVar[bool] = True
    tau: float | None = Field(default=None, ge=1, le=1000)
    trace: str | None = None
    arm: str | None = None
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _one_plan(self) -> Forced:
        if (self.tau is None) == (self.trace is None):
            raise ValueError(
                "exactly one of tau and trace says what is kept;"
                " type acceptor.tau=4.5, or acceptor.tau=null acceptor.trace=FOLDER"
            )
        return self

    def __post_init__(self) -> None:
        self._lengths: list[int] = []
        self._ends = torch.empty(0)
        self._hash = ""

    @property
    def name(self) -> str:
        """See `Acceptor`: another number is another measurement."""
        return f"forced tau {self.tau:g}" if self.trace is None else f"forced trace {Path(self.trace).stem}"

    def load(self) -> None:
        """See `Acceptor`; reads the trace.

        Raises:
            ConfigError: there is none, it is malformed, or `arm` does not choose one.
        """
        if self.trace is not None:
            self._lengths, self._ends = read_trace(self.trace, self.arm), torch.empty(0)
            self._hash = hashlib.sha256(json.dumps(self._lengths).encode()).hexdigest()[:16]

    def card(self) -> dict[str, Any]:
        """See `Acceptor`."""
        if self.trace is None:
            return {}
        mean = 1 + sum(self._lengths) / len(self._lengths)
        return {"num_rounds": len(self._lengths), "mean_tau": mean, "hash": self._hash}

    def accept(self, logits: Tensor, draft: Draft, chooser: Chooser, start: Tensor) -> Accepted:
        """See `Acceptor`. Draws as many tokens as the coupled acceptor would, so that it takes as long."""
        rows = torch.arange(len(start), device=logits.device)
        if draft.width == 0:
            token = chooser.choose(logits, start[:, None])[:, 0]
            return Accepted(draft.size, draft.tokens, token)
        depths = draft.depths * draft.real
        count = torch.minimum(self._planned(start, chooser) - 1, depths.amax(-1))
        node = (depths == count[:, None]).to(torch.int8).argmax(-1)
        stands = draft.ancestors[rows, node] & (count > 0)[:, None]
        path = stands.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
        if logits.device.type == "cpu":
            taken = torch.nn.functional.pad(path[:, : int(count.max())] + 1, (1, 0))
            index = start[:, None] + torch.arange(taken.shape[1])
            along = chooser.choose(logits[rows[:, None], taken], index)
            return Accepted(count, path, along[rows, count])
        last = torch.where(count > 0, node + 1, 0)
        return Accepted(count, path, choices(logits, draft, chooser, start)[rows, last])

    def _planned(self, start: Tensor, chooser: Chooser) -> Tensor:
        """[B] tokens from the one after the pending token up to the next place where a round shall end."""
        done, phase = start - 1, chooser.phase(self.seed)
        if self.tau is not None:
            number = ((done + 1 - phase) / self.tau).ceil()
            planned = (phase + number * self.tau).floor().long() - done
            return planned.clamp(min=1)
        if not len(self._ends) or self._ends.device != start.device:
            # Once: a copy from the host in every round would be a wait that other acceptors do not have.
            self._ends = torch.tensor(self._lengths, device=start.device).add_(1).cumsum(0)
        ends = self._ends
        begins = torch.nn.functional.pad(ends[:-1], (1, 0))
        place = (begins[(phase * len(ends)).long()] + done) % ends[-1]
        planned = ends[torch.searchsorted(ends, place, right=True)] - place
        return planned
