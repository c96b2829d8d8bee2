"""Tiny block drafters and their checkpoints in every layout."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from methods.shared.block.networks.network import BlockNetwork
from methods.shared.block.shape import BlockShape
from tests.support.targets import VOCAB

LAYOUTS = ("z-lab", "SpecForge", "DeepSpec", "speculators")

SHAPE = BlockShape(
    layout="random",
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    vocab_size=VOCAB,
    draft_vocab_size=VOCAB,
    block_size=5,
    mask_token_id=VOCAB - 1,
    sample_from_anchor=False,
    tap_layers=(0, 1),
    tap_point="output",
    sliding=(False, False),
    causal=(False, False),
)
PARTS: dict[str, dict[str, Any]] = {
    "dflash": {},
    "dspark": {
        "sample_from_anchor": True,
        "markov": "rnn",
        "markov_rank": 6,
        "confidence": True,
        "confidence_reads_markov": True,
    },
    "dflash2": {"conv_kernel": 2, "conv_group": 16, "selector_rank": 5, "selector_top_k": 4},
}


def network_of(**changes: Any) -> BlockNetwork:
    """A drafter with random weights that are far from their initial values."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = BlockNetwork(replace(SHAPE, **changes))
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3)
    return network.place(torch.device("cpu"), torch.float32)


def config_of(shape: BlockShape, layout: str, rope: dict[str, Any]) -> dict[str, Any]:
    """config.json of a drafter as the makers of this layout write it."""
    layers = {
        "model_type": "qwen3",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "vocab_size": shape.vocab_size,
        **rope,
    }
    block = {"block_size": shape.block_size, "mask_token_id": shape.mask_token_id}
    taps = list(shape.tap_layers)
    if layout == "speculators":
        return {
            "speculators_model_type": "dflash",
            "transformer_layer_config": layers,
            "aux_hidden_state_layer_ids": taps,
            **block,
        }
    if layout == "DeepSpec":
        return {"architectures": ["Qwen3DSparkModel"], **layers, **block, "target_layer_ids": taps}
    inner = {**block, "target_layer_ids": taps}
    if layout == "SpecForge":
        inner["projector_type"] = "dflash"
    return {"architectures": ["DFlashDraftModel"], **layers, "dflash_config": inner}


def write(
    folder: Path, network: BlockNetwork, layout: str = "z-lab", rope: Any = None, **changes: Any
) -> Path:
    """The checkpoint of a drafter; `changes` go into config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: one for name, one in network.state_dict().items() if name != "d2t"}
    save_file(tensors, folder / "model.safetensors")
    config = {**config_of(network.shape, layout, rope or {}), **changes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
