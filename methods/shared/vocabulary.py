"""Checks of a target's vocabulary that several methods make."""

from __future__ import annotations

from harness.config import ConfigError
from harness.drafting.drafter import TargetView


def refuse_small_vocabulary(target: TargetView, top_k: int) -> None:
    """Refuse a target that has fewer tokens than the successors that are kept for each.

    Raises:
        ConfigError: names both numbers.
    """
    if target.vocab_size < top_k:
        raise ConfigError(f"top_k={top_k}: the target's vocabulary has only {target.vocab_size} tokens")
