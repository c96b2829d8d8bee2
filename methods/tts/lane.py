"""A lane: the drafter of one sequence, with weights of its own and what trains them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch.nn.functional import one_hot

from harness.drafting.draft import Draft
from harness.drafting.drafter import Outcome, TargetView
from harness.drafting.online import OnlineDrafter
from methods.tts.learner import Example, Learner, Recipe, example_of, teaches
from methods.tts.schedules import Arm, Schedule


class Lane:
    """Decodes one sequence at a time."""

    def __init__(
        self,
        drafter: OnlineDrafter,
        recipe: Recipe,
        schedule: Callable[[], Schedule] | None,
        stream: torch.cuda.Stream | None,
    ) -> None:
        """drafter: a bound one. schedule: makes that of a new sequence; None trains nothing. stream: where
        updates run; None: where everything runs."""
        self.drafter = drafter
        self.learner = None if schedule is None else Learner(drafter, recipe)
        self._new_schedule, self._stream = schedule, stream
        self.examples: deque[Example] = deque(maxlen=recipe.num_rounds)
        """The latest rounds, which an update learns from."""
        self._unpublished = False
        self.num_updates = 0
        """Belongs to the present sequence."""

    @property
    def num_bytes(self) -> int:
        """Memory of the drafter's own model and of what trains it."""
        return self.drafter.num_bytes + (self.learner.num_bytes if self.learner else 0)

    def begin(self) -> None:
        """A sequence begins: nothing of the one before is left."""
        self._settle()
        self.num_updates = 0
        self.examples.clear()
        if self.learner and self._new_schedule:
            self.learner.begin()
            self._schedule = self._new_schedule()
        self.drafter.reset(1)

    def observe(self, outcome: Outcome, round_s: float) -> None:
        """A round of the sequence, or its prompt; round_s: what the round cost, as the schedule counts."""
        self._settle()
        if self.learner and teaches(outcome):
            assert outcome.draft is not None
            emitted = len(outcome.committed[0])
            rejected = int(outcome.draft.size[0]) - (emitted - 1)
            arm = self._schedule.decide(emitted, rejected, round_s)
            # Of rounds that no update will learn from, nothing is computed.
            if arm != "skip" or self.examples.maxlen != 1:
                self.examples.append(example_of(self.drafter, outcome))
            self._update(arm)
        self.drafter.observe(outcome)

    def _update(self, arm: Arm) -> None:
        if arm == "skip" or self.learner is None:
            return
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            self.learner.learn(list(self.examples), arm)
        self.num_updates += 1
        self._unpublished = True
        if self._stream is None:
            self._settle()

    def _settle(self) -> None:
        """Publish what was learned beside the last round."""
        if not self._unpublished:
            return
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        self.drafter.publish()
        self._unpublished = False

    @torch.no_grad()
    def rehearsed(self, target: TargetView, arm: Arm) -> Callable[[int], None]:
        """A callable that updates once by a made-up round, to be timed; `begin` makes good what it did."""
        assert self.learner is not None, "a lane that trains nothing is not timed"
        self.begin()
        size = target.config.hidden_size
        states = [torch.ones(1, 8, size, dtype=target.dtype, device=target.device) for _ in self.drafter.taps]
        self.drafter.observe(Outcome(committed=[[1] * 8], pending=[1], taps=states))
        draft = self.drafter.propose([64])
        logits = torch.zeros(1, 1 + draft.width, target.vocab_size, device=target.device)
        outcome = Outcome(committed=[[1]], pending=[1], draft=draft, logits=logits)
        example = example_of(self.drafter, outcome) if teaches(outcome) else None
        learner = self.learner

        def update(_: int) -> None:
            if arm != "skip" and example is not None:
                learner.learn([example], arm)
                self.drafter.publish()

        return update


def of_row(outcome: Outcome, row: int) -> Outcome:
    """What an outcome says of one of the sequences that took part."""
    num_committed, draft, logits = len(outcome.committed[row]), outcome.draft, outcome.logits
    if draft is not None:
        size = int(draft.size[row])
        draft = Draft(
            tokens=draft.tokens[row : row + 1, :size],
            parents=draft.parents[row : row + 1, :size],
            size=draft.size[row : row + 1],
            probs=None if draft.probs is None else draft.probs[row : row + 1, :size],
            is_chain=draft.is_chain,
        )
        logits = None if logits is None else logits[row : row + 1, : 1 + size]
    return replace(
        outcome,
        committed=[outcome.committed[row]],
        pending=[outcome.pending[row]],
        taps=[states[row : row + 1, :num_committed] for states in outcome.taps],
        draft=draft,
        logits=logits,
        rider_logits=None,
        rows=None,
    )


def stacked(drafts: Sequence[Draft], vocab_size: int) -> Draft:
    """The drafts of single sequences as one batch."""
    if len(drafts) == 1:
        return drafts[0]
    width = max(draft.width for draft in drafts)
    padded = [draft.padded(width) for draft in drafts]
    confidence = [draft.confidence for draft in padded if draft.confidence is not None]
    probs = None
    if any(draft.probs is not None for draft in padded):
        # A token that was not sampled was certain.
        probs = torch.cat(
            [
                one_hot(draft.tokens, vocab_size).float() if draft.probs is None else draft.probs.float()
                for draft in padded
            ]
        )
    levels = [draft.num_levels for draft in drafts if draft.num_levels is not None]
    return Draft(
        tokens=torch.cat([draft.tokens for draft in padded]),
        parents=torch.cat([draft.parents for draft in padded]),
        size=torch.cat([draft.size for draft in padded]),
        probs=probs,
        confidence=torch.cat(confidence) if len(confidence) == len(drafts) else None,
        is_chain=all(draft.is_chain for draft in drafts),
        num_levels=max(levels) if len(levels) == len(drafts) else None,
    )
