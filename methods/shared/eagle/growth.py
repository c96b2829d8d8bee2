"""One round of a draft head: pairs that stay in its cache, then nodes of a tree that do not.

Shapes: B sequences, m new pairs, k nodes, c children, E nodes expanded so far, H hidden size of the head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.drafting.trees import Proposals
from methods.shared.eagle.steps import HeadSteps

_CHUNK = 1024
"""Pairs of a prompt that are fed at once; their mask is quadratic."""


class Growth:
    """The `Grower` of one round: runs the head over pairs that stay cached, then over nodes that do not."""

    def __init__(self, steps: HeadSteps, row: int | None = None) -> None:
        """row: the only sequence of the cache that is fed and grown; None: all of them."""
        self._steps, self._cache, self._row = steps, steps.cache, row
        self._outputs = self._seen = torch.empty(0)

    def begin(self, num_rows: int) -> None:
        """Forget the cache."""
        self._cache.clear(num_rows)

    def padded(self, features: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Features and tokens of pairs, with rows added up to a number that is compiled for."""
        more = self._steps.size_for(*tokens.shape) - tokens.shape[1]
        if more and self._row is None:
            return pad(features, (0, 0, 0, more)), pad(tokens, (0, more))
        return features, tokens

    def feed(self, features: Tensor, tokens: Tensor, counts: Sequence[int] | Tensor) -> Tensor:
        """Take in true pairs: features [B, m, F], and tokens [B, m] that each follow their feature.

        The first `counts[b]` pairs of each sequence stay in the cache; counts is a tensor [B] where the host
        does not know them. Returns the states [B, m, H] after the pairs.
        """
        features, tokens = self.padded(features, tokens)
        num_rows, num_pairs = tokens.shape
        states = self._steps.project(features)
        pieces = []
        # No `range` over a number that a program does not know.
        for start in range(0, num_pairs, _CHUNK) if num_pairs > _CHUNK else (0,):
            here = slice(start, start + _CHUNK)
            count = tokens[:, here].shape[1]
            behind = torch.ones(count, start + count, dtype=torch.bool, device=tokens.device).tril(start)
            offsets = torch.arange(start, start + count, device=tokens.device)
            tree = behind.expand(num_rows, -1, -1)
            outputs = self._steps.run(
                self._rows,
                tokens[:, here],
                states[:, here],
                offsets[None],
                tree,
                # The remainder of a long prompt may have any length, and so has the prompt of one sequence.
                plain=num_pairs > _CHUNK or self._row is not None,
            )
            pieces.append(outputs)
        outputs = torch.cat(pieces, dim=1) if len(pieces) > 1 else pieces[0]
        if isinstance(counts, Tensor):
            self._cache.advance(counts)
            last = counts - 1
        else:
            fed = [0] * len(self._cache.lengths)
            fed[self._rows] = counts
            self._cache.advance(fed)
            last = torch.tensor(list(counts)).to(tokens.device, non_blocking=True) - 1
        # A further head may be fed no row of a sequence that begins.
        last = last.clamp(min=0)
        self._outputs = outputs.gather(1, last[:, None, None].expand(-1, 1, outputs.shape[-1]))
        self._seen = torch.zeros(num_rows, 1, 0, dtype=torch.bool, device=tokens.device)
        return outputs

    def rewind(self) -> None:
        """Forget the nodes that were expanded; what was fed stays."""
        self._outputs, self._seen = self._outputs[:, :1], self._seen[:, :1, :0]

    @property
    def context(self) -> float:
        """Cached pairs per sequence, which are as many as tokens that the target has cached."""
        lengths = self._cache.lengths[self._rows]
        return sum(lengths) / len(lengths)

    @property
    def state(self) -> Tensor:
        """The state [B, H] after the pending token."""
        return self._outputs[:, 0]

    @property
    def logits(self) -> Tensor:
        """The logits [B, V] after the pending token."""
        return self._steps.score(self.state)

    def start(self, num_children: int) -> Proposals:
        """The root's best children; see `Grower`."""
        tokens, log_probs = self._steps.best(self._outputs[:, :1], num_children)
        return Proposals(tokens[:, 0], log_probs[:, 0])

    def expand(self, tokens: Tensor, parents: Tensor, num_children: int) -> Proposals:
        """The best children of nodes; see `Grower`.

        A node's state is its parent's output. It sees the pairs, its ancestors and itself.
        """
        num_rows, num_nodes = tokens.shape
        rows = torch.arange(num_rows, device=tokens.device)[:, None]
        states, above = self._outputs[rows, parents + 1], self._seen[rows, parents + 1]
        itself = torch.eye(num_nodes, dtype=torch.bool, device=tokens.device).expand(num_rows, -1, -1)
        seen = torch.cat([above, itself], dim=-1)
        # The pending token's own pair is the last in the cache; its children come one position later.
        outputs = self._steps.run(self._rows, tokens, states, seen.sum(-1) - 1, seen)
        self._outputs = torch.cat([self._outputs, outputs], dim=1)
        wider = pad(self._seen, (0, num_nodes))
        self._seen = torch.cat([wider, seen], dim=1)
        return self._steps.best(outputs, num_children)

    @property
    def _rows(self) -> slice:
        return slice(0, len(self._cache.lengths)) if self._row is None else slice(self._row, self._row + 1)
