"""RACER: the automaton keeps to its bound, and the tree narrows as the rule says."""

from __future__ import annotations

import random
from typing import Any

import pytest

from methods.racer.drafter import Racer
from methods.racer.lru_automaton import LruAutomaton

Paths = list[tuple[int, ...]]


def paths_of(tokens: list[int], parents: list[int]) -> Paths:
    found: Paths = []
    for token, parent in zip(tokens, parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


def test_the_automaton_keeps_to_its_bound_and_finds_what_is_recent() -> None:
    draw = random.Random(0)
    automaton = LruAutomaton(ngram=4, max_nodes=50, min_depth=2, touch_order="leaf_to_root")
    text = [draw.randrange(6) for _ in range(20)]
    automaton.insert_prompt(text)
    for _ in range(500):
        text.append(draw.randrange(6))
        automaton.insert_last(text, 1)
        assert automaton.num_nodes <= 50
    automaton.insert_prompt(text[-4:])
    state = automaton.feed(automaton.root, text[-4:-1])
    borders, _ = automaton.find(state, text[-1])
    assert borders[0].depth == 4


@pytest.mark.parametrize(("rule", "widths"), [("code", [8, 12, 17, 18, 8]), ("paper", [8, 19, 24, 12])])
def test_the_tree_narrows_as_the_rule_says(rule: Any, widths: list[int]) -> None:
    drafter = Racer(breadth_rule=rule, ngram=0)
    state = drafter.start_one()
    # Every token has successors of its own, so that no two paths are equal.
    state.memory.table = {token: [8 * token + rank + 1 for rank in range(8)] for token in range(100_000)}
    tokens, parents = drafter.propose_tree([0], state, 100)
    depths = [len(path) for path in paths_of(tokens, parents)]
    assert [depths.count(depth) for depth in sorted(set(depths))] == widths


def test_a_token_beyond_the_table_is_a_leaf() -> None:
    drafter = Racer(ngram=0, top_k=2, num_nodes=9, table_size=10)
    state = drafter.start_one()
    state.memory.table = {1: [2, 10], 2: [3, 4]}
    tokens, parents = drafter.propose_tree([1], state, 100)
    assert not any(parent >= 0 and tokens[parent] == 10 for parent in parents)
    assert drafter.propose_tree([10], state, 100) == ([], [])
