"""Many blocks over one text without a cache, for training, for checks, and as the reference of the steps.

Shapes: L tokens of the text, A anchors, n rows of a block, F width of the target's features, H hidden size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from harness.drafting.drafter import TargetView
from methods.shared.block.networks.network import BlockNetwork
from methods.shared.block.steps import seen


def states_of_blocks(
    network: BlockNetwork,
    target: TargetView,
    features: Tensor,
    tokens: Tensor,
    anchors: Tensor,
    width: int,
    documents: Tensor | None = None,
) -> Tensor:
    """States [A, n, H] of a block behind each anchor, after the final norm.

    Args:
        network: the drafter.
        target: gives the embeddings, where the drafter has none.
        features: [L, F].
        tokens: [A] int64, the anchors' own.
        anchors: [A] int64, their places in the text. A block sees the features before its anchor.
        width: n.
        documents: [L] int64, the document of each token, where the text has several; a block sees no other.
    """
    shape, device = network.shape, features.device
    places = torch.arange(len(features), device=device)
    rows = network.project(features[None])
    context = network.context(rows, places[None])
    ids = torch.full((len(anchors), width), shape.mask_token_id, device=device)
    ids[:, 0] = tokens
    positions = (anchors[:, None] + torch.arange(width, device=device)).flatten()
    begins = anchors.repeat_interleave(width)
    owner = torch.arange(len(anchors), device=device).repeat_interleave(width)
    earlier = places < begins[:, None]
    if documents is not None:
        earlier = earlier & (documents == documents[begins][:, None])
    common = torch.cat([earlier, owner[:, None] == owner], dim=1)
    keys_at = torch.cat([places, positions])
    masks = {
        kind: common & seen(shape, *kind, positions, begins, keys_at)
        for kind in set(zip(shape.causal, shape.sliding, strict=True))
    }

    def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys = torch.cat([context[layer][0], key], dim=2)
        values = torch.cat([context[layer][1], value], dim=2)
        mask = masks[shape.causal[layer], shape.sliding[layer]]
        grouped = query.shape[1] != keys.shape[1]
        output = scaled_dot_product_attention(query, keys, values, attn_mask=mask, enable_gqa=grouped)
        return output.transpose(1, 2)

    embedded = network.embed(ids.view(1, -1), target)
    states: Tensor = network(embedded, positions[None], attend)
    return states.view(len(anchors), width, -1)
