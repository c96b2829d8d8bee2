"""A native head drafts what transformers' own would, keeps true states alone, and changes no output."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from transformers.cache_utils import DynamicCache
from transformers.modeling_layers import MtpModel

from harness.decoding.acceptance import Coupled, Rejection
from harness.decoding.batch import Generation
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.drafting.drafter import HiddenTap, Outcome
from harness.runtime.cache import SlotCache
from methods.mtp_head import MtpHead
from methods.shared.eagle.growth import Growth
from methods.shared.eagle.steps import HeadSteps
from methods.vanilla import Vanilla
from tests.methods.mtp_head.heads import CONFIGS, bound, target, trunk
from tests.support.targets import END, requests

GREEDY = DecodingParams(name="greedy", max_new_tokens=14)
SAMPLED = DecodingParams(name="sampled", temperature=1.0, max_new_tokens=8)
TREE = {"total_token": 7, "depth": 2, "top_k": 2}


def repeating(family: str, **settings: Any) -> MtpHead:
    """A head that drafts the pending token again: its block adds nothing, its projection passes the state."""
    drafter = bound(family, **settings)
    network = drafter.network
    with torch.no_grad():
        network.eh_proj.weight.zero_()
        begin = 0 if network.conventions.hidden_first else 32
        network.eh_proj.weight[:, begin : begin + 32] = torch.eye(32)
        for name, parameter in network.block.named_parameters():
            if "o_proj" in name or "down_proj" in name:
                parameter.zero_()
    return drafter


def made(family: str, drafter: Any, params: DecodingParams, batch: int, acceptor: Any) -> list[Generation]:
    loop = DecodingLoop(target(family), {END}, 512, batch_size=batch)
    if isinstance(drafter, Vanilla):
        drafter.bind(loop.target)
    return loop.generate(requests(), drafter, params, acceptor)


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=lambda params: params.name)
@pytest.mark.parametrize("family", CONFIGS)
def test_output_is_vanillas_alone_and_in_a_batch(family: str, params: DecodingParams) -> None:
    expected = [one.output_ids for one in made(family, Vanilla(), params, 1, Coupled())]
    accepted = 0
    for settings, batch in (
        ({}, 1),
        ({}, 3),
        ({"tree": TREE}, 2),
        ({"feed_back": "raw", "hidden": "raw"}, 3),
    ):
        drafted = made(family, repeating(family, **settings), params, batch, Coupled())
        assert [one.output_ids for one in drafted] == expected
        accepted += sum(sum(one.accepted) for one in drafted)
    assert accepted > 0 or params is SAMPLED, "the greedy answers repeat tokens"


def test_the_pq_rule_is_greedy_at_temperature_zero() -> None:
    expected = made("glm", Vanilla(), GREEDY, 1, Coupled())
    assert made("glm", repeating("glm"), GREEDY, 3, Rejection())[0].output_ids == expected[0].output_ids


@torch.no_grad()
@pytest.mark.parametrize("family", ["glm", "deepseek"])
def test_it_computes_what_transformers_own_head_computes(family: str) -> None:
    drafter = bound(family)
    main = deepcopy(trunk(family))
    main.set_attn_implementation("sdpa")
    theirs = MtpModel(main, 1).eval()
    names = {
        "enorm": "enorm",
        "hnorm": "hnorm",
        "eh_proj": "eh_proj",
        "norm": "post_norm",
        "block": "mtp_block",
    }
    state = {}
    for name, tensor in drafter.network.state_dict().items():
        part, _, rest = name.partition(".")
        state[f"layers.0.{names[part]}.{rest}"] = tensor
    assert not theirs.load_state_dict(state, strict=False).unexpected_keys
    ids = torch.tensor([[5, 9, 14, 22, 8, 30, 41]])
    _, (states,) = target(family).trace(ids, drafter.taps)
    expected = theirs.forward_layer(
        0, states[:, :-1], torch.arange(1, 7)[None], DynamicCache(), input_ids=ids[:, 1:]
    )
    growth = Growth(HeadSteps(target(family), drafter.network, SlotCache()))
    growth.begin(1)
    torch.testing.assert_close(growth.feed(states[:, :-1], ids[:, 1:], [6]), expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("family", CONFIGS)
def test_rounds_leave_the_rows_of_one_forward_over_true_states(family: str) -> None:
    drafter = bound(family)
    ids = torch.tensor([[5, 9, 14, 22, 8, 30, 41, 17, 12], [7, 7, 50, 3, 21, 33, 10, 11, 6]])
    _, (states,) = target(family).trace(ids, (HiddenTap(-1, "normed"),))
    drafter.reset(2)
    done, draft = [0, 0], None
    # Each round commits another number of tokens of each sequence, whatever was drafted.
    for counts in ((3, 2), (1, 4), (4, 1)):
        rows = [ids[b, done[b] : done[b] + counts[b]].tolist() for b in range(2)]
        pending = [int(ids[b, done[b] + counts[b]]) for b in range(2)]
        taps = states.new_full((2, max(counts), 32), 1e6)
        for b in range(2):
            taps[b, : counts[b]] = states[b, done[b] : done[b] + counts[b]]
            done[b] += counts[b]
        drafter.observe(Outcome(committed=rows, pending=pending, taps=[taps], draft=draft))
        draft = drafter.propose([9, 9])
    assert drafter._cache.lengths == done == [8, 7]
    fresh = HeadSteps(target(family), drafter.network, SlotCache())
    growth = Growth(fresh)
    growth.begin(2)
    growth.feed(states[:, :-1], ids[:, 1:], [8, 8])
    for kept, expected in zip(drafter._cache.buffers(0), fresh.cache.buffers(0), strict=True):
        for b, length in enumerate(done):
            torch.testing.assert_close(kept[b, :, :length], expected[b, :, :length], atol=1e-5, rtol=1e-4)
