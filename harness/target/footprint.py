"""Bytes of a model: resident weights, weights that a step reads, and cache that a token takes."""

from __future__ import annotations

from typing import Any

import torch

from harness.system.tensor_parallel import own_part


def step_bytes(model: Any, experts: tuple[int, int] | None = None) -> int:
    """Bytes of weights that a single-token step reads, of those that this process holds.

    An embedding that is only looked up (unless it is also the LM head) does not count.
    experts: number of experts of a mixture, and how many of them one token uses.
    """
    head = model.get_output_embeddings().weight
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)} - {id(head)}
    total = 0
    for name, weight in model.named_parameters():
        if id(weight) in looked_up:
            continue
        share = own_part(weight).nbytes
        if experts is not None and ".experts." in name:
            share = share * experts[1] // experts[0]
        total += share
    return total


def resident_bytes(module: torch.nn.Module) -> int:
    """Bytes of parameters and buffers; shared tensors count once."""
    held = {tensor.data_ptr(): tensor.nbytes for tensor in (*module.parameters(), *module.buffers())}
    return sum(held.values())


def expert_counts(config: Any) -> tuple[int, int] | None:
    """Experts per layer and per token of a mixture; None for any other model."""
    names = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
    total = next((n for n in (getattr(config, name, None) for name in names) if n), None)
    chosen = getattr(config, "num_experts_per_tok", None)
    return (int(total), int(chosen)) if total and chosen else None


@torch.no_grad()
def cache_bytes_per_token(model: Any) -> int:
    """Bytes of one token's keys and values over all layers, measured on a forward of one token."""
    ids = torch.zeros(1, 1, dtype=torch.int64, device=model.get_input_embeddings().weight.device)
    layers = model(input_ids=ids, use_cache=True).past_key_values.layers
    # Layers that read the keys of an earlier one keep none.
    return sum(one.nbytes for layer in layers for one in (layer.keys, layer.values) if one is not None)
