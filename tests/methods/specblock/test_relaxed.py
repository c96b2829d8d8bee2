"""SpecBlock's relaxed mode is the acceptor `top_k`: off by default, strict at 1, lossy above."""

from __future__ import annotations

from typing import Any

from harness.decoding.acceptance import Acceptor, Coupled
from harness.decoding.batch import Request
from harness.decoding.loop import DecodingLoop
from harness.decoding.relaxed.thresholds import TopK
from harness.decoding.sampling import DecodingParams
from harness.target.model import Target
from tests.methods.one_call.drafters import bound
from tests.support.targets import tiny_model

PROMPTS = [[3, 1, 4, 1, 5, 9, 2, 6], [2, 7, 1], [8, 2, 8, 1, 8]]


def made(acceptor: Acceptor) -> list[Any]:
    loop = DecodingLoop(Target(tiny_model("llama")), (), 512, timed=False)
    asked = [Request(prompt=prompt, key=number) for number, prompt in enumerate(PROMPTS)]
    params = DecodingParams(name="greedy", max_new_tokens=20)
    drafter = bound("specblock", loop.target, draft_vocab_size=None)
    return loop.generate(asked, drafter, params, acceptor)


def test_the_relaxed_mode_is_strict_at_one_and_accepts_more_above() -> None:
    strict, neutral, relaxed = (made(one) for one in (Coupled(), TopK(k=1), TopK(k=20)))
    assert [one.output_ids for one in neutral] == [one.output_ids for one in strict]
    assert [one.accepted for one in neutral] == [one.accepted for one in strict]
    assert sum(map(len, (one.accepted for one in relaxed))) < sum(map(len, (one.accepted for one in strict)))
    assert Coupled().lossless
    assert not TopK(k=2).lossless
