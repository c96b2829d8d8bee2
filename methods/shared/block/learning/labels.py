"""Which blocks of a text are trained, and what their slots are compared with.

Both conventions of the slots agree on this: the first drafted slot predicts the token behind the anchor.

Shapes: L tokens of the text, A anchors, k drafted slots.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Labels(NamedTuple):
    """The tokens that the slots of blocks predict."""

    tokens: Tensor
    """[A, k] int64: the token of each drafted slot; arbitrary where it does not count."""
    previous: Tensor
    """[A, k] int64: the token before it, the anchor's for the first slot."""
    places: Tensor
    """[A, k] int64: where in the text `previous` stands, and so what the target computes for the slot."""
    counts: Tensor
    """[A, k] bool: whether the slot is supervised; a block ends at its first token that is not."""


def labels_of(
    ids: Tensor, anchors: Tensor, num_slots: int, supervised: Tensor, documents: Tensor | None = None
) -> Labels:
    """The labels of the blocks behind anchors [A] of a text ids [L].

    supervised: [L] bool, tokens that are learned. documents: [L] int64, where the text has several.
    """
    length = len(ids)
    offsets = torch.arange(num_slots, device=ids.device)
    before = anchors[:, None] + offsets
    inside = before + 1 < length
    places, after = before.clamp(max=length - 1), (before + 1).clamp(max=length - 1)
    counts = inside & supervised[after]
    if documents is not None:
        counts = counts & (documents[after] == documents[anchors][:, None])
    counts = counts.long().cumprod(-1).bool()
    return Labels(tokens=ids[after], previous=ids[places], places=places, counts=counts)


def draw_anchors(
    supervised: Tensor, count: int, documents: Tensor | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """At most `count` anchors, ascending: tokens that are supervised, as is the one behind them.

    supervised: [L] bool. documents: [L] int64; the token behind must be of the same one. Drawn without
    replacement, from torch's CPU generator where none is given.
    """
    possible = supervised[:-1] & supervised[1:]
    if documents is not None:
        possible = possible & (documents[:-1] == documents[1:])
    places = possible.nonzero()[:, 0]
    order = torch.randperm(len(places), generator=generator)[:count].to(places.device)
    return places[order].sort().values
