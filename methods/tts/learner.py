"""The step of Test-Time Speculation: what it minimises, its optimiser, and the weights it starts from.

For the rows k of a round, at which the drafter guessed q and the target says p, the loss is

    sum_k w_k KL(p_k || q'_k) / W + proximal sum_k w_k KL(q_k || q'_k) / W,
    w_k = exp(-(level_k - 1) / decay)

with W = max(sum_k w_k, 1), as a function of the guesses q' of the weights in training. With one step per
update q' equals q where the step starts, so that the proximal term has no gradient; it acts from the second
step on.

Shapes: m rows, V tokens that the drafter can draft.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from harness.config import configurable
from harness.drafting.drafter import Outcome
from harness.drafting.online import OnlineDrafter

Part = Literal["head", "full"]
"""What a step trains: the last parameters alone, or the whole drafter."""


@configurable
class Recipe:
    """The settings of a step. The paper gives none of the numbers; these are ours."""

    learning_rate: float = Field(default=1e-4, ge=0)
    """The learning rate of Adam (0.9, 0.999, 1e-8). Its first step changes every weight by about as much."""
    proximal: float = Field(default=0.1, ge=0)
    """Weight of the divergence from the guesses at the start of the update."""
    position_decay: float = Field(default=7.0, gt=0)
    """Levels of the draft after which a row counts 1/e."""
    normalised: bool = True
    """Whether the loss is divided by W; Adam feels it from the second update on."""
    num_steps: int = Field(default=1, ge=1)
    """Optimiser steps of an update; the paper's number is 1."""
    num_rounds: int = Field(default=1, ge=1)
    """Latest rounds that an update learns from; the paper's number is 1."""


class Terms(NamedTuple):
    """The loss of some rounds; scalars."""

    target: Tensor
    """The divergence of the target from the guesses."""
    proximal: Tensor
    """That of the guesses before the update."""
    total: Tensor
    """What a step minimises."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One verified round."""

    recall: Callable[[], Tensor]
    """Computes the guesses' logits [m, V] with the weights in training."""
    goals: Tensor
    """[m, V]: the target's distribution over the tokens that can be drafted."""
    levels: Tensor
    """[m]: levels of the drafted tokens that each row guessed, from 1."""


def teaches(outcome: Outcome) -> bool:
    """Whether something was drafted in a round of one sequence, and verified."""
    return outcome.draft is not None and outcome.logits is not None and outcome.draft.width > 0


def example_of(drafter: OnlineDrafter, outcome: Outcome) -> Example:
    """What a round that `teaches` says: a row for every token behind which something was drafted.

    Rows behind the first rejection count as well, because target and drafter saw the same path.
    """
    draft, logits = outcome.draft, outcome.logits
    assert draft is not None
    assert logits is not None
    rows = torch.unique(draft.parents[0] + 1)
    levels = torch.nn.functional.pad(draft.depths[0], (1, 0))[rows] + 1
    wanted = logits[0, rows]
    if (ids := drafter.draft_vocabulary) is not None:
        wanted = wanted[:, ids]
    goals = wanted.to(torch.promote_types(wanted.dtype, torch.float32)).softmax(-1)
    return Example(recall=drafter.recall(draft, rows), goals=goals, levels=levels)


class Learner:
    """Trains one drafter, from the weights that it was loaded with, for one sequence after the other."""

    terms: Terms
    """The loss at the start of the last step."""
    before: Tensor
    """[m, V]: log-probabilities of the guesses before the last update."""

    def __init__(self, drafter: OnlineDrafter, recipe: Recipe) -> None:
        self._drafter, self._recipe = drafter, recipe
        self.module = drafter.begin_learning()
        self._trained = [one for one in self.module.parameters() if one.requires_grad]
        self._last = {id(one) for one in drafter.output_parameters()}
        self._start = [one.detach().clone() for one in self._trained]
        self._moved = False
        self.begin()

    @property
    def parts(self) -> tuple[Part, ...]:
        """What can be trained."""
        return ("head", "full") if self._last else ("full",)

    @property
    def num_bytes(self) -> int:
        """Memory of the weights in training, their start, and the optimiser's moments."""
        return 4 * sum(one.nbytes for one in self._trained)

    @torch.no_grad()
    def begin(self) -> None:
        """A sequence begins: the loaded weights again, and no moments."""
        self._optimizer = torch.optim.Adam(self._trained, lr=self._recipe.learning_rate, fused=True)
        if not self._moved:
            return
        for parameter, start in zip(self._trained, self._start, strict=True):
            parameter.copy_(start)
            parameter.grad = None
        self._moved = False
        self._drafter.publish()

    def learn(self, examples: Sequence[Example], part: Part) -> None:
        """One update. The drafter's weights are not published."""
        for parameter in self._trained:
            parameter.requires_grad_(part == "full" or id(parameter) in self._last)
        self._moved = True
        with torch.enable_grad():
            for number in range(self._recipe.num_steps):
                guesses = self.guesses(examples)
                if number == 0:
                    self.before = guesses.detach()
                terms = self.loss(examples, guesses)
                self._optimizer.zero_grad(set_to_none=True)
                terms.total.backward()  # type: ignore[no-untyped-call]
                self._optimizer.step()
                self.terms = Terms(*(one.detach() for one in terms))

    def guesses(self, examples: Sequence[Example]) -> Tensor:
        """Log-probabilities [m, V] of all rows with the weights in training."""
        logits = torch.cat([one.recall() for one in examples])
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    def loss(self, examples: Sequence[Example], guesses: Tensor) -> Terms:
        """The loss of log-probabilities `guesses` [m, V], relative to `before`."""
        recipe = self._recipe
        levels = torch.cat([one.levels for one in examples]).to(guesses.dtype)
        weights = torch.exp(-(levels - 1) / recipe.position_decay)
        if recipe.normalised:
            weights = weights / weights.sum().clamp(min=1)
        goals = torch.cat([one.goals for one in examples])
        target = (weights * _divergence(goals, guesses)).sum()
        proximal = (weights * _divergence(self.before.exp(), guesses)).sum()
        return Terms(target, proximal, target + recipe.proximal * proximal)


def _divergence(probs: Tensor, log_guesses: Tensor) -> Tensor:
    """KL(probs || guesses) of each row [m]."""
    divergence: Tensor = (torch.special.xlogy(probs, probs) - probs * log_guesses).sum(-1)
    return divergence
