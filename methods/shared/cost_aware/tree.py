"""CostAwareTree: how wide, how deep and how many nodes to verify, by marginal confidence and marginal time.

CAST (Hong, Tan and Hu 2025, arXiv 2510.26577). Shapes: B sequences, k nodes of a layer, c children of a node,
n drafted nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from harness.config import configurable
from harness.drafting.draft import Draft
from harness.drafting.step_costs import StepCosts
from harness.drafting.trees import Grower, Pool, TreePolicy
from methods.shared.cost_aware.costs import RoundCosts, measured
from methods.shared.cost_aware.marginal import Floats, num_worthwhile
from methods.shared.cost_aware.rules import ByLayer, ByVerified, LayerChoice, LayerFacts, TreeChoice
from methods.shared.cost_aware.thresholds import SpeedupThreshold, Threshold

_MEMORY = 0.95
"""The weight of the rounds so far beside the newest one, for what nodes bring over what they promise."""


class _Layer(NamedTuple):
    tokens: Tensor
    """[B, k] int64."""
    scores: Tensor
    """[B, k] float: sum of log-probabilities from the pending token on."""
    parents: Tensor
    """[B, k] int64: place of the parent in the pool, -1 for the pending token."""
    above: Tensor
    """[B, k] int64: place of the parent among the nodes that were expanded, -1 for the pending token."""

    def at(self, places: Tensor) -> _Layer:
        """The nodes at these places [B, m]."""
        return _Layer(*(part.gather(1, places) for part in self))


@configurable
class CostAwareTree(TreePolicy):
    """Expands and verifies what pays for itself on this device, at this batch and context.

    The batch has one width per layer, one depth and one number of verified nodes; each sequence keeps its own
    best nodes. So a draft depends on the other sequences of the batch, by their confidences and never by
    tokens that were drawn: every acceptor that is exact for most-probable drafts stays exact.
    """

    top_k: int = Field(default=10, ge=1)
    """Children of a node that are candidates."""
    max_width: int = Field(default=10, ge=1)
    """The most nodes of a layer that are expanded."""
    max_depth: int = Field(default=8, ge=1)
    """The most layers."""
    max_nodes: int = Field(default=59, ge=1)
    """The most nodes that are verified, the pending token not counted."""
    breadth: bool = True
    """Whether the width of a layer is chosen by cost; else it is `max_width`."""
    depth: bool = True
    """Whether the number of layers is chosen by cost; else it is `max_depth`."""
    rerank: bool = True
    """Whether the number of verified nodes is chosen by cost; else it is `max_nodes`."""
    candidates: Literal["kept", "all_children"] = "kept"
    """Which nodes may be verified: those that a layer keeps, as in the paper, or all children that the
    drafter proposed, as in EAGLE-2 and in the authors' serving code. To propose children costs nothing, so
    that the width of a layer need not limit how much of it is verified."""
    gain: Literal["layer", "verified"] = "layer"
    """What expanding nodes is worth: the confidence of their layer, as in the paper, or what their children
    are expected to add to the verified nodes, beyond the cost of verifying them; see `Lookahead`."""
    calibrate: bool = False
    """Whether confidences are multiplied by what nodes have brought over what they promised, because heads
    trust themselves too much or too little; the paper takes them as they are."""
    threshold: Threshold = Field(default_factory=SpeedupThreshold)
    """What a marginal gain must exceed."""
    ratios: int = Field(default=16, ge=1)
    """Ratios between layers that the decision about depth averages; R in the paper, which does not give
    it."""
    spacing: int = Field(default=256, ge=1)
    """Tokens between the contexts at which costs are measured, L in the paper, which does not give it."""
    num_buckets: int = Field(default=1, ge=1)
    """The number of contexts at which costs are measured, M in the paper; the last one has no end."""
    context: Literal["prefix", "draft"] = "prefix"
    """Whether the cost of a layer is looked up at the tokens of the committed prefix and the draft so far, or
    at those of the draft alone; the paper can be read both ways."""

    def __post_init__(self) -> None:
        """Start without costs, which the method sets before the first draft, and with nothing observed."""
        self.costs: RoundCosts | None = None
        self.new_call(keep_memory=False)
        self.choice: TreeChoice | None = None

    @property
    @override
    def num_drafted(self) -> None:
        """Drafts vary."""
        return None

    @property
    @override
    def weighs_costs(self) -> bool:
        return True

    @override
    def use_costs(
        self, costs: StepCosts, num_rows: int, rehearse: Callable[[int, int], Callable[[int], None] | None]
    ) -> None:
        """Measure the drafter's own forwards; the target's come from `costs`."""
        self.costs = measured(
            costs,
            num_rows,
            rehearse,
            most_nodes=self.max_width,
            spacing=self.spacing,
            num_buckets=self.num_buckets,
        )

    @property
    @override
    def level_sizes(self) -> Sequence[int]:
        return range(1, self.max_width + 1)

    @override
    def new_call(self, keep_memory: bool) -> None:
        """Forget ratios and the running speedup, so that calls do not depend on their order."""
        if not keep_memory:
            kind = ByLayer if self.gain == "layer" else ByVerified
            self.rule = kind(self.threshold, self.breadth, self.depth, self.ratios)
            self.threshold.forget()
            self._brought = self._expected = 1.0

    @override
    def observe(self, num_emitted: float) -> None:
        """Tell the threshold what the last draft brought and cost."""
        if self.choice is not None:
            expected = self.choice.utility[self.choice.num_verified - 1] / self._trust
            self._brought = _MEMORY * self._brought + num_emitted - 1
            self._expected = _MEMORY * self._expected + float(expected)
            self.threshold.observe(num_emitted, self.choice.total_cost)

    @property
    def _trust(self) -> float:
        """Nodes that were kept over the confidence in them, in the rounds so far."""
        return self._brought / self._expected if self.calibrate else 1.0

    @property
    @override
    def num_nodes(self) -> int:
        children = self.top_k if self.candidates == "all_children" else 1
        return min(self.max_nodes, min(self.top_k, self.max_width) + self.num_expanded * children)

    @property
    @override
    def num_children(self) -> int:
        return self.top_k

    @property
    @override
    def num_expanded(self) -> int:
        return (self.max_depth - 1) * self.max_width

    @override
    def grow(self, grower: Grower) -> Draft:
        if self.costs is None:
            raise RuntimeError("CostAwareTree.grow before use_costs: nothing says what a node costs")
        layers, choices = self._expand(grower, self.costs)
        return self._select(layers, choices, self.costs, grower.context)

    def _expand(self, grower: Grower, costs: RoundCosts) -> tuple[list[_Layer], list[LayerChoice]]:
        """Layers of nodes that may be verified, until another one is not worth its cost."""
        prefix = grower.context if self.context == "prefix" else 0
        first = grower.start(self.top_k)
        root = torch.full_like(first.tokens, -1)
        found = _Layer(first.tokens, first.log_probs, root, root)
        self.rule.learn(_means(first.log_probs))
        layers: list[_Layer] = []
        choices: list[LayerChoice] = []
        num_expanded = num_stored = 0
        while True:
            order = found.scores.sort(dim=1, descending=True, stable=True).indices[:, : self.max_width]
            utility = self._trust * _means(found.scores.gather(1, order)).cumsum()
            choice = self._choose(
                LayerFacts(
                    utility=utility,
                    cost=costs.draft(prefix + num_expanded)[: len(utility)],
                    nodes=self._trust * _ranked([*layers, found], self.max_nodes),
                    verify=costs.verify(grower.context)[: self.max_nodes],
                    before=choices[-1] if choices else None,
                    is_last=len(choices) + 1 == self.max_depth,
                )
            )
            choices.append(choice)
            best = order[:, : choice.num_nodes]
            frontier = found.at(best)
            if self.candidates == "kept":
                layers.append(frontier)
                places = (num_stored + torch.arange(choice.num_nodes, device=best.device)).expand_as(best)
            else:
                layers.append(found)
                places = num_stored + best
            if not choice.continues:
                return layers, choices
            num_stored += layers[-1].tokens.shape[1]
            found = self._children(grower, frontier, places, num_expanded)
            num_expanded += choice.num_nodes

    def _choose(self, layer: LayerFacts) -> LayerChoice:
        """How many nodes a layer keeps, and whether they are expanded."""
        return self.rule.choose(layer)

    def _children(self, grower: Grower, layer: _Layer, places: Tensor, num_expanded: int) -> _Layer:
        """Candidates [B, k * c] below the nodes of a layer, which have these places [B, k] in the pool."""
        found = grower.expand(layer.tokens, layer.above, self.top_k)
        # The children of likely nodes matter more.
        weights = layer.scores.log_softmax(-1)[..., None]
        self.rule.learn(_means((found.log_probs + weights).logsumexp(1)))
        above = torch.arange(num_expanded, num_expanded + layer.tokens.shape[1], device=places.device)
        return _Layer(
            found.tokens.flatten(1),
            (layer.scores[..., None] + found.log_probs).flatten(1),
            places.repeat_interleave(self.top_k, dim=1),
            above.repeat_interleave(self.top_k).expand(len(places), -1),
        )

    def _select(
        self, layers: list[_Layer], choices: list[LayerChoice], costs: RoundCosts, context: float
    ) -> Draft:
        """The nodes that are worth verifying, in the order in which they were proposed."""
        nodes = _Layer(*(torch.cat(parts, dim=1) for parts in zip(*layers, strict=True)))
        best = nodes.scores.sort(dim=1, descending=True, stable=True)
        cost = costs.verify(context)
        most = min(self.max_nodes, len(cost), best.values.shape[1])
        utility = self._trust * _means(best.values).cumsum()
        count = num_worthwhile(utility[:most], cost[:most], self.threshold.rerank) if self.rerank else most
        self.choice = TreeChoice(
            layers=choices, num_verified=count, utility=utility, cost=cost[: len(utility)]
        )
        pool = Pool(tokens=nodes.tokens, scores=nodes.scores, parents=nodes.parents)
        chosen = best.indices[:, :count].sort(dim=1).values
        return pool.draft(chosen, num_levels=min(len(layers), count))


def _ranked(layers: Sequence[_Layer], most: int) -> Floats:
    """Confidences [n] of the best nodes of some layers, falling, averaged over the batch by their rank."""
    scores = torch.cat([layer.scores for layer in layers], dim=1)
    return _means(scores.sort(dim=1, descending=True).values[:, :most])


def _means(scores: Tensor) -> Floats:
    """Confidences [n] of scores [B, n], averaged over the batch; read by the host."""
    means: Floats = scores.exp().double().mean(0).cpu().numpy()
    return means
