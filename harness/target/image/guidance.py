"""What distinguishes an image from a text: the raster that an answer fills, and classifier-free guidance.

Shapes: R rows of logits, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from harness.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class Raster:
    """The tokens of an image, row by row."""

    height: int
    width: int
    """Tokens of the codebook in a row."""
    pixels: Sequence[int]
    """The ids of the codebook's entries, in the order of the codebook."""
    row_end: int | None = None
    """The token behind every row, if there is one."""
    ending: tuple[int, ...] = ()
    """The tokens behind the last row."""

    @property
    def num_tokens(self) -> int:
        """Tokens of a whole image with all that belongs to its form."""
        return self.height * (self.width + (self.row_end is not None)) + len(self.ending)

    @cached_property
    def _given(self) -> Tensor:
        """[num_tokens] int64: the token that the form prescribes at each place, -1 for any pixel."""
        row = [-1] * self.width + ([] if self.row_end is None else [self.row_end])
        return torch.tensor([*row * self.height, *self.ending])

    def limit(self, logits: Tensor, place: Tensor) -> Tensor:
        """Logits [..., R, V] in which only tokens are left that may stand at `place` [..., R] of the image.

        Behind the last place, the last token is repeated.
        """
        others = torch.ones(logits.shape[-1], dtype=torch.bool, device=logits.device)
        others[torch.as_tensor(self.pixels, device=logits.device)] = False
        given = self._given.to(logits.device)[place.clamp(0, self.num_tokens - 1)][..., None]
        prescribed = torch.full_like(logits, -torch.inf).scatter(-1, given.clamp(min=0), 0.0)
        return torch.where(given < 0, logits.masked_fill(others, -torch.inf), prescribed)

    def codes(self, tokens: Sequence[int]) -> list[list[int]] | None:
        """The entries of the codebook, row by row; None where the image is not complete."""
        numbers = {token: code for code, token in enumerate(self.pixels)}
        found = [numbers[token] for token in tokens if token in numbers]
        if len(found) != self.height * self.width:
            return None
        return [found[row * self.width : (row + 1) * self.width] for row in range(self.height)]


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """Classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598) over an autoregressive model.

    Every sequence has a companion that reads the same image behind another text, or behind none. With logits
    c of the sequence and u of its companion, tokens are drawn from u + scale (c - u).
    """

    scale: float
    """1 draws from the sequence's own logits."""
    opens: int
    """The token that opens an image. What comes before it is the text."""
    begins: int
    """The token behind which the raster begins; the same, or a later one of the prompt."""
    negative: tuple[int, ...] = ()
    """What the companion reads instead of the text."""
    raster: Raster | None = None
    """The form of the image; None leaves every token to the model."""

    def place(self, tokens: Sequence[int]) -> int | None:
        """Where the image is opened; None where it is not yet."""
        return tokens.index(self.opens) if self.opens in tokens else None

    def companion(self, prompt: Sequence[int]) -> list[int]:
        """The prompt of the companion.

        Raises:
            ConfigError: the prompt opens no image.
        """
        place = self.place(prompt)
        if place is None or self.begins not in prompt[place:]:
            raise ConfigError(
                f"task: a prompt of {len(prompt)} tokens opens no image (token {self.opens}, then"
                f" {self.begins}); an image is painted behind these. Leave target.template to the target, or"
                " end the task's input_ids with them"
            )
        return [*self.negative, *prompt[place:]]

    def guided(self, own: Tensor, free: Tensor, place: Tensor) -> Tensor:
        """The logits [..., R, V] that count, from those of sequence and companion, at places [..., R] of the
        image."""
        mixed = own if self.scale == 1 else free + self.scale * (own - free)
        return mixed if self.raster is None else self.raster.limit(mixed, place)
