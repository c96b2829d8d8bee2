"""Whether a head is fed the states that it was trained on: both readings of its tapped blocks, compared.

Checkpoints number blocks by their input or by their output, and few of them say which.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.config import ConfigError
from harness.drafting.drafter import HiddenTap, TargetView
from harness.runtime.cache import SlotCache
from methods.shared.eagle.growth import Growth
from methods.shared.eagle.heads.base import DraftHead
from methods.shared.eagle.heads.network import HeadNetwork
from methods.shared.eagle.steps import HeadSteps

MARGIN = 0.1
"""By how much the other reading of the tapped layers must be right more often; few rows are noisy."""
_OTHER_POINT = {"input": "output", "output": "input"}


def reads_blocks(taps: Sequence[HiddenTap]) -> bool:
    """Whether the taps are blocks' inputs or outputs, which can be mistaken for one another."""
    return all(tap.point in _OTHER_POINT for tap in taps)


def refuse_misread(
    target: TargetView,
    head: DraftHead,
    taps: Sequence[HiddenTap],
    prompts: Sequence[Sequence[int]],
    name: str | None,
) -> None:
    """Compare both readings of the taps by how often the head is right about the prompts.

    name: the head's, for the message.

    Raises:
        ConfigError: the other reading is right far more often.
    """
    others = tuple(HiddenTap(tap.layer, _OTHER_POINT[tap.point]) for tap in taps)
    right, otherwise, num_rows = num_right(target, head, (taps, others), prompts)
    if otherwise - right > MARGIN * num_rows:
        given, layers = taps[0].point, [tap.layer for tap in taps]
        other = _OTHER_POINT[given]
        raise ConfigError(
            f"aux_convention: fed the {given}s of blocks {layers}, the head {name} guesses"
            f" {right / num_rows:.0%} of the target's tokens, but fed their {other}s"
            f" {otherwise / num_rows:.0%}; type aux_convention={other} for this method"
        )


def num_right(
    target: TargetView,
    head: HeadNetwork,
    readings: tuple[Sequence[HiddenTap], Sequence[HiddenTap]],
    prompts: Sequence[Sequence[int]],
) -> tuple[int, int, int]:
    """How many of the target's next tokens the head guesses when it is fed each reading, and of how many."""
    right, num_rows = [0, 0], 0
    for prompt in prompts:
        if len(prompt) < 3:
            continue
        ids = torch.tensor([list(prompt)], device=target.device)
        first, second = readings
        logits, states = target.trace(ids, (*first, *second))
        best = logits[:, 1:].argmax(-1)
        for number, seen in enumerate((states[: len(first)], states[len(first) :])):
            right[number] += int((_guess(target, head, ids, seen) == best).sum())
        num_rows += best.shape[1]
    return right[0], right[1], num_rows


def _guess(target: TargetView, head: HeadNetwork, ids: Tensor, states: Sequence[Tensor]) -> Tensor:
    """The head's most probable tokens [1, n - 1]: token i + 2 from feature i and token i + 1."""
    steps = HeadSteps(target, head, SlotCache())
    growth = Growth(steps)
    growth.begin(1)
    features = torch.cat([state.to(head.dtype) for state in states], dim=-1)[:, :-1]
    guessed = growth.feed(features, ids[:, 1:], [features.shape[1]])
    return steps.best(guessed, 1).tokens[..., 0]
