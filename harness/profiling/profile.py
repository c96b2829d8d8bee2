"""The profile behind a cost table: how long forwards and drafters take on this machine.

Shapes: B sequences, n drafted nodes.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from harness.config import ConfigError, configurable
from harness.decoding.batch import Request
from harness.decoding.decision import read
from harness.decoding.forced_acceptance import Forced
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams, TokenSampler
from harness.drafting.draft import Draft
from harness.drafting.drafter import Drafter
from harness.profiling.step_timing import time_steps
from harness.system.clock import synchronize
from harness.target.model import Target

_NANO = 1e-9


Seconds = NDArray[np.float64]


class TargetTimings(NamedTuple):
    """Median seconds of the target's rounds, as measured."""

    forward: Seconds
    """Seconds [batch, context, tokens] of `Target.verify`."""
    settle: Seconds
    """Seconds [batch, context, tokens] of acceptance, of reading it on the host, and of the commit."""
    spread: float
    """Interquartile range of a point's repeats over their median; the median over all points."""


class DrafterTimings(NamedTuple):
    """Median seconds of a drafter, as measured."""

    round: Seconds
    """Seconds [batch, context] of `propose` and `observe` together."""
    call: Seconds | None
    """Seconds [batch, context, tokens] of one forward of the drafter's own model; None if it has none."""


@configurable
class Profile:
    """The points that are profiled: every batch at every context with every number of tokens.

    The points of one batch and context take turns in random order, because interference comes in bursts.
    """

    batches: tuple[int, ...] = (1, 2, 4, 8)
    """Numbers of sequences."""
    contexts: tuple[int, ...] = (128, 512, 1024)
    """Numbers of tokens in the cache of a sequence."""
    tokens: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    """Numbers of tokens of a sequence in one forward, the pending one included."""
    num_warmup: int = Field(default=5, ge=0)
    """Forwards per point that do not count."""
    num_repeats: int = Field(default=20, ge=1)
    """Forwards per point whose median counts."""
    tau: float = Field(default=3.0, ge=1)
    """Tokens per round that drafters are made to reach."""
    seed: int = Field(default=0, ge=0)
    """Seed of token ids and of the order of points."""

    @field_validator("batches", "contexts", "tokens")
    @classmethod
    def _rising(cls, points: tuple[int, ...]) -> tuple[int, ...]:
        if not points or points[0] < 1 or list(points) != sorted(set(points)):
            raise ValueError("numbers from 1, each above the one before")
        return points

    def check(self, max_context: int) -> None:
        """Raise ConfigError if the target has no room for the longest context and the tokens behind it."""
        most = self.most_tokens
        if most > max_context:
            raise ConfigError(
                f"costs.contexts={list(self.contexts)}: the longest needs room for {most} tokens, the target"
                f" has {max_context}; type costs.contexts=[...,{max_context - most + self.contexts[-1]}]"
            )

    @property
    def most_tokens(self) -> int:
        """Tokens of a sequence at its longest context, with those that are written behind it."""
        return self.contexts[-1] + max(self.tokens[-1], self.num_new_tokens)

    @property
    def num_new_tokens(self) -> int:
        """Tokens that `num_warmup` and `num_repeats` rounds of `tau` tokens emit, and one round more."""
        return math.ceil((self.num_repeats + self.num_warmup + 1) * self.tau)

    def ids(self, count: int, vocab_size: int, key: str) -> list[int]:
        """Random token ids, the same for the same key."""
        drawn = random.Random(f"{self.seed}:{key}")
        return [drawn.randrange(1, vocab_size) for _ in range(count)]

    @torch.no_grad()
    def target(self, target: Target, note: Callable[[str], None]) -> TargetTimings:
        """Time the target's forwards, and the acceptance and commit that end a round.

        Drafts are binary trees, so that masks are built and cache rows are moved as for any tree.
        """
        target.set_taps(())
        shape = (len(self.batches), len(self.contexts), len(self.tokens))
        forward, settle, spreads = np.zeros(shape), np.zeros(shape), []
        for i, batch in enumerate(self.batches):
            self.choose_steps(target, batch)
            target.begin(batch)
            prompts = [
                self.ids(self.contexts[-1], target.vocab_size, f"prompt {row}") for row in range(batch)
            ]
            target.prefill(range(batch), prompts)
            for j, context in reversed(list(enumerate(self.contexts))):
                # One prompt serves all contexts: from the longest down, rows are only dropped.
                target.cache.advance([context - length for length in target.cache.lengths])
                spent = self._points(target, batch)
                forward[i, j], settle[i, j] = np.median(spent, axis=1).T * _NANO
                low, high = np.quantile(spent[..., 0], (0.25, 0.75), axis=1)
                spreads += list((high - low) / np.median(spent[..., 0], axis=1))
                note(f"batch {batch}, context {context}: one token {forward[i, j, 0] * 1000:.2f} ms")
        # A draft can be padded, so it costs no more than a wider one.
        forward = np.minimum.accumulate(forward[..., ::-1], axis=-1)[..., ::-1]
        return TargetTimings(forward, settle, float(np.median(spreads)))

    def choose_steps(self, target: Target, batch: int) -> None:
        """Have the target take the steps that a run with this batch size would take."""
        if len(target.steps.kinds) > 1:
            target.steps.choose(time_steps(target, batch, [count - 1 for count in self.tokens]).steps, batch)

    def _points(self, target: Target, batch: int) -> NDArray[np.int64]:
        """Nanoseconds [tokens, repeats, 2] of forwards and of settling them, at the present context."""
        params = DecodingParams(name="greedy")
        sampler = TokenSampler(params, range(batch), target.vocab_size, target.device)
        pending = torch.ones(batch, dtype=torch.int64, device=target.device)
        drafts = [self._tree(batch, count - 1, target) for count in self.tokens]
        spent = np.zeros((len(self.tokens), self.num_warmup + self.num_repeats, 2), dtype=np.int64)
        order = random.Random(self.seed)
        for repeat in range(spent.shape[1]):
            for place in order.sample(range(len(drafts)), len(drafts)):
                # A copy has no masks yet, like the new draft that the loop gets every round.
                draft = replace(drafts[place])
                spent[place, repeat] = _round_ns(target, pending, draft, Forced(tau=self.tau), sampler)
        return spent[:, self.num_warmup :]

    def _tree(self, batch: int, size: int, target: Target) -> Draft:
        if size == 0:
            return Draft.empty(batch, target.device)
        ids = self.ids(batch * size, target.vocab_size, "draft")
        tokens = torch.tensor(ids, device=target.device).view(batch, size)
        parents = ((torch.arange(size, device=target.device) - 2) // 2).clamp(min=-1)
        sizes = torch.full((batch,), size, device=target.device)
        return Draft(tokens=tokens, parents=parents.expand_as(tokens), size=sizes)

    def drafter(self, engine: DecodingLoop, drafter: Drafter) -> DrafterTimings:
        """Time a drafter's rounds in the loop, and the forwards of its own model if it has one.

        engine: with `timed=True`. Rounds are forced to `tau`, so that the drafter sees realistic outcomes.
        """
        shape = (len(self.batches), len(self.contexts))
        rounds = np.zeros(shape)
        for i, batch in enumerate(self.batches):
            self.choose_steps(engine.target, batch)
            for j, context in enumerate(self.contexts):
                rounds[i, j] = self._round_seconds(engine, drafter, batch, context)
        return DrafterTimings(rounds, self._calls(engine.target, drafter))

    def _round_seconds(self, engine: DecodingLoop, drafter: Drafter, batch: int, context: int) -> float:
        vocab_size = engine.target.vocab_size
        requests = [
            Request(prompt=self.ids(context, vocab_size, f"prompt {row}"), key=row) for row in range(batch)
        ]
        params = DecodingParams(name="full", max_new_tokens=self.num_new_tokens, ignore_end_token=True)
        made = engine.generate(requests, drafter, params, Forced(tau=self.tau))
        # Every sequence has its share of a round. The first round may feed the prompt to the drafter's model.
        num_rounds = min(len(one.draft_ns) for one in made)
        whole = [sum(one.draft_ns[number] for one in made) for number in range(num_rounds)]
        return float(np.median(whole[1:])) * _NANO

    @torch.no_grad()
    def _calls(self, target: Target, drafter: Drafter) -> Seconds | None:
        """Seconds [batch, context, tokens] of one forward of the drafter's own model, or None."""
        values = np.zeros((len(self.batches), len(self.contexts), len(self.tokens)))
        for i, batch in enumerate(self.batches):
            for j, context in enumerate(self.contexts):
                call = drafter.rehearse(batch, context)
                if call is None:
                    return None
                spent = list(self._call_ns(call, target.device))
                values[i, j] = np.median(np.array(spent[self.num_warmup :]), axis=0) * _NANO
        return values

    def _call_ns(self, call: Callable[[int], None], device: torch.device) -> Iterator[list[int]]:
        order = random.Random(self.seed)
        for _ in range(self.num_warmup + self.num_repeats):
            spent = [0] * len(self.tokens)
            for place in order.sample(range(len(spent)), len(spent)):
                synchronize(device)
                begin = time.perf_counter_ns()
                call(self.tokens[place])
                synchronize(device)
                spent[place] = time.perf_counter_ns() - begin
            yield spent


def _round_ns(
    target: Target, pending: Tensor, draft: Draft, acceptor: Forced, sampler: TokenSampler
) -> tuple[int, int]:
    """Nanoseconds of the forward, and of acceptance, reading it on the host and the commit (then undone)."""
    synchronize(target.device)
    begin = time.perf_counter_ns()
    logits = target.verify(pending, draft)
    synchronize(target.device)
    middle = time.perf_counter_ns()
    accepted = acceptor.accept(logits, draft, sampler, torch.ones_like(pending))
    decision = read(accepted, draft, logits)
    target.commit(None if draft.is_chain else accepted.path, decision.length)
    synchronize(target.device)
    end = time.perf_counter_ns()
    target.cache.advance([-1 - length for length in decision.length])
    return middle - begin, end - middle
