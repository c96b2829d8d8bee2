"""Losses of the slots of blocks, and the weights of the slots.

Shapes: A blocks, k drafted slots, D draft vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, kl_div

_TINY = 1e-6
"""Keeps a mean over no slot at all finite."""


def cross_entropies(logits: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """Against the text's own token, [A, k]."""
    return cross_entropy(logits.flatten(0, -2), labels.flatten(), reduction="none").view(labels.shape)


def total_variations(logits: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """Half the L1 distance from the target's distribution, [A, k]: how likely a drawn token is rejected."""
    return 0.5 * (torch.softmax(logits, dim=-1) - target).abs().sum(-1)


def divergences(logits: Tensor, labels: Tensor, target: Tensor) -> Tensor:
    """Kullback-Leibler divergence of the draft from the target's distribution, [A, k]."""
    return kl_div(torch.log_softmax(logits, dim=-1), target, reduction="none").sum(-1)


LOSSES: Mapping[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "ce": cross_entropies,
    "tv": total_variations,
    "kl": divergences,
}
"""Losses by name; each maps logits [A, k, D], labels [A, k] and the target's probabilities [A, k, D] to
[A, k]."""


def confidence_losses(
    confidence: Tensor, logits: Tensor, target: Tensor, possible: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy [A, k] of confidence logits [A, k] against the probability of being kept, which is
    one minus the total variation, and 0 where the text's token cannot be drafted.

    possible: [A, k] bool, where it can; None: everywhere.
    """
    with torch.no_grad():
        kept = 1 - total_variations(logits, torch.empty(0), target)
        if possible is not None:
            kept = kept * possible
    return binary_cross_entropy_with_logits(confidence, kept, reduction="none")


def decay_weights(num_slots: int, gamma: float, device: torch.device) -> Tensor:
    """exp(-i / gamma) for the drafted slots i = 0, 1, ...: an early error costs the whole rest."""
    return torch.exp(-torch.arange(num_slots, device=device) / gamma)


def length_weights(confidence: Tensor, counts: Tensor, smoothing: float) -> Tensor:
    """Weights [A, k] of D-PACE (arXiv 2605.18810): what a slot contributes to the expected accepted length.

    The length is expected under the drafter's own confidence [A, k] in the right tokens, mixed with certainty
    by `smoothing`. A slot's weight is the sum of the probabilities that the draft is kept up to it and up to
    each later slot. counts: [A, k] bool; slots that do not count neither end a draft nor add to it.
    """
    sure = smoothing + (1 - smoothing) * confidence.detach()
    reached = torch.where(counts, sure, 1.0).cumprod(-1) * counts
    return reached.flip(-1).cumsum(-1).flip(-1) * counts


def weighted_mean(values: Tensor, weights: Tensor) -> Tensor:
    """The mean of values [A, k] by weights [A, k], as DeepSpec and SpecForge normalise it."""
    return (values * weights).sum() / (weights.sum() + _TINY)
