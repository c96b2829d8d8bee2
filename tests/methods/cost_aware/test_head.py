"""A head whose tree weighs costs: what is compiled for it, and what it learns from the rounds of others."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from harness.config import configurable
from harness.decoding.acceptance import Coupled
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.target.model import Target
from methods.eagle import Eagle
from methods.hybrid import Hybrid
from methods.ngram import NGram
from methods.shared.cost_aware.rules import LayerChoice, LayerFacts
from methods.shared.cost_aware.tree import CostAwareTree
from tests.support.targets import requests, tiny_model

PARAMS = DecodingParams(name="greedy", max_new_tokens=24, ignore_end_token=True)


class Costs:
    """A step of 1 s and a tenth more per further token; a drafter's forward of 0.1 s."""

    def curve(self, batch: float, context: float) -> list[float]:
        return [1 + 0.1 * number for number in range(64)]

    def seconds(self, call: Callable[[int], None], most: int) -> list[float]:
        for count in range(most):
            call(count + 1)
        return [0.1] * most


@configurable
class Cycling(CostAwareTree):
    """Expands 1, 2, ... nodes in turn, whatever they cost."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.used: list[int] = []

    def _choose(self, layer: LayerFacts) -> LayerChoice:
        self.used.append(1 + len(self.used) % len(layer.utility))
        return replace(super()._choose(layer), num_nodes=self.used[-1])


def eagle3(tree: CostAwareTree, target: Target) -> Eagle:
    drafter = Eagle(architecture="eagle3", head="random", tree=tree)
    drafter.bind(target)
    target.set_taps(drafter.taps)
    return drafter


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")
def test_no_width_of_a_tree_is_compiled_behind_the_warm_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # As many as these trees need: every size is two programs, of seconds each.
    monkeypatch.setattr("methods.shared.eagle.steps._SIZES", (1, 3))
    model = copy.deepcopy(tiny_model("llama"))
    target = Target(model, linear="auto", cache="auto", compiled=True)
    tree = Cycling(top_k=3, max_width=3, max_depth=3, depth=False)
    drafter = eagle3(tree, target)
    target.steps.choose(["dynamic"], 1)
    drafter.use_costs(Costs(), 1)
    drafter.warm_up(1)
    num_programs = target.steps.num_programs
    assert num_programs >= 4
    tree.used.clear()
    loop = DecodingLoop(target, (), 512, timed=False)
    for asked in requests():
        loop.generate([asked], drafter, PARAMS, Coupled())
    assert set(tree.used) == {1, 2, 3}
    assert target.steps.num_programs == num_programs


@pytest.mark.parametrize("others", [True, False])
def test_a_tree_learns_from_the_rounds_that_it_drafted_alone(
    others: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target(tiny_model("llama"))
    tree = CostAwareTree(max_depth=2)
    second = eagle3(tree, target)
    drafter: Any = Hybrid(first=NGram(max_ngram=2), second=second) if others else second
    if others:
        drafter.bind(target)
    drafter.use_costs(Costs(), 1)
    grown, told = [], []
    grow, observe = CostAwareTree.grow, CostAwareTree.observe
    monkeypatch.setattr(CostAwareTree, "grow", lambda *given: grown.append(1) or grow(*given))
    monkeypatch.setattr(CostAwareTree, "observe", lambda *given: told.append(1) or observe(*given))
    made = DecodingLoop(target, (), 512, timed=False).generate(requests()[:1], drafter, PARAMS, Coupled())[0]
    assert 0 < len(grown) <= len(made.drafted)
    assert (len(grown) < len(made.drafted)) == others
    # The last round is not observed.
    assert len(grown) - 1 <= len(told) <= len(grown)
