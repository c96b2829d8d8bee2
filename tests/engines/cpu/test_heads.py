"""EAGLE-3 on llama.cpp and OpenVINO GenAI: what is written, and where they are installed the tokens."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from harness.config import ConfigError
from harness.engines.cpu import openvino_export
from harness.engines.cpu.engines import llamacpp_settings
from harness.engines.cpu.gguf_file import rotated
from harness.engines.cpu.gguf_head import gguf_of_head
from harness.engines.cpu.openvino_export import exported_head
from harness.engines.heads import head_folder, tapped_blocks
from harness.engines.servers.served import ServedArm
from harness.target.random_target import TinyTarget
from harness.target.smollm2 import converted_folder
from tests.engines.cpu.test_cpu_engines import python_of
from tests.engines.servers.measuring import measured, plan_of

_VOCAB, _DRAFT_VOCAB, _WIDTH, _HEADS, _KV_HEADS, _HEAD_DIM = 259, 40, 48, 4, 2, 12
_CONFIG: dict[str, Any] = {
    **{"hidden_size": _WIDTH, "intermediate_size": 64, "num_hidden_layers": 1, "rms_norm_eps": 1e-6},
    **{"num_attention_heads": _HEADS, "num_key_value_heads": _KV_HEADS, "head_dim": _HEAD_DIM},
    **{"vocab_size": _VOCAB, "draft_vocab_size": _DRAFT_VOCAB, "max_position_embeddings": 512},
}
_TARGET = {"num_hidden_layers": 8, "hidden_size": _WIDTH, "vocab_size": _VOCAB}
_SHIPPED = "smollm2_135m-eagle3"


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A head in the official format, beside a target's config, and a cache folder of its own."""
    monkeypatch.setenv("SPECBENCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "config.json").write_text(json.dumps(_TARGET))
    folder = tmp_path / "head"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    save_file(_tensors(), folder / "model.safetensors")
    return folder


def _tensors() -> dict[str, torch.Tensor]:
    shapes = {
        **dict.fromkeys(
            ("input_layernorm", "hidden_norm", "post_attention_layernorm"),
            (_WIDTH,),
        ),
        "self_attn.q_proj": (_HEADS * _HEAD_DIM, 2 * _WIDTH),
        "self_attn.k_proj": (_KV_HEADS * _HEAD_DIM, 2 * _WIDTH),
        "self_attn.v_proj": (_KV_HEADS * _HEAD_DIM, 2 * _WIDTH),
        "self_attn.o_proj": (_WIDTH, _HEADS * _HEAD_DIM),
        "mlp.gate_proj": (64, _WIDTH),
        "mlp.up_proj": (64, _WIDTH),
        "mlp.down_proj": (_WIDTH, 64),
    }
    generator = torch.Generator().manual_seed(0)
    found = {
        f"midlayer.{name}.weight": torch.randn(*shape, generator=generator).half()
        for name, shape in shapes.items()
    }
    found["fc.weight"] = torch.randn(_WIDTH, 3 * _WIDTH, generator=generator).half()
    found["norm.weight"] = torch.ones(_WIDTH).half()
    found["lm_head.weight"] = torch.randn(_DRAFT_VOCAB, _WIDTH, generator=generator).half()
    # Every third token can be drafted.
    found["d2t"] = torch.arange(_DRAFT_VOCAB) * 2
    found["t2d"] = torch.arange(_VOCAB) % 3 == 0
    return found


def _tokenizer() -> Any:
    return TinyTarget().tokenizer(lambda _: None)[0]


def test_a_head_as_gguf_has_its_tensors_its_taps_and_the_ids_of_its_tokens(head: Path) -> None:
    from gguf import GGUFReader

    file = gguf_of_head(head, head.parent / "target", _tokenizer())
    assert gguf_of_head(head, head.parent / "target", _tokenizer()) == file
    reader = GGUFReader(file)
    read = {one.name: np.asarray(one.data) for one in reader.tensors}
    given = {name: tensor.float().numpy() for name, tensor in _tensors().items()}
    assert read["d2t"].tolist() == list(range(0, 3 * _DRAFT_VOCAB, 3))
    assert (read["fc.weight"] == given["fc.weight"]).all()
    assert (read["blk.0.attn_norm_2.weight"] == given["midlayer.hidden_norm.weight"]).all()
    for kind, heads in (("q", _HEADS), ("k", _KV_HEADS)):
        weight = given[f"midlayer.self_attn.{kind}_proj.weight"]
        assert (read[f"blk.0.attn_{kind}.weight"] == rotated(weight, heads)).all()
    assert len(read) == len(given) - 1
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "eagle3"
    assert fields["eagle3.target_layers"] == [2, 4, 5]
    assert fields["eagle3.target_hidden_size"] == _WIDTH
    assert fields["eagle3.norm_before_residual"] is False
    assert len(fields["tokenizer.ggml.tokens"]) == _VOCAB


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"norm_output": True}, "norm_output"),
        ({"eagle_aux_hidden_state_layer_ids": [2, 4]}, "2 tapped blocks"),
        ({"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 3, 4]}}, "numbered by their outputs"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "scaled rotation"),
        ({"vocab_size": 300}, "another target: 300 tokens"),
    ],
)
def test_a_head_that_llamacpp_would_misread_is_refused(
    head: Path, changed: dict[str, Any], message: str
) -> None:
    (head / "config.json").write_text(json.dumps({**_CONFIG, **changed}))
    with pytest.raises(ConfigError, match=message):
        gguf_of_head(head, head.parent / "target", _tokenizer())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"midlayer.self_attn.q_proj.bias": torch.zeros(48)}, r"tensors midlayer\.self_attn\.q_proj\.bias"),
        ({"fc.weight": None}, r"no tensor fc\.weight"),
    ],
)
def test_a_head_with_other_tensors_is_refused(
    head: Path, changed: dict[str, torch.Tensor | None], message: str
) -> None:
    tensors = {name: one for name, one in {**_tensors(), **changed}.items() if one is not None}
    save_file(tensors, head / "model.safetensors")
    with pytest.raises(ConfigError, match=message):
        gguf_of_head(head, head.parent / "target", _tokenizer())


def test_a_head_is_a_folder_or_one_that_ships_here(tmp_path: Path) -> None:
    assert head_folder(_SHIPPED, "x").name == _SHIPPED
    assert tapped_blocks(json.loads((head_folder(_SHIPPED, "x") / "config.json").read_text())) == (2, 15, 27)
    with pytest.raises(ConfigError, match=r"serve\.head=nobody/head: a folder or a shipped head"):
        head_folder("nobody/head", "serve")
    with pytest.raises(ConfigError, match="need a whole head, not additions to one"):
        head_folder("smollm2_135m-gto", "x")
    arm = ServedArm(name="x", settings={"type": "draft-eagle3", "head": str(tmp_path), "n_max": 5})
    assert llamacpp_settings(arm)["head"] == str(tmp_path)


def test_a_head_is_exported_once_with_no_code_beside_its_weights(
    head: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (head / "modeling.py").write_text("raise SystemExit")
    runs: list[tuple[list[str], dict[str, Any], list[str]]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        source = Path(command[command.index("--model") + 1])
        config = json.loads((source / "config.json").read_text())
        runs.append((command, config, sorted(file.name for file in source.iterdir())))
        Path(command[-1]).mkdir()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(openvino_export.subprocess, "run", run)
    first, again = (exported_head(head, "python", lambda _: None) for _ in range(2))
    assert first == again
    assert first.is_dir()
    ((command, config, files),) = runs
    assert files == ["config.json", "model.safetensors"]
    assert config == {**_CONFIG, "architectures": ["LlamaForCausalLMEagle3"]}
    assert "--trust-remote-code" in command


@pytest.mark.real_model
@pytest.mark.skipif(not converted_folder().is_dir(), reason="the embedded target is not converted here")
@pytest.mark.parametrize(
    ("engine", "variable", "module"),
    [
        ("llamacpp", "SPECBENCH_LLAMACPP_PYTHON", "xllamacpp"),
        ("openvino", "SPECBENCH_OPENVINO_PYTHON", "openvino_genai"),
    ],
)
def test_the_shipped_head_drafts_there_and_the_tokens_stay(
    tmp_path: Path, engine: str, variable: str, module: str
) -> None:
    python = python_of(variable, module)
    given = ("target=smollm2_135m", f"engine={engine}", f"engine.python={python}", "engine.threads=1")
    plan = plan_of(tmp_path, *given, "method=[eagle3_chain]", "measure.repeats=1", "max_new_tokens=24")
    run = measured(plan)
    drafted = [one for one in run.records if one.arm == "eagle3_chain"]
    assert len(drafted) == 3
    assert {one.verdict.kind for one in drafted if one.verdict} == {"identical"}
    assert sum(one.engine_accepted or 0 for one in drafted) > 0
    assert all((one.engine_drafted or 0) > (one.engine_accepted or 0) for one in drafted)
