"""Taps: forward hooks on a stock model that record the hidden states drafters ask for.

Shapes: B sequences, n new tokens, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from harness.config import ConfigError
from harness.drafting.drafter import Tap

Place = tuple[int, str]


class Taps:
    """Hidden states that a model's last forward passed at some places.

    seen: these states, [B, n, H] by place. The replay of a graph runs no hooks, so its caller stores them
    here.
    """

    def __init__(self, model: Any, stay: bool) -> None:
        """`model`: a causal LM of transformers.

        stay: keep recording at earlier places, because without their hooks a compiled forward would be
        another program.
        """
        self._model, self._stay = model, stay
        self.watched: tuple[Tap, ...] = ()
        self._hooks: dict[Place, Any] = {}
        self.seen: dict[Place, Tensor] = {}

    def set_taps(self, taps: Sequence[Tap]) -> None:
        """From now on every forward records the states at `taps`.

        Raises:
            ConfigError: the model has no such place.
        """
        if tuple(taps) == self.watched:
            return
        self.watched, wanted = tuple(taps), {_place(tap) for tap in taps}
        if not self._stay:
            for place in self._hooks.keys() - wanted:
                self._hooks.pop(place).remove()
                self.seen.pop(place, None)
        for place in sorted(wanted - self._hooks.keys()):
            self._hooks[place] = self._hook(place)

    @property
    def places(self) -> list[Place]:
        """The places that have hooks."""
        return sorted(self._hooks)

    def states(self) -> list[Tensor]:
        """States of the last forward, [B, n, H] per tap."""
        return [self.seen[_place(tap)] for tap in self.watched]

    def _hook(self, place: Place) -> Any:
        decoder, (layer, point) = self._model.get_decoder(), place
        blocks = decoder.layers
        if not -len(blocks) <= layer < len(blocks) or point not in ("input", "output", "normed"):
            raise ConfigError(
                f"tap {point} of block {layer}: the target has {len(blocks)} blocks, "
                "points are input, output and normed"
            )

        def before(_: Any, args: tuple[Tensor, ...]) -> None:
            self.seen[place] = args[0]

        def after(_: Any, __: Any, output: Any) -> None:
            # A block returns a tensor or a tuple, the decoder a ModelOutput.
            self.seen[place] = output if isinstance(output, Tensor) else output[0]

        module = decoder if point == "normed" else blocks[layer]
        if point == "input":
            return module.register_forward_pre_hook(before)
        return module.register_forward_hook(after)


def _place(tap: Tap) -> Place:
    return tap.layer, tap.point
