"""Tiny drafters that guess several tokens in one call, bound to a tiny target."""

from __future__ import annotations

from typing import Any

from harness.target.model import Target
from methods.fasteagle import FastEagle
from methods.fasteagle.tree import BackboneTree
from methods.specblock import SpecBlock
from methods.specblock.tree import RankTree
from tests.support.targets import tiny_model

METHODS = ["specblock", "fasteagle"]
NUM_GUESSES = 3


def made(method: str, **options: Any) -> Any:
    """A drafter of three levels or slots, not yet bound; its head is random unless one is given."""
    usual: dict[str, Any] = {"head": "random", "draft_vocab_size": 24, "intermediate_size": 40}
    if method == "specblock":
        tree = RankTree(budget=12, first_width=4, widths=(2, 3, 3, 0))
        usual |= {"num_slots": NUM_GUESSES, "tree": tree}
        return SpecBlock(**{**usual, **options})
    usual |= {"num_levels": NUM_GUESSES, "tree": BackboneTree(budget=8, level_widths=(3,))}
    return FastEagle(**{**usual, **options})


def bound(method: str, target: Target | None = None, **options: Any) -> Any:
    """The same, bound."""
    drafter = made(method, **options)
    drafter.bind(target or Target(tiny_model("llama")))
    return drafter
