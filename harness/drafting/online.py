"""OnlineDrafter: the interface through which a drafter is trained while it decodes.

Shapes: n drafted nodes, m rows of guesses, V tokens that the drafter can draft.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from harness.drafting.draft import Draft
from harness.drafting.drafter import Drafter


class OnlineDrafter(Drafter):
    """A drafter that can compute the guesses of its last draft again, with a gradient.

    Whoever trains it decodes one sequence with it at a time, because the weights then belong to this
    sequence. Drafting uses the published weights alone: what a step changes in the module that
    `begin_learning` returned has no effect before `publish`.
    """

    @property
    def draft_vocabulary(self) -> Tensor | None:
        """[V] int64: the target's ids of the tokens that can be drafted; None: all, in order."""
        return None

    @abstractmethod
    def begin_learning(self) -> torch.nn.Module:
        """A copy of the network at the published weights, in float32 or wider.

        Called once, after `bind`. The parameters that require a gradient are trained.
        """

    @abstractmethod
    def output_parameters(self) -> Sequence[torch.nn.Parameter]:
        """The parameters of that module that come last, so that a step of them alone is cheap; may be
        empty."""

    @abstractmethod
    def recall(self, draft: Draft, rows: Tensor) -> Callable[[], Tensor]:
        """Keep what the guesses after some tokens of the last draft depend on.

        Called between `propose` and `observe`. The result computes their logits [m, V] with the weights that
        the module has then, and may be called several times, until the sequence ends.

        draft: of one sequence, as it was verified. rows: [m] int64, ascending: 0 for the pending token, 1 + i
        for node i; with a node come its ancestors.
        """

    @abstractmethod
    def publish(self) -> None:
        """Draft with the module's present weights from now on; what was computed with older ones stays."""
