"""The default job: every kind of task, every drafter it can run, small drafts, T = 0 and 1."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import conf
from harness.benchmark.plan import Plan, make_plan
from harness.decoding.acceptance import Coupled
from harness.decoding.sampling import DecodingParams
from methods.eagle import Eagle
from methods.fasteagle import FastEagle
from tests.support.targets import engine, requests

WIDEST = 8
"""Tokens of the widest forward that is compiled on a CPU."""


@pytest.fixture(scope="module")
def plan() -> Plan:
    with initialize_config_module("conf", version_base="1.3"):
        return make_plan(compose("bench"), [])


WITHOUT_A_SHIPPED_HEAD = {"DFlash2", "Mtp", "MtpHead", "PEagle"}
BEHIND_OTHER_HEADS = {"DDTree", "DFlash", "DSpark", "SpecBlock"}
"""Slower than EAGLE's and FastEagle's heads here, which a first look shows."""
MADE_OF_WHAT_IS_SHOWN = {"Hybrid", "SpS", "SuffixTree", "Tts"}
"""A first look should not take longer for a router, a second model, another tree, a head that learns."""


def test_it_shows_every_drafter_that_runs_as_it_is_at_both_temperatures(plan: Plan) -> None:
    files = [OmegaConf.load(file) for file in (Path(conf.__file__).parent / "method").glob("*.yaml")]
    every = {
        file["_target_"].rpartition(".")[2] for file in files if not OmegaConf.is_missing(file, "datastore")
    }
    left_out = WITHOUT_A_SHIPPED_HEAD | BEHIND_OTHER_HEADS | MADE_OF_WHAT_IS_SHOWN
    assert {type(arm).__name__ for arm in plan.arms.values()} == every - left_out
    assert {arm.architecture for arm in plan.arms.values() if isinstance(arm, Eagle)} == {"eagle", "eagle3"}
    assert [params.temperature for params in plan.decodings.values()] == [0, 1]
    assert plan.measure.profile == "quick"
    assert list(plan.rungs) == ["generate"]


def test_it_has_every_kind_of_task_once(plan: Plan) -> None:
    kinds = [one.category for one in plan.task.load()]
    assert sorted(kinds) == ["chat", "code", "extraction", "math", "summary", "translation"]


def test_its_drafts_fit_the_widest_compiled_forward(plan: Plan) -> None:
    params = DecodingParams(name="greedy", max_new_tokens=24, ignore_end_token=True)
    for name, arm in plan.arms.items():
        if isinstance(arm, Eagle):
            assert arm.tree.total_token <= WIDEST
            continue
        if isinstance(arm, FastEagle):
            assert arm.tree.budget < WIDEST
            continue
        decoder = engine()
        arm.bind(decoder.target)
        decoder.target.set_taps(arm.taps)
        made = decoder.generate(requests(), arm, params, Coupled())
        for generation in made:
            for draft, _ in generation.drafts:
                riders = 0 if draft.riders is None else draft.riders.tokens.shape[1]
                assert 1 + draft.width + riders <= WIDEST, name
