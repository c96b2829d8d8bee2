"""Block drafters are loaded from every layout, by conventions that have names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from harness.config import ConfigError
from methods.shared.block.checkpoint import load_block, save_block
from methods.shared.block.config import Readings
from methods.shared.block.networks.network import BlockNetwork
from tests.methods.block.heads import LAYOUTS, PARTS, network_of, write


def load(folder: Path, **readings: Any) -> Any:
    return load_block(
        str(folder),
        revision=None,
        readings=Readings(**readings),
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def base_of(network: BlockNetwork) -> float:
    """The rotary base that the frequencies were computed with."""
    frequencies = network.rotary.inv_freq
    size = network.shape.head_dim
    return float(frequencies[1] ** (-size / 2))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 1e6},
        {"rope_theta": 1e6, "rope_scaling": None},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
    ],
    ids=["transformers4", "transformers4-null", "transformers5"],
)
def test_the_rotary_base_is_found_wherever_it_is_written(
    tmp_path: Path, layout: str, rope: dict[str, Any]
) -> None:
    loaded = load(write(tmp_path, network_of(), layout, rope))
    assert loaded.card["rope_theta"] == 1e6
    assert base_of(loaded.network) == pytest.approx(1e6, rel=1e-3)


@pytest.mark.parametrize(
    ("layout", "from_anchor", "point"),
    [
        ("z-lab", False, "output"),
        ("SpecForge", False, "output"),
        ("DeepSpec", True, "output"),
        ("speculators", False, "input"),
    ],
)
def test_every_layout_has_its_own_conventions(
    tmp_path: Path, layout: str, from_anchor: bool, point: str
) -> None:
    card = load(write(tmp_path, network_of(), layout)).card
    assert (card["layout"], card["sample_from_anchor"], card["tap_point"]) == (layout, from_anchor, point)
    other = load(tmp_path, sample_from_anchor=not from_anchor, tap_point="output", causal=True).card
    assert (other["sample_from_anchor"], other["tap_point"]) == (not from_anchor, "output")
    assert other["causal"] == (True, True)


def test_a_dspark_head_of_specforge_drafts_from_the_anchor(tmp_path: Path) -> None:
    network = network_of(**PARTS["dspark"])
    inner = {"projector_type": "dspark", "block_size": 5, "mask_token_id": 1, "target_layer_ids": [0, 1]}
    card = load(write(tmp_path, network, "SpecForge", dflash_config=inner)).card
    assert card["sample_from_anchor"]
    assert (card["kind"], card["markov"], card["markov_rank"]) == ("dspark", "rnn", 6)


@pytest.mark.parametrize(
    ("layout", "changes", "causal"),
    [
        ("z-lab", {}, (True, False)),
        ("z-lab", {"is_causal": False}, (False, False)),
        ("z-lab", {"is_causal": True}, (True, True)),
        ("speculators", {}, (True, False)),
        ("speculators", {"sliding_window_non_causal": True}, (False, False)),
    ],
)
def test_sliding_layers_are_causal_unless_the_file_says_otherwise(
    tmp_path: Path, layout: str, changes: dict[str, Any], causal: tuple[bool, ...]
) -> None:
    window = {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6}
    card = load(write(tmp_path, network_of(), layout, **window, **changes)).card
    assert (card["sliding"], card["causal"], card["window"]) == ((True, False), causal, 6)


def test_taps_that_no_file_names_are_spread_over_the_target(tmp_path: Path) -> None:
    inner = {"block_size": 5, "mask_token_id": 1}
    card = load(write(tmp_path, network_of(), dflash_config=inner, num_target_layers=36)).card
    assert card["tap_layers"] == (1, 33)


@pytest.mark.parametrize("kind", PARTS)
def test_a_head_computes_the_same_after_it_was_loaded(tmp_path: Path, kind: str) -> None:
    network = network_of(**PARTS[kind])
    extra = {"conv_kernel_size": 2, "conv_group_size": 16} if kind == "dflash2" else {}
    loaded = load(write(tmp_path, network, "DeepSpec" if kind == "dspark" else "z-lab", **extra)).network
    assert loaded.shape.kind == kind
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


@pytest.mark.parametrize("kind", ["dflash", "dspark"])
def test_a_saved_head_is_the_same_head(tmp_path: Path, kind: str) -> None:
    network = network_of(**PARTS[kind], rope_theta=5e5)
    save_block(network, tmp_path, {"training": {"why": "test"}})
    loaded = load(tmp_path)
    assert loaded.card["training"] == {"why": "test"}
    for field in ("sample_from_anchor", "tap_layers", "block_size", "mask_token_id", "rope_theta", "markov"):
        assert getattr(loaded.network.shape, field) == getattr(network.shape, field)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda one: one.pop("hidden_norm.weight"), "missing hidden_norm.weight"),
        (lambda one: one.update(extra=torch.ones(1)), "unexpected extra"),
        (lambda one: one.update({"fc.weight": torch.ones(64, 64)}), r"fc.weight \[64, 64\] in place of"),
        (lambda one: one.update({"prefix_gru.weight": torch.ones(1)}), "Domino head"),
        (lambda one: one.update({"model.norm.weight": torch.ones(64)}), "under another name too"),
    ],
)
def test_a_head_with_other_tensors_is_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    write(tmp_path, network_of())
    tensors = load_file(tmp_path / "model.safetensors")
    spoil(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"markov_rank": 4}, "markov_rank=4"),
        ({"enable_confidence_head": True}, "enable_confidence_head=true"),
        ({"selector_rank": 4}, "selector_rank=4"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "Allowed: full_attention"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "no sliding_window"),
        ({"hidden_size": "wide"}, "hidden_size='wide'"),
        ({"dflash_config": {"block_size": 5, "target_layer_ids": [0, 1]}}, "mask_token_id=N"),
        ({"dflash_config": {"block_size": 5, "mask_token_id": 1}}, "target_layer_ids"),
        (
            {
                "dflash_config": {
                    "projector_type": "domino",
                    "target_layer_ids": [0, 1],
                    "block_size": 5,
                    "mask_token_id": 1,
                }
            },
            "allowed: dflash",
        ),
    ],
)
def test_a_configuration_that_cannot_be_meant_is_refused(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write(tmp_path, network_of(), **changes)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)
