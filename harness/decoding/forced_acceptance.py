"""Forced acceptance: every round keeps a given number of drafted tokens, whatever they are.

It measures the work of a round without trained weights: the text is nonsense, but the forwards, the moves in
the cache and the drafter's steps are those of a method that guesses that well. Never lossless.

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
from typing_extensions import override

from harness.config import configurable
from harness.decoding.acceptance import Accepted, Acceptor, choices
from harness.decoding.acceptance_trace import read_trace
from harness.decoding.sampling import TokenSampler
from harness.drafting.draft import Draft


@configurable
class Forced(Acceptor):
    """Ends rounds at planned positions of the output, as far as the draft is deep enough.

    A round emits the tokens up to the next planned position. Where the draft is shallower, the round keeps
    its deepest path and the next round has the remaining tokens to go, so that the tau reached is lower than
    planned.
    """

    lossless: ClassVar[bool] = False
    coupled: ClassVar[bool] = False
    forced: ClassVar[bool] = True
    tau: float | None = Field(default=None, ge=1, le=1000)
    """Tokens per round on average, including the bonus token: `floor(tau)` or one more, spread evenly."""
    trace: str | None = None
    """Instead of tau, the rounds of a recorded run in their order. Every sequence begins at another round,
    and the trace repeats when it is used up. The folder of a finished run; or JSON or JSONL with lists of
    accepted lengths, or with objects that have such a list `accepted` (as a run's records.jsonl)."""
    arm: str | None = None
    """The arm of the trace whose rounds count, where the trace has several."""
    seed: int = Field(default=0, ge=0)
    """Shifts the pattern, for every sequence by another amount."""

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
    @override
    def name(self) -> str:
        """The plan is part of the name, because another plan is another measurement."""
        return f"forced tau {self.tau:g}" if self.trace is None else f"forced trace {Path(self.trace).stem}"

    @override
    def load(self) -> None:
        """Read the trace.

        Raises:
            ConfigError: it is missing or malformed, or `arm` does not choose one.
        """
        if self.trace is not None:
            self._lengths, self._ends = read_trace(self.trace, self.arm), torch.empty(0)
            self._hash = hashlib.sha256(json.dumps(self._lengths).encode()).hexdigest()[:16]

    @override
    def card(self) -> dict[str, Any]:
        if self.trace is None:
            return {}
        mean = 1 + sum(self._lengths) / len(self._lengths)
        return {"num_rounds": len(self._lengths), "mean_tau": mean, "hash": self._hash}

    @override
    def accept(self, logits: Tensor, draft: Draft, sampler: TokenSampler, start: Tensor) -> Accepted:
        """Decide a round. Draws as many tokens as the coupled acceptor would, so that it takes as long."""
        rows = torch.arange(len(start), device=logits.device)
        if draft.width == 0:
            token = sampler.choose(logits, start[:, None])[:, 0]
            return Accepted(draft.size, draft.tokens, token)
        depths = draft.depths * draft.real
        count = torch.minimum(self._planned(start, sampler) - 1, depths.amax(-1))
        node = (depths == count[:, None]).to(torch.int8).argmax(-1)
        stands = draft.ancestors[rows, node] & (count > 0)[:, None]
        path = stands.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
        if logits.device.type == "cpu":
            taken = torch.nn.functional.pad(path[:, : int(count.max())] + 1, (1, 0))
            index = start[:, None] + torch.arange(taken.shape[1])
            along = sampler.choose(logits[rows[:, None], taken], index)
            return Accepted(count, path, along[rows, count])
        last = torch.where(count > 0, node + 1, 0)
        return Accepted(count, path, choices(logits, draft, sampler, start)[rows, last])

    def _planned(self, start: Tensor, sampler: TokenSampler) -> Tensor:
        """[B] tokens from the one after the pending token up to the next planned end of a round."""
        done, phase = start - 1, sampler.phase(self.seed)
        if self.tau is not None:
            number = ((done + 1 - phase) / self.tau).ceil()
            planned = (phase + number * self.tau).floor().long() - done
            return planned.clamp(min=1)
        if not len(self._ends) or self._ends.device != start.device:
            # Only once: a copy from the host in every round would be a wait that other acceptors do not have.
            self._ends = torch.tensor(self._lengths, device=start.device).add_(1).cumsum(0)
        ends = self._ends
        begins = torch.nn.functional.pad(ends[:-1], (1, 0))
        place = (begins[(phase * len(ends)).long()] + done) % ends[-1]
        planned = ends[torch.searchsorted(ends, place, right=True)] - place
        return planned
