"""Calls of the network: all blocks of a training step, and blocks behind a cache as a round asks for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.conformance.case import Case, Check, Targets, close, equal
from harness.conformance.specblock.recording import (
    RANK_TOLERANCE,
    embedding_of,
    growth_of,
    module,
    network_of,
)

_NUM_BEST = 20


@torch.no_grad()
def unrolled(case: Case, targets: Targets) -> list[Check]:
    """Compare the blocks of a training step, with the mask that the release trains with."""
    network, tensors, lengths = network_of(case), case.tensors, [0, *case.data["M"]]
    embed, found = embedding_of(case, targets, network), []
    for row in range(len(tensors["input_ids"])):
        places = torch.arange(tensors["input_ids"].shape[1])
        unrolling = module("training").Unrolling(
            network, torch.zeros_like(places), places, places, "released"
        )
        outputs = torch.empty(0)
        for number, length in enumerate(lengths):
            embedded = embed(tensors[f"block{number}.input_ids"][row])
            if number:
                outputs = unrolling.later(outputs, length, embedded)
            else:
                outputs = unrolling.first(tensors["hidden_states"][row], embedded)
            said = _said(network, outputs, _NUM_BEST)
            name = f"row {row}, block {number}"
            found.append(
                equal(f"{name}: class", said.pop("class"), tensors[f"block{number}.rank_class"][row])
            )
            found += _compared(name, said, {key: tensors[f"block{number}.{key}"][row] for key in said})
    return found


@torch.no_grad()
def checks(case: Case, targets: Targets) -> list[Check]:
    """Compare the block after the last row, blocks that start from its slots, and blocks that start from
    those."""
    network, tensors, starts = network_of(case), case.tensors, case.data["starts"]
    features, ids = tensors["hidden_states"], tensors["input_ids"]
    growth = growth_of(case, targets, network)
    half = ids.shape[1] // 2
    growth.feed(features[:, :half], ids[:, :half], [half])
    growth.feed(features[:, half:], ids[:, half:], [ids.shape[1] - half])
    found = []
    for num_best in (10, _NUM_BEST):
        said = _said(network, growth.outputs[0, 0], num_best)
        del said["class"]
        names = {"rank_features": f"rank_features_top{num_best}", "rank_logits": f"rank_logits_top{num_best}"}
        theirs = {key: tensors[f"row.{names.get(key, key)}"][0] for key in said}
        found += _compared(f"last row, {num_best} best", said, theirs)
    growth.blocks(*_asked([(0, one["slot"], one["token"]) for one in starts]), 1)
    third = [number for number, one in enumerate(starts) if "third_block" in one]
    for number in range(len(starts)):
        found += _block(f"start{number}", network, growth.outputs[0, 1 + number], tensors)
    if third:
        inner = [(1 + number, starts[number]["third_block"]) for number in third]
        growth.blocks(*_asked([(block, one["slot_of_second"], one["token"]) for block, one in inner]), 1)
        for place, number in enumerate(third):
            outputs = growth.outputs[0, 1 + len(starts) + place]
            found += _block(f"start{number}.third", network, outputs, tensors)
    return found


def _asked(starts: list[tuple[int, int, int]]) -> tuple[Tensor, Tensor, Tensor]:
    origins, slots, tokens = torch.tensor(starts).T[:, None]
    return origins, slots, tokens


def _block(name: str, network: Any, outputs: Tensor, tensors: dict[str, Tensor]) -> list[Check]:
    said = _said(network, outputs, _NUM_BEST)
    theirs = {key: tensors[f"{name}.{key}"][0] for key in said if f"{name}.{key}" in tensors}
    return _compared(name, {key: said[key] for key in theirs}, theirs)


def _said(network: Any, outputs: Tensor, num_best: int) -> dict[str, Tensor]:
    """What a block with outputs [..., K, H] says, by the names of the recording."""
    logits = network.logits(outputs)
    ranks = network.rank_logits(outputs, logits, num_best)
    return {
        "hidden_pre_norm": outputs,
        "logits": logits,
        "rank_features": module("network").rank_features(logits, num_best),
        "rank_logits": ranks,
        "class": ranks.argmax(-1),
    }


def _compared(name: str, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> list[Check]:
    return [
        close(f"{name}: {key}", ours[key], theirs[key], RANK_TOLERANCE)
        if key.startswith("rank")
        else close(f"{name}: {key}", ours[key], theirs[key])
        for key in ours
    ]
