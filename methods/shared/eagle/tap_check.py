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
from methods.shared.eagle.steps import HeadSteps

_MARGIN = 0.1
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
    num_right = num_right_otherwise = num_rows = 0
    for prompt in prompts:
        if len(prompt) < 3:
            continue
        ids = torch.tensor([list(prompt)], device=target.device)
        logits, states = target.trace(ids, (*taps, *others))
        best = logits[:, 1:].argmax(-1)
        num_right += int((_guess(target, head, ids, states[: len(others)]) == best).sum())
        num_right_otherwise += int((_guess(target, head, ids, states[len(others) :]) == best).sum())
        num_rows += best.shape[1]
    if num_right_otherwise - num_right > _MARGIN * num_rows:
        given, layers = taps[0].point, [tap.layer for tap in taps]
        other = _OTHER_POINT[given]
        raise ConfigError(
            f"aux_convention: fed the {given}s of blocks {layers}, the head {name} guesses"
            f" {num_right / num_rows:.0%} of the target's tokens, but fed their {other}s"
            f" {num_right_otherwise / num_rows:.0%}; type aux_convention={other} for this method"
        )


def _guess(target: TargetView, head: DraftHead, ids: Tensor, states: Sequence[Tensor]) -> Tensor:
    """The head's most probable tokens [1, n - 1]: token i + 2 from feature i and token i + 1."""
    steps = HeadSteps(target, head, SlotCache())
    growth = Growth(steps)
    growth.begin(1)
    dtype = head.fc.weight.dtype
    features = torch.cat([state.to(dtype) for state in states], dim=-1)[:, :-1]
    guessed = growth.feed(features, ids[:, 1:], [features.shape[1]])
    return steps.best(guessed, 1).tokens[..., 0]
