"""Command lines of the engines that are started: what each arm's server is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from harness.config import ConfigError
from harness.engines.engine import Workload
from harness.engines.heads import head_location
from harness.engines.servers.launched import LaunchedEngine
from harness.engines.servers.served import ServedArm
from harness.engines.servers.sglang import speculative_flags
from harness.engines.servers.vllm import speculative_config
from tests.engines.servers.measuring import plan_of


def commands(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> dict[str, list[str]]:
    """The command of each arm's server, as the manifest has it."""
    plan = plan_of(folder, *overrides)
    assert isinstance(plan.engine, LaunchedEngine)
    monkeypatch.setattr(LaunchedEngine, "installed_version", lambda _: "1.2.3")
    monkeypatch.setattr(LaunchedEngine, "location", lambda *_: "MODEL")
    plan.engine.load(plan.target, plan.arms, lambda _: None)
    plan.engine.prepare(Workload(batch_size=1, timed=True, longest_sequence=lambda: 0), lambda _: None)
    cards = {name: arm.card() for name, arm in plan.arms.items()}
    assert {card["version"] for card in cards.values()} == {"1.2.3"}
    return {name: card["command"] for name, card in cards.items()}


def test_vllm_gets_the_sizes_of_our_methods_and_a_shipped_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("engine=vllm", "method=[ngram,suffix,eagle3_chain]", "methods.ngram.draft_length=5")
    found = commands(tmp_path, monkeypatch, *given, "methods.eagle3_chain.head=smollm2_135m-eagle3")
    assert "--speculative-config" not in found["vanilla"]
    assert found["vanilla"][:3] == ["-m", "vllm.entrypoints.openai.api_server", "--model"]
    assert found["vanilla"][found["vanilla"].index("--port") + 1] == "PORT"
    assert found["vanilla"][found["vanilla"].index("--dtype") + 1] == "float32"
    flag = "--speculative-config"
    said = {name: json.loads(one[one.index(flag) + 1]) for name, one in found.items() if flag in one}
    assert said["ngram"] == {
        "method": "ngram",
        "num_speculative_tokens": 5,
        "prompt_lookup_max": 3,
        "prompt_lookup_min": 1,
    }
    assert said["suffix"] == {"method": "suffix", "num_speculative_tokens": 10}
    head = said["eagle3_chain"].pop("model")
    assert said["eagle3_chain"] == {"method": "eagle3", "num_speculative_tokens": 5}
    assert (Path(head) / "config.json").is_file()


def test_sglang_gets_its_own_words_for_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("engine=sglang", "method=[ngram,eagle3_chain]", "methods.eagle3_chain.head=smollm2_135m-eagle3")
    found = commands(tmp_path, monkeypatch, *given)
    assert found["vanilla"][:4] == ["-m", "sglang.launch_server", "--model-path", "MODEL"]
    assert "--speculative-algorithm" not in found["vanilla"]
    assert found["ngram"][-6:] == [
        *("--speculative-algorithm", "NGRAM", "--speculative-ngram-max-bfs-breadth", "1"),
        *("--speculative-num-draft-tokens", "11"),
    ]
    begin = found["eagle3_chain"].index("--speculative-algorithm")
    assert found["eagle3_chain"][begin + 1] == "EAGLE3"
    assert found["eagle3_chain"][begin + 4 :] == [
        *("--speculative-num-steps", "5", "--speculative-eagle-topk", "1"),
        *("--speculative-num-draft-tokens", "6"),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "pia"}, r"methods\.x\.serve\.vllm\.method=pia: unknown.*Allowed: ngram"),
        ({"method": "ngram"}, r"num_speculative_tokens: not given"),
        ({"method": "ngram", "num_speculative_tokens": 3, "model": "y"}, r"vllm\.model: unknown key"),
        ({"method": "eagle3", "num_speculative_tokens": 3}, r"vllm\.model: not given"),
    ],
)
def test_what_vllm_does_not_take_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        speculative_config("x", settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"algorithm": "SUFFIX"}, r"sglang\.algorithm=SUFFIX: unknown"),
        ({"algorithm": "NGRAM", "model": "y"}, r"sglang\.model: takes none"),
        ({"algorithm": "EAGLE3"}, r"sglang\.model: not given"),
        ({"algorithm": "NGRAM", "topk": 2}, r"sglang\.topk: unknown key"),
    ],
)
def test_what_sglang_does_not_take_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        speculative_flags(ServedArm(name="x", settings=settings))


def test_a_head_is_a_folder_a_shipped_one_or_left_to_the_engine(tmp_path: Path) -> None:
    assert (Path(head_location("smollm2_135m-eagle3")) / "model.safetensors").is_file()
    assert head_location(str(tmp_path)) == str(tmp_path)
    assert head_location("ORG/HEAD") == "ORG/HEAD"


def test_random_weights_are_refused_because_no_server_can_read_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LaunchedEngine, "installed_version", lambda _: "1.2.3")
    plan = plan_of(tmp_path, "engine=vllm", "method=[ngram]")
    plan.engine.load(plan.target, plan.arms, lambda _: None)
    with pytest.raises(ConfigError, match=r"target\.weights=random: engine=vllm reads weights from files"):
        plan.engine.prepare(Workload(batch_size=1, timed=True, longest_sequence=lambda: 0), lambda _: None)


@pytest.mark.parametrize("key", ["head", "model"])
def test_a_served_head_tells_where_its_training_prompts_are(key: str, tmp_path: Path) -> None:
    arm = ServedArm(name="x", settings={key: str(tmp_path)})
    assert arm.training_prompts == []
    (tmp_path / "prompts.npy").touch()
    assert arm.training_prompts == [tmp_path / "prompts.npy"]
    assert ServedArm(name="x", settings={key: "org/head"}).training_prompts == []
