"""SpecBlock's network: slots are causal, and the shift and the rank head are what they should be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.functional import linear

from methods.specblock.network import BlockNetwork, rank_features
from tests.methods.one_call.drafters import bound


def outputs(drafter: Any) -> torch.Tensor:
    """[K, H] after three rows."""
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(1, 3, drafter.feature_shape[0], generator=generator)
    drafter.reset(1)
    growth = drafter.new_growth()
    found: torch.Tensor = growth.feed(features, torch.tensor([[4, 5, 6]]), [3])[0, 2]
    return found


@torch.no_grad()
@pytest.mark.parametrize("slot", [0, 1, 2])
def test_a_slot_changes_no_slot_before_it(slot: int) -> None:
    drafter = bound("specblock")
    before = outputs(drafter)
    drafter.network.input_layer.position_queries.weight[slot] += 1
    after = outputs(drafter)
    # Earlier rows have the slot, too, and later rows see it.
    drafter.network.input_layer.position_queries.weight[slot] -= 1
    network: BlockNetwork = drafter.network
    assert not torch.allclose(before[slot], after[slot])

    def alone() -> torch.Tensor:
        drafter.reset(1)
        growth = drafter.new_growth()
        features = torch.ones(1, 1, drafter.feature_shape[0])
        found: torch.Tensor = growth.feed(features, torch.tensor([[4]]), [1])[0, 0]
        return found

    first = alone()
    network.input_layer.position_queries.weight[slot] += 1
    second = alone()
    torch.testing.assert_close(first[:slot], second[:slot])
    assert not torch.allclose(first[slot], second[slot])


@torch.no_grad()
def test_a_shift_that_passes_the_own_slot_on_is_no_shift() -> None:
    drafter, plain = bound("specblock"), bound("specblock", shift=False)
    (shift,) = drafter.network.shift_proj
    size = shift.out_features
    shift.weight.copy_(torch.cat([torch.eye(size), torch.zeros(size, size)], dim=1))
    state = {name: one for name, one in drafter.network.state_dict().items() if "shift_proj" not in name}
    plain.network.load_state_dict(state)
    torch.testing.assert_close(outputs(plain), outputs(drafter))
    shift.weight.copy_(torch.cat([torch.zeros(size, size), torch.eye(size)], dim=1))
    assert not torch.allclose(outputs(plain)[1], outputs(drafter)[1])


@torch.no_grad()
def test_without_the_broadcast_later_slots_do_not_read_the_known_token() -> None:
    drafter = bound("specblock", broadcast=False)
    layer = drafter.network.input_layer
    states = [layer(torch.full((1, 1, 64), value), torch.full((1, 1, 64), -value)) for value in (1.0, 2.0)]
    states[1] = layer(torch.arange(64.0)[None, None], torch.ones(1, 1, 64))
    assert torch.equal(states[0][0, 0, 1:], states[1][0, 0, 1:])
    assert not torch.allclose(states[0][0, 0, 0], states[1][0, 0, 0])


@torch.no_grad()
def test_what_the_rank_head_reads_follows_from_a_full_sort() -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(1)) * 3
    best = logits.sort(dim=-1, descending=True).values[:, :20]
    probs = best.softmax(-1)
    expected = torch.cat(
        [
            probs[:, :10].log(),
            best[:, :1] - best[:, [1, 2, 4]],
            probs[:, :1],
            -(probs * probs.log()).sum(-1, keepdim=True),
        ],
        dim=-1,
    )
    torch.testing.assert_close(rank_features(logits, 20), expected, rtol=1e-4, atol=1e-5)
    network = bound("specblock").network
    states = torch.randn(5, 64, generator=torch.Generator().manual_seed(2))
    wide = network.logits(states)
    read = torch.cat([network.norm(states), rank_features(wide, 20)], dim=-1)
    hidden = torch.nn.functional.silu(linear(read, network.rank_head[0].weight))
    torch.testing.assert_close(
        network.rank_logits(states, wide, 20), linear(hidden, network.rank_head[2].weight)
    )
