"""Training a draft head while it drafts: its last guesses, computed again with a gradient.

The pairs that the head has read stay as they were cached, under the weights of their time. Only the pending
token's own pair and the nodes of the tree are computed again, each node from the output of its parent, so
that the gradient passes through the whole path, as in training.

Shapes: R recomputed rows, m rows of guesses, H hidden size of the head, F width of the target's features, D
head dimension, V draft vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from harness.config import configurable
from harness.drafting.draft import Draft
from harness.drafting.drafter import HiddenTap, TargetView
from harness.drafting.online import OnlineDrafter
from methods.shared.eagle.drafter import HeadDrafter
from methods.shared.eagle.heads.base import DraftHead
from methods.shared.eagle.training import unfolded
from methods.shared.learned import column_scale, draft_vocabulary


@configurable
class OnlineHeadDrafter(HeadDrafter, OnlineDrafter):
    """A drafter with a head that can be trained while it drafts one sequence."""

    def use_head(self, network: DraftHead, taps: tuple[HiddenTap, ...]) -> None:
        """Draft with this head from now on; it reads the target's states at `taps`."""
        self.network = network
        self.draft_with(network, taps)

    @property
    @override
    def draft_vocabulary(self) -> Tensor | None:
        return draft_vocabulary(self.network, self._target.device)

    @override
    def begin_learning(self) -> torch.nn.Module:
        """The head in float32, but for the embedding; a step changes all columns of `fc` alike, however
        large the features are that they read."""
        self._columns = column_scale(self.network.fc.weight) if self.network.reads_raw_features else None
        self._learned = unfolded(self.network, self._columns).eval().requires_grad_(True)
        if self._learned.embed_tokens is not None:
            self._learned.embed_tokens.requires_grad_(False)
        return self._learned

    @override
    def output_parameters(self) -> Sequence[torch.nn.Parameter]:
        return [] if self._learned.lm_head is None else list(self._learned.lm_head.parameters())

    @override
    def recall(self, draft: Draft, rows: Tensor) -> Callable[[], Tensor]:
        num_pairs, last = self._cache.lengths[0], self._counts[0] - 1
        keys, values = (part[:1, :, : num_pairs - 1] for part in self._cache.buffers(0))
        feature = self._features[:1, last : last + 1].float()
        return _Recall(
            head=self._learned,
            target=self._target,
            feature=feature if self._columns is None else feature / self._columns,
            token=self._tokens[:1, last : last + 1],
            past=(keys, values),
            draft=draft,
            rows=rows,
        )

    @torch.no_grad()
    @override
    def publish(self) -> None:
        learned = dict(self._learned.named_parameters())
        for name, parameter in self.network.named_parameters():
            if not learned[name].requires_grad and name.startswith("embed_tokens"):
                continue
            value: Tensor = learned[name]
            if name == "fc.weight" and self._columns is not None:
                value = value / self._columns
            parameter.copy_(value)
        self._target.refresh(self.network)


@dataclass(frozen=True)
class _Recall:
    """The guesses after some rows of a draft, with the weights that `head` has when it is called."""

    head: DraftHead
    target: TargetView
    feature: Tensor
    """[1, 1, F]: of the token before the pending one."""
    token: Tensor
    """[1, 1] int64: the pending one."""
    past: tuple[Tensor, Tensor]
    """Keys and values [1, kv, n, D] of the pairs before; constant."""
    draft: Draft
    rows: Tensor

    def __call__(self) -> Tensor:
        """Logits [m, V]."""
        head, draft = self.head, self.draft
        nodes = self.rows[1:] - 1
        depths = draft.depths[0, nodes]
        order = depths.argsort(stable=True)
        nodes, depths = nodes[order], depths[order]
        # Row 0 is the pending token's pair, row 1 + i the i-th of the ordered nodes.
        sees = torch.nn.functional.pad(draft.ancestors[0][nodes][:, nodes], (1, 0), value=True)
        place = torch.zeros(1 + draft.width, dtype=torch.int64, device=nodes.device)
        place[nodes + 1] = torch.arange(1, 1 + len(nodes), device=nodes.device)
        above = place[draft.parents[0, nodes] + 1]
        attention = GrowingAttention(*self.past)
        begin = self.past[0].shape[2]
        outputs = self._run(attention, self.token, head.project(self.feature), begin, sees.new_ones(1, 1))
        for depth in range(1, int(depths.max()) + 1 if len(depths) else 1):
            here = (depths == depth).nonzero()[:, 0]
            tokens, states = draft.tokens[:1, nodes[here]], outputs[:, above[here]]
            seen = sees[here, : 1 + int(here[-1]) + 1]
            outputs = torch.cat([outputs, self._run(attention, tokens, states, begin + depth, seen)], dim=1)
        slots = torch.cat([place.new_zeros(1), place[self.rows[1:]]])
        return head.logits(outputs[0, slots], self.target)

    def _run(
        self, attention: GrowingAttention, tokens: Tensor, states: Tensor, position: int, seen: Tensor
    ) -> Tensor:
        """Outputs [1, R, H] of new rows at one position; seen [R, e + R] bool: of all recomputed rows."""
        head = self.head
        embed = head.embed_tokens or self.target.embed
        attention.seen = seen
        positions = torch.full_like(tokens, position)
        output: Tensor = head(embed(tokens).to(states.dtype), states, positions, attention)
        return output


class GrowingAttention:
    """An `Attend` over constant keys and those of the rows so far."""

    seen: Tensor
    """[R, e + R] bool: which of the rows so far the next rows see."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self._keys, self._values = [keys.float()], [values.float()]

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Take in new rows, and attend from them; see `Attend`."""
        self._keys.append(key)
        self._values.append(value)
        past = self._keys[0].shape[2]
        output = torch.nn.functional.scaled_dot_product_attention(
            query,
            torch.cat(self._keys, dim=2),
            torch.cat(self._values, dim=2),
            attn_mask=torch.nn.functional.pad(self.seen, (past, 0), value=True),
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return output.transpose(1, 2)
