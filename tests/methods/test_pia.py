"""PIA: the trie forest drafts what the authors' code drafted, and thins crowded tries by a stated rule."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from methods.pia.trie_forest import TrieForest

RECORDED = Path(__file__).parents[3] / "shared/fixtures/ngram/public/pia_upstream"
CASES = sorted(RECORDED.glob("*.json")) if RECORDED.is_dir() else []


def paths_of(tokens: list[int], parents: list[int]) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = []
    for token, parent in zip(tokens, parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return sorted(found)


def forest_of(case: dict[str, Any]) -> TrieForest:
    params, end = case["params"], case["eos_token_id"]
    return TrieForest(
        branch_length=params["branch_length"],
        num_nodes=params["decoding_length"],
        output_weight=params["output_weight"],
        end_token_ids=() if end is None else (end,),
    )


@pytest.mark.skipif(not CASES, reason="the recorded cases are not beside this checkout")
@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_every_draft_is_that_of_the_authors_code(file: Path) -> None:
    case = json.loads(file.read_text())
    forest = forest_of(case)
    for number, call in enumerate(case["calls"]):
        if call["memory"] == "fresh":
            forest = forest_of(case)
        prompt = call["prompt_ids"]
        forest.insert_prompt(prompt[1:])
        if call.get("first_root_pushed"):
            forest.push([call["script"][len(prompt)]])
        for index, told in enumerate(call["rounds"]):
            drafted = paths_of(*forest.draft(told["query"]))
            recorded = paths_of(told["draft_tokens"], told["draft_parents"])
            assert drafted == recorded, f"call {number}, round {index}"
            forest.push(told.get("pushed", []))
        forest.end_call()


def test_an_output_token_is_found_once_its_branch_is_complete() -> None:
    forest = TrieForest(branch_length=2)
    forest.push([1, 2, 3])
    assert forest.draft([1]) == ([], [])
    forest.push([4])
    assert forest.draft([1]) == ([2, 3], [-1, 0])
    forest.end_call()
    assert forest.draft([3]) == ([4], [-1])


def test_what_follows_an_end_token_is_not_stored() -> None:
    forest = TrieForest(end_token_ids=(9,))
    forest.insert_prompt([1, 2, 9, 1, 3])
    assert forest.draft([1]) == ([2], [-1])


@pytest.mark.parametrize(("selection", "kept"), [("upstream", [1]), ("nodes", [1, 2])])
def test_a_crowded_trie_is_thinned_as_the_rule_says(selection: Any, kept: list[int]) -> None:
    """Token 1 stays by its outputs and, where weight counts too, token 2 by its prompts."""
    forest = TrieForest(num_nodes=2, branch_length=1, selection=selection)
    forest.push([0, 1, 0, 1, 0, 1])
    forest.insert_prompt([0, 2, 0, 2])
    forest.insert_prompt([0, 3])
    forest.num_nodes = 2
    tokens, _ = forest._tree(forest._tries[0])
    # One node may be drafted beside the pending token, the heaviest of those that stay.
    assert tokens == [kept[-1]]
