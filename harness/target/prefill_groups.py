"""Prompts of a batch: which of them share a forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

CHUNK = 2048
"""Most tokens of one forward; a longer prompt is fed alone, in pieces."""
_MOST = 8
"""Prompts of one forward: of several lengths, each asks for logits in the rows of all."""
_MOST_PADDING = 1 / 8
"""Over the tokens of prompts that are fed together: on a CPU padding costs what tokens cost."""


def groups(rows: Sequence[int], lengths: Sequence[int]) -> Iterator[slice]:
    """Prompts of these lengths, for these rows of a cache, as parts that are fed in one forward each.

    A part is of neighbouring rows, few, and of nearly one length.
    """
    begin = 0
    for end in range(1, len(rows) + 1):
        neighbours = end < len(rows) and rows[end] == rows[end - 1] + 1
        if not (neighbours and _fit(lengths[begin : end + 1])):
            yield slice(begin, end)
            begin = end


def _fit(lengths: Sequence[int]) -> bool:
    num_tokens = max(lengths) * len(lengths)
    return len(lengths) <= _MOST and num_tokens <= min(CHUNK, (1 + _MOST_PADDING) * sum(lengths))


def padded(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """All as long as the longest. What fills them up comes behind a prompt, where nothing of it looks."""
    longest = max(map(len, prompts))
    return [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
