"""The recorded cases of CAST's rules (own derivation, float64) are met exactly."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from harness.drafting.trees import Proposals
from methods.shared.cost_aware.costs import BucketedCosts
from methods.shared.cost_aware.marginal import bucket, num_worthwhile, strictly_rising
from methods.shared.cost_aware.thresholds import Constants
from methods.shared.cost_aware.tree import CostAwareTree

CASES = Path(__file__).parents[4] / "shared" / "fixtures" / "trained" / "public" / "cases" / "cast"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"needs the recorded cases in {CASES}")


def read(name: str) -> dict[str, Any]:
    case: dict[str, Any] = json.loads((CASES / f"{name}.json").read_text())
    return case


class RecordedGrower:
    """Guesses from tables by the last two tokens of a path; equal probabilities go to the smaller id."""

    def __init__(self, tables: Sequence[dict[str, list[float]]], context: int) -> None:
        self.context = context
        self._tables = [
            {tuple(int(part) for part in key.split(",") if part): values for key, values in table.items()}
            for table in tables
        ]
        self._paths: list[list[tuple[int, ...]]] = [[] for _ in tables]

    def _best(self, paths: Sequence[Sequence[tuple[int, ...]]], num_children: int) -> Proposals:
        rows = [[table[path[-2:]] for path in own] for table, own in zip(self._tables, paths, strict=True)]
        found = torch.tensor(rows, dtype=torch.float64).sort(dim=-1, descending=True, stable=True)
        return Proposals(found.indices[..., :num_children], found.values[..., :num_children].log())

    def start(self, num_children: int) -> Proposals:
        tokens, log_probs = self._best([[()] for _ in self._tables], num_children)
        return Proposals(tokens[:, 0], log_probs[:, 0])

    def expand(self, tokens: Tensor, parents: Tensor, num_children: int) -> Proposals:
        grown = [
            [(*(known[parent] if parent >= 0 else ()), token) for token, parent in zip(*nodes, strict=True)]
            for known, *nodes in zip(self._paths, tokens.tolist(), parents.tolist(), strict=True)
        ]
        for known, new in zip(self._paths, grown, strict=True):
            known.extend(new)
        return self._best(grown, num_children)


def policy_of(case: dict[str, Any]) -> CostAwareTree:
    given = case["settings"]
    policy = CostAwareTree(
        top_k=given["topk"],
        max_width=given["max_width"],
        max_depth=given["max_depth"],
        max_nodes=79,
        threshold=Constants(c1=given["C1"], c2=given["C2"], c3=given["C3"]),
        ratios=given["R"],
        context="prefix" if given["ctx_prefix"] else "draft",
    )
    policy.costs = BucketedCosts(
        target={int(place): curve for place, curve in case["S_T"].items()},
        drafter={int(place): curve for place, curve in case["S_D"].items()},
        spacing=given["L"],
        rise=given["eps"],
        pending_counts=False,
    )
    policy.gate.ratios = list(given["buffer"])
    return policy


@pytest.mark.parametrize("name", sorted(path.stem for path in CASES.glob("tree_*.json")))
def test_a_recorded_tree_is_grown_and_cut_alike(name: str) -> None:
    case = read(name)
    policy = policy_of(case)
    draft = policy.grow(RecordedGrower(case["draft_tables"], case["settings"]["n0"]))
    choice = policy.choice
    assert choice is not None
    for layer, recorded in zip(choice.layers, case["layers"], strict=True):
        assert (layer.num_nodes, layer.continues) == (recorded["n"], recorded["continues"])
        assert layer.utility == pytest.approx(recorded["u"], abs=1e-9)
        assert layer.cost == pytest.approx(recorded["c"], abs=1e-9)
        assert layer.mean_ratio == pytest.approx(recorded["alpha"], abs=1e-9)
        assert layer.gain == pytest.approx(recorded["value_compared_with_C2"], abs=1e-9)
    assert choice.num_verified == case["m"]
    assert choice.utility == pytest.approx(case["rerank_u"], abs=1e-9)
    assert choice.cost == pytest.approx(case["rerank_c"], abs=1e-9)
    assert policy.gate.ratios == pytest.approx(case["buffer_after"], abs=1e-9)
    for row, kept in enumerate(case["kept_paths"]):
        found: list[list[int]] = []
        for token, parent in zip(draft.tokens[row].tolist(), draft.parents[row].tolist(), strict=True):
            found.append([*(found[parent] if parent >= 0 else []), token])
        assert sorted(found) == sorted(kept)


def test_algorithm_1_keeps_what_was_recorded_for_every_kind_of_cost() -> None:
    case = read("algorithm1")
    for one in case["cases"]:
        raw = np.asarray(one["cost_raw"])
        cost = strictly_rising(raw / raw[0], case["eps_monotone"])
        assert cost == pytest.approx(one["cost_used"], abs=1e-12)
        utility = np.cumsum(one["confidence_sorted"])
        assert num_worthwhile(utility, cost, one["C"]) == one["kept"]
        assert num_worthwhile(utility, cost, one["C"], inclusive=True) == one["kept_with_ge"]
    for one in case["select"]:
        assert bucket(one["c"], one["L"], one["M"]) == one["select"]


def test_eagles_cut_follows_from_the_threshold_of_theorem_4_1() -> None:
    for one in read("eagle_equivalence")["cases"]:
        mean = np.asarray(one["v"]).mean(0)
        cost = one["lambda"] * np.arange(1, len(mean) + 1) + one["delta"]
        assert num_worthwhile(np.cumsum(mean), cost, one["C1"], inclusive=True) == one["kept_with_ge"]
