"""Acceptors: which drafted tokens stay, and which token comes after them.

Shapes: B sequences, n drafted nodes, V vocabulary. Row 0 of the logits [B, 1+n, V] follows the pending
token, row 1+i follows node i.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from harness.config import configurable
from harness.decoding.faults import LogitsNotFinite
from harness.decoding.sampling import TokenSampler
from harness.drafting.draft import Draft
from harness.drafting.drafter import Tap, TargetView


class Accepted(NamedTuple):
    """The decision of one round."""

    length: Tensor
    """[B] int64: the number of accepted nodes."""
    path: Tensor
    """[B, n] int64: their node indices in order, anything after `length`."""
    token: Tensor
    """[B] int64: the token after the last accepted node (the bonus), the next pending one."""


@configurable
class Acceptor(ABC):
    """Base of all acceptors."""

    lossless: ClassVar[bool] = True
    """Whether the output keeps the target's distribution. False is carried into every table."""
    coupled: ClassVar[bool] = True
    """Whether the output must equal vanilla's token for token; if not, only its distribution is the same."""
    forced: ClassVar[bool] = False
    """Whether nodes are kept without regard to what the target would say. True is carried into every
    table."""

    @property
    def name(self) -> str:
        """The name used in tables."""
        return type(self).__name__.lower()

    def load(self) -> None:  # noqa: B027 - a hook
        """Read the files that the acceptor needs, before anything is measured.

        Raises:
            ConfigError: a file is missing or malformed.
        """

    def card(self) -> dict[str, Any]:
        """Facts about the loaded files, for the manifest, in JSON types."""
        return {}

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The target's hidden states that `see` receives."""
        return ()

    def bind(self, target: TargetView) -> None:  # noqa: B027 - a hook
        """Read what the rule needs of the target, before anything is measured."""

    def see(self, states: list[Tensor]) -> None:  # noqa: B027 - a hook
        """Receive the states [B, 1+n, H] of the pending token and the nodes, per tap, before `accept`."""

    @abstractmethod
    def accept(self, logits: Tensor, draft: Draft, sampler: TokenSampler, start: Tensor) -> Accepted:
        """Decide a round.

        logits [B, 1+n, V]: of the pending token and the nodes; an acceptor never sees those of riders.
        start [B] int64: output position of the token after the pending one.
        """


@configurable
class Coupled(Acceptor):
    """Keep a node if it is the token that plain decoding would draw there, with the same noise.

    Exact at every temperature: the emitted tokens are the ones vanilla draws (greedy at temperature 0,
    Gumbel-max above), whatever was drafted and by whatever means.
    """

    @override
    def accept(self, logits: Tensor, draft: Draft, sampler: TokenSampler, start: Tensor) -> Accepted:
        if logits.device.type == "cpu":
            return walk(logits, draft, sampler, start)
        return sweep(logits, draft, sampler, start)


def sweep(logits: Tensor, draft: Draft, sampler: TokenSampler, start: Tensor) -> Accepted:
    """All rows at once without a read by the host: a node stands if it and all its ancestors match."""
    if draft.width == 0:
        token = sampler.choose(logits, start[:, None])[:, 0]
        return Accepted(draft.size, draft.tokens, token)
    rows = torch.arange(len(start), device=logits.device)
    choice = choices(logits, draft, sampler, start)
    matches = (draft.tokens == choice.gather(1, draft.parents + 1)) & draft.real
    stands = (matches[:, None, :] | ~draft.ancestors).all(-1) & draft.real
    count = stands.sum(-1)
    path = stands.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    last = torch.nn.functional.pad(path + 1, (1, 0))[rows, count]
    return Accepted(count, path, choice[rows, last])


def choices(logits: Tensor, draft: Draft, sampler: TokenSampler, start: Tensor) -> Tensor:
    """[B, 1+n] the token after the pending one and after every node, as plain decoding would draw it."""
    levels = draft.width if draft.num_levels is None else draft.num_levels
    index = start[:, None] + torch.arange(levels + 1, device=logits.device)
    level = None if draft.is_chain else torch.nn.functional.pad(draft.depths, (1, 0))
    return sampler.choose(logits, index, level)


def walk(logits: Tensor, draft: Draft, sampler: TokenSampler, start: Tensor) -> Accepted:
    """The same decision level by level, drawing only along the path; for devices that the host reads
    freely."""
    rows = torch.arange(len(start), device=logits.device)
    node = torch.zeros_like(start)
    alive = torch.ones_like(start, dtype=torch.bool)
    count, token = torch.zeros_like(start), torch.zeros_like(start)
    path = torch.zeros_like(draft.tokens)
    for level in range(draft.width + 1):
        choice = sampler.choose(logits[rows, node][:, None], (start + level)[:, None])[:, 0]
        token = torch.where(alive, choice, token)
        if level == draft.width:
            break
        child = (draft.tokens == choice[:, None]) & (draft.parents + 1 == node[:, None]) & draft.real
        alive = alive & child.any(-1)
        if not alive.any():
            break
        found = child.int().argmax(-1)
        path[:, level] = found
        count = count + alive
        node = torch.where(alive, found + 1, node)
    return Accepted(count, path, token)


@configurable
class Rejection(Acceptor):
    """Accept a node with min(1, p/q), else draw from the residual (Leviathan et al. 2023; Chen et al. 2023).

    For trees, siblings are tried in order, each against what the ones before it left (SpecInfer, Miao et al.
    2024). Exact in distribution, not token for token, and checked by distribution tests instead of identity.
    """

    coupled: ClassVar[bool] = False

    @override
    def accept(self, logits: Tensor, draft: Draft, sampler: TokenSampler, start: Tensor) -> Accepted:
        """Decide a round on the host, in float64."""
        count, token = torch.zeros_like(start), torch.zeros_like(start)
        path = torch.zeros_like(draft.tokens)
        target_probs = sampler.params.probs(logits).double().cpu().numpy()
        drawn_from = None if draft.probs is None else draft.probs.double().cpu().numpy()
        for row, position in enumerate(start.tolist()):
            drawn = None if drawn_from is None else drawn_from[row]
            random = sampler.generator(row, position)
            nodes, last = self._descend(target_probs[row], drawn, draft, row, random)
            count[row], token[row] = len(nodes), last
            path[row, : len(nodes)] = torch.tensor(nodes, dtype=torch.int64, device=path.device)
        return Accepted(count, path, token)

    @staticmethod
    def _descend(
        target_rows: NDArray[np.float64],
        drawn_from: NDArray[np.float64] | None,
        draft: Draft,
        row: int,
        random: np.random.Generator,
    ) -> tuple[list[int], int]:
        """The accepted nodes of one sequence and the token after them.

        target_rows [1+n, V]: the target's distribution, per row of logits. drawn_from [n, V]: the drafter's,
        per node; None where every token was chosen, not drawn.
        """
        size = int(draft.size[row])
        tokens, parents = draft.tokens[row].tolist(), draft.parents[row].tolist()
        accepted: list[int] = []
        here = -1
        while True:
            target_probs = target_rows[here + 1].copy()
            if not np.isfinite(target_probs.sum()):
                raise LogitsNotFinite("in a round")
            for node in (i for i in range(size) if parents[i] == here):
                target_probs /= target_probs.sum()
                if drawn_from is None:
                    draft_probs = np.zeros_like(target_probs)
                    draft_probs[tokens[node]] = 1.0
                else:
                    draft_probs = drawn_from[node]
                if random.random() * draft_probs[tokens[node]] < target_probs[tokens[node]]:
                    accepted.append(node)
                    here = node
                    break
                target_probs = np.maximum(target_probs - draft_probs, 0.0)
            else:
                return accepted, int(random.choice(len(target_probs), p=target_probs / target_probs.sum()))
