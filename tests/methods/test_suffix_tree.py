"""Suffix tree: counts are those of brute force, drafts follow the counts, earlier outputs are remembered."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any, cast

import torch

from harness.drafting.drafter import Outcome, TargetView
from methods.suffix_tree import SuffixTree
from methods.suffix_tree.counting_automaton import CountingAutomaton
from methods.suffix_tree.drafter import Outputs


def occurrences(text: list[int], ids: list[int]) -> int:
    return sum(text[begin : begin + len(ids)] == ids for begin in range(len(text) - len(ids) + 1))


def automaton(text: list[int], max_depth: int = 64) -> CountingAutomaton:
    made = CountingAutomaton(max_depth)
    for token in text:
        made.extend(token)
    return made


def test_counts_are_those_of_brute_force_up_to_the_depth() -> None:
    draw = random.Random(0)
    for alphabet, depth, length in ((1, 5, 40), (2, 6, 120), (3, 4, 200), (9, 8, 200)):
        text: list[int] = []
        counted = CountingAutomaton(depth)
        for _ in range(length):
            # Copies of earlier stretches make states split.
            begin = draw.randrange(len(text)) if text and draw.random() < 0.3 else None
            fresh = text[begin : begin + 5] if begin is not None else [draw.randrange(alphabet)]
            text += fresh
            for token in fresh:
                counted.extend(token)
        for _ in range(200):
            size, begin = draw.randint(1, depth), draw.randrange(len(text))
            ids = text[begin : begin + size]
            assert counted.count(ids) == occurrences(text, ids)
            other = [draw.randrange(alphabet) for _ in range(size)]
            assert counted.count(other) == occurrences(text, other)


def test_suffixes_are_all_that_occur_with_different_counts() -> None:
    text = [1, 2, 3, 9, 2, 3, 9, 3, 9]
    counted = automaton(text)
    lengths = [length for _, length in counted.suffixes([2, 3, 9])]
    assert lengths == [3, 2]
    assert [length for _, length in automaton(text, max_depth=2).suffixes([2, 3, 9])] == [2]


def test_a_chain_follows_the_most_frequent_child_while_it_is_likely() -> None:
    # After 1: twice 2, once 3, and the text ends with 1.
    counted = automaton([1, 2, 5, 1, 3, 1, 2, 5, 1])
    ((state, length), *_) = [one for one in counted.suffixes([1]) if one[1] == 1]
    made = counted.chain(state, length, 9, 0.1)
    assert made.tokens[:3] == [2, 5, 1]
    assert made.score > 0.5 + 0.5
    assert counted.chain(state, length, 9, 0.51).tokens == []
    assert counted.chain(state, length, 1, 0.1).tokens == [2]


def test_a_tree_takes_the_likeliest_nodes_first() -> None:
    counted = automaton([1, 2, 5, 1, 3, 1, 2, 5, 1])
    ((state, length), *_) = [one for one in counted.suffixes([1]) if one[1] == 1]
    made = counted.tree(state, length, 4, 0.1)
    assert (made.tokens[:2], made.parents[:2]) == ([2, 5], [-1, 0])
    assert 3 in counted.tree(state, length, 40, 0.1).tokens
    assert abs(made.score - 4 * 0.5) < 0.51


def test_the_oldest_outputs_are_dropped_and_matches_cross_no_border() -> None:
    outputs = Outputs(8, max_requests=2)
    for output in ([1, 2], [3, 4], [5, 6]):
        outputs.add(output)
    assert [outputs.tree.count(ids) for ids in ([1, 2], [3, 4], [5, 6], [4, 5])] == [0, 0, 1, 0]


def bound(**settings: Any) -> SuffixTree:
    drafter = SuffixTree(**settings)
    drafter.bind(cast(TargetView, SimpleNamespace(device=torch.device("cpu"), vocab_size=100)))
    drafter.new_call(keep_memory=False)
    drafter.reset(1)
    return drafter


def test_a_second_request_drafts_the_output_of_the_first() -> None:
    drafter = bound()
    output = list(range(10, 40))
    drafter.observe(Outcome(committed=[[1, 2, *output[:1]]], pending=[output[1]]))
    drafter.observe(Outcome(committed=[output[1:-1]], pending=[output[-1]]))
    for keeps, expected in ((True, output[5:9]), (False, [])):
        drafter.new_call(keep_memory=keeps)
        drafter.reset(1)
        drafter.observe(Outcome(committed=[[7, *output[1:4]]], pending=[output[4]]))
        draft = drafter.propose([50])
        assert draft.is_chain
        assert draft.tokens[0].tolist() == expected
    assert drafter.propose([0]).width == 0


def test_a_draft_of_small_score_is_left_to_the_next_drafter() -> None:
    text = [1, 2, 3, 4, 1, 2, 3]
    for least, width in ((0.0, 3), (50.0, 0)):
        drafter = bound(min_score=least)
        drafter.observe(Outcome(committed=[text[:-1]], pending=[text[-1]]))
        assert drafter.propose([50]).width == width
