"""REST: hits and trees are those of the code and of the paper's rule; a datastore must fit the target."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from harness.config import ConfigError
from harness.drafting.drafter import TargetView
from methods.rest.datastore import Datastore, frequent_prefixes, suffix_order
from methods.rest.drafter import Rest, main

RECORDED = Path(__file__).parents[3] / "shared/fixtures/ngram/public/rest"
CASES = sorted(RECORDED.glob("*.json")) if RECORDED.is_dir() else []
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


@pytest.mark.skipif(not CASES, reason="the recorded cases are not beside this checkout")
@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_hits_are_those_of_the_code_and_trees_those_of_the_paper(file: Path, tmp_path: Path) -> None:
    case = json.loads(file.read_text())
    params = case["params"]
    store = Datastore.build([case["datastore"]], vocab_size=case["vocab_size"])
    store.save(tmp_path)
    spans = {"max_suffix": max(params["spans"]), "min_suffix": min(params["spans"])}
    drafter = rest_of(tmp_path, case["vocab_size"], num_nodes=params["max_num_draft"], **spans)
    for call in case["calls"]:
        for told in call["rounds"]:
            context = call["script"][: told["n"] + 1]
            sizes = [size for size in params["spans"] if size <= len(context)]
            matched = next((size for size in sizes if len(store.hits(context[-size:]))), 0)
            assert matched == (told["matched_len"] or 0)
            assert not matched or len(store.hits(context[-matched:])) == told["hits"]
            if "paper_tokens" in told:
                own = paths_of(*drafter.propose_tree(context, None, 1000))
                assert own == paths_of(told["paper_tokens"], told["paper_parents"])


def test_the_suffix_array_sorts_the_suffixes() -> None:
    draw = random.Random(3)
    for length, alphabet in ((0, 1), (1, 1), (40, 1), (200, 2), (300, 50)):
        ids = [draw.randrange(alphabet) for _ in range(length)]
        order = suffix_order(np.array(ids, np.uint32)).tolist()
        assert order == sorted(range(length), key=lambda begin: ids[begin:])


def test_prefixes_are_kept_by_count_then_length_then_tokens() -> None:
    found = frequent_prefixes([(1, 2), (1, 3), (4, 5), (4, 5)], 4)
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
