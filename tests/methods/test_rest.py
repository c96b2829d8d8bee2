"""REST: hits are those of a naive search, cuts follow their rules, and a datastore must fit the target."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from harness.config import ConfigError
from harness.drafting.drafter import TargetView
from methods.rest.datastore import Datastore, frequent_prefixes, released_cut, suffix_order
from methods.rest.drafter import Rest, main

Paths = list[tuple[int, ...]]


def paths_of(tokens: list[int], parents: list[int]) -> Paths:
    found: Paths = []
    for token, parent in zip(tokens, parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return sorted(found)


def rest_of(folder: Path, vocab_size: int, **settings: Any) -> Rest:
    drafter = Rest(datastore=str(folder), **settings)
    drafter.bind(cast(TargetView, SimpleNamespace(device=torch.device("cpu"), vocab_size=vocab_size)))
    return drafter


def test_hits_are_those_of_a_naive_search() -> None:
    draw = random.Random(1)
    ids = [draw.randrange(3) for _ in range(200)]
    store = Datastore.build([ids])
    for size in range(1, 6):
        query = [draw.randrange(3) for _ in range(size)]
        found = {begin + size for begin in range(len(ids)) if ids[begin : begin + size] == query}
        assert set(store.hits(query).tolist()) == found


def test_the_longest_suffix_that_stands_in_the_text_is_found() -> None:
    draw = random.Random(2)
    ids = [draw.randrange(4) for _ in range(150)]
    store = Datastore.build([ids])
    for _ in range(40):
        context = [draw.randrange(4) for _ in range(draw.randrange(1, 9))]
        found = store.longest_hits(context, 6, 2).tolist()
        sizes = [size for size in range(2, min(6, len(context)) + 1) if len(store.hits(context[-size:]))]
        assert found == (store.hits(context[-sizes[-1] :]).tolist() if sizes else [])


def test_frequent_prefixes_are_those_of_a_count() -> None:
    draw = random.Random(4)
    store = Datastore.build([[draw.randrange(3) for _ in range(300)]])
    rows = store.continuations(store.hits([1, 2]), 5)
    whole = [tuple(token for token in row if token >= 0) for row in rows.tolist()]
    counts = Counter(one[:end] for one in whole for end in range(1, len(one) + 1))
    expected = sorted(counts, key=lambda path: (-counts[path], len(path), path))
    for count in (1, 7, 64, 10_000):
        assert frequent_prefixes(rows, count) == expected[:count]


def test_the_released_cut_drops_paths_of_many_tokens_and_closes_the_rest() -> None:
    paths = np.array([(1, 2, 3, 4), (5, 5, 5, -1)])
    assert set(released_cut(paths, 64)) == {(1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), (5,), (5, 5), (5, 5, 5)}
    # Seven beginnings of one, one, one, one, two, three and four distinct tokens.
    assert set(released_cut(paths, 12)) == {(1,), (1, 2), (1, 2, 3), (5,), (5, 5), (5, 5, 5)}


def test_a_small_text_may_be_given_itself() -> None:
    target = cast(TargetView, SimpleNamespace(device=torch.device("cpu"), vocab_size=16))
    drafter = Rest(ids=(1, 2, 3, 4))
    drafter.bind(target)
    assert drafter.propose_tree([1, 2], None, 10) == ([3, 4], [-1, 0])
    with pytest.raises(ConfigError, match="got neither"):
        Rest().bind(target)
    with pytest.raises(ConfigError, match="got both"):
        Rest(ids=(1,), datastore="x").bind(target)


def test_the_suffix_array_sorts_the_suffixes() -> None:
    draw = random.Random(3)
    for length, alphabet in ((0, 1), (1, 1), (40, 1), (200, 2), (300, 50)):
        ids = [draw.randrange(alphabet) for _ in range(length)]
        order = suffix_order(np.array(ids, np.uint32)).tolist()
        assert order == sorted(range(length), key=lambda begin: ids[begin:])


def test_prefixes_are_kept_by_count_then_length_then_tokens() -> None:
    found = frequent_prefixes(np.array([(1, 2), (1, 3), (4, 5), (4, 5)]), 4)
    assert found == [(1,), (4,), (4, 5), (1, 2)]


def test_a_datastore_is_made_of_stored_outputs_and_must_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = tmp_path / "records.jsonl"
    lines = [{"output_ids": [1, 2, 3, 4]}, {"output_ids": [1, 2, 3, 4]}, {"output_ids": [9, 2, 3, 5]}]
    records.write_text("\n".join(map(json.dumps, lines)))
    store = tmp_path / "store"
    assert main([str(records), "--vocab-size", "16", "--out", str(store)]) == 0
    assert "8 tokens" in capsys.readouterr().err
    drafter = rest_of(store, 16, num_nodes=2)
    assert paths_of(*drafter.propose_tree([7, 2, 3], None, 10)) == [(4,), (5,)]
    assert drafter.propose_tree([7, 7], None, 10) == ([], [])
    with pytest.raises(ConfigError, match="vocabulary of 16 tokens, the target has 32"):
        rest_of(store, 32)
    with pytest.raises(ConfigError, match="holds no datastore"):
        rest_of(tmp_path / "nowhere", 16)
    assert main([str(records), "--vocab-size", "4", "--out", str(store)]) == 2
    assert "records.jsonl:1: needs `output_ids`" in capsys.readouterr().err
    assert main([str(tmp_path / "none"), "--vocab-size", "4", "--out", str(store)]) == 2
    assert "none: no such file" in capsys.readouterr().err
