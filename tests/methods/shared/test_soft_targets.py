"""The cross entropy with the target's distributions."""

from __future__ import annotations

import pytest
import torch

from methods.shared.soft_targets import soft_cross_entropy

VOCAB = 700


@pytest.mark.parametrize("mass", [1.0, 0.6])
@pytest.mark.parametrize("num_guesses", [0, 1, 1700])
def test_values_and_gradients_are_those_of_the_plain_formula(num_guesses: int, mass: float) -> None:
    torch.manual_seed(0)
    probs = mass * torch.randn(9, VOCAB).softmax(-1)
    rows = torch.randint(9, (num_guesses,))
    weights = torch.rand(num_guesses, dtype=torch.float64)
    plain = (3 * torch.randn(num_guesses, VOCAB)).requires_grad_(True)
    expected = -(probs[rows].double() * plain.double().log_softmax(-1)).sum(-1)
    (expected * weights).sum().backward()
    logits = plain.detach().clone().requires_grad_(True)
    losses, best = soft_cross_entropy(logits, probs, rows)
    (losses.double() * weights).sum().backward()
    torch.testing.assert_close(losses.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits.grad, plain.grad, atol=1e-6, rtol=1e-5)
    assert torch.equal(best, plain.argmax(-1))


def test_logits_in_half_precision_have_sums_in_float32() -> None:
    torch.manual_seed(0)
    probs, rows = torch.randn(4, VOCAB).softmax(-1), torch.arange(4)
    logits = (3 * torch.randn(4, VOCAB)).bfloat16().requires_grad_(True)
    losses, _ = soft_cross_entropy(logits, probs, rows)
    expected = -(probs * logits.float().log_softmax(-1)).sum(-1)
    torch.testing.assert_close(losses, expected, atol=1e-5, rtol=1e-5)
    losses.sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16
    torch.testing.assert_close(logits.grad.float(), logits.float().softmax(-1) - probs, atol=2e-3, rtol=1e-2)
