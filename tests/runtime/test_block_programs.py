"""Programs of blocks: the tokens of plain steps, kept on disk, and a step as a whole where there are none."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.decoding.acceptance import Coupled
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.drafting.draft import Draft
from harness.runtime import packed_linear
from harness.runtime.programs import ahead, blocks
from harness.target.model import Target
from methods.vanilla import Vanilla
from tests.support.targets import END, VOCAB, RandomTrees, oracle, requests, tiny_model

GREEDY = DecodingParams(name="greedy", max_new_tokens=24)
SAMPLED = DecodingParams(name="sampled", temperature=1.0, max_new_tokens=24, ignore_end_token=True)

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")


def compiled(family: str = "llama", linear: str = "auto") -> Target:
    return Target(copy.deepcopy(tiny_model(family)), linear=linear, cache="static", compiled=True)


def vanilla(target: Target, params: DecodingParams) -> list[list[int]]:
    drafter, loop = Vanilla(), DecodingLoop(target, {END}, 512)
    drafter.bind(target)
    return [loop.generate([one], drafter, params, Coupled())[0].output_ids for one in requests()]


def chain(width: int) -> Draft:
    if width == 0:
        return Draft.empty(1, torch.device("cpu"))
    return Draft.chain(torch.arange(width)[None] % VOCAB, torch.tensor([width]))


def verified(target: Target, width: int) -> Tensor:
    """Logits of a chain behind a prompt of five tokens."""
    target.begin(1)
    target.prefill([0], [[5, 6, 7, 8, 9]])
    return target.verify(torch.tensor([10]), chain(width))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_programs_emit_what_plain_steps_emit(family: str) -> None:
    """Single tokens and trees of many sizes; two programs serve all of them, and all blocks."""
    target = compiled(family)
    for params in (GREEDY, SAMPLED):
        expected = vanilla(Target(tiny_model(family)), params)
        assert vanilla(target, params) == expected
        drafter = RandomTrees(oracle=oracle(requests(), expected))
        drafter.bind(target)
        loop = DecodingLoop(target, {END}, 512)
        for request, output in zip(requests(), expected, strict=True):
            made = loop.generate([request], drafter, params, Coupled())
            assert made[0].output_ids == output
    assert target.steps.blocks.num_programs == 2
    assert not target.remarks


def test_any_number_of_new_tokens_up_to_64_has_a_program() -> None:
    target, plain = compiled(), Target(tiny_model("llama"))
    for width in (0, 1, 3, 7, 15, 32, 63):
        assert target.steps.compiles(1, width)
        torch.testing.assert_close(verified(target, width), verified(plain, width), rtol=1e-4, atol=1e-4)
    assert not target.steps.compiles(1, 64)


@pytest.fixture
def counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were compiled, into an empty folder; the programs are the blocks themselves."""
    files = list[Path]()
    calls = dict[str, blocks.BlockCall]()

    def compile_ahead(call: blocks.BlockCall, *given: Any) -> None:
        file = given[-1]
        file.write_text("a program")
        files.append(file)
        calls[file.name.split(".")[0]] = call

    def load_compiled(file: Path) -> Callable[[list[Tensor]], list[Tensor]]:
        call = calls[file.name.split(".")[0]]
        return lambda inputs: [call(inputs)]

    monkeypatch.setattr(ahead, "programs_folder", lambda: tmp_path)
    monkeypatch.setattr(blocks, "compile_ahead", compile_ahead)
    monkeypatch.setattr(ahead, "load_compiled", load_compiled)
    return files


def test_a_program_on_disk_is_used_again_but_not_one_of_another_processor(
    counted: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        verified(compiled(), 3)
        assert len(counted) == 1
    verified(compiled("qwen3"), 3)
    assert len(counted) == 2, "other blocks have programs of their own"
    monkeypatch.setattr(blocks, "machine_facts", lambda: ("another processor",))
    verified(compiled(), 3)
    assert len(counted) == 3


def test_more_slots_or_new_tokens_or_other_taps_need_no_new_program(
    counted: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.runtime.cache_memory._STEP", 16)
    target = compiled()
    verified(target, 3)
    drafter = RandomTrees(oracle=oracle(requests(), [[1]] * 3))
    drafter.bind(target)
    target.set_taps(drafter.taps)
    assert drafter.taps
    verified(target, 40)
    assert len(counted) == 1


def _cannot_compile(*_: Any) -> None:
    raise NotImplementedError("no such operator\nand a long story")


def _computes_something_else(call: Any, *_: Any) -> Callable[[list[Tensor]], list[Tensor]]:
    return lambda inputs: [call(inputs) + 0.1]


@pytest.mark.parametrize(
    ("program", "why"), [(_cannot_compile, "no such operator"), (_computes_something_else, "something else")]
)
def test_where_blocks_have_no_programs_the_step_is_compiled_as_a_whole(
    program: Any, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list[Any]()
    monkeypatch.setattr(blocks, "program", program)
    monkeypatch.setattr(
        "harness.runtime.programs.step.torch.compile", lambda step, **_: whole.append(step) or step
    )
    target = compiled()
    assert vanilla(target, SAMPLED) == vanilla(Target(tiny_model("llama")), SAMPLED)
    assert len(whole) == 1
    assert [count for count in range(1, 10) if target.steps.compiles(1, count - 1)] == [1, 8]
    (remark,) = target.remarks
    assert why in remark
    assert "as a whole, for 1 and 8 new tokens" in remark
    assert "long story" not in remark


def test_a_whole_step_really_compiles_after_its_blocks_did_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "program", _cannot_compile)
    model = copy.deepcopy(tiny_model("llama"))
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    target = Target(model, linear="auto", cache="static", compiled=True)
    plain = Target(copy.deepcopy(model))
    torch.testing.assert_close(verified(target, 0), verified(plain, 0), rtol=1e-4, atol=1e-4)


def test_without_the_kernel_layers_multiply_as_torch_does_and_the_user_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "no-such-compiler"))
    monkeypatch.setattr(packed_linear, "programs_folder", lambda: tmp_path)
    problem = packed_linear.kernel_problem.__wrapped__()
    assert problem
    monkeypatch.setattr(packed_linear, "kernel_problem", lambda: problem)
    monkeypatch.setattr("harness.target.adapter.kernel_problem", lambda: problem)
    target = compiled()
    assert target.linear == "plain"
    assert any(problem in remark for remark in target.remarks)
    monkeypatch.setattr(blocks, "program", lambda call, *_: lambda inputs: [call(inputs)])
    assert vanilla(target, GREEDY) == vanilla(Target(tiny_model("llama")), GREEDY)
