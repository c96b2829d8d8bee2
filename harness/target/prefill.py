"""Prefill: the prompts of a batch are fed in groups that share a forward.

Shapes: m prompts, P prompt tokens, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from harness.config import ConfigError
from harness.runtime import attention
from harness.runtime.cache import SlotCache
from harness.target.adapter import ModelAdapter
from harness.target.taps import Taps

CHUNK = 2048
"""The largest number of tokens in one forward; a longer prompt is fed alone, in pieces."""
_MOST = 8
"""The largest number of prompts in one forward: each adds logits to the rows of all others."""
_MOST_PADDING = 1 / 8
"""The largest share of padding, relative to the tokens of the prompts: on a CPU it costs what tokens cost."""


def groups(rows: Sequence[int], lengths: Sequence[int], most: int = CHUNK) -> Iterator[slice]:
    """Divide prompts of these lengths, for these rows of a cache, into parts of one forward each, with `most`
    tokens at most.

    A part consists of few prompts of nearly one length in neighbouring rows.
    """
    begin = 0
    for end in range(1, len(rows) + 1):
        neighbours = end < len(rows) and rows[end] == rows[end - 1] + 1
        if not (neighbours and _fit(lengths[begin : end + 1], most)):
            yield slice(begin, end)
            begin = end


def _fit(lengths: Sequence[int], most: int) -> bool:
    num_tokens = max(lengths) * len(lengths)
    return len(lengths) <= _MOST and num_tokens <= min(most, (1 + _MOST_PADDING) * sum(lengths))


def padded(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The prompts padded to the longest. Padding comes behind a prompt, whose tokens do not look there."""
    longest = max(map(len, prompts))
    return [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]


class PromptFeeder:
    """Feeds prompts to sequences of a target."""

    def __init__(
        self, model: ModelAdapter, cache: SlotCache, taps: Taps, forward: Callable[..., Tensor]
    ) -> None:
        """`forward`: takes ids, positions, mask, rows and the logits to keep, see `Target._forward`."""
        self._model, self._cache, self._taps, self._forward = model, cache, taps, forward
        window = model.masks.window
        self._most = CHUNK if window is None else min(CHUNK, window.most_new)

    @torch.no_grad()
    def feed(
        self, rows: Sequence[int], prompts: Sequence[Sequence[int]], together: bool
    ) -> tuple[Tensor, list[list[Tensor]]]:
        """Feed m prompts to the sequences `rows`, which begin anew.

        Returns logits [m, V] after them and, per prompt and tap, the states [P, H]. together: prompts of one
        group (see `groups`) share a forward.
        """
        logits, states = [], []
        alone = (slice(number, number + 1) for number in range(len(rows)))
        for part in groups(rows, [len(prompt) for prompt in prompts], self._most) if together else alone:
            last, seen = self._feed(rows[part.start], prompts[part])
            logits.append(last)
            states += seen
        return torch.cat(logits), states

    def _feed(self, row: int, prompts: Sequence[Sequence[int]]) -> tuple[Tensor, list[list[Tensor]]]:
        """Feed prompts in one forward to the sequences from `row` on; a long prompt alone, in chunks."""
        rows, lengths = slice(row, row + len(prompts)), [len(prompt) for prompt in prompts]
        device = self._model.device
        ids = torch.tensor(padded(prompts), dtype=torch.int64).to(device)
        self._cache.lengths[rows] = [0] * len(prompts)
        even, start = len(set(lengths)) == 1, 0
        # Numbers, not a tensor: the last block may lie on another device.
        last_positions = [length - 1 for length in lengths]
        pieces: list[list[Tensor]] = [[] for _ in self._taps.watched]
        for chunk in torch.split(ids, self._most, dim=1):
            count = chunk.shape[1]
            mask = None
            if start or (self._model.kernel != attention.GROUPED):
                mask = torch.ones(count, start + count, dtype=torch.bool, device=device)
                mask = mask.tril(start)[None, None]
            positions = torch.arange(start, start + count, device=device)[None].expand_as(chunk)
            logits = self._forward(chunk, positions, mask, rows, 1 if even else last_positions)
            start += count
            self._cache.lengths[rows] = [min(length, start) for length in lengths]
            for piece, state in zip(pieces, self._taps.states(), strict=True):
                piece.append(state)
        # For prompts of several lengths, every row has logits at the last token of each of them.
        if not even and logits.shape[1] != len(prompts):
            raise ConfigError(
                "target.trust_remote_code: the model does not heed logits_to_keep; type measure.batch_size=1"
            )
        last = logits[:, -1] if even else logits.diagonal().T
        whole = [torch.cat(piece, dim=1) if len(piece) > 1 else piece[0] for piece in pieces]
        return last, [[state[i, :length] for state in whole] for i, length in enumerate(lengths)]
