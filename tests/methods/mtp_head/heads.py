"""Tiny targets of the families that bring a head, and their heads in the layout of their checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, DeepseekV3Config, Glm4MoeConfig, Qwen2Config, Qwen3Config

from harness.drafting.trees import DynamicTree
from harness.target.model import Target
from methods.mtp_head import MtpHead
from tests.support.targets import VOCAB

NUM_LAYERS = 2
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.15,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
_EXPERTS: dict[str, Any] = {
    "moe_intermediate_size": 16,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
}
_MLA = {"q_lora_rank": 12, "kv_lora_rank": 10, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 12}
CONFIGS = {
    "glm": lambda: Glm4MoeConfig(**_SIZES, **_EXPERTS, head_dim=8),
    "deepseek": lambda: DeepseekV3Config(**{**_SIZES, "num_key_value_heads": 4}, **_EXPERTS, **_MLA),
    "mimo": lambda: Qwen2Config(**_SIZES),
    "qwen": lambda: Qwen3Config(**_SIZES, head_dim=8),
}
"""By family: a configuration. MiMo-7B has the trunk of Qwen2; the head of Qwen3-Next is put on a Qwen3."""


@cache
def trunk(family: str) -> Any:
    torch.manual_seed(2)
    return AutoModelForCausalLM.from_config(CONFIGS[family]()).eval().requires_grad_(False)


@cache
def target(family: str) -> Target:
    return Target(trunk(family))


def bound(family: str, head: str = "random", **settings: Any) -> MtpHead:
    """A drafter of three tokens."""
    tree = settings.pop("tree", {"total_token": 4, "depth": 2, "top_k": 1})
    drafter = MtpHead(head=head, tree=DynamicTree(**tree), **settings)
    drafter.bind(target(family))
    return drafter


def written(state: Mapping[str, torch.Tensor], family: str) -> dict[str, torch.Tensor]:
    """The tensors of a head under the names that a checkpoint of this family gives them."""
    names = {}
    for name, tensor in state.items():
        part, _, kind = name.rpartition(".")
        if family in ("glm", "deepseek"):
            place = {"norm": "shared_head.norm"}.get(part, part.removeprefix("block."))
            names[f"model.layers.{NUM_LAYERS}.{place}.{kind}"] = tensor
        elif family == "mimo":
            own = {"enorm": "token_layernorm", "hnorm": "hidden_layernorm"}
            own |= {"eh_proj": "input_proj", "norm": "final_layernorm"}
            names[f"model.mtp_layers.0.{own.get(part, part.removeprefix('block.'))}.{kind}"] = tensor
        else:
            own = {"enorm": "pre_fc_norm_embedding", "hnorm": "pre_fc_norm_hidden", "eh_proj": "fc"}
            place = own.get(part, part.replace("block.", "layers.0."))
            names[f"mtp.{place}.{kind}"] = tensor
    return _apart(names)


def save(folder: Path, tensors: Mapping[str, torch.Tensor], family: str) -> str:
    """A checkpoint that holds these tensors beside one of the trunk's."""
    other = {"model.layers.0.input_layernorm.weight": torch.ones(32)}
    copies = {name: one.contiguous().clone() for name, one in {**tensors, **other}.items()}
    save_file(copies, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(CONFIGS[family]().to_dict()))
    return str(folder)


def _apart(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts one by one, as checkpoints hold them."""
    apart = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if not stem.endswith(".experts"):
            apart[name] = tensor
            continue
        for number, own in enumerate(tensor):
            parts = {"down_proj": own}
            if kind == "gate_up_proj":
                gate, up = own.chunk(2)
                parts = {"gate_proj": gate, "up_proj": up}
            apart |= {f"{stem}.{number}.{part}.weight": one for part, one in parts.items()}
    return apart
