"""PIA: what the forest stores and forgets, and how it thins crowded tries."""

from __future__ import annotations

from typing import Any

import pytest

from methods.pia import PIA
from methods.pia.trie_forest import Stream, TrieForest


def test_an_output_token_is_found_once_its_branch_is_complete() -> None:
    forest = TrieForest(branch_length=2)
    stream = Stream(forest)
    stream.push([1, 2, 3])
    assert forest.draft([1]) == ([], [])
    stream.push([4])
    assert forest.draft([1]) == ([2, 3], [-1, 0])
    stream.flush()
    assert forest.draft([3]) == ([4], [-1])


def test_what_follows_an_end_token_is_not_stored() -> None:
    forest = TrieForest(end_token_id=9)
    forest.count_prompt([1, 2, 9, 1, 3], by=1)
    assert forest.draft([1]) == ([2], [-1])


@pytest.mark.parametrize(("selection", "kept"), [("upstream", [1]), ("nodes", [1, 2]), ("released", [1, 2])])
def test_a_crowded_trie_is_thinned_as_the_rule_says(selection: Any, kept: list[int]) -> None:
    """Token 1 stays by its outputs and, where weight counts too, token 2 by its prompts."""
    forest = TrieForest(num_nodes=2, branch_length=1, selection=selection)
    Stream(forest).push([0, 1, 0, 1, 0, 1])
    forest.count_prompt([0, 2, 0, 2], by=1)
    forest.count_prompt([0, 3], by=1)
    tokens, _ = forest._tree(forest._tries[0])
    # One node may be drafted beside the pending token, the heaviest of those that stay.
    assert tokens == [kept[-1]]


def test_a_sequence_that_ends_leaves_its_output_and_takes_its_prompt_away() -> None:
    drafter = PIA(memory="process")
    drafter.new_call(keep_memory=False)
    one, other = drafter.start_one(), drafter.start_one()
    drafter.extend_one(one, [0, 1, 2, 3])
    drafter.extend_one(other, [0, 1, 2, 7, 8])
    drafter.extend_one(one, [4, 5])
    assert drafter.propose_tree([9, 1], other, 9) == ([2, 7], [-1, 0])
    drafter.end_one(other)
    drafter.end_one(one)
    later = drafter.start_one()
    assert drafter.propose_tree([9, 3], later, 9) == ([4, 5], [-1, 0])
    # A forgotten branch is drafted last, as by the authors' code.
    drafter.extend_one(later, [0, 1, 6, 0])
    assert drafter.propose_tree([9, 1], later, 9) == ([6, 2, 7], [-1, -1, 1])
