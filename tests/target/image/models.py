"""A tiny image model, loaded once."""

from __future__ import annotations

from functools import cache
from typing import Any

from harness.decoding.batch import Request
from harness.decoding.loop import DecodingLoop
from harness.target.image.emu3 import TinyImageTarget
from harness.target.image.guided import GuidedTarget
from harness.target.spec import LoadedWeights

HEIGHT, WIDTH = 3, 4


@cache
def loaded(guidance: float = 3.0, negative: str = "", **options: Any) -> LoadedWeights:
    spec = TinyImageTarget(
        height=HEIGHT, width=WIDTH, guidance=guidance, negative_prompt=negative, num_pixels=16, **options
    )
    return spec.load(lambda _: None)


@cache
def target(guidance: float = 3.0, negative: str = "", **options: Any) -> GuidedTarget:
    found = loaded(guidance, negative, **options).make(loaded(guidance, negative, **options).model)
    assert isinstance(found, GuidedTarget)
    return found


def loop(found: GuidedTarget, **options: Any) -> DecodingLoop:
    return DecodingLoop(found, loaded().end_token_ids, 512, timed=False, **options)


def prompts() -> list[list[int]]:
    """Captions of several lengths, as the target's own template ends them."""
    tokenizer = loaded().tokenizer
    return [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in ("a cat", "two blue cats", "nothing")
    ]


def asked() -> list[Request]:
    return [Request(prompt=prompt, key=7 + number) for number, prompt in enumerate(prompts())]
