"""Single drafting calls: features in, states, logits, candidates and tokens out."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.conformance.block.recording import module, network_of, noise_for
from harness.conformance.case import Case, Check, Targets, close, equal


@torch.no_grad()
def checks(case: Case, targets: Targets) -> list[Check]:
    """Compare a case, without a cache and with the drafter's own."""
    target, network, tensors = targets.of(case), network_of(case), case.tensors
    features, ids = tensors["context_features"], tensors["block_ids"]
    width, first = ids.shape[1], network.shape.first_slot
    anchor = torch.tensor([features.shape[1]])
    states = module("dense").states_of_blocks(network, target, features[0], ids[:, 0], anchor, width)
    steps = module("steps").BlockSteps(target, network, width)
    steps.cache.clear(1)
    half = features.shape[1] // 2
    steps.take(features[:, :half], [half])
    steps.take(features[:, half:], [features.shape[1] - half])
    drafting = states[:, first:]
    drawn = module("draw").draw(network, target, drafting, ids[:, 0], 0.0, None)
    return [
        close("states", states, tensors["block_hidden"]),
        close("states behind a cache", steps.run(ids), tensors["block_hidden"]),
        close("logits", network.logits(drafting, target), tensors["draft_logits"]),
        equal("tokens at T = 0", drawn.tokens[0].tolist(), case.data["drafted_T0"]),
        *(_selected(case, network, target, drafting, drawn) if "candidates_per_slot" in tensors else ()),
    ]


def _selected(case: Case, network: Any, target: Any, states: Tensor, drawn: Any) -> list[Check]:
    """The candidates of a selector, which are recorded in no order, and what each was given at T = 1."""
    anchor, tokens = case.tensors["block_ids"][:, 0], torch.tensor([case.data["drafted_T1"]])
    noise = noise_for(network, target, states, anchor, 1.0, tokens)
    sampled = module("draw").draw(network, target, states, anchor, 1.0, noise)
    recorded = case.tensors["T1.candidates_per_slot"]
    return [
        equal("candidates", _sorted(drawn.candidates), _sorted(case.tensors["candidates_per_slot"])),
        equal("candidates at T = 1", _sorted(sampled.candidates), _sorted(recorded)),
        equal("tokens at T = 1", sampled.tokens, tokens),
        close("q", sampled.probs.gather(-1, recorded), case.tensors["T1.q_on_candidates"]),
    ]


def _sorted(candidates: Tensor) -> Tensor:
    return candidates.sort(dim=-1).values
