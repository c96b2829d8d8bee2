"""GroupTrees: the loss term of GTO, group tree optimisation (Hu et al. 2025, arXiv 2509.22134, section 3).

At groups of neighbouring places of a row, the drafter and a frozen copy of it from before the training grow
the trees that they would decode with. The target says what each tree is worth, and the difference is the
gain; gains that are high within their group make the drafter likelier to draft the path that the target
accepts. Rewards and trees are constants: the gradient comes from the log-probabilities of that path alone,
computed on the drafter's own guesses, as in decoding.

The paper leaves open where groups lie (see `drawn_groups`), `clip`, `delta` and which deviation divides the
advantages; the defaults are ours. It does not say either which path is accepted at temperatures above 0: here
it is the path of temperature 0.

Shapes: L tokens of a packed row, G groups of m places, B = G * m, n nodes of a tree, d tokens of a path.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor

from harness.config import configurable
from harness.drafting.draft import Draft
from harness.drafting.drafter import TargetView
from harness.drafting.trainable import TrainingRow
from methods.shared.gto.groups import drawn_groups
from methods.shared.gto.rules import (
    RewardName,
    TreeValues,
    accepted_path,
    advantages,
    ratios,
    surrogate,
    tree_values,
)
from methods.shared.gto.student import TreeStudent
from methods.shared.gto.target_scores import Scored, scored


class Term(NamedTuple):
    """A loss term of a row."""

    loss: Tensor
    """A scalar with its gradient, not yet weighted."""
    numbers: Mapping[str, float]
    """Means over the trees of the row, for the curves."""


@configurable
class GroupTrees:
    """The term's settings; `term` computes it."""

    weight: float = Field(default=0.5, ge=0)
    """Weight of the term beside the drafter's own loss. 0 is the control: the same rows, steps and
    evaluations, and no trees in training."""
    reward: RewardName = "lse"
    """What a tree is worth, see `TreeValues.reward`."""
    eta: float = Field(default=1.0, gt=0)
    """Sharpness of `lse`."""
    num_groups: int = Field(default=16, ge=1)
    """Groups of a row, at most."""
    group_size: int = Field(default=8, ge=1)
    """m, the places of a group."""
    clip: float = Field(default=0.2, gt=0, lt=1)
    """How far the ratio to the reference may move."""
    delta: float = Field(default=1e-6, gt=0)
    """Added to the deviation of a group."""
    ddof: Literal[0, 1] = 0
    """0 divides by the deviation of the group as a population, 1 by that of a sample."""
    debias: bool = True
    """Subtract the reward of the reference's tree; off, the reward itself is the gain."""

    @model_validator(mode="after")
    def _deviates(self) -> GroupTrees:
        if self.ddof and self.group_size < 2:
            raise ValueError(f"group_size {self.group_size} has no deviation with ddof 1; type ddof=0")
        return self

    def term(
        self,
        student: TreeStudent,
        reference: TreeStudent,
        target: TargetView,
        row: TrainingRow,
        counts: Tensor,
        seed: str,
    ) -> Term:
        """The term of a row. During an evaluation, where no gradient is recorded, it comes with diagnostics.

        counts: [L] bool, the places that have a draft. seed: of the groups, beside the row itself.
        """
        evaluates = not torch.is_grad_enabled()
        source = random.Random(f"{'evaluation' if evaluates else seed}:{row.ids.tolist()}")
        places = drawn_groups(counts, self.num_groups, self.group_size, source).flatten()
        if not len(places) or (self.weight == 0 and not evaluates):
            return Term(torch.zeros((), device=row.ids.device), {})
        with torch.no_grad():
            trees, others = student.trees(row, places), reference.trees(row, places)
            drafts = [trees, others]
            if evaluates:
                drafts.append(student.chains(row, places, trees.num_levels or trees.width))
            judged = scored(target, row, places, drafts)
        values = [tree_values(one, by.probs) for one, by in zip(drafts, judged, strict=True)]
        gains = self._reward(values[0])
        if self.debias:
            gains = gains - self._reward(values[1])
        advantage = advantages(gains.view(-1, self.group_size), self.delta, self.ddof).flatten()
        accepted = accepted_path(trees, judged[0].likeliest)
        ratio = _ratio(student, reference, row, places, trees, accepted)
        loss = surrogate(ratio, advantage, self.clip).mean()
        numbers = {
            "tree_loss": loss.detach(),
            "tree_gain": gains.mean(),
            **{f"tree_{name}": values[0].reward(name, self.eta).mean() for name in _REWARDS},
            "tree_node_sum_reference": values[1].node_sum.mean(),
            "tree_ratio": ratio.detach().mean(),
            "tree_clipped": ((ratio.detach() - 1).abs() > self.clip).double().mean(),
            "tree_accepted": accepted.sum(-1).double().mean(),
            **(_misalignment(drafts[0], judged[0], drafts[2], judged[2]) if evaluates else {}),
        }
        return Term(loss.float(), {name: float(value) for name, value in numbers.items()})

    def _reward(self, values: TreeValues) -> Tensor:
        return values.reward(self.reward, self.eta)


_REWARDS: tuple[RewardName, ...] = ("lse", "max", "mean", "node_sum")


def _ratio(
    student: TreeStudent,
    reference: TreeStudent,
    row: TrainingRow,
    places: Tensor,
    trees: Draft,
    accepted: Tensor,
) -> Tensor:
    """[B] float64: the ratio of each place, 1 where nothing is accepted. accepted: [B, n] bool."""
    lengths = accepted.sum(-1)
    ratio = torch.ones(len(places), dtype=torch.float64, device=places.device)
    longest = int(lengths.max()) if accepted.shape[1] else 0
    if not longest:
        return ratio
    some = lengths.nonzero()[:, 0]
    # The nodes of a path stand in the order of their depth.
    order = (~accepted[some]).to(torch.int8).argsort(dim=-1, stable=True)[:, :longest]
    inside = torch.arange(longest, device=places.device) < lengths[some, None]
    # Beyond its end a path is filled with its first token, which can be drafted and does not count.
    paths = torch.where(inside, trees.tokens[some].gather(1, order), trees.tokens[some, order[:, 0]][:, None])
    log_probs = student.log_probs(row, places[some], paths)
    with torch.no_grad():
        before = reference.log_probs(row, places[some], paths)
    return ratio.index_put((some,), ratios(log_probs.double(), before.double(), lengths[some]))


def _misalignment(trees: Draft, judged: Scored, chains: Draft, along: Scored) -> dict[str, Tensor]:
    """How far training along one path is from drafting trees: the three numbers of section 3.1 of the paper.

    `chain_pruned`: share of rounds whose tree lacks a part of the path that always takes the most probable
    token. `chain_accepted`: share of rounds in which that path is accepted as far as the tree is.
    `chain_tau` and `tree_tau`: tokens that a round emits with either.
    """
    in_tree = accepted_path(trees, judged.likeliest).sum(-1)
    in_chain = accepted_path(chains, along.likeliest).sum(-1)
    own = [_paths(trees, place) for place in range(len(trees.tokens))]
    whole = [tuple(path) in known for path, known in zip(chains.tokens.tolist(), own, strict=True)]
    return {
        "chain_pruned": 1 - torch.tensor(whole, dtype=torch.float64).mean(),
        "chain_accepted": (in_tree == in_chain).double().mean(),
        "chain_tau": 1 + in_chain.double().mean(),
        "tree_tau": 1 + in_tree.double().mean(),
    }


def _paths(trees: Draft, place: int) -> set[tuple[int, ...]]:
    """The paths to all nodes of a tree."""
    found: list[tuple[int, ...]] = []
    size = int(trees.size[place])
    tokens, parents = trees.tokens[place, :size].tolist(), trees.parents[place, :size].tolist()
    for token, parent in zip(tokens, parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return set(found)
