"""SpecBlock's released checkpoints (github.com/shiweijiezero/SpecBlock): config.json, model.safetensors, and
the vocabulary map once more in vocab_mapping.pt. The release stores no embedding, because it is the target's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from harness.config import ConfigError
from methods.shared.head_files import HeadFiles
from methods.shared.one_call.checkpoint import Layout, number_of
from methods.specblock.network import RANK_CLASSES, BlockNetwork, BlockShape

_SLOTS = "diffspec_draft_token_num"


def save(network: BlockNetwork, folder: Path, card: Mapping[str, Any]) -> None:
    """Write the network as the release does, with a card.json."""
    maps = LAYOUT.save(network, network.shape, folder, card)
    torch.save({"t2d": maps["t2d"], "d2t": maps["d2t"]}, folder / "vocab_mapping.pt")


def _read_shape(files: HeadFiles, common: dict[str, Any], where: str) -> BlockShape:
    config, tensors = files.config, files.tensors
    classes = number_of(config, "rank_classes", where, RANK_CLASSES)
    if classes != RANK_CLASSES:
        raise ConfigError(
            f"{where}: its config.json says rank_classes={classes}; only {RANK_CLASSES} are known"
        )
    condition = tensors.get("input_layer.condition_proj.weight")
    num_taps = 3 if condition is None else condition.shape[-1] // common["target_hidden_size"]
    own_embedding = "input_layer.embed_tokens.weight" in tensors
    if not own_embedding and common["hidden_size"] != common["target_hidden_size"]:
        raise ConfigError(
            f"{where}: hidden_size {common['hidden_size']} differs from the target's"
            f" {common['target_hidden_size']}, so it needs input_layer.embed_tokens.weight"
        )
    return BlockShape(
        **common,
        num_slots=number_of(config, _SLOTS, where),
        num_taps=num_taps,
        own_embedding=own_embedding,
        shift=bool(config.get("layer_shift", True)),
        broadcast=bool(config.get("prefix_broadcast", True)),
    )


def _write_config(network: BlockNetwork) -> dict[str, Any]:
    shape = network.shape
    ablated = {"layer_shift": shape.shift, "prefix_broadcast": shape.broadcast}
    return {
        "architectures": ["LlamaForCausalLMSpecBlock"],
        _SLOTS: shape.num_slots,
        "rank_classes": RANK_CLASSES,
        **{key: value for key, value in ablated.items() if not value},
    }


LAYOUT: Layout[BlockShape, BlockNetwork] = Layout("SpecBlock", _read_shape, BlockNetwork, _write_config)
