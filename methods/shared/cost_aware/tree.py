"""CostAwareTree: how wide, how deep and how many nodes to verify, by marginal confidence and marginal time.

CAST (Hong, Tan and Hu 2025, arXiv 2510.26577). Shapes: B sequences, k nodes of a layer, c children of a node,
n drafted nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from methods.shared.cost_aware.marginal import DepthGate, Floats, num_worthwhile
from methods.shared.cost_aware.thresholds import SpeedupThreshold, Threshold


@dataclass(frozen=True, kw_only=True)
class LayerChoice:
    """The decision about a layer, for figures and for the comparison with recorded cases."""

    num_nodes: int
    """Nodes of the layer that are kept, of each sequence."""
    utility: Floats
    """[k] confidence of the best 1, 2, ... candidates, averaged over the batch."""
    cost: Floats
    """[k] cost of expanding so many nodes, in one-token forwards of the target."""
    mean_ratio: float
    """The mean ratio of a layer's confidence to the one before, when the decision was taken."""
    gain: float
    """The expected confidence of the next layer over the cost of expanding this one."""
    continues: bool
    """Whether the next layer was drafted."""


@dataclass(frozen=True, kw_only=True)
class TreeChoice:
    """All decisions of one draft."""

    layers: list[LayerChoice]
    num_verified: int
    """Nodes of each sequence that are verified."""
    utility: Floats
    """[n] confidence of the best 1, 2, ... nodes, averaged over the batch."""
    cost: Floats
    """[n] cost of verifying so many nodes."""

    @property
    def total_cost(self) -> float:
        """The cost of the whole round, in one-token forwards of the target.

        The last layer is not expanded; in its place stands the drafter's forward over the new true tokens.
        """
        drafting = [layer.cost[layer.num_nodes - 1] for layer in self.layers[:-1]]
        return float(self.layers[0].cost[0] + sum(drafting) + self.cost[self.num_verified - 1])


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
    def widths(self) -> Sequence[int]:
        return range(1, self.max_width + 1)

    @override
    def new_call(self, keep_memory: bool) -> None:
        """Forget ratios and the running speedup, so that calls do not depend on their order."""
        if not keep_memory:
            self.gate = DepthGate(self.ratios)
            self.threshold.forget()

    @override
    def observe(self, num_emitted: float) -> None:
        """Tell the threshold what the last draft brought and cost."""
        if self.choice is not None:
            self.threshold.observe(num_emitted, self.choice.total_cost)

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
        layers: list[_Layer] = []
        choices: list[LayerChoice] = []
        num_expanded = num_stored = 0
        while True:
            order = found.scores.sort(dim=1, descending=True, stable=True).indices[:, : self.max_width]
            utility = _utility(found.scores.gather(1, order).exp())
            choice = self._choose(utility, costs.draft(prefix + num_expanded)[: len(utility)], choices)
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

    def _choose(self, utility: Floats, cost: Floats, choices: list[LayerChoice]) -> LayerChoice:
        """How many nodes the next layer keeps, and whether they are expanded."""
        width = self._width(utility, cost)
        if choices:
            before = choices[-1]
            self.gate.observe(float(utility[width - 1] / before.utility[before.num_nodes - 1]))
        gain = self.gate.gain(float(utility[width - 1]), float(cost[width - 1]))
        continues = len(choices) + 1 < self.max_depth and (not self.depth or gain >= self.threshold.depth)
        return LayerChoice(
            num_nodes=width,
            utility=utility,
            cost=cost,
            mean_ratio=self.gate.mean,
            gain=gain,
            continues=continues,
        )

    def _width(self, utility: Floats, cost: Floats) -> int:
        if not self.breadth:
            return len(utility)
        return num_worthwhile(utility, cost, self.threshold.breadth)

    def _children(self, grower: Grower, layer: _Layer, places: Tensor, num_expanded: int) -> _Layer:
        """Candidates [B, k * c] below the nodes of a layer, which have these places [B, k] in the pool."""
        found = grower.expand(layer.tokens, layer.above, self.top_k)
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
        utility = _utility(best.values.exp())
        count = num_worthwhile(utility[:most], cost[:most], self.threshold.rerank) if self.rerank else most
        self.choice = TreeChoice(
            layers=choices, num_verified=count, utility=utility, cost=cost[: len(utility)]
        )
        pool = Pool(tokens=nodes.tokens, scores=nodes.scores, parents=nodes.parents)
        chosen = best.indices[:, :count].sort(dim=1).values
        return pool.draft(chosen, num_levels=min(len(layers), count))


def _utility(confidence: Tensor) -> Floats:
    """Running sums [n] of confidences [B, n], averaged over the batch; read by the host."""
    total: Floats = confidence.double().mean(0).cumsum(0).cpu().numpy()
    return total
