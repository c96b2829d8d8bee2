"""Read the multi-token-prediction head that a target's own checkpoint brings, in each published layout.

transformers leaves these tensors out when it loads the target.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.config import ConfigError
from harness.drafting.drafter import TargetView
from methods.mtp_head.network import Conventions, MtpNetwork, State
from methods.shared.eagle.heads.filling import refuse_differences
from methods.shared.head_files import read_part

_LAYOUTS: dict[str, tuple[str, dict[str, str], bool]] = {
    "deepseek": (r"model\.layers\.(\d+)\.", {"shared_head.norm": "norm"}, False),
    "mimo": (
        r"model\.mtp_layers\.(\d+)\.",
        {
            "token_layernorm": "enorm",
            "hidden_layernorm": "hnorm",
            "input_proj": "eh_proj",
            "final_layernorm": "norm",
        },
        True,
    ),
    "qwen": (
        r"mtp\.(?:layers\.(\d+)\.)?",
        {"pre_fc_norm_embedding": "enorm", "pre_fc_norm_hidden": "hnorm", "fc": "eh_proj"},
        False,
    ),
}
"""Per layout: the prefix of a head's tensors with its number, other names of `MtpNetwork`'s parts, and
whether the projection reads the state first. deepseek: DeepSeek-V3, GLM-4.5 to 4.7; mimo: MiMo-7B; qwen:
Qwen3-Next and Qwen3.5."""
_OWN = ("enorm", "hnorm", "eh_proj", "norm")
_SHARED = ("shared_head.head.", "embed_tokens.", "lm_head.")
"""Copies of the target's embedding and LM head."""
_QUANTISED = ("weight_scale_inv", "weight_scale", "qweight", "scales")


def load_networks(
    path: str, revision: str | None, target: TargetView, feed_back: State, most: int | None
) -> tuple[list[MtpNetwork], dict[str, Any]]:
    """The heads in the checkpoint in the folder, or at the hub id, `path`, in their order, and their card.

    The card holds path, revision, sha256, the layout, the conventions, and how many heads the file has.
    most: heads that are read; None reads all.

    Raises:
        ConfigError: there is no such checkpoint or no head in it, or the head does not fit the target.
    """
    where, num_layers = f"head={path}", target.config.num_hidden_layers
    files = read_part(path, revision, where, lambda name: _layout_of(name, num_layers) is not None)
    layouts = {_layout_of(name, num_layers) for name in files.tensors}
    if len(layouts) != 1:
        raise ConfigError(
            f"{where}: has no multi-token-prediction head. Looked for tensors of the layouts"
            f" {', '.join(sorted(_LAYOUTS))} behind the target's {num_layers} layers. Drafters for targets"
            " without one: method=suffix, or a trained head with method=eagle3."
        )
    (layout,) = layouts
    heads = _heads(files.tensors, str(layout), num_layers)
    conventions = Conventions(hidden_first=_LAYOUTS[str(layout)][2], feed_back=feed_back)
    networks = []
    for named in heads[:most]:
        _refuse_quantised(named, where)
        # Not on `meta`: a block may have buffers that no checkpoint holds.
        network = MtpNetwork(target.own_parts, conventions)
        state = _with_joined_experts(network, named)
        refuse_differences(network, state, where)
        network.load_state_dict({name: one.clone() for name, one in state.items()}, assign=True)
        networks.append(network.place(target.device, target.dtype))
    card = {**files.card, "layout": layout, "num_heads": len(heads), "heads_used": len(networks)}
    return networks, card


def random_networks(
    target: TargetView, feed_back: State, hidden_first: bool, seed: int, count: int
) -> tuple[list[MtpNetwork], dict[str, Any]]:
    """Heads with random weights for `target`, and their card. Torch's random state is left as it was."""
    networks = []
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the generators of all accelerators too.
        torch.default_generator.manual_seed(seed)
        for _ in range(count):
            conventions = Conventions(hidden_first=hidden_first, feed_back=feed_back)
            network = MtpNetwork(target.own_parts, conventions)
            for parameter in network.parameters():
                # Vectors are norms and biases, which their classes initialise.
                if parameter.ndim > 1:
                    nn.init.normal_(parameter, std=target.config.initializer_range)
            networks.append(network.place(target.device, target.dtype))
    return networks, {"path": None, "seed": seed}


def _layout_of(name: str, num_layers: int) -> str | None:
    """The layout in which `name` is a tensor of a head."""
    for layout, (prefix, _, _) in _LAYOUTS.items():
        found = re.match(prefix, name)
        if found and (layout != "deepseek" or int(found[1]) >= num_layers):
            return layout
    return None


def _heads(tensors: Mapping[str, Tensor], layout: str, num_layers: int) -> list[dict[str, Tensor]]:
    """The tensors of every head under their names in `MtpNetwork`, in the order of the heads.

    Qwen's layout has one projection: further layers belong to the one block, and are no heads.
    """
    prefix, spellings, _ = _LAYOUTS[layout]
    first = num_layers if layout == "deepseek" else 0
    heads: dict[int, dict[str, Tensor]] = {first: {}}
    for name, tensor in tensors.items():
        found = re.match(prefix, name)
        assert found is not None, "only tensors of heads were read"
        number = first if found[1] is None else int(found[1])
        rest = name[found.end() :]
        if (layout == "qwen" and number != first) or rest.startswith(_SHARED):
            continue
        part, _, kind = rest.rpartition(".")
        part = spellings.get(part, part)
        inside = part not in _OWN or (layout == "qwen" and found[1] is not None)
        heads.setdefault(number, {})[f"{'block.' if inside else ''}{part}.{kind}"] = tensor
    return [heads[number] for number in sorted(heads)]


def _refuse_quantised(named: Mapping[str, Tensor], where: str) -> None:
    for name, tensor in named.items():
        if name.endswith(_QUANTISED) or not tensor.is_floating_point() or tensor.element_size() < 2:
            raise ConfigError(
                f"{where}: its tensor {name} is quantised ({str(tensor.dtype).removeprefix('torch.')})."
                " Allowed: bfloat16, float16, float32; give a converted checkpoint with"
                " methods.mtp_head.head=FOLDER."
            )


def _with_joined_experts(network: nn.Module, named: dict[str, Tensor]) -> dict[str, Tensor]:
    """Experts as the installed transformers holds them: all of a layer in one tensor, gate and up joined."""
    state = dict(named)
    for name, like in network.named_parameters():
        stem, _, kind = name.rpartition(".")
        if name in state or not stem.endswith(".experts") or like.ndim != 3:
            continue
        parts = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
        written = [[f"{stem}.{number}.{part}.weight" for part in parts] for number in range(len(like))]
        if all(one in state for row in written for one in row):
            state[name] = torch.stack([torch.cat([state.pop(one) for one in row]) for row in written])
    return state
