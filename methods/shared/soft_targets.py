"""The cross entropy of draft heads with the target's distributions, in one pass over the vocabulary.

Shapes: n guesses, S rows of the target, V draft tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CACHED = 1 << 19
"""Values that a core's cache holds; a CPU works on blocks of as many, because it waits for memory most."""


def soft_cross_entropy(logits: Tensor, probs: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropies [n] of logits [n, V] with `probs[rows]`, and the tokens [n] that the logits prefer.

    probs [S, V]: they may sum to less than one. rows [n]: indices in `probs`. The sums are in float32,
    whatever the logits are in.
    """
    losses, best = _SoftCrossEntropy.apply(logits, probs, rows)  # type: ignore[no-untyped-call]
    return losses, best


class _SoftCrossEntropy(torch.autograd.Function):
    """Computes the gradient together with the loss: both need the softmax of the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, probs: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Losses and preferred tokens; see `soft_cross_entropy`."""
        losses = logits.new_empty(len(logits), dtype=torch.float32)
        best = torch.empty_like(rows)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        step = max(1, _CACHED // logits.shape[1]) if logits.device.type == "cpu" else max(1, len(logits))
        for begin in range(0, len(logits), step):
            part = slice(begin, begin + step)
            guessed, wanted = logits[part].float(), probs[rows[part]].float()
            largest, best[part] = guessed.max(-1)
            mass = wanted.sum(-1)
            own = (wanted * guessed).sum(-1)
            # From here on `guessed` holds the exponentials, then the gradient.
            guessed = (guessed - largest[:, None]).exp_()
            total = guessed.sum(-1)
            losses[part] = mass * (total.log() + largest) - own
            if gradient is not None:
                gradient[part] = guessed.mul_((mass / total)[:, None]).sub_(wanted)
        ctx.mark_non_differentiable(best)
        ctx.save_for_backward(gradient)
        return losses, best

    @staticmethod
    def backward(ctx: Any, losses: Tensor, _: Any) -> tuple[Tensor | None, None, None]:
        """The gradient of the logits."""
        (gradient,) = ctx.saved_tensors
        return gradient * losses[:, None].to(gradient.dtype), None, None
