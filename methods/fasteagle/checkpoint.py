"""Checkpoints of FastEagle's network, whose LM head and embedding are the target's and not in the file.

There is no release: config.json and names follow those of EAGLE's heads.
"""

from __future__ import annotations

from typing import Any

from harness.config import ConfigError
from methods.fasteagle.network import CascadeNetwork, CascadeShape
from methods.shared.head_files import HeadFiles
from methods.shared.one_call.checkpoint import Layout


def _read_shape(files: HeadFiles, common: dict[str, Any], where: str) -> CascadeShape:
    size, target_size = common["hidden_size"], common["target_hidden_size"]
    if size != target_size:
        raise ConfigError(
            f"{where}: hidden_size {size} differs from the target's {target_size}, whose LM head reads it"
        )
    features = files.tensors.get("fc.weight")
    num_taps = 3 if features is None else features.shape[-1] // target_size
    return CascadeShape(**common, num_taps=num_taps)


def _write_config(network: CascadeNetwork) -> dict[str, Any]:
    return {"architectures": ["LlamaForCausalLMFastEagle"]}


LAYOUT: Layout[CascadeShape, CascadeNetwork] = Layout("FastEagle", _read_shape, CascadeNetwork, _write_config)
