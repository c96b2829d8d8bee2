"""An EAGLE-3 head as a GGUF file in float32, as llama.cpp reads its drafters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from harness.config import ConfigError
from harness.engines.cpu.gguf_file import (
    BLOCK,
    add_sizes,
    add_vocabulary,
    finish,
    rope_of,
    rotated,
    written_once,
)
from harness.engines.heads import tapped_blocks
from harness.target.checkpoint import fingerprint
from harness.target.smollm2 import cache_root

_NUM_TAPS = 3
"""Blocks of the target that llama.cpp's EAGLE-3 reads; it refuses any other number."""
_NAMES = {
    **{f"midlayer.{given}.weight": f"blk.0.{kind}.weight" for given, kind in BLOCK.items()},
    "midlayer.hidden_norm.weight": "blk.0.attn_norm_2.weight",
    "fc.weight": "fc.weight",
    "norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "embed_tokens.weight": "token_embd.weight",
    "d2t": "d2t",
}
"""Names of a head's tensors in the official checkpoints and in GGUF."""
_UNUSED = "t2d"
"""The map the other way round."""


def gguf_of_head(folder: Path, target: Path, tokenizer: Any) -> Path:
    """The GGUF file of a head in the official format, written on first use and kept below the cache folder.

    target: the folder of the checkpoint that the head drafts for, whose vocabulary goes into the file, too.

    Raises:
        ConfigError: a head of another kind, or with a part that llama.cpp's EAGLE-3 lacks.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    target_config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    num_layers = target_config["num_hidden_layers"]
    taps = tapped_blocks(config) or (2, num_layers // 2, num_layers - 3)
    tensors = _tensors(folder)
    _check(config, taps, tensors, folder)
    _check_fit(config, target_config, tensors, folder)
    prints = f"{fingerprint(folder)}-{fingerprint(target)}"
    file = cache_root() / "gguf" / f"{folder.name}-{prints}-f32.gguf"

    def write(part: Path) -> None:
        import gguf

        writer = gguf.GGUFWriter(part, "eagle3")
        num_heads, num_kv_heads = add_sizes(writer, folder.name, config)
        writer.add_array("eagle3.target_layers", list(taps))
        writer.add_uint32("eagle3.target_hidden_size", target_config["hidden_size"])
        writer.add_bool("eagle3.norm_before_residual", bool(config.get("norm_before_residual")))
        add_vocabulary(writer, tokenizer, target_config["vocab_size"])
        for name, tensor in tensors.items():
            if name == "d2t":
                # The official map has the distance of a token's id from its place, llama.cpp's the id.
                writer.add_tensor(_NAMES[name], (tensor + torch.arange(len(tensor))).numpy())
                continue
            values = tensor.float().numpy()
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                values = rotated(values, num_heads if name.endswith("q_proj.weight") else num_kv_heads)
            writer.add_tensor(_NAMES[name], values)
        finish(writer)

    return written_once(file, write)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors that are written, by their official names."""
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    for part in sorted(folder.glob("*.safetensors")):
        with safe_open(part, framework="pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    found.pop(_UNUSED, None)
    return found


def _check(
    config: dict[str, Any], taps: Sequence[int], tensors: dict[str, torch.Tensor], folder: Path
) -> None:
    missing = _NAMES.keys() - tensors.keys() - {"embed_tokens.weight", "lm_head.weight", "d2t"}
    wrong = {
        f"{len(taps)} tapped blocks, and not {_NUM_TAPS}": len(taps) != _NUM_TAPS,
        # SpecForge's convention; see aux_convention of method=eagle3.
        "tapped blocks numbered by their outputs": taps[0] == 1,
        f"no tensor {', '.join(sorted(missing))}": bool(missing),
        f"tensors {', '.join(sorted(tensors.keys() - _NAMES.keys()))}": bool(tensors.keys() - _NAMES.keys()),
        "norm_output": bool(config.get("norm_output")),
        "a scaled rotation": bool(rope_of(config)[1]),
    }
    for what, is_wrong in wrong.items():
        if is_wrong:
            raise ConfigError(
                f"head={folder}: has {what}; only the official form of such a head is written for"
                " engine=llamacpp here. Give a GGUF file of it as serve.llamacpp.model=FILE, or leave the"
                " method out"
            )


def _check_fit(
    config: dict[str, Any], target: dict[str, Any], tensors: dict[str, torch.Tensor], folder: Path
) -> None:
    """Raise ConfigError where the head was made for a target of other sizes."""
    found = (config["vocab_size"], tensors["fc.weight"].shape[1])
    needed = (target["vocab_size"], _NUM_TAPS * target["hidden_size"])
    if found != needed:
        raise ConfigError(
            f"head={folder}: was made for another target: {found[0]} tokens and an fc over {found[1]}"
            f" numbers; this one needs {needed[0]} and {needed[1]}"
        )
