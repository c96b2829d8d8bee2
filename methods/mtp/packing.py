"""Many prediction problems in one row: behind chosen tokens of a text stand masks, which later text skips.

The layout of arXiv 2602.06019, section 3.3: behind token x_i come k - 1 masks with the positions that follow
x_i's, then the text continues at those same positions. A token of the text sees the text before it and no
mask; a mask sees the text up to x_i and the masks before it in its own span.

Shapes: L tokens of a row, S spans, k tokens predicted by each, P packed slots (L + S (k - 1)).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Packed:
    """A row with its spans."""

    ids: Tensor
    """[P] int64."""
    positions: Tensor
    """[P] int64: positions within the document."""
    sees: Tensor
    """[P, P] bool."""
    text: Tensor
    """[L] int64: the slots of the text."""
    spans: Tensor
    """[S, k] int64: the slots whose logits predict the k tokens of each span: x_i, then its masks."""

    def filled(self, guesses: Tensor) -> Packed:
        """The same layout with guesses [S, k] of the spans in place of the masks; the last guess of each span
        has no slot."""
        ids = self.ids.clone()
        ids[self.spans[:, 1:]] = guesses[:, :-1]
        return replace(self, ids=ids)


def pack(
    ids: Tensor, positions: Tensor, document: Tensor, anchors: Tensor, num_tokens: int, mask: int
) -> Packed:
    """Place num_tokens - 1 masks behind every anchor.

    Args:
        ids, positions, document: [L] int64, the row; tokens of different documents do not see each other.
        anchors: [S] int64, ascending: the tokens x_i.
        num_tokens: k.
        mask: id of the mask token.
    """
    device, num_masks, length = ids.device, num_tokens - 1, len(ids)
    place = torch.arange(length, device=device)
    # Behind each anchor, everything moves by the masks.
    text = place + num_masks * torch.searchsorted(anchors, place)
    spans = text[anchors][:, None] + torch.arange(num_tokens, device=device)
    size = length + num_masks * len(anchors)
    packed_ids = torch.full((size,), mask, dtype=torch.int64, device=device)
    packed_ids[text] = ids
    packed_positions = torch.zeros_like(packed_ids)
    packed_positions[text] = positions
    offsets = torch.arange(num_tokens, device=device)
    packed_positions[spans] = positions[anchors][:, None] + offsets
    # Of every slot: the token of the text that it stands at or behind, and its number there (0: the text).
    home, depth = torch.zeros_like(packed_ids), torch.zeros_like(packed_ids)
    home[text] = place
    home[spans] = anchors[:, None].expand(-1, num_tokens)
    depth[spans] = offsets.expand(len(anchors), -1)
    sees_text = (depth[None] == 0) & (home[None] <= home[:, None])
    own_masks = (home[None] == home[:, None]) & (depth[None] > 0) & (depth[None] <= depth[:, None])
    same = document[home][None] == document[home][:, None]
    return Packed(
        ids=packed_ids,
        positions=packed_positions,
        sees=(sees_text | own_masks) & same,
        text=text,
        spans=spans,
    )
