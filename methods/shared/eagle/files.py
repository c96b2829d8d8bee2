"""Find and read the files of an EAGLE head, and give its tensors the names that `DraftHead` has.

The checkpoints of SafeAILab/EAGLE, SpecForge, speculators, vLLM and SGLang hold one network under different
names; vLLM also stacks projections that read the same input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.config import ConfigError
from methods.shared.head_files import HeadFiles, read_head

_SPELLINGS = (
    (re.compile(r"^(midlayer|layers\.0|transformer)\."), "layer."),
    (re.compile(r"^fusion_fc\."), "fc."),
    (re.compile(r"^draft_id_to_target_id$"), "d2t"),
)
_USELESS = re.compile(r"rotary_emb\.inv_freq$|^verifier_")
"""Tensors that are computed from the configuration, or are the target's and kept for training."""
_MORE_LAYERS = re.compile(r"^(midlayers?|layers)\.[1-9]|^additional_layers\.")


def read_files(path: str, revision: str | None, where: str) -> HeadFiles:
    """Read the head in the folder, or at the hub id, `path`; `where` begins each message.

    Raises:
        ConfigError: there is none, a file cannot be read, or it has more than one layer.
    """
    files = read_head(path, revision, where)
    card = {**files.card, "format": _family(files.config, list(files.tensors))}
    return HeadFiles(config=files.config, tensors=_canonical(files.tensors, where), card=card)


def official_name(name: str, layer_prefix: str) -> str:
    """The name in SafeAILab's checkpoints of the tensor that `DraftHead` calls `name`."""
    return layer_prefix + name.removeprefix("layer.") if name.startswith("layer.") else name


def _family(config: Mapping[str, Any], names: Sequence[str]) -> str:
    """Whose format it is, recognised by what only that format has; `names` are those in the file."""
    if "speculators_model_type" in config or "transformer_layer_config" in config:
        return "speculators"
    if "hot_token_id" in names or any(name.startswith("model.midlayer.") for name in names):
        return "SGLang"
    if isinstance(config.get("model"), dict) or any(name.startswith("model.") for name in names):
        return "vLLM"
    if "eagle_config" in config or any(name.startswith("fc_norm.") for name in names):
        return "SpecForge"
    return "SafeAILab"


def _canonical(written: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The tensors under their names in `DraftHead`, with stacked ones taken apart."""
    named: dict[str, Tensor] = {}
    more = []
    for name, tensor in written.items():
        short = name.removeprefix("model.")
        if _USELESS.search(short):
            continue
        if _MORE_LAYERS.match(short):
            more.append(name)
        for pattern, canonical in _SPELLINGS:
            short = pattern.sub(canonical, short)
        if short in named:
            raise ConfigError(f"{where}: has the tensor {name} under another name too.")
        named[short] = tensor
    if more:
        raise ConfigError(
            f"{where}: has more than one layer, which is not supported: {', '.join(sorted(more))}."
        )
    for kind in ("weight", "bias"):
        _unstack(named, kind)
    return named


def _unstack(named: dict[str, Tensor], kind: str) -> None:
    """Split stacked projections; those that cannot be split stay, and are refused as unexpected later."""
    stacked = named.get(f"layer.mlp.gate_up_proj.{kind}")
    if stacked is not None and len(stacked) % 2 == 0:
        del named[f"layer.mlp.gate_up_proj.{kind}"]
        named[f"layer.mlp.gate_proj.{kind}"], named[f"layer.mlp.up_proj.{kind}"] = stacked.chunk(2)
    stacked, output = (
        named.get(f"layer.self_attn.qkv_proj.{kind}"),
        named.get("layer.self_attn.o_proj.weight"),
    )
    if stacked is None or output is None:
        return
    num_queries = output.shape[-1]
    num_keys, rest = divmod(len(stacked) - num_queries, 2)
    if num_keys > 0 and not rest:
        del named[f"layer.self_attn.qkv_proj.{kind}"]
        pieces = torch.split(stacked, [num_queries, num_keys, num_keys])
        for letter, piece in zip("qkv", pieces, strict=True):
            named[f"layer.self_attn.{letter}_proj.{kind}"] = piece
