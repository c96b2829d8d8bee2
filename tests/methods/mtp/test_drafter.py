"""MTP decodes as the model recomputed from scratch would, and training raises what it predicts at once."""

from __future__ import annotations

import copy
import json
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from harness.config import ConfigError
from harness.decoding.acceptance import Acceptor, Coupled
from harness.decoding.batch import Generation, Request
from harness.decoding.loop import DecodingLoop
from harness.decoding.relaxed.thresholds import AcceptAll
from harness.decoding.sampling import DecodingParams
from harness.drafting.trainable import TrainingRow, TrainingStep
from harness.target.model import Target
from methods.mtp import Mtp
from methods.mtp.training import MASK_KEY, MtpRecipe, with_mask
from methods.vanilla import Vanilla
from tests.support.targets import tiny_model

CAP = 30
GREEDY = DecodingParams(name="greedy", max_new_tokens=CAP)


@cache
def masked() -> Any:
    return with_mask(copy.deepcopy(tiny_model("llama")), seed=3).eval().requires_grad_(False)


def decoded(
    method: Any, acceptor: Acceptor, model: Any = None, prompts: Any = None, params: DecodingParams = GREEDY
) -> list[Generation]:
    loop = DecodingLoop(Target(copy.deepcopy(model or masked())), (), 512, timed=False)
    method.bind(loop.target)
    prompts = prompts or [[5, 6, 7], [9, 8, 11, 12, 10], [4, 4, 5, 7]]
    asked = [Request(prompt=prompt, key=number) for number, prompt in enumerate(prompts)]
    return loop.generate(asked, method, params, acceptor)


def recomputed(prompt: list[int], num_tokens: int, confidence: float | None, model: Any = None) -> list[int]:
    """The answer, every block from a forward over the whole text and the masks."""
    model = model or masked()
    mask, text = model.config.vocab_size - 1, list(prompt)
    # The prompt's own forward has no masks.
    text.append(int(model(input_ids=torch.tensor([text])).logits[0, -1, :-1].argmax()))
    while len(text) < len(prompt) + CAP:
        ids = torch.tensor([[*text, *[mask] * (num_tokens - 1)]])
        probs = model(input_ids=ids).logits[0, -num_tokens:, :-1].softmax(-1)
        best = probs.max(-1)
        sure = [confidence is None or float(one) > confidence for one in best.values]
        count = sure.index(False) if False in sure else num_tokens
        text += best.indices[: max(count, 1)].tolist()
    return text[len(prompt) : len(prompt) + CAP]


@pytest.mark.parametrize("confidence", [None, 0.2, 0.5])
@pytest.mark.parametrize("num_tokens", [1, 2, 4])
def test_cached_decoding_is_full_recomputation(num_tokens: int, confidence: float | None) -> None:
    method = Mtp(num_tokens=num_tokens, confidence=confidence)
    prompts = [[5, 6, 7], [9, 8, 11, 12, 10], [4, 4, 5, 7]]
    for made, prompt in zip(decoded(method, AcceptAll(), prompts=prompts), prompts, strict=True):
        assert made.output_ids == recomputed(prompt, num_tokens, confidence)


def test_the_limits_of_the_threshold_are_one_token_and_all() -> None:
    def outputs(**settings: Any) -> list[list[int]]:
        return [one.output_ids for one in decoded(Mtp(num_tokens=4, **settings), AcceptAll())]

    assert outputs(confidence=1.0) == [one.output_ids for one in decoded(Vanilla(), Coupled())]
    assert outputs(confidence=0.0) == outputs()


def test_a_higher_threshold_keeps_no_more_of_a_block() -> None:
    logits = 2 * torch.randn(500, 6, 12, generator=torch.Generator().manual_seed(0))
    lengths = []
    for confidence in (0.0, 0.3, 0.6, 0.9, 1.0):
        method = Mtp(num_tokens=6, confidence=confidence, mask_token=11)
        method._mask = 11
        lengths.append([len(method._confident(one)) for one in logits])
    for looser, tighter in pairwise(lengths):
        assert all(more >= less for more, less in zip(looser, tighter, strict=True))
    assert set(lengths[0]) == {6}
    assert set(lengths[-1]) == {1}


@pytest.mark.parametrize("masks", ["last", "every"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_verified_by_itself_it_writes_what_the_trained_model_writes(masks: Any, temperature: float) -> None:
    params = DecodingParams(name="any", temperature=temperature, max_new_tokens=CAP)
    plain = decoded(Vanilla(), Coupled(), params=params)
    made = decoded(Mtp(num_tokens=4, masks=masks), Coupled(), params=params)
    assert [one.output_ids for one in made] == [one.output_ids for one in plain]
    assert any(sum(one.drafted) for one in made)


def test_a_forward_reads_twice_k_less_one_tokens() -> None:
    (made, *_) = decoded(Mtp(num_tokens=4), AcceptAll())
    sizes = [1 + drafted + riders for drafted, riders in zip(made.drafted, made.riders, strict=True)]
    assert sizes[0] == 4
    assert set(sizes[1:-1]) == {7}


def test_masks_behind_every_token_draft_after_every_rejection() -> None:
    last, every = (
        decoded(Mtp(num_tokens=4, masks=masks), Coupled())[0]  # type: ignore[arg-type]
        for masks in ("last", "every")
    )
    assert 0 in last.drafted[1:-1]
    assert 0 not in every.drafted[1:-1]


def test_a_target_without_a_mask_is_refused_with_the_command_that_trains_one() -> None:
    method = Mtp()
    method.bind(Target(tiny_model("llama")))
    with pytest.raises(ConfigError, match=r"harness\.train method=mtp"):
        method.check([[1, 2]])
    method = Mtp(mask_token=10**6)
    with pytest.raises(ConfigError, match="vocabulary"):
        method.bind(Target(tiny_model("llama")))


# Training: sums of one digit and another, written out, so that several tokens follow from one.
DIGITS, PLUS, EQUALS, STOP = 10, 10, 11, 12
SMALL = 13


def texts(seed: int, count: int) -> list[list[int]]:
    random = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        a, b = torch.randint(0, DIGITS, (2,), generator=random).tolist()
        # The sum's digits, and the same backwards, so that later tokens depend on earlier ones.
        tens, ones = divmod(a + b, 10)
        found.append([a, PLUS, b, EQUALS, tens, ones, ones, tens, EQUALS, a, b, STOP])
    return found


@cache
def pretrained() -> Any:
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=SMALL,
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=128,
            eos_token_id=STOP,
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(250):
        ids = torch.tensor(texts(step, 32))
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval().requires_grad_(False)


def row_of(documents: list[list[int]]) -> TrainingRow:
    size = len(documents[0])
    return TrainingRow(
        ids=torch.tensor([token for one in documents for token in one]),
        answer=torch.tensor([place >= 4 for _ in documents for place in range(size)]),
        document=torch.arange(len(documents)).repeat_interleave(size),
        positions=torch.arange(size).repeat(len(documents)),
        taps=[],
        final=torch.empty(0),
        best=torch.empty(0),
    )


@cache
def trained(true_labels: bool = False) -> tuple[Any, list[float], list[float]]:
    """A model after some hundred steps, its losses and its confidences three tokens ahead."""
    method = Mtp(recipe=MtpRecipe(min_tokens=2, max_tokens=6, true_labels=true_labels))
    method.bind(Target(copy.deepcopy(pretrained())))
    module = method.begin_training(torch.ones(SMALL), [], seed=0)
    torch.manual_seed(0)
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3)
    losses, confidence = [], []
    for step in range(250):
        made = method.loss([row_of(texts(1000 + step, 40))], TrainingStep(number=step, num_steps=250))
        optimizer.zero_grad()
        made.total.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(made.total.detach()))
        if "confidence_3" in made.numbers:
            confidence.append(made.numbers["confidence_3"])
    return module, losses, confidence


def rate_and_share_right(model: Any, confidence: float, num_tokens: int = 6) -> tuple[float, float]:
    prompts = [one[:4] for one in texts(5, 40)]
    params = DecodingParams(name="greedy", max_new_tokens=8)
    made = decoded(
        Mtp(num_tokens=num_tokens, confidence=confidence), AcceptAll(), model, prompts=prompts, params=params
    )
    right = [one.output_ids == text[4:] for one, text in zip(made, texts(5, 40), strict=True)]
    rounds = sum(len(one.emitted) for one in made)
    return sum(sum(one.emitted) for one in made) / rounds, sum(right) / len(right)


def test_training_raises_what_is_predicted_at_once_and_the_share_of_it_that_is_right() -> None:
    model, losses, confidence = trained()
    assert sum(losses[-20:]) < 0.5 * sum(losses[:20])
    # A probability cannot rise above one, wherever it began: what it lacks shrinks.
    assert sum(1 - one for one in confidence[-10:]) < 0.75 * sum(1 - one for one in confidence[:10])
    start = with_mask(copy.deepcopy(pretrained()), seed=0)
    before, right_before = rate_and_share_right(start, 0.9)
    after, right_after = rate_and_share_right(model.eval(), 0.9)
    assert after > before + 0.4
    assert right_after > right_before + 0.2


def test_the_trained_model_is_exported_with_its_mask_and_never_writes_it(tmp_path: Path) -> None:
    model, _, _ = trained()
    method = Mtp(recipe=MtpRecipe(min_tokens=2, max_tokens=6))
    method._student = model
    method.export(tmp_path, {"training": {}})
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert getattr(loaded.config, MASK_KEY) == SMALL
    assert json.loads((tmp_path / "card.json").read_text()) == {"training": {}}
    ids = torch.tensor(texts(3, 4))
    torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)
    assert not (loaded(input_ids=ids).logits.argmax(-1) == SMALL).any()
    assert not loaded.get_output_embeddings().weight[-1].any()


def test_held_out_texts_are_drafted_by_the_network_in_training() -> None:
    """The trainer's tau: the student drafts, the original model verifies."""
    model, _, _ = trained()
    target = Target(copy.deepcopy(pretrained()))
    loop, method = DecodingLoop(target, (), 128, timed=False), Mtp(num_tokens=4)
    method.bind(target)
    method._student, method._trained_mask = model, SMALL
    method.deploy()
    prompts = [one[:4] for one in texts(5, 6)]
    asked = [Request(prompt=prompt, key=0) for prompt in prompts]
    params = DecodingParams(name="greedy", max_new_tokens=8)
    made = loop.generate(asked, method, params, Coupled())
    plain = Vanilla()
    plain.bind(target)
    assert [one.output_ids for one in made] == [
        one.output_ids for one in loop.generate(asked, plain, params, Coupled())
    ]
    assert sum(sum(one.accepted) for one in made) > 6
