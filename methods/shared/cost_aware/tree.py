"""CostAwareTree: how wide, how deep and how many nodes to verify, by marginal confidence and marginal time.

CAST (Hong, Tan and Hu 2025, arXiv 2510.26577). Shapes: B sequences, k nodes of a layer, c children of a node,
n drafted nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from harness.config import configurable
from harness.drafting.draft import Draft
from harness.drafting.step_costs import StepCosts
from harness.drafting.trees import Grower, TreePolicy
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
    """[B, k] int64: place among all nodes of the layers before, -1 for the pending token."""


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
        return min(self.max_nodes, self.max_depth * self.max_width)

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
        """Layers of nodes that are worth expanding, until another one is not."""
        prefix = grower.context if self.context == "prefix" else 0
        first = grower.start(self.top_k)
        candidates = _Layer(first.tokens, first.log_probs, torch.full_like(first.tokens, -1))
        layers: list[_Layer] = []
        choices: list[LayerChoice] = []
        num_drafted = 0
        while True:
            layer, utility = _best(candidates, self.max_width)
            cost = costs.draft(prefix + num_drafted)[: len(utility)]
            width = self._width(utility, cost)
            if choices:
                before = choices[-1]
                self.gate.observe(float(utility[width - 1] / before.utility[before.num_nodes - 1]))
            gain = self.gate.gain(float(utility[width - 1]), float(cost[width - 1]))
            continues = len(layers) + 1 < self.max_depth
            if self.depth:
                continues = continues and gain >= self.threshold.depth
            layers.append(_Layer(*(part[:, :width] for part in layer)))
            choices.append(
                LayerChoice(
                    num_nodes=width,
                    utility=utility,
                    cost=cost,
                    mean_ratio=self.gate.mean,
                    gain=gain,
                    continues=continues,
                )
            )
            if not continues:
                return layers, choices
            candidates = self._children(grower, layers[-1], num_drafted)
            num_drafted += width

    def _width(self, utility: Floats, cost: Floats) -> int:
        if not self.breadth:
            return len(utility)
        return num_worthwhile(utility, cost, self.threshold.breadth)

    def _children(self, grower: Grower, layer: _Layer, first: int) -> _Layer:
        """Candidates [B, k * c] below the nodes of a layer; `first`: the place of its first node among
        all."""
        found = grower.expand(layer.tokens, layer.parents, self.top_k)
        num_rows, width = layer.tokens.shape
        places = torch.arange(first, first + width, device=layer.tokens.device)
        return _Layer(
            found.tokens.flatten(1),
            (layer.scores[..., None] + found.log_probs).flatten(1),
            places.repeat_interleave(self.top_k).expand(num_rows, -1),
        )

    def _select(
        self, layers: list[_Layer], choices: list[LayerChoice], costs: RoundCosts, context: float
    ) -> Draft:
        """The nodes that are worth verifying, in the order in which they were expanded."""
        nodes = _Layer(*(torch.cat(parts, dim=1) for parts in zip(*layers, strict=True)))
        order = nodes.scores.sort(dim=1, descending=True, stable=True).indices
        confidence = nodes.scores.exp()
        utility = _utility(confidence.gather(1, order))
        cost = costs.verify(context)[: len(utility)]
        most = min(self.max_nodes, len(cost))
        count = num_worthwhile(utility[:most], cost[:most], self.threshold.rerank) if self.rerank else most
        self.choice = TreeChoice(layers=choices, num_verified=count, utility=utility, cost=cost)
        chosen = order[:, :count].sort(dim=1).values
        # A child never outscores its parent and comes later, so the parent of a chosen node is chosen.
        places = torch.arange(count, device=chosen.device).expand_as(chosen)
        rank = torch.full_like(nodes.parents, -1).scatter(1, chosen, places)
        above = nodes.parents.gather(1, chosen)
        return Draft(
            tokens=nodes.tokens.gather(1, chosen),
            parents=torch.where(above < 0, above, rank.gather(1, above.clamp(min=0))),
            size=torch.full_like(chosen[:, 0], count),
            confidence=confidence.gather(1, chosen),
            num_levels=min(len(layers), count),
        )


def _best(candidates: _Layer, most: int) -> tuple[_Layer, Floats]:
    """The best candidates of each sequence, best first, and the summed confidence of the first 1, 2, ..."""
    order = candidates.scores.sort(dim=1, descending=True, stable=True).indices[:, :most]
    best = _Layer(*(part.gather(1, order) for part in candidates))
    return best, _utility(best.scores.exp())


def _utility(confidence: Tensor) -> Floats:
    """Running sums [n] of confidences [B, n], averaged over the batch; read by the host."""
    total: Floats = confidence.double().mean(0).cumsum(0).cpu().numpy()
    return total
