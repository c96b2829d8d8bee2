"""What a block drafter drafts behind its cache is what it would draft without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from harness.config import ConfigError
from harness.decoding.acceptance import Rejection
from harness.decoding.sampling import DecodingParams
from harness.drafting.drafter import Outcome
from harness.target.model import Target
from methods.dflash import DFlash
from methods.peagle import PEagle
from methods.shared.block.learning.dense import states_of_blocks
from tests.methods.block.heads import PARTS, network_of, write
from tests.support.targets import VOCAB, engine, requests, tiny_model

WINDOW = {"sliding": (True, False), "window": 4}
SHAPES: dict[str, dict[str, Any]] = {
    "full": {},
    "causal": {"causal": (True, True)},
    "sliding": {**WINDOW, "causal": (True, False)},
    "sliding-anchor": {**WINDOW, "window_bound": "anchor"},
    "dflash2": PARTS["dflash2"],
}


def bound(**settings: Any) -> DFlash:
    usual: dict[str, Any] = {"kind": "dflash", "head": "random", "num_layers": 2, "block_size": 5}
    drafter = DFlash(**{**usual, **settings})
    drafter.bind(Target(tiny_model("llama")))
    return drafter


def given(length: int, seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, length, 64, generator=generator) for _ in range(2)]


@torch.no_grad()
@pytest.mark.parametrize("name", SHAPES)
def test_rounds_behind_the_cache_equal_one_computation_from_scratch(name: str) -> None:
    drafter, network = bound(), network_of(**SHAPES[name])
    drafter.use(network)
    drafter.reset(2)
    known: list[list[torch.Tensor]] = [[], []]
    for number, counts in enumerate(([6, 3], [1, 4], [2, 1])):
        taps = given(max(counts), number)
        pending = [10 + number, 20 + number]
        drafter.observe(Outcome(committed=[[5] * count for count in counts], pending=pending, taps=taps))
        drafter.propose([9, 9])
        for row, count in enumerate(counts):
            known[row].append(torch.cat(taps, dim=-1)[row, :count])
            features = torch.cat(known[row])
            anchor, token = torch.tensor([len(features)]), torch.tensor([pending[row]])
            dense = states_of_blocks(network, drafter._target, features, token, anchor, 5)
            assert torch.allclose(drafter.states[row], dense[0], atol=1e-4)


@torch.no_grad()
def test_a_block_leaves_nothing_behind() -> None:
    drafter = bound()
    drafter.reset(2)
    drafter.observe(Outcome(committed=[[5, 6, 7], [8]], pending=[1, 2], taps=given(3, 0)))
    first = drafter.propose([9, 9]).tokens
    assert torch.equal(drafter.propose([9, 9]).tokens, first)
    # Entries past a sequence's own length are arbitrary.
    taps = given(3, 0)
    for tap in taps:
        tap[1, 1:] = 1e6
    drafter.reset(2)
    drafter.observe(Outcome(committed=[[5, 6, 7], [8]], pending=[1, 2], taps=taps))
    assert torch.equal(drafter.propose([9, 9]).tokens, first)


@torch.no_grad()
@pytest.mark.parametrize("causal", [True, False])
def test_only_a_causal_block_may_be_narrowed_without_a_change(causal: bool) -> None:
    drafter, seen = bound(), []
    for length in (None, 2):
        drafter.draft_length = length
        drafter.use(network_of(causal=(causal, causal)))
        drafter.reset(2)
        drafter.observe(Outcome(committed=[[5, 6, 7], [8]], pending=[1, 2], taps=given(3, 0)))
        assert drafter.propose([9, 9]).width == (length or 4)
        seen.append(drafter.states[:, :3])
    assert torch.allclose(*seen, atol=1e-5) == causal


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drawn_drafts_are_those_of_the_sequence_whatever_the_batch(kind: Any, temperature: float) -> None:
    loop = engine()
    params = DecodingParams(name="sampled", temperature=1.0, max_new_tokens=12)
    made = []
    for batch in (1, 3):
        drafter = DFlash(kind=kind, head="random", num_layers=1, temperature=temperature)
        drafter.bind(loop.target)
        asked = requests()
        groups = [asked[begin : begin + batch] for begin in range(0, 3, batch)]
        made.append([one for group in groups for one in loop.generate(group, drafter, params, Rejection())])
    assert [one.output_ids for one in made[0]] == [one.output_ids for one in made[1]]


def test_peagle_drafts_the_same_alone_and_in_a_batch_at_temperature_one() -> None:
    loop = engine()
    params = DecodingParams(name="sampled", temperature=1.0, max_new_tokens=12)
    made = []
    for batch in (1, 3):
        drafter = PEagle(head="random", num_layers=2, draft_length=4, temperature=1.0)
        drafter.bind(loop.target)
        asked = requests()
        groups = [asked[begin : begin + batch] for begin in range(0, 3, batch)]
        made.append([one for group in groups for one in loop.generate(group, drafter, params, Rejection())])
    assert [one.output_ids for one in made[0]] == [one.output_ids for one in made[1]]


def test_a_low_confidence_leaves_rounds_without_a_draft_and_the_output_as_it_is() -> None:
    loop = engine()
    params = DecodingParams(name="greedy", max_new_tokens=12)
    outputs = []
    for threshold in (0.0, 0.5, 0.999):
        drafter = DFlash(kind="dspark", head="random", num_layers=1, confidence_threshold=threshold)
        drafter.bind(loop.target)
        made = loop.generate(requests(), drafter, params, Rejection())
        outputs.append([one.output_ids for one in made])
        assert drafter.num_drafted == (8 if threshold == 0 else None)
    assert outputs[0] == outputs[1] == outputs[2]
    assert max(max(one.drafted) for one in made) == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": None}, "none is known"),
        ({"draft_length": 9}, "drafts at most 4 tokens"),
        ({"confidence_threshold": 0.5}, "no confidence"),
        ({"mask_token_id": VOCAB}, f"allowed are the ids 0 to {VOCAB - 1}"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        bound(**settings)


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({"kind": "dspark"}, {}, "Type method=dflash"),
        ({}, {"hidden_size": 32, "head_dim": 8}, "hidden size 32"),
        ({}, {"vocab_size": 50, "draft_vocab_size": 50, "mask_token_id": 1}, "vocabulary of 50"),
        ({}, {"tap_layers": (1, 3)}, "blocks 0 to 2"),
    ],
)
def test_heads_for_others_are_refused(
    tmp_path: Path, settings: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    folder = write(tmp_path, network_of(**changes))
    with pytest.raises(ConfigError, match=message):
        bound(head=str(folder), **settings)


RECORDED = Path(__file__).parents[5] / "shared" / "fixtures" / "trained" / "public" / "models"


@pytest.mark.skipif(not RECORDED.is_dir(), reason=f"the recorded heads are not at {RECORDED}")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, None),
        ({"sample_from_anchor": False}, "type sample_from_anchor=true"),
    ],
)
def test_a_wrong_reading_of_a_trained_head_is_refused_with_the_right_one(
    settings: dict[str, Any], message: str | None
) -> None:
    from transformers import AutoModelForCausalLM

    target = Target(AutoModelForCausalLM.from_pretrained(RECORDED / "qwen8", dtype=torch.float32).eval())
    drafter = DFlash(kind="dspark", head=str(RECORDED / "dspark-vanilla-qwen8"), **settings)
    drafter.bind(target)
    generator = torch.Generator().manual_seed(0)
    texts = []
    for _ in range(4):
        ids = torch.randint(4, 256, (1, 4), generator=generator)
        for _ in range(40):
            ids = torch.cat([ids, target.trace(ids, ())[0][:, -1:].argmax(-1)], dim=1)
        texts.append(ids[0].tolist())
    if message is None:
        drafter.check(texts)
    else:
        with pytest.raises(ConfigError, match=message):
            drafter.check(texts)


def test_the_sizes_of_a_random_head_can_be_chosen() -> None:
    drafter = bound(kind="dspark", intermediate_size=40, tap_layers=(1,), markov_rank=7)
    shape = drafter.network.shape
    assert (shape.intermediate_size, shape.tap_layers, shape.markov_rank) == (40, (1,), 7)
    with pytest.raises(ConfigError, match=r"blocks \[1, 99\]"):
        bound(tap_layers=(1, 99))
