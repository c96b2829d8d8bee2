"""Heads that are stored as what they add to another head: a product of two narrow matrices per matrix.

The files are those of Hugging Face's PEFT for LoRA (Hu et al. 2021, arXiv 2106.09685): `adapter_config.json`
and `adapter_model.safetensors` with `lora_B` [O, r] and `lora_A` [r, I] of each layer, which has O outputs
and I inputs. `base_sha256` in the configuration, which PEFT does not know, says which weights they belong to.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from harness.config import ConfigError
from harness.system.files import write_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_UNREAD = ("alpha_pattern", "fan_in_fan_out", "modules_to_save", "rank_pattern", "use_dora", "use_rslora")
"""Entries of PEFT's configuration that would change what the factors mean."""
_NAME = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<factor>[AB])\.weight")


def merged(
    base: Mapping[str, Tensor], config: Mapping[str, Any], factors: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """The tensors of the whole head, in the types of its base.

    Raises:
        ConfigError: it is no plain LoRA, or the factors are not those of layers of the base.
    """
    rank, alpha = config.get("r"), config.get("lora_alpha", config.get("r"))
    unread = sorted(name for name in _UNREAD if config.get(name))
    if config.get("peft_type") != "LORA" or not rank or config.get("bias", "none") != "none" or unread:
        said = ", ".join(f"{name}={config.get(name)!r}" for name in unread or ("peft_type", "r", "bias"))
        raise ConfigError(f"{where}: its {CONFIG} describes another adapter than plain LoRA: {said}")
    pairs: dict[str, dict[str, Tensor]] = {}
    for name, tensor in factors.items():
        found = _NAME.fullmatch(name)
        if found is None:
            raise ConfigError(f"{where}: its {WEIGHTS} holds {name}, which is no factor of a layer")
        pairs.setdefault(f"{found['layer']}.weight", {})[found["factor"]] = tensor
    whole = dict(base)
    for name, pair in pairs.items():
        weight = whole.get(name)
        if weight is None or set(pair) != {"A", "B"}:
            raise ConfigError(f"{where}: its {WEIGHTS} does not fit its base: {name}")
        added = pair["B"].float() @ pair["A"].float() * (alpha / rank)
        if added.shape != weight.shape:
            raise ConfigError(
                f"{where}: its {WEIGHTS} does not fit its base: {name} has the shape {list(weight.shape)},"
                f" not {list(added.shape)}"
            )
        whole[name] = (weight.float() + added).to(weight.dtype)
    return whole


def write(
    folder: Path, base: tuple[str, str], weights: tuple[Mapping[str, Tensor], Mapping[str, Tensor]], rank: int
) -> float:
    """Write the adapter of the given rank that is nearest to a head; returns the share of the difference
    that it has (of the sum of squares).

    base: what `read_head` finds the base by, and the hash in its card. weights: the base's and the head's.

    Raises:
        ConfigError: the head differs from its base in more than matrices.
    """
    before, after = weights
    factors: dict[str, Tensor] = {}
    kept = total = 0.0
    for name, tensor in after.items():
        if name in before and torch.equal(tensor, before[name]):
            continue
        if name not in before or tensor.ndim != 2 or tensor.shape != before[name].shape:
            raise ConfigError(f"{name}: an adapter can only change matrices; train with training.rank=RANK")
        left, sizes, right = torch.linalg.svd(tensor.float() - before[name].float(), full_matrices=False)
        kept += float(sizes[:rank].square().sum())
        total += float(sizes.square().sum())
        # Both factors have the same size, as float16 has the same precision for them.
        root = sizes[:rank].sqrt()
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        factors[f"{layer}.lora_B.weight"] = (left[:, :rank] * root).half().contiguous()
        factors[f"{layer}.lora_A.weight"] = (root[:, None] * right[:rank]).half().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(factors, folder / WEIGHTS, metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base[0],
        "base_sha256": base[1],
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted({found["layer"] for name in factors if (found := _NAME.fullmatch(name))}),
    }
    write_json(folder / CONFIG, config, indent=2)
    return kept / total if total else 1.0
