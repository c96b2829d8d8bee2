"""Training of block drafters: blocks behind random anchors of a text, each slot against the target.

DFlash (arXiv 2602.06036, section 3.3): cross-entropy with weights that decay along the block. DSpark (arXiv
2607.05147): most of the weight on the total variation, and a loss for the confidence head.

Shapes: L tokens of a packed row, A anchors, k drafted slots, D draft vocabulary, F width of the features.
"""

from __future__ import annotations

from copy import deepcopy

import torch
from pydantic import Field
from torch import Tensor

from harness.config import configurable
from harness.drafting.drafter import TargetView
from harness.drafting.trainable import Loss, TrainingRow
from methods.shared.block.draw import corrected
from methods.shared.block.learning.dense import states_of_blocks
from methods.shared.block.learning.labels import draw_anchors, labels_of
from methods.shared.block.learning.losses import LOSSES, confidence_losses, decay_weights, weighted_mean
from methods.shared.block.networks.network import BlockNetwork
from methods.shared.draft_vocabulary import DraftVocabulary, map_of_most_frequent

_INIT_STD = 0.02
_NO_GOAL = torch.empty(0)
"""In place of the target's distributions, where no loss reads them."""


@configurable
class BlockRecipe:
    """The terms of the loss and their weights."""

    num_anchors: int = Field(default=64, ge=1)
    """Most blocks per packed row, at random places of the answers."""
    gamma: float = Field(default=4.0, gt=0)
    """Slot i has the weight exp(-i / gamma)."""
    ce: float = Field(default=1.0, ge=0)
    """Weight of the cross-entropy against the text."""
    tv: float = Field(default=0.0, ge=0)
    """Weight of the total variation, half the L1 distance, from the target's distribution."""
    kl: float = Field(default=0.0, ge=0)
    """Weight of the Kullback-Leibler divergence from the target's distribution."""
    confidence: float = Field(default=1.0, ge=0)
    """Weight of the confidence head's loss, where there is one."""


@torch.no_grad()
def fresh_network(like: BlockNetwork, counts: Tensor, target: TargetView, seed: int) -> BlockNetwork:
    """A network of the shape of `like` to be trained, in float32.

    counts: [vocabulary of the target]; the most frequent tokens are those that it drafts.
    """
    shape, device = like.shape, target.device
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = BlockNetwork(shape).to(device)
        for parameter in network.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=_INIT_STD)
    if shape.draft_vocab_size < shape.vocab_size:
        network.d2t.copy_(map_of_most_frequent(counts.to(device), shape.draft_vocab_size))
    network.take_lm_head(target)
    return network.float()


@torch.no_grad()
def scaled(network: BlockNetwork, scale: Tensor) -> BlockNetwork:
    """A copy in float32 for features that are divided by `scale` [F]; it gives what `network` gives for them
    as they are."""
    copy: BlockNetwork = deepcopy(network).float()
    copy.fc.weight.mul_(scale)
    return copy


def loss_of(
    network: BlockNetwork,
    features: Tensor,
    row: TrainingRow,
    target: TargetView,
    recipe: BlockRecipe,
    vocabulary: DraftVocabulary,
) -> Loss:
    """The loss of a packed row, with the accuracy of every slot for the curves. features: [L, F].

    A slot whose token cannot be drafted counts for the confidence alone; those behind it do count.
    """
    shape = network.shape
    num_slots = shape.block_size - shape.first_slot
    anchors = draw_anchors(row.answer, recipe.num_anchors, row.document)
    if not len(anchors):
        return Loss(total=features.new_zeros(()).requires_grad_(True))
    labels = labels_of(row.ids, anchors, num_slots, row.answer, row.document)
    states = states_of_blocks(
        network, target, features, row.ids[anchors], anchors, shape.block_size, row.document
    )
    logits, confidence = corrected(network, target, states[:, shape.first_slot :], labels.previous)
    tokens = vocabulary.index(labels.tokens)
    counts = labels.counts & (tokens >= 0)
    goal = _NO_GOAL
    if recipe.tv or recipe.kl or confidence is not None:
        with torch.no_grad():
            goal = torch.softmax(vocabulary.logits(row.final[labels.places]).float(), dim=-1)
    decay = decay_weights(num_slots, recipe.gamma, features.device)
    shares = {"ce": recipe.ce, "tv": recipe.tv, "kl": recipe.kl}
    terms = [
        share * weighted_mean(LOSSES[name](logits, tokens.clamp(min=0), goal), decay * counts)
        for name, share in shares.items()
        if share
    ]
    if confidence is not None and recipe.confidence:
        wrong = confidence_losses(confidence, logits.detach(), goal, tokens >= 0)
        terms.append(recipe.confidence * weighted_mean(wrong, decay * labels.counts))
    right = (logits.argmax(-1) == vocabulary.index(row.best[labels.places])) & labels.counts
    shown = (right.sum(0) / labels.counts.sum(0).clamp(min=1)).tolist()
    return Loss(
        total=torch.stack(terms).sum(),
        numbers={f"accuracy_{slot}": share for slot, share in enumerate(shown)},
    )
