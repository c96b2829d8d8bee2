"""Drafter: how a method guesses. It proposes trees and sees what became of them; it never emits a token.

Shapes: B sequences still running, n drafted nodes, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from harness.config import configurable
from harness.drafting.draft import Draft
from harness.runtime.cache import SlotCache
from harness.runtime.compiled_step import SIZES, Program
from harness.runtime.cuda_graphs import Captured


class Tap(Protocol):
    """Names a point of the target whose hidden states a drafter wants to see."""

    @property
    def layer(self) -> int:
        """Zero-based block index; negative counts from the end."""

    @property
    def point(self) -> str:
        """`input` or `output` of the block, as the raw residual stream (before any final norm); `normed`:
        what the LM head reads, after the final norm, whatever `layer` is."""


@dataclass(frozen=True)
class HiddenTap:
    """The usual tap: the residual stream at a block's input or output."""

    layer: int
    point: str = "output"


class TargetView(Protocol):
    """What a drafter may ask of the target. It cannot reach the cache, the acceptor or the clock."""

    @property
    def device(self) -> torch.device:
        """Where tensors of a draft must lie."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the target's weights."""

    @property
    def vocab_size(self) -> int:
        """V, the length of a row of logits."""

    @property
    def config(self) -> Any:
        """The target's transformers configuration (text part), read only."""

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings [..., H] of token ids [...]."""

    def lm_head(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] of final hidden states [..., H] (after the target's final norm)."""

    def prepare(self, module: torch.nn.Module) -> None:
        """Have a module of the drafter's own multiply in the way that the target does (inference only)."""

    def program(self, step: Callable[..., Any], sizes: Sequence[int] = SIZES) -> Program | None:
        """A step of the drafter's own as one compiled program, where the target's are; see `Program`.

        None where they are not. What it does not serve goes through the step itself.
        """

    def captured(self, function: Callable[..., Any]) -> Captured | None:
        """A part of the drafter's round as CUDA graphs (see `Captured`); None where nothing is captured."""

    def new_cache(self) -> SlotCache:
        """A cache of the drafter's own, with as much room as the target's."""

    def trace(self, ids: Tensor, taps: Sequence[Tap]) -> tuple[Tensor, list[Tensor]]:
        """A plain causal forward over token ids [B, n], outside of any timed region and of the loop's cache.

        Logits [B, n, V] and per tap the states [B, n, H]. For checks and training.
        """


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a round, or of a prefill, for the B sequences that it is about.

    committed: tokens that entered the target's cache, per sequence: the prompt at prefill, else the
        old pending token and then the accepted path, in order.
    pending: the token after them, per sequence: known to be right, not in the cache, without features.
    taps: per tap the hidden states [B, m, H] of those tokens, in that order; m is the longest of `committed`,
        and rows past a sequence's own length hold anything. There is none for the pending token.
    draft: what was verified (None at prefill). logits [B, 1+n, V]: the target's raw logits after the
        old pending token and after every drafted node, rejected ones included (None at prefill). The next
        forward may overwrite them: copy what shall stay.
    rows: which of the running sequences it is about; None is all of them, in order. Only a prefill has rows:
        new sequences have taken the places of finished ones, of which nothing may be left.
    """

    committed: list[list[int]]
    pending: list[int]
    taps: list[Tensor] = field(default_factory=list)
    draft: Draft | None = None
    logits: Tensor | None = None
    rows: Sequence[int] | None = None


@configurable
class Drafter(ABC):
    """Base of all methods.

    The loop calls `bind` once, then per batch of prompts `reset`, `observe` (prefill), and in turns
    `propose` and `observe`; `keep` when sequences finish, and `observe` with `Outcome.rows` where
    new ones take the places of finished ones. Everything here is charged to the method.
    """

    samples: ClassVar[bool] = True
    """False for a method that is only defined at temperature 0."""

    @property
    def scope(self) -> str:
        """How far what it knows reaches: `conversation`, or a wider scope, which every table names."""
        return "conversation"

    @property
    def taps(self) -> tuple[Tap, ...]:
        """The target's hidden states that `observe` shall receive."""
        return ()

    def bind(self, target: TargetView) -> None:
        """Meet the target: load weights, check shapes. Called before anything is timed.

        Raises:
            ConfigError: what does not fit; the text begins with the field's name, as the caller puts the
            method's before it.
        """
        self._target = target

    def check(self, prompts: Sequence[Sequence[int]]) -> None:  # noqa: B027 - a hook
        """Look at a few prompts before anything is timed; nothing of them may be kept.

        Raises:
            ConfigError: weights that do not fit the target, or are read by the wrong convention.
        """

    def rehearse(self, num_rows: int, context: int) -> Callable[[int], None] | None:
        """Of a drafter with a model of its own: what runs one forward of it, to be timed for a cost table.

        The callable takes the number of new tokens of each of `num_rows` sequences, behind `context` cached
        ones; calling it again does the same again. None: it has no model. Forgets every sequence.
        """
        return None

    def warm_up(self, num_rows: int) -> None:  # noqa: B027 - a hook
        """Have every program compiled that rounds of `num_rows` sequences may take; nothing is timed yet."""

    @property
    def num_drafted(self) -> int | None:
        """Nodes of every draft; None: it varies."""
        return None

    @property
    def num_bytes(self) -> int:
        """Memory of its own model, after `bind`; what it shares with the target counts nothing."""
        return 0

    def card(self) -> dict[str, Any]:
        """What was loaded, after `bind`: source, hash, origin, conventions; JSON types, for the manifest."""
        return {}

    @abstractmethod
    def reset(self, num_rows: int) -> None:
        """Forget everything within `scope`; `num_rows` new sequences follow."""

    @abstractmethod
    def propose(self, room: Sequence[int]) -> Draft:
        """Draft for every running sequence.

        room: levels deeper than `room[b]` could not be emitted; a drafter may save that work or ignore it.
        """

    @abstractmethod
    def observe(self, outcome: Outcome) -> None:
        """See what entered the cache and which token is pending."""

    @abstractmethod
    def keep(self, rows: Sequence[int]) -> None:
        """Only the sequences with these indices go on, in this order."""
