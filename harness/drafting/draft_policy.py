"""Draft policies: which nodes of a draft are worth verifying, decided between proposal and verification.

A policy sees the structure of the trees and the drafter's confidence in every node, and no token. It runs
in the time that is charged to drafting. A method chooses one with `methods.NAME.policy`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor

from harness.config import ConfigError, configurable
from harness.drafting.draft import Draft, TreeShape
from harness.drafting.step_costs import CostWeigher


@configurable
class DraftPolicy(CostWeigher, ABC):
    """Base of all policies.

    A subclass may read whatever does not depend on the drafted tokens: its own fields, measured costs, what
    it learned from the shapes of earlier drafts and from how much of them was kept.
    """

    @property
    def shortens(self) -> bool:
        """Whether a draft may become shorter than the drafter proposed it."""
        return True

    def new_call(self, keep_memory: bool) -> None:
        """A call of the loop begins; see `Drafter.new_call`."""

    @property
    def wants_draft(self) -> bool:
        """Whether the drafter is asked in the next round; if not, nothing is drafted, as in plain
        decoding."""
        return True

    def observe(self, sizes: Sequence[int], kept: Sequence[int]) -> None:
        """A round was decided: how many nodes of each sequence were verified, and how many of them kept."""

    @abstractmethod
    def select(self, shape: TreeShape) -> Tensor | None:
        """The nodes to verify, [B, n] bool on the device of `shape`; None keeps all of them.

        A node stays if it and all of its ancestors are marked, so the result is always a tree.

        Raises:
            ConfigError: the policy decides by confidence, and the drafter states none.
        """


@configurable
class KeepAll(DraftPolicy):
    """Verifies every draft as it was proposed."""

    @property
    def shortens(self) -> bool:
        """False: the drafts stay as they are."""
        return False

    def select(self, shape: TreeShape) -> None:
        """Every node stays."""


def shorten(draft: Draft, policy: DraftPolicy, exact_for_any_draft: bool) -> Draft:
    """The nodes of a draft that `policy` keeps.

    exact_for_any_draft: whether the acceptor emits the target's distribution whatever the draft was made from
    (`Acceptor.coupled`, or an acceptor that is not lossless anyway).

    Raises:
        ConfigError: the tokens were sampled and the acceptor divides by their probabilities. The confidence
            of a sampled token depends on the token, so the nodes that stay would no longer follow
            `Draft.probs`.
    """
    if not (policy.shortens and draft.width):
        return draft
    if draft.probs is not None and not exact_for_any_draft:
        raise ConfigError(
            f"policy: {type(policy).__name__} may not shorten drafts of sampled tokens where tokens are"
            " accepted with min(1, p/q); type accept=coupled, or methods.NAME.policy._target_="
            "harness.drafting.draft_policy.KeepAll"
        )
    keep = policy.select(draft.shape)
    return draft if keep is None else draft.restricted(keep)
