"""RACER: automaton, table and trees are those of the authors' code; the automaton keeps to its bound."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file

from harness.drafting.drafter import TargetView
from methods.racer.drafter import Racer, _State
from methods.racer.lru_automaton import LruAutomaton

RECORDED = Path(__file__).parents[3] / "shared/fixtures/ngram/public"
CASES = sorted([*RECORDED.glob("racer/*.json"), *RECORDED.glob("racer_paper_rule/*.json")])
Paths = list[tuple[int, ...]]


def paths_of(tokens: list[int], parents: list[int]) -> Paths:
    found: Paths = []
    for token, parent in zip(tokens, parents, strict=True):
        found.append((*(found[parent] if parent >= 0 else ()), token))
    return found


def racer_of(params: dict[str, Any]) -> Racer:
    orders = {"root_to_leaf": "released", "leaf_to_root": "leaf_to_root"}
    drafter = Racer(
        num_nodes=params["max_num_draft"],
        ngram=params["ngram"],
        top_k=params["max_breadth"],
        max_nodes=params["max_nodes"],
        min_depth=params["min_depth"],
        breadth_rule=params["breadth_rule"],
        touch_order=orders[params["touch_order"]],
    )
    drafter.bind(cast(TargetView, SimpleNamespace(device=torch.device("cpu"), vocab_size=1 << 20)))
    return drafter


def learn(state: _State, ids: list[int], rows: list[list[int]], limit: int) -> None:
    """Write what the target held likely, but for tokens that the recorded table has no row for."""
    state.table.update({token: row for token, row in zip(ids, rows, strict=False) if token < limit})


@pytest.mark.skipif(not CASES, reason="the recorded cases are not beside this checkout")
@pytest.mark.parametrize("file", CASES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_draft_is_that_of_the_authors_code(file: Path) -> None:
    case, params = json.loads(file.read_text()), json.loads(file.read_text())["params"]
    tensors = load_file(file.with_suffix(".safetensors")) if params["max_breadth"] else {}
    drafter, limit = racer_of(params), params["table_vocab"]
    state = drafter.start_one()
    for number, call in enumerate(case["calls"]):
        prompt, script = call["prompt_ids"], call["script"]
        if call["memory"] == "fresh":
            state = drafter.start_one()
        # Tokens that the recorded table has no row for are leaves.
        state.table.update({token: [] for token in range(limit, case["vocab_size"])})
        if params["max_breadth"]:
            learn(state, prompt, tensors[f"c{number}.prefill_topk"].tolist(), limit)
        state.pending = None
        drafter.extend_one(state, [*prompt, script[len(prompt)]])
        for index, told in enumerate(call["rounds"]):
            where = f"call {number}, round {index}"
            if state.automaton:
                assert state.automaton.state() == told["state_before"], where
            own = paths_of(*drafter.propose_tree([told["root"]], state, told["budget"] - 1))
            recorded = paths_of(told["draft_tokens"], told["draft_parents"])
            tie = told["tie"]
            if tie is None:
                assert sorted(own) == sorted(recorded), where
            else:
                strict = paths_of(tie["strict_tokens"], tie["strict_parents"])
                assert set(strict) <= set(own), where
            if params["max_breadth"]:
                rows = tensors[f"c{number}.topk"][index].tolist()
                learn(state, told["official_tokens"], rows, limit)
            accepted = [told["draft_tokens"][node] for node in told["accepted_nodes"]]
            if case["eos_token_id"] in accepted:
                # What was accepted behind an end token is dropped before anything is learned.
                accepted = accepted[: accepted.index(case["eos_token_id"]) + 1]
            drafter.extend_one(state, [*accepted, told["next_root"]])


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
    automaton.feed(text[-4:-1])
    assert automaton.find(text[-1])[0].depth == 4


@pytest.mark.parametrize(("rule", "widths"), [("code", [8, 12, 17, 18, 8]), ("paper", [8, 19, 24, 12])])
def test_the_tree_narrows_as_the_rule_says(rule: Any, widths: list[int]) -> None:
    drafter = Racer(breadth_rule=rule, ngram=0)
    state = drafter.start_one()
    # Every token has successors of its own, so that no two paths are equal.
    state.table = {token: [8 * token + rank + 1 for rank in range(8)] for token in range(100_000)}
    tokens, parents = drafter.propose_tree([0], state, 100)
    depths = [len(path) for path in paths_of(tokens, parents)]
    assert [depths.count(depth) for depth in sorted(set(depths))] == widths
