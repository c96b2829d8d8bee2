"""CostAwarePolicy: how much of a draft to verify, by confidence and measured time, and nothing where nothing
pays.

The rule of CAST (Hong, Tan and Hu 2025, arXiv 2510.26577, section on reranking) for any drafter, and an
account of what drafts have brought and cost, which bounds what a bad drafter can lose.

Shapes: B sequences, n drafted nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from torch import Tensor
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.drafting.draft import TreeShape
from harness.drafting.draft_policy import DraftPolicy
from harness.drafting.step_costs import StepCosts
from methods.shared.cost_aware.costs import RoundCosts, measured
from methods.shared.cost_aware.marginal import num_worthwhile
from methods.shared.cost_aware.thresholds import SpeedupThreshold, Threshold

_WIDEST = 10
"""Nodes of a level up to which the drafter's own model is timed; a wider level counts as this."""
_CONTEXT = 256
"""Cached tokens behind which costs are looked up."""
_PRIOR, _WEIGHT = 0.7, 2.0
"""Share of first tokens that is expected to be kept before any was tried, and the tries that it counts as."""


class KeptRates:
    """How likely the tokens of a chain are kept, by their depth, learned from the chains that were verified.

    Of each depth, the share of tokens that were kept where all before them were. A depth that was rarely
    tried is expected to do as the one above it. Old rounds fade, so that a depth that is no longer tried
    returns to that expectation, and is tried again.
    """

    def __init__(self, memory: float) -> None:
        """memory: the weight of the rounds so far beside the newest one."""
        self._memory = memory
        self._kept: list[float] = []
        self._tried: list[float] = []

    def likely(self, most: int) -> list[float]:
        """The probabilities that the first 1, 2, ... `most` tokens are all kept."""
        found, rate, together = list[float](), _PRIOR, 1.0
        for depth in range(most):
            if depth < len(self._tried):
                rate = (self._kept[depth] + _WEIGHT * rate) / (self._tried[depth] + _WEIGHT)
            together *= rate
            found.append(together)
        return found

    def observe(self, sizes: Sequence[int], kept: Sequence[int]) -> None:
        """A round verified `sizes` tokens of each sequence and kept `kept` of them."""
        more = max(sizes, default=0) - len(self._tried)
        self._kept = [count * self._memory for count in self._kept] + [0.0] * more
        self._tried = [count * self._memory for count in self._tried] + [0.0] * more
        for size, length in zip(sizes, kept, strict=True):
            for depth in range(min(length + 1, size)):
                self._tried[depth] += 1
                self._kept[depth] += depth < length


@configurable
class CostAwarePolicy(DraftPolicy):
    """Verifies the nodes whose marginal confidence exceeds what their time would bring otherwise.

    Confidence is what the drafter states; of chains without it, the shares of tokens that were kept before.
    All sequences of a batch verify equally many nodes, because the widest draft decides what a forward costs.

    An account in one-token forwards of the target adds what drafts brought and subtracts what they cost
    beyond plain decoding. While it is overdrawn the drafter is not asked. So, by the measured costs, a call
    loses at most `share` of a forward per round, `reserve` and a single draft, whatever the drafter does.
    """

    threshold: Threshold = Field(default_factory=SpeedupThreshold)
    """What a marginal gain must exceed."""
    share: float = Field(default=0.01, ge=0, lt=1)
    """Forwards that the account is given every round, to try drafts that have not paid lately."""
    reserve: float = Field(default=1.0, ge=0)
    """Forwards that the account begins a call with."""
    savings: float = Field(default=8.0, ge=0)
    """The most forwards on the account: what paid long ago does not pay for what fails now."""
    memory: float = Field(default=0.98, ge=0, lt=1)
    """The weight of the rounds so far beside the newest one, for the shares of kept tokens."""

    def __post_init__(self) -> None:
        """Start without costs, which the run brings before the first draft, and with nothing observed."""
        self.costs: RoundCosts | None = None
        self.new_call(keep_memory=False)

    @property
    @override
    def weighs_costs(self) -> bool:
        return True

    @override
    def use_costs(
        self, costs: StepCosts, num_rows: int, rehearse: Callable[[int, int], Callable[[int], None] | None]
    ) -> None:
        """Measure the drafter's own forwards; the target's come from `costs`."""
        self.costs = measured(costs, num_rows, rehearse, most_nodes=_WIDEST, spacing=_CONTEXT, num_buckets=1)

    @override
    def new_call(self, keep_memory: bool) -> None:
        """Forget what was observed, so that calls do not depend on their order."""
        if keep_memory:
            return
        self.threshold.forget()
        self.account = self.reserve
        self._rates = KeptRates(self.memory)
        self._cost = 1.0

    @property
    @override
    def wants_draft(self) -> bool:
        return self.account >= 0

    @override
    def select(self, shape: TreeShape) -> Tensor | None:
        if self.costs is None:
            raise RuntimeError("CostAwarePolicy.select before use_costs: nothing says what a node costs")
        best = self._confidence(shape).sort(dim=1, descending=True, stable=True)
        utility: list[float] = best.values.double().mean(0).cumsum(0).tolist()
        cost = [1.0, *self.costs.verify(0)[: shape.width].tolist()]
        count = num_worthwhile([0.0, *utility[: len(cost) - 1]], cost, self.threshold.rerank) - 1
        self._cost = cost[count] + self._drafting_cost(shape, self.costs)
        if count == shape.width:
            return None
        keep = torch.zeros_like(shape.parents, dtype=torch.bool)
        return keep.scatter(1, best.indices[:, :count], True)

    @override
    def observe(self, sizes: Sequence[int], kept: Sequence[int]) -> None:
        emitted = 1 + sum(kept) / len(kept)
        self.threshold.observe(emitted, self._cost)
        self._rates.observe(sizes, kept)
        self.account = min(self.account + self.share + emitted - self._cost, self.savings)
        self._cost = 1.0

    def _confidence(self, shape: TreeShape) -> Tensor:
        """The probability [B, n] that each node is kept; 0 for padding."""
        if shape.confidence is not None:
            return shape.confidence * shape.real
        if not shape.is_chain:
            raise ConfigError(
                "policy: CostAwarePolicy decides by confidence, and the drafter states none for its trees;"
                " type methods.NAME.policy=keep_all"
            )
        likely = torch.tensor(self._rates.likely(shape.width), device=shape.parents.device)
        return likely * shape.real

    def _drafting_cost(self, shape: TreeShape, costs: RoundCosts) -> float:
        """What the drafter's own model cost: a forward per level, over as many nodes as a level has on
        average."""
        levels = shape.num_levels or (shape.width if shape.is_chain else int(shape.depths.max()))
        curve = costs.draft(0)
        return levels * float(curve[min(shape.width // levels, len(curve)) - 1])
