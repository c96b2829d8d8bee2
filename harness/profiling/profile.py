"""Profiling: how long forwards and drafters take on this machine.

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
from harness.decoding.forced_acceptance import Forced
from harness.decoding.loop import LocalEngine, Request, read
from harness.decoding.sampling import DecodingParams, TokenSampler
from harness.drafting.draft import Draft
from harness.drafting.drafter import Drafter
from harness.profiling.step_timing import paces
from harness.system.clock import synchronize
from harness.target.model import Target

_NANO = 1e-9


Seconds = NDArray[np.float64]


class TargetTimings(NamedTuple):
    """Median seconds [batch, context, tokens] of a forward and of settling it, as measured.

    forward: of `Target.verify`. settle: of acceptance, the host's look at it and the commit. spread: median
    over cells of the interquartile range of a cell's repeats over its median.
    """

    forward: Seconds
    settle: Seconds
    spread: float


class DrafterTimings(NamedTuple):
    """Median seconds of a drafter, as measured.

    round: of propose and observe together [batch, context]. call: of one forward of its own model
    [batch, context, tokens]; None where it has no model.
    """

    round: Seconds
    call: Seconds | None


@configurable
class Profile:
    """What is profiled: every batch at every context (tokens in the cache) with every number of tokens.

    num_warmup, num_repeats: forwards of a cell; the median of the repeats counts, and the cells of one batch
    and context take turns in random order, as interference comes in spells. tau: tokens a round that drafters
    are made to reach.
    """

    batches: tuple[int, ...] = (1, 2, 4, 8)
    contexts: tuple[int, ...] = (128, 512, 1024)
    tokens: tuple[int, ...] = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
    num_warmup: int = Field(default=5, ge=0)
    num_repeats: int = Field(default=20, ge=1)
    tau: float = Field(default=3.0, ge=1)
    seed: int = Field(default=0, ge=0)

    @field_validator("batches", "contexts", "tokens")
    @classmethod
    def _rising(cls, points: tuple[int, ...]) -> tuple[int, ...]:
        if not points or points[0] < 1 or list(points) != sorted(set(points)):
            raise ValueError("numbers from 1, each above the one before")
        return points

    def check(self, max_context: int) -> None:
        """Raise ConfigError where the target has no room for the longest context and what follows it."""
        most = self.most_tokens
        if most > max_context:
            raise ConfigError(
                f"costs.contexts={list(self.contexts)}: the longest needs room for {most} tokens, the target"
                f" has {max_context}; type costs.contexts=[...,{max_context - most + self.contexts[-1]}]"
            )

    @property
    def most_tokens(self) -> int:
        """Of a sequence, with what is written behind its longest context."""
        return self.contexts[-1] + max(self.tokens[-1], self._num_new_tokens)

    @property
    def _num_new_tokens(self) -> int:
        return math.ceil((self.num_repeats + self.num_warmup + 1) * self.tau)

    def ids(self, count: int, vocab_size: int, key: str) -> list[int]:
        """Random token ids, the same for the same key."""
        drawn = random.Random(f"{self.seed}:{key}")
        return [drawn.randrange(1, vocab_size) for _ in range(count)]

    @torch.no_grad()
    def target(self, target: Target, note: Callable[[str], None]) -> TargetTimings:
        """Time the target's forwards and what settles a round.

        Drafts are binary trees, so that masks are built and cache rows are moved as for any tree.
        """
        target.set_taps(())
        shape = (len(self.batches), len(self.contexts), len(self.tokens))
        forward, settle, spreads = np.zeros(shape), np.zeros(shape), []
        for i, batch in enumerate(self.batches):
            self._choose(target, batch)
            target.begin(batch)
            prompts = [
                self.ids(self.contexts[-1], target.vocab_size, f"prompt {row}") for row in range(batch)
            ]
            target.prefill(range(batch), prompts)
            for j, context in reversed(list(enumerate(self.contexts))):
                # One prompt serves all contexts: from the longest on, rows are only given up.
                target.cache.advance([context - length for length in target.cache.lengths])
                spent = self._cells(target, batch)
                forward[i, j], settle[i, j] = np.median(spent, axis=1).T * _NANO
                low, high = np.quantile(spent[..., 0], (0.25, 0.75), axis=1)
                spreads += list((high - low) / np.median(spent[..., 0], axis=1))
                note(f"batch {batch}, context {context}: one token {forward[i, j, 0] * 1000:.2f} ms")
        # Padded, a draft costs no more than a wider one.
        forward = np.minimum.accumulate(forward[..., ::-1], axis=-1)[..., ::-1]
        return TargetTimings(forward, settle, float(np.median(spreads)))

    def _choose(self, target: Target, batch: int) -> None:
        """Have the target take the steps that a run of this batch would take."""
        if len(target.steps.kinds) > 1:
            target.steps.choose(paces(target, batch, [count - 1 for count in self.tokens]).steps, batch)

    def _cells(self, target: Target, batch: int) -> NDArray[np.int64]:
        """Nanoseconds [tokens, repeats, 2] of forwards and of settling them, behind the cache as it is."""
        params = DecodingParams(name="greedy")
        sampler = TokenSampler(params, range(batch), target.vocab_size, target.device)
        pending = torch.ones(batch, dtype=torch.int64, device=target.device)
        drafts = [self._tree(batch, count - 1, target) for count in self.tokens]
        spent = np.zeros((len(self.tokens), self.num_warmup + self.num_repeats, 2), dtype=np.int64)
        order = random.Random(self.seed)
        for repeat in range(spent.shape[1]):
            for place in order.sample(range(len(drafts)), len(drafts)):
                # A copy has no masks yet: the loop gets a new draft every round as well.
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

    def drafter(self, engine: LocalEngine, drafter: Drafter) -> DrafterTimings:
        """Time a drafter's rounds in the loop, and the calls of its own model, where it has one.

        engine: timed. Rounds are forced to `tau`, so that it sees outcomes as it would.
        """
        shape = (len(self.batches), len(self.contexts))
        rounds = np.zeros(shape)
        for i, batch in enumerate(self.batches):
            self._choose(engine.target, batch)
            for j, context in enumerate(self.contexts):
                rounds[i, j] = self._round_seconds(engine, drafter, batch, context)
        return DrafterTimings(rounds, self._calls(engine.target, drafter))

    def _round_seconds(self, engine: LocalEngine, drafter: Drafter, batch: int, context: int) -> float:
        vocab_size = engine.target.vocab_size
        requests = [
            Request(prompt=self.ids(context, vocab_size, f"prompt {row}"), key=row) for row in range(batch)
        ]
        params = DecodingParams(name="full", max_new_tokens=self._num_new_tokens, ignore_end_token=True)
        made = engine.generate(requests, drafter, params, Forced(tau=self.tau))
        # A share of each sequence; the first round may feed the prompt to the drafter's own model.
        num_rounds = min(len(one.draft_ns) for one in made)
        whole = [sum(one.draft_ns[number] for one in made) for number in range(num_rounds)]
        return float(np.median(whole[1:])) * _NANO

    @torch.no_grad()
    def _calls(self, target: Target, drafter: Drafter) -> Seconds | None:
        """Seconds of one forward of the drafter's own model."""
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
    """Nanoseconds of the forward, and of acceptance, the host's look and the commit, which is undone."""
    synchronize(target.device)
    begin = time.perf_counter_ns()
    logits = target.verify(pending, draft)
    synchronize(target.device)
    middle = time.perf_counter_ns()
    accepted = acceptor.accept(logits, draft, sampler, torch.ones_like(pending))
    decision = read(accepted, draft)
    target.commit(None if draft.is_chain else accepted.path, decision.length)
    synchronize(target.device)
    end = time.perf_counter_ns()
    target.cache.advance([-1 - length for length in decision.length])
    return middle - begin, end - middle
