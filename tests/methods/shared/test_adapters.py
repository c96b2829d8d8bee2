"""Heads that are stored as what they add to another head."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.config import ConfigError
from methods.shared import adapters
from methods.shared.head_files import prompts_beside, read_head

SCRIPT = Path(__file__).parents[3] / "scripts" / "shrink_head.py"


def store(folder: Path, tensors: dict[str, Tensor]) -> Path:
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"hidden_size": 8}))
    return folder


@pytest.fixture
def tensors() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {
        "fc.weight": torch.randn(8, 12).half(),
        "layer.q_proj.weight": torch.randn(6, 8).half(),
        "norm.weight": torch.ones(8).half(),
        "d2t": torch.arange(5),
    }


def changed(tensors: dict[str, Tensor], rank: int) -> dict[str, Tensor]:
    """Matrices with an addition of this rank."""
    made = dict(tensors)
    for name in ("fc.weight", "layer.q_proj.weight"):
        num_out, num_in = tensors[name].shape
        added = torch.randn(num_out, rank) @ torch.randn(rank, num_in) * 0.02
        made[name] = (tensors[name].float() + added).half()
    return made


def adapter(folder: Path, rank: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    arguments = ["rank", folder / "head", folder / "out", rank, folder / "base"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    return folder / "out"


def test_what_was_added_with_this_rank_comes_back_from_a_small_file(
    tensors: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, head = store(tmp_path / "base", tensors), store(tmp_path / "head", changed(tensors, 2))
    (head / "card.json").write_text(json.dumps({"training": {"num_steps": 3}}))
    out = adapter(tmp_path, 2, monkeypatch)
    stored = load_file(out / adapters.WEIGHTS)
    assert {name: tuple(factor.shape) for name, factor in stored.items()} == {
        "base_model.model.fc.lora_B.weight": (8, 2),
        "base_model.model.fc.lora_A.weight": (2, 12),
        "base_model.model.layer.q_proj.lora_B.weight": (6, 2),
        "base_model.model.layer.q_proj.lora_A.weight": (2, 8),
    }
    files, whole, first = (read_head(str(path), None, "head") for path in (out, head, base))
    assert files.config == whole.config
    assert set(files.tensors) == set(whole.tensors)
    for name, tensor in whole.tensors.items():
        assert files.tensors[name].dtype == tensor.dtype
        torch.testing.assert_close(files.tensors[name], tensor, atol=2e-3, rtol=0)
    assert not torch.equal(files.tensors["fc.weight"], tensors["fc.weight"])
    assert files.card["base"] == {"path": str(base), "sha256": first.card["sha256"]}
    assert files.card["training"] == {"num_steps": 3}
    assert len({one.card["sha256"] for one in (files, whole, first)}) == 3


def test_an_adapter_of_other_weights_or_other_layers_is_refused(
    tensors: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = store(tmp_path / "base", tensors)
    store(tmp_path / "head", changed(tensors, 1))
    out = adapter(tmp_path, 1, monkeypatch)
    save_file({**tensors, "norm.weight": torch.zeros(8).half()}, base / "model.safetensors")
    with pytest.raises(ConfigError, match="made for other weights"):
        read_head(str(out), None, "head")
    config = {**json.loads((out / adapters.CONFIG).read_text()), "base_sha256": None}
    (out / adapters.CONFIG).write_text(json.dumps(config))
    read_head(str(out), None, "head")
    for other in ({"use_dora": True}, {"peft_type": "LOHA"}, {"bias": "all"}, {"r": None}):
        (out / adapters.CONFIG).write_text(json.dumps({**config, **other}))
        with pytest.raises(ConfigError, match="another adapter than plain LoRA"):
            read_head(str(out), None, "head")
    (out / adapters.CONFIG).write_text(json.dumps(config))
    for factors, message in (
        ({"base_model.model.other.lora_A.weight": torch.ones(1, 12)}, "does not fit its base: other"),
        ({"fc.weight": torch.ones(8, 12)}, r"no factor of a layer"),
        (
            {
                "base_model.model.fc.lora_A.weight": torch.ones(1, 8),
                "base_model.model.fc.lora_B.weight": torch.ones(8, 1),
            },
            r"has the shape \[8, 12\], not \[8, 8\]",
        ),
    ):
        save_file(factors, out / adapters.WEIGHTS)
        with pytest.raises(ConfigError, match=message):
            read_head(str(out), None, "head")


def test_a_head_that_changed_more_than_matrices_has_no_adapter(
    tensors: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store(tmp_path / "base", tensors)
    store(tmp_path / "head", {**tensors, "norm.weight": torch.zeros(8).half()})
    with pytest.raises(SystemExit):
        adapter(tmp_path, 1, monkeypatch)
    assert "norm.weight: an adapter can only change matrices" in capsys.readouterr().err


def test_heads_of_the_same_prompts_may_name_one_file_of_fingerprints(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "prompts.npy").write_bytes(b"")
    card = {"path": str(tmp_path), "revision": None, "training": {}}
    assert prompts_beside(card) == []
    for names in (str(other), [str(other)]):
        naming = {**card, "training": {"prompts_of": names}}
        assert prompts_beside(naming) == [other / "prompts.npy"]
    (tmp_path / "prompts.npy").write_bytes(b"")
    assert prompts_beside(naming) == [tmp_path / "prompts.npy", other / "prompts.npy"]
