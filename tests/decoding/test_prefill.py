"""Prompts that are fed together leave what each leaves alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from harness.decoding.acceptance import Coupled
from harness.decoding.batch import Request
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.drafting.drafter import HiddenTap
from harness.profiling import step_timing
from harness.target.model import Target
from harness.target.prefill import groups
from methods.vanilla import Vanilla
from tests.support.targets import VOCAB, RandomTrees, oracle, tiny_model

TAPS = (HiddenTap(0, "output"), HiddenTap(-1, "normed"))
LENGTHS = [3, 9, 10, 10, 10, 11, 30]
ROWS = [6, 0, 1, 2, 4, 5, 3]
"""Two pairs of neighbours of like length and one of equal, and rows with nothing beside them."""


def prompts(lengths: list[int]) -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(4, VOCAB, (length,), generator=generator).tolist() for length in lengths]


def fed(target: Target, at_once: bool, lengths: list[int], rows: list[int]) -> list[Any]:
    """Logits, states and cache rows of prompts in their order."""
    target.set_taps(TAPS)
    target.begin(len(rows))
    given = prompts(lengths)
    if at_once:
        logits, states = target.prefill(rows, given)
    else:
        alone = [target.prefill([row], [prompt]) for row, prompt in zip(rows, given, strict=True)]
        logits = torch.cat([last for last, _ in alone])
        states = [seen for _, (seen,) in alone]
    assert [target.cache.lengths[row] for row in rows] == lengths
    kept = [
        buffer[row, :, :length].clone()
        for layer in range(3)
        for buffer in target.cache.buffers(layer)
        for row, length in zip(rows, lengths, strict=True)
    ]
    return [logits, states, kept]


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("kernel", ["grouped", "sdpa", "eager"])
@pytest.mark.parametrize("linear", ["plain", "packed"])
def test_logits_states_and_cache_rows_are_those_of_each_prompt_alone(
    family: str, kernel: str, linear: str
) -> None:
    target = Target(copy.deepcopy(tiny_model(family)), kernel, linear)
    torch.testing.assert_close(fed(target, True, LENGTHS, ROWS), fed(target, False, LENGTHS, ROWS))


def test_a_prompt_that_is_fed_in_pieces_is_the_same_beside_others(monkeypatch: pytest.MonkeyPatch) -> None:
    target = Target(tiny_model("llama"))
    whole = fed(target, False, LENGTHS, ROWS)
    monkeypatch.setattr("harness.target.prefill.CHUNK", 20)
    torch.testing.assert_close(fed(target, True, LENGTHS, ROWS), whole)


def test_prompts_go_together_in_neighbouring_rows_where_little_is_filled_up() -> None:
    def sizes(rows: list[int], lengths: list[int]) -> list[int]:
        parts = list(groups(rows, lengths))
        assert [number for part in parts for number in range(len(rows))[part]] == list(range(len(rows)))
        return [part.stop - part.start for part in parts]

    assert sizes([0, 1, 2, 3], [90, 95, 100, 130]) == [3, 1]
    assert sizes([0, 1, 3, 4], [90, 90, 90, 90]) == [2, 2]
    assert sizes(list(range(20)), [90] * 20) == [8, 8, 4]
    assert sizes([0, 1, 2], [1000, 1000, 1000]) == [2, 1], "2048 tokens of one forward"
    assert sizes([0, 1], [5000, 5000]) == [1, 1]
    assert sizes([4], [7]) == [1]


def test_a_batch_feeds_its_first_prompts_together_and_later_ones_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those of like length, in whatever order they come; what comes out is in their order."""
    target = Target(tiny_model("llama"))
    drafter, seen = Vanilla(), []
    drafter.bind(target)
    params = DecodingParams(name="greedy", max_new_tokens=5)
    requests = [Request(prompt=prompt, key=0) for prompt in prompts([8, 30, 8, 30, 8, 30, 8, 8, 8])]
    loop = DecodingLoop(target, (), 512, batch_size=6)
    alone = [loop.generate([one], drafter, params, Coupled())[0].output_ids for one in requests]
    original = target._feeder._feed

    def counted(row: int, given: Any) -> Any:
        seen.append(len(given))
        return original(row, given)

    monkeypatch.setattr(target._feeder, "_feed", counted)
    made = loop.generate(requests, drafter, params, Coupled())
    assert [one.output_ids for one in made] == alone
    assert seen == [3, 3, 1, 1, 1]


@pytest.mark.parametrize("kernel", ["grouped", "eager"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_decoding_goes_on_behind_uneven_prompts_as_behind_each_alone(
    kernel: str, cache: str, temperature: float
) -> None:
    target = Target(tiny_model("llama"), kernel, cache=cache)
    params = DecodingParams(name="any", temperature=temperature, max_new_tokens=30, ignore_end_token=True)
    requests = [
        Request(prompt=prompt, key=key) for key, prompt in enumerate(prompts([18, 30, 20, 19, 31, 32, 20]))
    ]
    vanilla, plain = Vanilla(), DecodingLoop(Target(tiny_model("llama")), (), 512)
    vanilla.bind(plain.target)
    alone = [plain.generate([one], vanilla, params, Coupled())[0].output_ids for one in requests]
    drafter = RandomTrees(oracle=oracle(requests, alone))
    drafter.bind(target)
    for most in (None, 4):
        made = DecodingLoop(target, (), 512, batch_size=most).generate(requests, drafter, params, Coupled())
        assert [one.output_ids for one in made] == alone
        assert sum(sum(one.accepted) for one in made) > 50, "the oracle's tokens should be accepted"


@pytest.mark.parametrize("num_rows", [1, 4, 8, 12])
def test_whatever_prompts_come_their_programs_were_made_before_the_clock_runs(
    num_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also as many as a cache has rows, as long as a head is wide (16), and when the batch has shrunk."""
    counter, compiled = CompileCounter(), torch.compile
    monkeypatch.setattr(
        "harness.runtime.programs.regions.torch.compile",
        lambda run, *, options, **more: compiled(run, backend=counter, **more),
    )
    for module in ("programs.step", "packed_linear"):
        monkeypatch.setattr(f"harness.runtime.{module}.can_capture", lambda device: True)
    # A model of its own: hooks that other tests left on the shared one would tell its blocks apart.
    target = Target(tiny_model.__wrapped__("llama"), cache="static", compiled=True)
    target.reserve(64)
    plain = Target(tiny_model("llama"))
    step_timing.feed_prompts(target, num_rows, 16)
    num_programs = counter.frame_count
    assert num_programs == (1 if num_rows == 1 else 2)
    for lengths in ([5], [16], [5, 5], [9, 9], [10, 9, 10], [16] * 8, [7] * 12):
        rows = list(range(len(lengths)))
        if len(rows) <= num_rows:
            for begun in {num_rows, len(rows)}:
                target.begin(begun)
                logits, _ = target.prefill(rows, prompts(lengths))
                torch.testing.assert_close(logits, fed(plain, False, lengths, rows)[0])
    assert counter.frame_count == num_programs
