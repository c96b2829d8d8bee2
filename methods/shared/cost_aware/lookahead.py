"""What another layer is expected to add to the nodes that are verified, beyond what verifying them costs.

The paper weighs a layer's confidence against the drafter's time alone. Where verification is dear, as on a
CPU or in a large batch, most of what a layer holds is never verified, so its confidence says too much. The
authors' serving code scores a layer by its gain in the list of verified nodes; this does so before the layer
is drafted, from the probabilities that children had in the last layers.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from methods.shared.cost_aware.marginal import Floats


class Lookahead:
    """Probabilities of children given their parent, best first, averaged over the layers drafted last."""

    def __init__(self, length: int) -> None:
        """length: how many layers are remembered."""
        self._length = length
        self._layers: list[Floats] = []

    def observe(self, children: ArrayLike) -> None:
        """Remember the children [c] of a layer, averaged over its nodes; the oldest layer is forgotten."""
        self._layers = [*self._layers, np.asarray(children, np.float64)][-self._length :]

    @property
    def children(self) -> Floats:
        """The expected probabilities [c] of a node's children, best first."""
        mean: Floats = np.mean(self._layers, axis=0)
        return mean

    def gains(self, nodes: Floats, frontier: Floats, cost: Floats, price: float) -> Floats:
        """Expected gain of expanding the best 1, 2, ... nodes of `frontier` [k], without the drafter's time.

        nodes [n]: confidence of all nodes so far, falling. cost [m]: of verifying 1, 2, ... nodes, in
        forwards of the target. price: tokens that a forward must bring. Gains are in tokens.
        """
        before = _worth(nodes, cost, price)
        grown = np.multiply.outer(frontier, self.children)
        gains = np.empty(len(frontier))
        for count in range(1, len(frontier) + 1):
            together = np.concatenate([nodes, grown[:count].ravel()])
            together[::-1].sort()
            gains[count - 1] = _worth(together, cost, price) - before
        return gains


def _worth(nodes: Floats, cost: Floats, price: float) -> float:
    """The most that verifying some of the nodes [n], falling, brings beyond its cost; at least one is."""
    count = min(len(nodes), len(cost))
    return float((nodes[:count].cumsum() - price * cost[:count]).max())
