"""Token Recycling: drafts and tables of the authors' code, and merged paths."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from harness.config import ConfigError
from harness.drafting.draft import Draft
from harness.drafting.drafter import Outcome, TargetView
from methods.token_recycling import TokenRecycling

RECORDED = Path(__file__).parents[3] / "shared/fixtures/ngram/public/token_recycling"
CASES = sorted(RECORDED.glob("*.json")) if RECORDED.is_dir() else []
Paths = list[tuple[int, ...]]


def bound(vocab_size: int, **settings: Any) -> TokenRecycling:
    drafter = TokenRecycling(**settings)
    view = SimpleNamespace(device=torch.device("cpu"), vocab_size=vocab_size)
    drafter.bind(cast(TargetView, view))
    drafter.reset(1)
    return drafter


def paths_of(tokens: list[int], parents: list[int]) -> Paths:
    """The tokens from the root down to each node; parents as indices, -1 for the root."""
    found: Paths = []
    for token, parent in zip(tokens, parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


def drafted(draft: Draft) -> Paths:
    size = int(draft.size[0])
    return paths_of(draft.tokens[0, :size].tolist(), draft.parents[0, :size].tolist())


def logits_of(paths: Paths, best: dict[tuple[int, ...], list[int]], vocab_size: int) -> Tensor:
    """Logits [1, 1+n, V] whose k largest are those recorded after the root and after each node."""
    logits = torch.zeros(1, 1 + len(paths), vocab_size)
    for place, path in enumerate([(), *paths]):
        ids = torch.tensor(best[path])
        logits[0, place, ids] = torch.arange(len(ids), 0, -1).float()
    return logits


@pytest.mark.skipif(not CASES, reason="the recorded cases are not beside this checkout")
@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_every_draft_and_table_is_that_of_the_authors_code(file: Path) -> None:
    case, tensors = json.loads(file.read_text()), load_file(file.with_suffix(".safetensors"))
    drafter = bound(case["vocab_size"], top_k=case["params"]["topk"])
    for number, call in enumerate(case["calls"]):
        if call["memory"] == "fresh":
            drafter.reset(1)
        for index, told in enumerate(call["rounds"]):
            drafter._pending = torch.tensor([told["root"]])
            draft = drafter.propose([1000])
            own = drafted(draft)
            recorded = paths_of(told["draft_tokens"], told["draft_parents"])
            assert sorted(own) == sorted(recorded), f"call {number}, round {index}"
            if not told["matrix_updated"]:
                continue
            official = tensors[f"c{number}.official_tokens"][index].tolist()
            places = [parent - 1 for parent in case["official_parents"][1:]]
            rows = tensors[f"c{number}.topk"][index].tolist()
            best = dict(zip([(), *paths_of(official[1:], places)], rows, strict=True))
            logits = logits_of(own, best, case["vocab_size"])
            committed = [[told["root"]]]
            drafter.observe(
                Outcome(committed=committed, pending=[told["next_root"]], draft=draft, logits=logits)
            )
        table = drafter._table[0, : case["vocab_size"]]
        torch.testing.assert_close(table, tensors[f"c{number}.matrix_after"].to(table.dtype))


def test_an_unseen_token_drafts_each_path_once_and_a_legal_tree() -> None:
    drafter = bound(16)
    drafter.observe(Outcome(committed=[[1, 2]], pending=[3]))
    draft = drafter.propose([10])
    draft.check(16)
    assert drafted(draft) == [(0,) * depth for depth in range(1, 7)]


def test_sequences_have_tables_of_their_own_and_a_new_one_begins_with_nothing() -> None:
    drafter = bound(32, children=((2,),))
    drafter.reset(2)
    drafter.observe(Outcome(committed=[[1], [1]], pending=[5, 5]))
    logits = torch.zeros(2, 2, 32)
    logits[0, 0, [9, 8]], logits[1, 0, [7, 6]] = torch.tensor([2.0, 1.0]), torch.tensor([2.0, 1.0])
    # Both are back at token 5, whose successors differ.
    drafter.observe(
        Outcome(committed=[[5], [5]], pending=[5, 5], draft=drafter.propose([4, 4]), logits=logits)
    )
    assert drafter.propose([4, 4]).tokens.tolist() == [[9, 8], [7, 6]]
    drafter.observe(Outcome(committed=[[1]], pending=[5], rows=[0]))
    assert drafter.propose([4, 4]).size.tolist() == [1, 2]
    drafter.keep([1])
    assert drafter.propose([4]).tokens.tolist() == [[7, 6]]


@pytest.mark.parametrize(
    ("settings", "told"),
    [({"top_k": 4}, "top_k=4"), ({"children": ((2,), (1,))}, "level 2"), ({"children": ((0,),)}, "level 1")],
)
def test_a_tree_that_does_not_fit_is_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=told):
        TokenRecycling(**settings)


def test_a_vocabulary_smaller_than_k_is_refused() -> None:
    with pytest.raises(ConfigError, match="only 4 tokens"):
        bound(4)
