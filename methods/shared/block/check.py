"""The check before a run: whether a head is read by the convention that it was trained with.

A wrong slot or a wrong block gives no error, only few accepted tokens. So the other readings are tried on a
few prompts, and refused where they are clearly better.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.config import ConfigError
from harness.drafting.drafter import HiddenTap, TargetView
from methods.shared.block.draw import draw
from methods.shared.block.learning.dense import states_of_blocks
from methods.shared.block.networks.network import BlockNetwork

_MARGIN = 0.1
"""By how much another reading must be right more often; few rows are noisy."""
_MOST_ANCHORS = 64
"""Blocks per prompt."""
_OTHER_POINT = {"input": "output", "output": "input"}


@torch.no_grad()
def refuse_wrong_reading(
    network: BlockNetwork, target: TargetView, prompts: Sequence[Sequence[int]], who: str
) -> None:
    """Compare the reading of the slots and of the tapped blocks with the others.

    who: the head, for the message.

    Raises:
        ConfigError: another reading guesses the target's next token clearly more often.
    """
    shape = network.shape
    first, other_first = shape.first_slot, 1 - shape.first_slot
    point: Any = _OTHER_POINT[shape.tap_point]
    others = replace(shape, tap_point=point).taps
    right = {"given": 0, "slots": 0, "taps": 0}
    num_rows = 0
    for prompt in prompts:
        if len(prompt) < 3:
            continue
        ids = torch.tensor([list(prompt)], device=target.device)
        logits, states = target.trace(ids, (*shape.taps, *_traceable(others, target)))
        anchors = torch.arange(1, len(prompt), device=target.device)[-_MOST_ANCHORS:]
        best, dtype = logits[0, anchors].argmax(-1), network.fc.weight.dtype
        as_given, otherwise = states[: len(shape.taps)], states[len(shape.taps) :]
        for name, features, slot in (
            ("given", as_given, first),
            ("slots", as_given, other_first),
            ("taps", otherwise, first),
        ):
            joined = torch.cat([state[0].to(dtype) for state in features], dim=-1)
            blocks = states_of_blocks(network, target, joined, ids[0, anchors], anchors, shape.block_size)
            guessed = _first_tokens(network, target, blocks[:, slot : slot + 1], ids[0, anchors])
            right[name] += int((guessed == best).sum())
        num_rows += len(best)
    _refuse(network, right, num_rows, who)


def _refuse(network: BlockNetwork, right: dict[str, int], num_rows: int, who: str) -> None:
    shape = network.shape
    better = max(("slots", "taps"), key=right.__getitem__)
    if right[better] - right["given"] <= _MARGIN * num_rows:
        return
    shares = f"{right['given'] / num_rows:.0%} of the target's tokens, but {right[better] / num_rows:.0%}"
    if better == "slots":
        other = str(not shape.sample_from_anchor).lower()
        raise ConfigError(
            f"sample_from_anchor: with slot {shape.first_slot} as the first that drafts, {who} guesses"
            f" {shares} with slot {1 - shape.first_slot}; type sample_from_anchor={other} for this method"
        )
    other = _OTHER_POINT[shape.tap_point]
    raise ConfigError(
        f"tap_point: fed the {shape.tap_point}s of blocks {list(shape.tap_layers)}, {who} guesses {shares}"
        f" with their {other}s; type tap_point={other} for this method"
    )


def _first_tokens(network: BlockNetwork, target: TargetView, states: Tensor, anchors: Tensor) -> Tensor:
    """The first drafted tokens [A], from the states [A, 1, H] of one slot."""
    return draw(network, target, states, anchors, 0.0, None).tokens[:, 0]


def _traceable(taps: Sequence[HiddenTap], target: TargetView) -> list[HiddenTap]:
    """The taps of another reading; where the target has no such block, the nearest one."""
    last = target.config.num_hidden_layers - 1
    return [HiddenTap(min(tap.layer, last), tap.point) for tap in taps]
