"""Datastore: a fixed text of token ids with its suffix array, memory-mapped.

A folder of three files: `ids.npy`, `order.npy` (the suffix array) and `about.json`. Entries stand behind
one another without separators, as in REST's own datastore, so a continuation may run into the next entry.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.config import ConfigError
from harness.system.files import write_json

_IDS, _ORDER, _ABOUT = "ids.npy", "order.npy", "about.json"


class Datastore:
    """Finds where a sequence of tokens stands in the text."""

    def __init__(self, ids: NDArray[np.uint32], order: NDArray[np.int64], about: dict[str, Any]) -> None:
        """ids [L]: the text. order [L]: its suffixes in ascending order, by where they begin."""
        self.ids, self._order, self.about = ids, order, about

    @classmethod
    def open(cls, folder: Path) -> Datastore:
        """Map the files of `save`.

        Raises:
            ConfigError: there is no datastore, or it is not whole.
        """
        try:
            about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
            ids, order = (np.load(folder / name, mmap_mode="r") for name in (_IDS, _ORDER))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"datastore={folder}: holds no datastore ({error}); python -m methods.rest makes one"
            ) from error
        if not len(ids) == len(order) == about.get("num_tokens"):
            raise ConfigError(
                f"datastore={folder}: is not whole, as its files differ in length; make it again with"
                " python -m methods.rest"
            )
        return cls(ids, order, about)

    @classmethod
    def build(cls, entries: Iterable[Sequence[int]], **about: Any) -> Datastore:
        """Sort the suffixes of all entries; `about` is kept with them."""
        ids = np.fromiter((token for entry in entries for token in entry), np.uint32)
        return cls(ids, suffix_order(ids), {**about, "num_tokens": len(ids)})

    def save(self, folder: Path) -> None:
        """Write the files; what says that it is whole comes last."""
        folder.mkdir(parents=True, exist_ok=True)
        np.save(folder / _IDS, self.ids)
        np.save(folder / _ORDER, self._order)
        write_json(folder / _ABOUT, self.about)

    def hits(self, query: Sequence[int]) -> NDArray[np.int64]:
        """Where the query stands, by the places behind it, in the order of the suffixes."""
        low = self._bound(tuple(query), after=False)
        high = self._bound(tuple(query), after=True)
        return np.asarray(self._order[low:high]) + len(query)

    def longest_hits(self, context: Sequence[int], most: int, least: int) -> NDArray[np.int64]:
        """The hits of the longest suffix, of `most` down to `least` tokens, that stands in the text; or none.

        Where a suffix stands, shorter ones stand, too, so the longest one is found by bisection.
        """
        low, high = least, min(most, len(context))
        found = np.empty(0, np.int64)
        while low <= high:
            middle = (low + high) // 2
            hits = self.hits(context[-middle:])
            if len(hits):
                found, low = hits, middle + 1
            else:
                high = middle - 1
        return found

    def continuations(self, places: NDArray[np.int64], count: int) -> NDArray[np.int64]:
        """What stands from these places [n] on: tokens [n, count], -1 behind the end of the text."""
        where = places[:, None] + np.arange(count)
        found: NDArray[np.int64] = self.ids[np.minimum(where, len(self.ids) - 1)].astype(np.int64)
        found[where >= len(self.ids)] = -1
        return found

    def _bound(self, query: tuple[int, ...], after: bool) -> int:
        """The first suffix that does not come before the query; `after`: nor begins with it."""
        low, high = 0, len(self._order)
        while low < high:
            middle = (low + high) // 2
            begin = int(self._order[middle])
            found = tuple(self.ids[begin : begin + len(query)].tolist())
            if found < query or (after and found == query):
                low = middle + 1
            else:
                high = middle
        return low


def suffix_order(ids: NDArray[np.uint32]) -> NDArray[np.int64]:
    """The suffix array of a text, by prefix doubling (Manber and Myers 1993): O(n log^2 n)."""
    rank = np.unique(ids, return_inverse=True)[1].astype(np.int64)
    order, step = np.argsort(rank, kind="stable"), 1
    while len(ids) and int(rank.max()) < len(ids) - 1:
        # Suffixes are compared by their first `step` tokens, then by the `step` after them.
        behind = np.concatenate([rank[step:] + 1, np.zeros(min(step, len(rank)), np.int64)])[: len(rank)]
        key = rank * (len(rank) + 1) + behind
        order = np.argsort(key, kind="stable")
        differs = np.concatenate([[False], np.diff(key[order]) != 0])
        rank = np.empty_like(rank)
        rank[order] = np.cumsum(differs)
        step *= 2
    return order


def frequent_prefixes(continuations: NDArray[np.int64], count: int) -> list[tuple[int, ...]]:
    """The `count` most frequent beginnings of the continuations: among equals the shorter, then the smaller.

    continuations [n, d]: as `Datastore.continuations` gives them, in ascending order.

    A beginning is at least as frequent as what continues it, so the result is closed under prefixes.
    """
    num_rows, depth = continuations.shape
    if not num_rows or not depth:
        return []
    # Equal beginnings stand side by side: each has a run of rows at its depth.
    begins = np.ones(continuations.shape, bool)
    begins[1:] = np.logical_or.accumulate(continuations[1:] != continuations[:-1], axis=1)
    depths, rows = np.nonzero(begins.T)
    following = np.append(rows[1:], num_rows)
    counts = np.where(following > rows, following, num_rows) - rows
    real = continuations[rows, depths] >= 0
    depths, rows, counts = depths[real], rows[real], counts[real]
    # One number to sort by: more hits, then fewer tokens, then the order of the rows.
    rank = (depths - counts * depth) * num_rows + rows
    best = np.argpartition(rank, count)[:count] if len(rank) > count else np.arange(len(rank))
    best = best[np.argsort(rank[best])]
    return [
        tuple(continuations[row, : last + 1].tolist())
        for row, last in zip(rows[best], depths[best], strict=True)
    ]


def released_cut(continuations: NDArray[np.int64], count: int) -> list[tuple[int, ...]]:
    """The beginnings that the released code keeps, closed under prefixes.

    continuations [n, d]: as `Datastore.continuations` gives them.

    Of the `count` most frequent ones, those with the most distinct tokens are dropped until these numbers add
    up to `count`. The code decides ties by a hash with a random seed; here it is the same in every process.
    """
    whole = (tuple(token for token in row if token >= 0) for row in continuations.tolist())
    counts = Counter(prefix for one in whole for prefix in _prefixes(one))
    frequent = sorted(counts, key=lambda path: (-counts[path], hash(path)))[:count]
    kept = sorted(frequent, key=lambda path: (len(set(path)), hash(path)))
    spent = sum(len(set(path)) for path in kept)
    while spent > count:
        spent -= len(set(kept.pop()))
    return list(dict.fromkeys(prefix for path in kept for prefix in _prefixes(path)))


def _prefixes(path: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    return (path[:end] for end in range(1, len(path) + 1))
