"""llama.cpp and OpenVINO GenAI: the file, the settings, and where they are installed the tokens."""

from __future__ import annotations

import json
import os
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.config import ConfigError
from harness.engines.cpu.engines import OpenVINO, binary_flags, llamacpp_settings
from harness.engines.cpu.gguf_file import gguf_of, rope_of, rotated, write_gguf
from harness.engines.faults import EngineFault
from harness.engines.servers.served import ServedArm
from harness.target.random_target import TinyTarget
from tests.engines.servers.measuring import measured, plan_of, stored


@cache
def tiny() -> Any:
    return TinyTarget(tie_embeddings=True).load(lambda _: None)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of the tiny target, and a cache folder of its own."""
    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "model"
    tiny().model.save_pretrained(place)
    tiny().tokenizer.save_pretrained(place)
    return place


def test_a_rotated_projection_pairs_neighbours_that_were_half_a_head_apart() -> None:
    heads, half, width = 3, 4, 5
    weight = np.arange(heads * 2 * half * width, dtype=np.float32).reshape(-1, width)
    moved = rotated(weight, heads)
    for head in range(heads):
        for row in range(half):
            start = head * 2 * half
            assert (moved[start + 2 * row] == weight[start + row]).all()
            assert (moved[start + 2 * row + 1] == weight[start + row + half]).all()


def test_a_gguf_file_has_the_weights_and_sizes_of_the_checkpoint(folder: Path) -> None:
    from gguf import GGUFReader

    file = gguf_of(folder, tiny().tokenizer)
    assert gguf_of(folder, tiny().tokenizer) == file
    reader = GGUFReader(file)
    read = {one.name: np.asarray(one.data) for one in reader.tensors}
    given = {name: value.numpy() for name, value in tiny().model.state_dict().items()}
    assert (read["token_embd.weight"] == given["model.embed_tokens.weight"]).all()
    assert (read["blk.1.ffn_down.weight"] == given["model.layers.1.mlp.down_proj.weight"]).all()
    assert (read["blk.0.attn_k.weight"] == rotated(given["model.layers.0.self_attn.k_proj.weight"], 2)).all()
    # Tied, so it is not written twice.
    assert "output.weight" not in read
    assert len(read) == 2 + 9 * 2
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["llama.attention.head_count_kv"] == 2
    assert fields["llama.rope.dimension_count"] == 16
    assert len(fields["tokenizer.ggml.tokens"]) == 259
    assert fields["tokenizer.ggml.eos_token_id"] == 258


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "qwen2"}, "model_type=qwen2"),
        ({"model_type": "llama", "attention_bias": True}, "attention_bias=True"),
        ({"model_type": "llama", "rope_parameters": {"rope_type": "llama3"}}, "rope_scaling"),
    ],
)
def test_what_the_writer_does_not_know_is_refused(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:

    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=rf"{message}.*engine\.gguf=FILE"):
        gguf_of(tmp_path, None)


def test_the_rotation_is_read_from_either_kind_of_config() -> None:
    assert rope_of({"rope_theta": 5.0}) == (5.0, "")
    assert rope_of({"rope_parameters": {"rope_theta": 7.0, "rope_type": "default"}}) == (7.0, "")
    assert rope_of({"rope_theta": 5.0, "rope_scaling": {"type": "linear"}}) == (5.0, "linear")
    assert rope_of({}) == (10000.0, "")


def test_settings_of_llamacpp_are_checked_and_become_flags_of_its_binary() -> None:
    arm = ServedArm(name="ngram", settings={"type": "ngram-simple", "size_n": 3, "size_m": 4})
    found = llamacpp_settings(arm)
    assert binary_flags(found) == [
        *("--spec-type", "ngram-simple"),
        *("--spec-ngram-simple-size-n", "3", "--spec-ngram-simple-size-m", "4"),
    ]
    assert binary_flags({"type": "draft-eagle3", "model": "a.gguf", "n_max": 3}) == [
        *("--spec-type", "draft-eagle3", "--spec-draft-model", "a.gguf", "--spec-draft-n-max", "3"),
    ]
    assert (llamacpp_settings(ServedArm(name="vanilla")), binary_flags({})) == ({}, [])
    for settings, message in (
        ({"type": "ngram"}, r"serve\.llamacpp\.type=ngram: unknown.*ngram-simple"),
        ({"type": "ngram-simple", "n_max": 3}, r"serve\.llamacpp\.n_max: unknown key"),
        ({"type": "draft-simple", "model": "x"}, "a GGUF file"),
    ):
        with pytest.raises(ConfigError, match=message):
            llamacpp_settings(ServedArm(name="x", settings=settings))


def test_openvino_refuses_requests_at_the_same_time(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("engine=openvino", "target=hub", f"target.path={folder}", "target.dtype=float32")
    plan = plan_of(tmp_path, *given, "measure.batch_size=2")
    monkeypatch.setattr(OpenVINO, "packages", ("pytest",))
    with pytest.raises(ConfigError, match=r"measure\.batch_size=2: engine=openvino answers one"):
        measured(plan)


def python_of(variable: str, module: str) -> str:
    """The interpreter of an engine's environment, or "" for this one; skips where there is neither."""
    found = os.environ.get(variable, "")
    if not found and find_spec(module) is None:
        pytest.skip(f"{variable} names no interpreter with {module}, and this one has none")
    return found


def test_llamacpp_starts_from_our_file_and_lost_ids_are_a_fault(tmp_path: Path, folder: Path) -> None:
    """Random bytes are parts of characters, whose ids the server keeps from its stream."""
    python = python_of("SPECBENCH_LLAMACPP_PYTHON", "xllamacpp")
    given = ("target=hub", f"target.path={folder}", "target.dtype=float32", "target.max_context=512")
    given = (*given, "engine=llamacpp", f"engine.python={python}", "engine.threads=1")
    plan = plan_of(tmp_path, *given)
    with pytest.raises(EngineFault, match="could not be measured"):
        measured(plan)
    assert {one.kind for one in stored(plan).failures[:-1]} == {"engine-garbage"}


def test_write_gguf_takes_an_untied_head(tmp_path: Path) -> None:

    from gguf import GGUFReader

    loaded = TinyTarget().load(lambda _: None)
    loaded.model.save_pretrained(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    write_gguf(tmp_path / "m", config, loaded.tokenizer, tmp_path / "m.gguf")
    assert "output.weight" in {one.name for one in GGUFReader(tmp_path / "m.gguf").tensors}
