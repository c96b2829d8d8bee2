"""Rungs decode what our loop decodes, whatever a checkpoint's generation config asks for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from transformers import GenerationConfig

from harness.decoding.acceptance import Coupled
from harness.decoding.faults import MethodError
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.engines.transformers_generate import Generate, PromptLookup, Rung, not_applied
from harness.target.model import Target
from methods.vanilla import Vanilla
from tests.support.targets import END, engine, requests, tiny_model

GREEDY = DecodingParams(name="greedy", max_new_tokens=24)
SAMPLED = DecodingParams(name="sampled", temperature=0.8, max_new_tokens=24)
ASKS: dict[str, Any] = {
    "repetition_penalty": 1.7,
    "no_repeat_ngram_size": 2,
    "min_new_tokens": 30,
    "min_length": 60,
    "bad_words_ids": [[5], [6], [7]],
    "suppress_tokens": [8, 9, 10, 11],
    "begin_suppress_tokens": [4, 5, 6, 7, 8],
    "forced_eos_token_id": 20,
    "exponential_decay_length_penalty": [2, 3.0],
    "sequence_bias": [[[12], 50.0]],
    "stop_strings": ["a", "b"],
    "guidance_scale": 2.5,
    "max_time": 1e-6,
    "do_sample": True,
    "num_beams": 3,
    "renormalize_logits": True,
}


def with_config(**asked: Any) -> DecodingLoop:
    model = copy.deepcopy(tiny_model("llama"))
    for name, value in asked.items():
        setattr(model.generation_config, name, value)
    return DecodingLoop(Target(model), {END}, 512)


def vanilla(params: DecodingParams) -> list[list[int]]:
    loop, drafter = engine(), Vanilla()
    drafter.bind(loop.target)
    return [loop.generate([one], drafter, params, Coupled())[0].output_ids for one in requests()]


@pytest.mark.parametrize("rung", [Generate(), PromptLookup()], ids=lambda one: one.name)
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=lambda one: one.name)
def test_nothing_that_a_checkpoint_asks_for_reaches_a_rung(rung: Rung, params: DecodingParams) -> None:
    expected = vanilla(params)
    for asked in [{name: value} for name, value in ASKS.items()] + [ASKS]:
        loop = with_config(**asked)
        made = [rung.generate(loop, one, params).output_ids for one in requests()]
        assert made == expected, asked
        assert getattr(loop.target.model.generation_config, next(iter(asked))) == next(iter(asked.values()))


def test_what_is_not_applied_is_listed_and_neutral_values_are_not() -> None:
    model = tiny_model("llama")
    assert not_applied(model) == {}
    asked = with_config(**ASKS, temperature=0.6, eos_token_id=[3, 4]).target.model
    assert set(not_applied(asked)) == set(ASKS) - {"do_sample"}
    neutral = with_config(repetition_penalty=1.0, no_repeat_ngram_size=0, num_beams=1, suppress_tokens=[])
    assert not_applied(neutral.target.model) == {}


def test_an_exception_of_their_loop_is_the_rungs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = with_config()

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("no such thing")

    monkeypatch.setattr(loop.target.model, "generate", fail)
    before = loop.target.model.generation_config
    with pytest.raises(MethodError, match="ValueError: no such thing"):
        Generate().generate(loop, requests()[0], GREEDY)
    assert loop.target.model.generation_config is before
    assert isinstance(before, GenerationConfig)
