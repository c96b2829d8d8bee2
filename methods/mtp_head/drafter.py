"""The native multi-token-prediction head of a target drafts a chain or a tree.

DeepSeek-V3 (arXiv 2412.19437, section 5.4.3) decodes with such a head. Its cache is filled with the target's
true states after every round: what it computed of its own guesses is dropped. The heads of a checkpoint that
holds several take turns (see `methods.mtp_head.stack`); a single one is called again on its own output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import Field
from typing_extensions import override

from harness.config import ConfigError, configurable
from harness.drafting.drafter import HiddenTap, TargetView
from methods.mtp_head.checkpoint import load_networks, random_networks
from methods.mtp_head.network import MtpNetwork, State
from methods.mtp_head.stack import Stack, StackGrowth
from methods.shared.eagle.drafter import HeadDrafter
from methods.shared.eagle.growth import Growth
from methods.shared.eagle.steps import HeadSteps
from methods.shared.eagle.tap_check import MARGIN, num_right

_TAPS = {"normed": HiddenTap(-1, "normed"), "raw": HiddenTap(-1, "output")}


@configurable
class MtpHead(HeadDrafter):
    """Drafts with the head that came with the target."""

    head: str | None = None
    """A folder or hub id of a checkpoint that holds a head, which is usually the target's own; or `random`:
    weights from `seed`, which draft badly and serve to measure time alone."""
    revision: str | None = None
    hidden: State = "normed"
    """The target's state that the head reads: behind the final norm, or before it."""
    feed_back: State = "normed"
    """The state that the head reads for each further token: behind its own last norm, or before it."""
    hidden_first: bool = False
    """Whether the projection of a random head reads [state; embedding]; a checkpoint's layout says it."""
    num_heads: int | None = Field(default=None, ge=1)
    """The most heads of a checkpoint that take turns, and those of `random`; None is all, or one random
    head."""
    seed: int = Field(default=0, ge=0)
    """Decides random weights."""

    @override
    def bind(self, target: TargetView) -> None:
        """Load the head.

        Raises:
            ConfigError: there is no head, it does not fit the target, or the target is a hybrid.
        """
        super().bind(target)
        kinds = sorted(set(getattr(target.config, "layer_types", None) or ()) - {"full_attention"})
        if kinds:
            raise ConfigError(
                f"head={self.head}: the target ({target.config.model_type}) has layers of"
                f" {' and '.join(kinds)}, and a native head is read for targets whose every layer is"
                " full_attention; type method=eagle3 or method=suffix"
            )
        self.networks, self._card = self._load(target)
        self.network = self.networks[0]
        further = self.networks[1:]
        for network in further:
            target.prepare(network)
        like = torch.empty(0, dtype=self.network.dtype, device=target.device)
        heads = [HeadSteps(target, network) for network in further]
        self._stack = Stack(heads, self.network.feature_size, like) if heads else None
        self.draft_with(self.network, (_TAPS[self.hidden],))
        if further:
            # The heads' caches differ in length, which a captured round would have to know.
            self._round = None

    @property
    @override
    def num_bytes(self) -> int:
        return sum(parameter.nbytes for network in self.networks for parameter in network.parameters())

    @override
    def new_growth(self, row: int | None = None) -> Growth:
        return (
            super().new_growth(row)
            if self._stack is None
            else StackGrowth(self._head_steps, self._stack, row)
        )

    @override
    def reset(self, num_rows: int) -> None:
        super().reset(num_rows)
        if self._stack is not None:
            self._stack.reset(num_rows)

    @override
    def keep(self, rows: Sequence[int]) -> None:
        super().keep(rows)
        if self._stack is not None:
            self._stack.keep(list(rows))

    @override
    def _begin(self, row: int, features: torch.Tensor, tokens: torch.Tensor) -> None:
        if self._stack is not None:
            self._stack.begin(row)
        super()._begin(row, features, tokens)

    @override
    def card(self) -> dict[str, Any]:
        conventions = self.network.conventions
        return {
            **self._card,
            "hidden": self.hidden,
            "feed_back": conventions.feed_back,
            "hidden_first": conventions.hidden_first,
        }

    @override
    def check(self, prompts: Sequence[Sequence[int]]) -> None:
        """Compare both readings of the target's last state by how often the head is right."""
        if self.head == "random":
            return
        other = "raw" if self.hidden == "normed" else "normed"
        readings = ((_TAPS[self.hidden],), (_TAPS[other],))
        right, otherwise, num_rows = num_right(self._target, self.network, readings, prompts)
        if otherwise - right > MARGIN * num_rows:
            raise ConfigError(
                f"hidden: fed the target's {self.hidden} state, the head {self.head} guesses"
                f" {right / num_rows:.0%} of the target's tokens, but fed the {other} one"
                f" {otherwise / num_rows:.0%}; type hidden={other} for this method"
            )

    def _load(self, target: TargetView) -> tuple[list[MtpNetwork], dict[str, Any]]:
        if self.head is None:
            raise ConfigError(
                "head: this target has no checkpoint to read one from; give a checkpoint with"
                " methods.mtp_head.head=FOLDER (or a hub id ORG/NAME), or `random` to measure the shape alone"
            )
        if self.head == "random":
            return random_networks(target, self.feed_back, self.hidden_first, self.seed, self.num_heads or 1)
        return load_networks(self.head, self.revision, target, self.feed_back, self.num_heads)
