"""Rules about a layer of a tree: how many of its nodes to expand, and whether to expand any."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from typing_extensions import override

from methods.shared.cost_aware.lookahead import Lookahead
from methods.shared.cost_aware.marginal import DepthGate, Floats, num_worthwhile
from methods.shared.cost_aware.thresholds import Threshold


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
    """What the rule compared: by layer, the expected confidence of the next layer over the cost of expanding
    this one; by verified nodes, the expected gain in tokens beyond all costs."""
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


@dataclass(frozen=True, kw_only=True)
class LayerFacts:
    """What a rule knows of a layer; confidences are averaged over the batch."""

    utility: Floats
    """[k] confidence of the best 1, 2, ... candidates of the layer."""
    cost: Floats
    """[k] cost of expanding so many."""
    nodes: Floats
    """[n] confidence of the best nodes of all layers so far, falling."""
    verify: Floats
    """[m] cost of verifying 1, 2, ... nodes."""
    before: LayerChoice | None
    """The decision about the layer before."""
    is_last: bool
    """Whether this is the deepest layer that is allowed."""


class LayerRule(ABC):
    """Base of both rules."""

    def __init__(self, threshold: Threshold, breadth: bool, depth: bool, length: int) -> None:
        """breadth, depth: whether the width and whether the number of layers is chosen. length: how many
        layers are remembered, R in the paper."""
        self.threshold = threshold
        self.gate = DepthGate(length)
        self._breadth, self._depth = breadth, depth

    def learn(self, children: Floats) -> None:  # noqa: B027 - a hook
        """The children [c] of a layer's nodes had these probabilities, best first, on average."""

    @abstractmethod
    def choose(self, layer: LayerFacts) -> LayerChoice:
        """Decide about a layer."""


class ByLayer(LayerRule):
    """The paper's: a layer's confidence against the drafter's time; thresholds C1 and C2."""

    @override
    def choose(self, layer: LayerFacts) -> LayerChoice:
        utility, cost, before = layer.utility, layer.cost, layer.before
        width = len(utility)
        if self._breadth:
            width = num_worthwhile(utility, cost, self.threshold.breadth)
        if before is not None:
            self.gate.observe(float(utility[width - 1] / before.utility[before.num_nodes - 1]))
        gain = self.gate.gain(float(utility[width - 1]), float(cost[width - 1]))
        return LayerChoice(
            num_nodes=width,
            utility=utility,
            cost=cost,
            mean_ratio=self.gate.mean,
            gain=gain,
            continues=not layer.is_last and (not self._depth or gain >= self.threshold.depth),
        )


class ByVerified(LayerRule):
    """What the next layer is expected to add to the verified nodes, against the time of drafting it and of
    verifying them; threshold C3, whose price holds for both."""

    def __init__(self, threshold: Threshold, breadth: bool, depth: bool, length: int) -> None:
        super().__init__(threshold, breadth, depth, length)
        self._lookahead = Lookahead(length)

    @override
    def learn(self, children: Floats) -> None:
        self._lookahead.observe(children)

    @override
    def choose(self, layer: LayerFacts) -> LayerChoice:
        price, most = self.threshold.rerank, len(layer.utility)
        frontier = np.diff(layer.utility, prepend=0.0)
        gains = self._lookahead.gains(layer.nodes, frontier, layer.verify, price) - price * layer.cost
        width = int(gains.argmax()) + 1 if self._breadth else most
        gain = float(gains[width - 1])
        continues = not layer.is_last and (not self._depth or gain > 0)
        return LayerChoice(
            # What is not expanded costs nothing, so the last layer is kept as it is.
            num_nodes=width if continues else most,
            utility=layer.utility,
            cost=layer.cost,
            mean_ratio=self.gate.mean,
            gain=gain,
            continues=continues,
        )
