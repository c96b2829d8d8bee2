"""The drafter and the network of a recorded case, as conf/recorded/block.yaml declares them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.config import build
from harness.conformance.case import Case
from harness.conformance.declared import Declared

_DECLARED = Declared("block")
module = _DECLARED.module


def network_of(case: Case) -> Any:
    """The head of a case, in float32 and without a target."""
    readings = module("config").Readings()
    loaded = module("checkpoint").load_block(
        str(case.model_folder),
        revision=None,
        readings=readings,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    return loaded.network


def drafter_of(case: Case, **settings: Any) -> Any:
    """The drafter of a case, not yet bound."""
    kind = network_of(case).shape.kind
    node = {**_DECLARED.nodes["drafter"], "kind": kind, "head": str(case.model_folder), **settings}
    return build(node, "conf/recorded/block.yaml: drafter")


def noise_for(
    network: Any, target: Any, states: Tensor, anchor: Tensor, temperature: float, tokens: Tensor
) -> Tensor:
    """Noise [1, k] with which a block [1, k, H] draws `tokens` [1, k]: the middle of each one's share."""
    noise = torch.full(tokens.shape, 0.5, dtype=torch.float64)
    for slot in range(tokens.shape[1]):
        drawn = module("draw").draw(network, target, states, anchor, temperature, noise)
        probs = drawn.probs[0, slot].double()
        ids = torch.arange(len(probs)) if drawn.candidates is None else drawn.candidates[0, slot]
        shares = probs[ids]
        place = int((ids == tokens[0, slot]).nonzero()[0])
        noise[0, slot] = (shares[:place].sum() + shares[place] / 2) / shares.sum()
    return noise
