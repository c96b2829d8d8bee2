"""One round of an EAGLE head: pairs that stay in its cache, then nodes of a tree that do not.

Shapes: B sequences, m new pairs, k nodes, c children, E nodes expanded so far, H hidden size of the head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.attention import grouped, tree_mask
from harness.cache import SlotCache
from harness.drafter import TargetView
from harness.trees import Proposals
from methods.shared.eagle_head import Head

_CHUNK = 1024
"""Pairs of a prompt that are fed at once: their mask is quadratic."""


class Growth:
    """One round's `Grower`: the head run over pairs that stay in its cache, then over nodes that do not.

    state [B, H], logits [B, V]: after the pending token (for whoever wants to look). row: of the cache, the
    only sequence that is fed and grown; None is all.
    """

    def __init__(self, target: TargetView, network: Head, cache: SlotCache, row: int | None = None) -> None:
        self._target, self._network, self._cache, self._row = target, network, cache, row
        self._root = self._outputs = self._seen = torch.empty(0)

    def begin(self, num_rows: int) -> None:
        """Forget the cache."""
        self._cache.clear(num_rows)

    def feed(self, features: Tensor, tokens: Tensor, counts: Sequence[int]) -> Tensor:
        """Take in true pairs: features [B, m, F] and tokens [B, m], each one after its feature.

        The first `counts[b]` of each sequence stay. States [B, m, H] after them.
        """
        num_rows, num_pairs = tokens.shape
        states = self._network.project(features)
        pieces = []
        for start in range(0, num_pairs, _CHUNK):
            here = slice(start, start + _CHUNK)
            count = tokens[:, here].shape[1]
            behind = torch.ones(count, start + count, dtype=torch.bool, device=tokens.device).tril(start)
            offsets = torch.arange(start, start + count, device=tokens.device)
            tree = behind.expand(num_rows, -1, -1)
            pieces.append(self._run(tokens[:, here], states[:, here], offsets[None], tree))
        outputs = torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0]
        fed = [0] * len(self._cache.lengths)
        fed[self._rows] = counts
        self._cache.advance(fed)
        last = torch.tensor(list(counts)).to(tokens.device, non_blocking=True) - 1
        self._outputs = outputs.gather(1, last[:, None, None].expand(-1, 1, outputs.shape[-1]))
        self._seen = torch.zeros(num_rows, 1, 0, dtype=torch.bool, device=tokens.device)
        return outputs

    def rewind(self) -> None:
        """Forget the nodes that were expanded; what was fed stays."""
        self._outputs, self._seen = self._outputs[:, :1], self._seen[:, :1, :0]

    @property
    def state(self) -> Tensor:
        """See the class."""
        return self._outputs[:, 0]

    @property
    def logits(self) -> Tensor:
        """See the class."""
        return self.score(self.state)

    def start(self, num_children: int) -> Proposals:
        """See `Grower`."""
        return self.proposals(self.state, num_children)

    def expand(self, tokens: Tensor, parents: Tensor, num_children: int) -> Proposals:
        """See `Grower`. A node's state is its parent's output; it sees the pairs, its ancestors, itself."""
        num_rows, num_nodes = tokens.shape
        rows = torch.arange(num_rows, device=tokens.device)[:, None]
        states, above = self._outputs[rows, parents + 1], self._seen[rows, parents + 1]
        itself = torch.eye(num_nodes, dtype=torch.bool, device=tokens.device).expand(num_rows, -1, -1)
        seen = torch.cat([above, itself], dim=-1)
        # The pending token's own pair is the last one of the cache; a child of it comes one position later.
        outputs = self._run(tokens, states, seen.sum(-1) - 1, seen)
        self._outputs = torch.cat([self._outputs, outputs], dim=1)
        wider = torch.nn.functional.pad(self._seen, (0, num_nodes))
        self._seen = torch.cat([wider, seen], dim=1)
        return self.proposals(outputs, num_children)

    @property
    def _rows(self) -> slice:
        return slice(0, len(self._cache.lengths)) if self._row is None else slice(self._row, self._row + 1)

    def score(self, states: Tensor) -> Tensor:
        """Logits [..., V] over the draft vocabulary."""
        network = self._network
        normed = network.normed(states)
        if network.shape.architecture == "eagle3" and network.shape.own_lm_head:
            logits: Tensor = network.lm_head(normed)
            return logits
        return self._target.lm_head(normed.to(self._target.dtype)).to(states.device)

    def proposals(self, states: Tensor, num_children: int) -> Proposals:
        """The best tokens after `states` [..., H]."""
        logits = self.score(states).float()
        best = logits.topk(num_children, dim=-1)
        # A float32 log-probability of at most 0, so that no child outscores its parent.
        log_probs = best.values - logits.logsumexp(-1, keepdim=True)
        tokens = best.indices
        if self._network.shape.draft_vocab_size != self._network.shape.vocab_size:
            tokens = tokens + self._network.d2t[tokens]
        return Proposals(tokens, log_probs)

    def _run(self, tokens: Tensor, states: Tensor, offsets: Tensor, tree: Tensor) -> Tensor:
        """The head over n new rows of every sequence: outputs [B, n, H].

        offsets [B or 1, n]: position behind the cached pairs. tree [B, n, e + n] bool: which rows behind the
        pairs each sees, of e that are there already and of the new ones.
        """
        network, cache = self._network, self._cache
        num_new = tokens.shape[1]
        lengths = cache.lengths[self._rows]
        base = torch.tensor(lengths).to(tokens.device, non_blocking=True)[:, None]
        embed = network.embed_tokens or self._target.embed
        embedded = embed(tokens).to(states.dtype)
        cache.aim(self._rows, num_new, tokens.device, ahead=tree.shape[-1] - num_new)
        mask = tree_mask(lengths, tree)

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys, values = cache.update(key, value, 0)
            return grouped(network, query, keys, values, mask)[0]

        output: Tensor = network(embedded, states, base + offsets, attend)
        return output
