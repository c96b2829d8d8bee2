"""Training of P-EAGLE: the rows of many rollouts of one text in one causal call.

P-EAGLE (arXiv 2602.01469): every pair of a text is a row of depth 0, and begins a rollout of mask rows. A
rollout ends at random (conditional drop), because the rows of all rollouts to their full depth do not fit
into memory.

Shapes: L tokens of a packed row, R rows of the call, D draft vocabulary, F width of the target's features.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import kl_div, scaled_dot_product_attention

from harness.config import configurable
from harness.drafting.drafter import TargetView
from harness.drafting.trainable import Loss, TrainingRow
from methods.peagle.network import PEagleNetwork
from methods.shared.block.learning.labels import Labels, labels_of
from methods.shared.draft_vocabulary import DraftVocabulary
from methods.shared.eagle.training import fresh_head

_INIT_STD = 0.02


@configurable
class PEagleRecipe:
    """Which rows are trained."""

    keep: float = Field(default=0.8, gt=0, le=1)
    """Share of the rollouts that continue to each further depth."""
    floor: float = Field(default=0.2, ge=0, le=1)
    """Least share of the rollouts that reach any depth."""
    max_rollouts: int = Field(default=256, ge=1)
    """Most rollouts per packed row, at random places of the answers. Rows of depth 0 are trained at all."""


@torch.no_grad()
def fresh_network(like: PEagleNetwork, counts: Tensor, target: TargetView, seed: int) -> PEagleNetwork:
    """A network of the shape of `like` to be trained, in float32; counts: see `fresh_head`."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = PEagleNetwork(like.shape, len(like.more)).to(target.device)
        for parameter in network.more.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=_INIT_STD)
        # As large as features that are divided by their scale.
        torch.nn.init.normal_(network.mask_hidden)
    network.head.load_state_dict(fresh_head(like.head, counts, target, seed).state_dict())
    return network


@torch.no_grad()
def scaled(network: PEagleNetwork, scale: Tensor | None) -> PEagleNetwork:
    """A copy in float32 for features that are divided by `scale` [F], None: 1; it gives what `network` gives
    for them as they are."""
    copy: PEagleNetwork = deepcopy(network).float()
    if scale is not None:
        copy.head.fc.weight.mul_(scale)
        copy.mask_hidden.div_(scale)
    return copy


def loss_of(
    network: PEagleNetwork,
    features: Tensor,
    row: TrainingRow,
    target: TargetView,
    vocabulary: DraftVocabulary,
    recipe: PEagleRecipe,
    num_depths: int,
    mask_token: int,
) -> Loss:
    """The mean divergence from the target's distributions over all trained rows, for `features` [L, F].

    The numbers are the accuracy of every depth.
    """
    pairs = torch.arange(len(row.ids) - 1, device=features.device)
    labels = labels_of(row.ids, pairs + 1, num_depths, row.answer, row.document)
    counts = labels.counts & (row.document[:-1] == row.document[1:])[:, None]
    labels = labels._replace(counts=counts)
    anchors, depths = rows_of(labels, recipe)
    trained = counts[anchors, depths]
    if not bool(trained.any()):
        return Loss(total=features.new_zeros(()).requires_grad_(True))
    states = states_of(network, features, row, target, anchors, depths, mask_token)
    logits = network.logits(states[trained], target).float()
    places = labels.places[anchors, depths][trained]
    with torch.no_grad():
        goal = torch.log_softmax(vocabulary.logits(row.final[places].to(target.dtype)).float(), dim=-1)
        right, reached = logits.argmax(-1) == goal.argmax(-1), depths[trained]
        shares = [right[reached == depth].float().mean() for depth in range(num_depths)]
    total = kl_div(torch.log_softmax(logits, dim=-1), goal, reduction="batchmean", log_target=True)
    numbers = {f"accuracy_{depth}": float(one) for depth, one in enumerate(shares) if one.isfinite()}
    return Loss(total=total, numbers=numbers)


def rows_of(labels: Labels, recipe: PEagleRecipe) -> tuple[Tensor, Tensor]:
    """The rows of a call: the pair [R] and the depth [R] of each.

    Depth 0 has every pair. The rollouts of each further depth are some of those of the depth before it, by
    torch's CPU generator.
    """
    num_pairs, num_depths = labels.counts.shape
    device = labels.counts.device
    longer = labels.counts[:, 1:2].sum(-1).nonzero()[:, 0]
    order = longer[torch.randperm(len(longer)).to(device)][: recipe.max_rollouts]
    anchors, depths = [torch.arange(num_pairs, device=device)], [0] * num_pairs
    for depth in range(1, num_depths):
        kept = order[: round(max(recipe.keep ** (depth - 1), recipe.floor) * len(order))]
        kept = kept[labels.counts[kept, depth]]
        anchors.append(kept)
        depths += [depth] * len(kept)
    return torch.cat(anchors), torch.tensor(depths, device=device)


def states_of(
    network: PEagleNetwork,
    features: Tensor,
    row: TrainingRow,
    target: TargetView,
    anchors: Tensor,
    depths: Tensor,
    mask_token: int,
) -> Tensor:
    """States [R, H] of rows `depths` [R] behind the pairs `anchors` [R] of a text.

    A row sees the pairs of its document up to its own, and its rollout up to itself.
    """
    masked, documents = depths > 0, row.document[anchors]
    behind = (depths == 0) & (anchors <= anchors[:, None]) & (documents == documents[:, None])
    own = (anchors == anchors[:, None]) & (depths <= depths[:, None])
    mask = behind | own
    tokens = torch.where(masked, mask_token, row.ids[anchors + 1])

    def attend(_: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
        return output.transpose(1, 2)

    positions = (row.positions[anchors] + depths)[None]
    states: Tensor = network(features[anchors][None], tokens[None], masked[None], positions, target, attend)
    return states[0]
