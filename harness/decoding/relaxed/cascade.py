"""CASCADE: a token may stay where a sibling was drawn that leads the target to the same state.

Reconstruction from the abstract of arXiv 2605.07230, where nothing else could be read: the target's hidden
states over the draft tree say where the choice among tokens does not matter. All details here are ours.

Breadth: siblings a and b are interchangeable if the states after them have a cosine of at least
`tau_breadth`. Depth (`depth=branches`): they are as well if a child of one and a child of the other have a
cosine of at least `tau_depth`, so that both branches have converged; or (`depth=flat`) the budget is
`flat_delta` behind a token after which the state hardly changed. A token then stands for the interchangeable
siblings, the most similar first, as far as the target gives these together at most `delta`.

Shapes: B sequences, n drafted nodes, H hidden size.
"""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize
from typing_extensions import override

from harness.config import configurable
from harness.decoding.relaxed.rule import Relaxed, Verification, within_budget
from harness.drafting.drafter import HiddenTap, Tap


@configurable
class Cascade(Relaxed):
    """Lets tokens stand for siblings with the same consequences."""

    tau_breadth: float = Field(default=0.95, ge=-1)
    """Least cosine of interchangeable siblings; above 1 none is."""
    tau_depth: float = Field(default=0.95, ge=-1)
    """Least cosine of converged branches, or of a state that hardly changed; above 1 none is."""
    delta: float = Field(default=0.1, ge=0, le=1)
    """Most probability of the siblings that a token stands for."""
    depth: Literal["none", "branches", "flat"] = "branches"
    """How convergence along a path is read."""
    flat_delta: float = Field(default=0.3, ge=0, le=1)
    """The budget of `depth=flat`."""

    @property
    @override
    def name(self) -> str:
        return f"cascade {self.tau_breadth:g}, {self.tau_depth:g}, {self.delta:g}"

    @property
    @override
    def taps(self) -> tuple[Tap, ...]:
        return (HiddenTap(-1, "normed"),)

    @override
    def see(self, states: list[Tensor]) -> None:
        self._states = normalize(states[0].float(), dim=-1)

    @override
    def lets_stay(self, seen: Verification) -> Tensor:
        draft, states = seen.draft, self._states
        nodes = states[:, 1:]
        alike = nodes @ nodes.transpose(1, 2)
        siblings = (draft.parents[:, :, None] == draft.parents[:, None]) & draft.real[:, None]
        siblings &= ~torch.eye(draft.width, dtype=torch.bool, device=alike.device)
        related = alike >= self.tau_breadth
        if self.depth == "branches":
            # Entry (a, b) counts pairs of a child of a and a child of b that are alike.
            numbers = torch.arange(draft.width, device=alike.device)
            above = ((draft.parents[:, None] == numbers[:, None]) & draft.real[:, None]).float()
            converged = above @ (alike >= self.tau_depth).float() @ above.transpose(1, 2)
            related = related | (converged > 0)
        budget = torch.full_like(alike[..., 0], self.delta)
        if self.depth == "flat":
            unchanged = (seen.before(states) * nodes).sum(-1) >= self.tau_depth
            budget = torch.where(unchanged, max(self.delta, self.flat_delta), budget)
        return self._stands_for(seen, siblings & related, alike, budget)

    @staticmethod
    def _stands_for(seen: Verification, related: Tensor, alike: Tensor, budget: Tensor) -> Tensor:
        """[B, n] bool: nodes that stand for the sibling that was drawn.

        related [B, n, n] bool: the siblings of each node that it may stand for. budget [B, n].
        """
        tokens = seen.draft.tokens
        probs = seen.before(seen.probs)
        mass = probs.gather(-1, tokens[:, None].expand_as(alike))
        order = alike.masked_fill(~related, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
        mass = torch.where(related, mass, 0.0).gather(-1, order)
        allowed = within_budget(mass, budget.double()) & related.gather(-1, order)
        drawn = tokens[:, None].expand_as(alike).gather(-1, order) == seen.before(seen.drawn)[..., None]
        return (drawn & allowed).any(-1)
