"""Differences of tau: between all methods, or between the seeds of two trainings."""

from __future__ import annotations

import numpy as np

from harness.analysis.stats import Totals
from scripts.tau_differences import name_of, pairs, table

ARMS = ["start 8/2/4", "gto_0 8/2/4", "gto_1 8/2/4", "control_1 8/2/4", "control_0 8/2/4"]


def test_arms_of_the_same_number_are_compared() -> None:
    assert pairs(ARMS, "gto/control") == [
        ("gto_0 8/2/4", "control_0 8/2/4"),
        ("gto_1 8/2/4", "control_1 8/2/4"),
    ]
    assert pairs(["a", "b", "c"], "") == [("b", "a"), ("c", "a"), ("c", "b")]


def test_the_mean_over_seeds_is_that_of_the_paired_differences() -> None:
    rounds = np.array([10.0, 12.0, 8.0, 20.0])
    # Seed 0 gains a tenth of a token per round on every prompt, seed 1 three tenths.
    gains = {"gto_0": 0.1, "gto_1": 0.3, "control_0": 0.0, "control_1": 0.0}
    own = np.array([1.5, 2.5, 2.0, 3.0])
    methods = {name: Totals(rounds * (own + gain), rounds) for name, gain in gains.items()}
    lines = table({"one": methods, "two": methods}, "gto/control")
    assert lines[-3:] == [
        "| gto_0 - control_0 | +0.100 [0.100, 0.100] |",
        "| gto_1 - control_1 | +0.300 [0.300, 0.300] |",
        "| mean of these | +0.200 [0.200, 0.200] |",
    ]


def test_a_name_says_the_size_of_the_trees() -> None:
    assert name_of("eagle3", {"tree": {"total_token": 8, "depth": 2, "top_k": 4}}) == "eagle3 8/2/4"
    assert name_of("specblock", {"tree": {"budget": 8, "max_blocks": 2}}) == "specblock 8"
    assert name_of("ddtree", {"budget": 60, "kind": "dflash"}) == "ddtree 60"
    assert name_of("cast", {"tree": {"max_width": 8}}) == "cast"
    assert name_of("ngram", {}) == "ngram"
