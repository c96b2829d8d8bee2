"""The trees of a draft head at many places of a training row, and the log-probabilities of paths.

All places share the keys and values of the row; each has its own for the nodes behind it. What is computed is
what `Growth` computes round by round, so that training sees the trees that decoding drafts.

Shapes: L tokens of a packed row, B places, k nodes, E nodes expanded so far, c children, H hidden size of the
head, A attention heads, D head dimension, V draft vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.drafting.draft import Draft
from harness.drafting.drafter import TargetView
from harness.drafting.trainable import TrainingRow
from harness.drafting.trees import Proposals, TreePolicy
from methods.shared.draft_vocabulary import DraftVocabulary
from methods.shared.eagle.heads.base import DraftHead
from methods.shared.eagle.training import embed


@dataclass(frozen=True, kw_only=True)
class HeadTrees:
    """A head as the `TreeStudent` that group tree optimisation trains, or compares with."""

    head: DraftHead
    target: TargetView
    policy: TreePolicy
    vocabulary: DraftVocabulary
    scale: Tensor | None
    """[F]: what features are divided by before the head reads them."""

    def trees(self, row: TrainingRow, places: Tensor) -> Draft:
        """The trees that decoding would draft at `places` [B]."""
        return self.policy.grow(self._grower(row, places))

    def chains(self, row: TrainingRow, places: Tensor, length: int) -> Draft:
        """The paths of `length` tokens that always take the most probable next one."""
        grower = self._grower(row, places)
        tokens = [grower.start(1).tokens]
        for step in range(length - 1):
            above = torch.full_like(tokens[-1], step - 1)
            tokens.append(grower.expand(tokens[-1], above, 1).tokens[:, 0])
        return Draft.chain(torch.cat(tokens, dim=1), torch.full_like(places, length))

    def log_probs(self, row: TrainingRow, places: Tensor, paths: Tensor) -> Tensor:
        """[B, d]: log-probabilities of the tokens `paths` [B, d], each after those before it."""
        grower = self._grower(row, places)
        drafted = self.vocabulary.index(paths)
        found = []
        for step in range(paths.shape[1]):
            if step:
                above = torch.full_like(places[:, None], step - 2)
                grower.extend(paths[:, step - 1, None], above)
            logits = self.head.logits(grower.last[:, 0], self.target).float()
            found.append(logits.log_softmax(-1).gather(1, drafted[:, step, None]))
        return torch.cat(found, dim=1)

    def _grower(self, row: TrainingRow, places: Tensor) -> RowGrower:
        features = torch.cat(row.taps, dim=-1).float()
        features = features if self.scale is None else features / self.scale
        return RowGrower(self.head, self.target, row, features, places)


class RowGrower:
    """The `Grower` of the places of a row."""

    def __init__(
        self, head: DraftHead, target: TargetView, row: TrainingRow, features: Tensor, places: Tensor
    ) -> None:
        """features [L, F]: what `project` reads."""
        self._head, self._target = head, target
        self._positions = row.positions[places]
        self._known = (row.document == row.document[places, None]) & (
            torch.arange(len(row.ids), device=places.device) <= places[:, None]
        )
        self._row_keys = self._row_values = torch.empty(0)
        self._keys, self._values = list[Tensor](), list[Tensor]()
        outputs = head(
            embed(head, target, row.ids.roll(-1)[None]),
            head.project(features[None]),
            row.positions[None],
            self._attend_row,
            places,
        )
        self._outputs = self.last = outputs[0][:, None]
        """The states of the expanded nodes, and of those that came last: [B, 1 + E, H] and [B, k, H]."""
        self._seen = torch.zeros(len(places), 1, 0, dtype=torch.bool, device=places.device)

    @property
    def context(self) -> float:
        """Tokens before a place, on average."""
        return float(self._known.sum(-1).float().mean())

    def start(self, num_children: int) -> Proposals:
        """Children [B, c] of the pending tokens."""
        found = self._best(num_children)
        return Proposals(found.tokens[:, 0], found.log_probs[:, 0])

    def expand(self, tokens: Tensor, parents: Tensor, num_children: int) -> Proposals:
        """Children [B, k, c] of the nodes `tokens` [B, k]; see `Grower`."""
        self.extend(tokens, parents)
        return self._best(num_children)

    def extend(self, tokens: Tensor, parents: Tensor) -> None:
        """Run the head over nodes: a node's state is its parent's output, and it sees the row up to its
        place, its ancestors and itself."""
        num_places, num_nodes = tokens.shape
        rows = torch.arange(num_places, device=tokens.device)[:, None]
        states, above = self._outputs[rows, parents + 1], self._seen[rows, parents + 1]
        itself = torch.eye(num_nodes, dtype=torch.bool, device=tokens.device).expand(num_places, -1, -1)
        self._now = torch.cat([above, itself], dim=-1)
        positions = self._positions[:, None] + self._now.sum(-1)
        self.last = self._head(embed(self._head, self._target, tokens), states, positions, self._attend_nodes)
        self._outputs = torch.cat([self._outputs, self.last], dim=1)
        self._seen = torch.cat([pad(self._seen, (0, num_nodes)), self._now], dim=1)

    def _best(self, num_children: int) -> Proposals:
        logits = self._head.logits(self.last, self._target).float()
        best = logits.topk(num_children, dim=-1)
        # As in drafting, so that ties are broken alike.
        log_probs = best.values - logits.logsumexp(-1, keepdim=True)
        return Proposals(self._head.target_ids(best.indices), log_probs)

    def _attend_row(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """An `Attend` for the places themselves, which see the row's pairs up to their own."""
        self._row_keys, self._row_values = key, value
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=self._known, enable_gqa=query.shape[1] != key.shape[1]
        )
        return output.transpose(1, 2)

    def _attend_nodes(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """An `Attend` for nodes: query [B, A, k, D]; the row's keys are shared by all places."""
        self._keys.append(key)
        self._values.append(value)
        keys, values = torch.cat(self._keys, dim=2), torch.cat(self._values, dim=2)
        num_places, num_heads, num_nodes, size = query.shape
        num_kv = key.shape[1]
        # [kv, queries of all places, D]: one product with the keys of the row, which are not copied.
        grouped = query.view(num_places, num_kv, -1, num_nodes, size) / math.sqrt(size)
        flat = grouped.transpose(0, 1).reshape(num_kv, -1, size)
        before = (flat @ self._row_keys[0].transpose(1, 2)).view(*_places_first(grouped), -1).transpose(0, 1)
        own = grouped @ keys[:, :, None].transpose(3, 4)
        before = before.masked_fill(~self._known[:, None, None, None], -math.inf)
        own = own.masked_fill(~self._now[:, None, None], -math.inf)
        weights = torch.cat([before, own], dim=-1).float().softmax(-1).to(query.dtype)
        length = before.shape[-1]
        shared = weights[..., :length].transpose(0, 1).reshape(num_kv, -1, length) @ self._row_values[0]
        output = shared.view(*_places_first(grouped), size).transpose(0, 1)
        output = output + weights[..., length:] @ values[:, :, None]
        return output.reshape(num_places, num_heads, num_nodes, size).transpose(1, 2)


def _places_first(grouped: Tensor) -> tuple[int, ...]:
    """The shape of [B, kv, g, k, D] without D, its first two dimensions exchanged."""
    num_places, num_kv, *rest = grouped.shape[:-1]
    return (num_kv, num_places, *rest)
