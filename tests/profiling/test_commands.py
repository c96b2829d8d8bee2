"""Commands of python -m harness.cost: one set-up, findings in JSON, refusals that say what to type."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from hydra import compose, initialize_config_module

from harness.benchmark.cost_job import COMMANDS, run_costs
from harness.config import ConfigError
from harness.decoding.acceptance import Coupled
from harness.decoding.sampling import DecodingParams
from harness.drafting.drafter import Outcome
from harness.profiling.kernels import per_round
from harness.profiling.rounds import WatchedDrafter
from harness.profiling.setup import prepared
from methods.ngram import NGram
from tests.support.targets import engine, requests

TINY = (
    *("target=tiny", "costs.batches=[1,2]", "costs.contexts=[16,32]", "costs.tokens=[1,4]"),
    *("costs.num_warmup=1", "costs.num_repeats=3"),
)
EAGLE3 = (
    *("method=[eagle3]", "methods.eagle3.head=random"),
    *(f"methods.eagle3.tree.{key}" for key in ("total_token=8", "depth=2", "top_k=3")),
)


def findings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, *overrides: str
) -> list[dict[str, Any]]:
    """What a command prints last, over the tiny target."""
    monkeypatch.setattr("harness.profiling.products.read_bandwidth", lambda device: 1e9)
    with initialize_config_module("conf", version_base="1.3"):
        run_costs(compose("cost", overrides=[f"command={command}", *TINY, *overrides]))
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (line["command"], line["target"]) == (command, "tiny")
    found: list[dict[str, Any]] = line["findings"]
    return found


def test_rounds_are_compared_with_their_parts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = findings(capsys, monkeypatch, "parts", *EAGLE3)
    assert [(line["drafter"], line["batch"]) for line in found] == [("eagle3", 1), ("eagle3", 2)]
    for line in found:
        alone = line["verify_ms"] + line["model_ms"]
        assert line["round_over_parts"] == pytest.approx(line["round_ms"] / alone)
        assert min(line["one_token_ms"], line["verify_ms"], line["model_ms"]) > 0


def test_a_drafter_without_a_model_has_no_such_part(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (line, _) = findings(capsys, monkeypatch, "parts", "method=[ngram]")
    assert "model_ms" not in line
    assert line["round_over_parts"] == pytest.approx(line["round_ms"] / line["verify_ms"])


def test_a_draft_is_split_into_operators_and_overhead(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for line in findings(capsys, monkeypatch, "split", *EAGLE3):
        assert line["draft_ms"] > 0
        assert line["verify_ms"] > 0
        assert line["overhead"] < 1


def test_kernels_need_a_cuda_device(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"needs a CUDA device.* on cpu; type target\.device=cuda"):
        findings(capsys, monkeypatch, "kernels", *EAGLE3, "target.device=cpu")


def test_kernels_of_a_round_are_those_of_generations_but_for_the_prompt() -> None:
    def times(call: Callable[[], Any]) -> tuple[Counter[str], Counter[str]]:
        num_rounds = len(call()[0].emitted)
        spent = Counter[str]({"of the prompt": 900, "of rounds": 50 * num_rounds})
        return spent, Counter[str]({"of the prompt": 1, "of rounds": 2 * num_rounds})

    with initialize_config_module("conf", version_base="1.3"):
        config = compose("cost", overrides=[*TINY, "method=[ngram]", "target.device=cpu"])
    with prepared(config, lambda _: None) as setup:
        line = per_round(setup, setup.drafters["ngram"], 1, times)
    assert line["kernels_ms"] == pytest.approx(0.05)
    assert line["outside"] == pytest.approx(1 - 0.05 / line["round_ms"])
    assert line["kernels_per_round"] == 2
    assert line["most"][0] == {"name": "of rounds", "us": 50, "number": 2}


def test_products_are_timed_in_every_layout_of_the_device(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = findings(capsys, monkeypatch, "linear", "target.device=cpu")
    kinds = {(line["what"], line["linear"]) for line in found}
    assert kinds >= {("layers", "sum"), ("layers", "bandwidth"), ("layers", "plain"), ("forward", "plain")}
    for line in found:
        assert set(line["ms"]) == ({"1"} if line["linear"] in ("sum", "bandwidth") else {"1", "4"})
        assert min(line["ms"].values()) > 0


def test_prompts_are_timed_alone_and_in_groups(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    eight, square, *alone = findings(capsys, monkeypatch, "prompts")
    assert sum(eight["groups"]) == len(eight["lengths"]) == 8
    assert min(eight["one_by_one_s"], eight["grouped_s"], square["gflops"]) > 0
    assert [line["length"] for line in alone] == [16, 32]


@pytest.mark.parametrize("command", ["parts", "split"])
def test_a_command_about_drafters_asks_for_one(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"method=\[\]: .* type method=\[NAME\]"):
        findings(capsys, monkeypatch, command)


@pytest.mark.parametrize("command", ["table", "parts", "split"])
def test_a_drafter_that_weighs_costs_cannot_be_profiled(command: str) -> None:
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("cost", overrides=[f"command={command}", *TINY, "method=[ngram,cast]"])
    with pytest.raises(ConfigError, match=r"methods\.cast: .*leave it out with ~methods\.cast"):
        run_costs(config)


def test_a_watched_drafter_decodes_as_without() -> None:
    loop, drafter = engine(), NGram()
    drafter.bind(loop.target)
    seen: list[Outcome] = []
    params = DecodingParams(name="greedy", max_new_tokens=12)
    one, other = (
        [made.output_ids for made in loop.generate(requests(), either, params, Coupled())]
        for either in (drafter, WatchedDrafter(drafter, after=seen.append))
    )
    assert one == other
    assert seen[0].draft is None
    assert seen[1].draft is not None


def cost(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness.cost", *arguments], capture_output=True, text=True, check=False
    )


def test_a_leading_word_is_the_command() -> None:
    shown = cost("split", "--cfg", "job", "target=tiny")
    assert shown.returncode == 0
    assert "command: split\n" in shown.stdout
    assert "command: table\n" in cost("--cfg", "job", "target=tiny").stdout
    wrong = cost("part", "target=tiny")
    assert wrong.returncode == 2
    assert f"Did you mean parts? Allowed: table, {', '.join(COMMANDS)}" in wrong.stderr
