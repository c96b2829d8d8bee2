"""Rounds of heads as programs: their drafts are those of plain steps, and a program holds no head's weights.

Graphs are exported as for a program, and run as they are instead of being compiled, which takes seconds.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.decoding.forced_acceptance import Forced
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.drafting.drafter import Drafter
from harness.drafting.trees import DynamicTree, StaticTree
from harness.runtime.programs import ahead, rounds
from harness.target.model import Target
from methods.eagle import Eagle
from methods.mtp_head import MtpHead
from tests.methods.one_call import drafters
from tests.support.online import started
from tests.support.targets import END, requests, tiny_model

pytestmark = pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")

TREE = DynamicTree(total_token=9, depth=2, top_k=3)
MAKERS: dict[str, Callable[[], Drafter]] = {
    "eagle": lambda: Eagle(architecture="eagle", tree=TREE, head="random"),
    "eagle3": lambda: Eagle(architecture="eagle3", tree=TREE, head="random"),
    "eagle3, static tree": lambda: Eagle(architecture="eagle3", tree=StaticTree(), head="random"),
    "eagle3, chain": lambda: Eagle(
        architecture="eagle3", tree=DynamicTree(total_token=4, depth=2, top_k=1), head="random"
    ),
    "fasteagle": lambda: drafters.made("fasteagle"),
    "mtp_head": lambda: MtpHead(tree=TREE, head="random"),
}


@pytest.fixture(autouse=True)
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that were made, in an empty folder."""
    files = list[Path]()
    graphs = dict[str, Any]()

    def compile_exported(graph: torch.export.ExportedProgram, file: Path) -> None:
        file.write_text("a program")
        files.append(file)
        graphs[file.name.split(".")[0]] = graph.module()

    monkeypatch.setattr("harness.runtime.cache_memory._STEP", 16)
    monkeypatch.setattr(ahead, "programs_folder", lambda: tmp_path)
    monkeypatch.setattr(ahead, "load_compiled", lambda file: graphs[file.stem])
    monkeypatch.setattr(rounds, "compile_exported", compile_exported)
    monkeypatch.setattr("harness.runtime.programs.step.torch.compile", lambda step, **_: step)
    return files


def compiled() -> Target:
    return Target(copy.deepcopy(tiny_model("llama")), linear="auto", cache="auto", compiled=True)


def ready(drafter: Drafter, target: Target, num_rows: int = 1) -> Drafter:
    drafter.bind(target)
    target.set_taps(drafter.taps)
    target.steps.choose(["dynamic"], num_rows)
    drafter.warm_up(num_rows)
    return drafter


def drafts(drafter: Drafter, target: Target, together: bool, num_tokens: int = 24) -> list[Any]:
    """Everything that was drafted for three prompts, one of them longer than a program is given pairs."""
    asked = requests()
    asked[1].prompt[:] = asked[1].prompt * 8
    params = DecodingParams(name="greedy", max_new_tokens=num_tokens)
    loop = DecodingLoop(target, {END}, 512, timed=False)
    groups = [asked] if together else [[one] for one in asked]
    found = [one for group in groups for one in loop.generate(group, drafter, params, Forced(tau=2.5))]
    return [
        (one.output_ids, one.accepted, [(d.tokens[row], d.parents[row]) for d, row in one.drafts])
        for one in found
    ]


def assert_same(one: list[Any], two: list[Any]) -> None:
    for (ids, accepted, trees), (other_ids, other_accepted, other_trees) in zip(one, two, strict=True):
        assert (ids, accepted) == (other_ids, other_accepted)
        for (tokens, parents), (other_tokens, other_parents) in zip(trees, other_trees, strict=True):
            assert torch.equal(tokens, other_tokens)
            assert torch.equal(parents, other_parents)


@pytest.mark.parametrize("together", [False, True], ids=["alone", "a-batch-that-shrinks"])
@pytest.mark.parametrize("name", MAKERS)
def test_a_program_drafts_what_plain_steps_draft(name: str, together: bool, made: list[Path]) -> None:
    """For any number of pairs, and with more cache slots than at first; nothing is made after the warm-up."""
    rows = 3 if together else 1
    plain = Target(tiny_model("llama"), linear="auto")
    expected = drafts(ready(MAKERS[name](), plain, rows), plain, together)
    target = compiled()
    before = target.steps.num_programs
    drafter = ready(MAKERS[name](), target, rows)
    assert (len(made), target.steps.num_programs - before, target.remarks) == (1, 1, [])
    assert_same(drafts(drafter, target, together), expected)
    assert len(made) == 1


def test_heads_of_one_shape_share_a_program_and_other_trees_have_their_own(made: list[Path]) -> None:
    found = []
    for seed in (0, 1):
        for target in (compiled(), Target(tiny_model("llama"), linear="auto")):
            drafter = ready(Eagle(architecture="eagle3", tree=TREE, head="random", seed=seed), target)
            found.append(drafts(drafter, target, together=False))
    assert len(made) == 1
    assert_same(found[0], found[1])
    assert_same(found[2], found[3])
    first, second = (found[place][0][2][0][0] for place in (0, 2))
    assert not torch.equal(first, second), "two heads draft different tokens"
    ready(MAKERS["eagle3, chain"](), compiled())
    assert len(made) == 2


def test_weights_that_change_in_place_count_at_once() -> None:
    target = compiled()
    drafter: Any = ready(MAKERS["eagle3"](), target)
    before = started(drafter).tokens
    with torch.no_grad():
        drafter.network.lm_head.weight.copy_(drafter.network.lm_head.weight.flip(0))
    target.refresh(drafter.network)
    assert not torch.equal(started(drafter).tokens, before)
    plain = Target(tiny_model("llama"), linear="auto")
    other: Any = ready(MAKERS["eagle3"](), plain)
    with torch.no_grad():
        other.network.lm_head.weight.copy_(other.network.lm_head.weight.flip(0))
    plain.refresh(other.network)
    assert torch.equal(started(other).tokens, started(drafter).tokens)


def _cannot_compile(*_: Any) -> None:
    raise NotImplementedError("no such operator\nand a long story")


def _computes_something_else(graph: Any, file: Path) -> None:
    file.write_text("a program")


@pytest.mark.parametrize(
    ("compile_exported", "why"),
    [(_cannot_compile, "no such operator"), (_computes_something_else, "something else")],
)
def test_where_a_round_is_no_program_its_steps_are_compiled_one_by_one(
    compile_exported: Any, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(file: Path) -> Callable[[list[torch.Tensor]], list[torch.Tensor]]:
        return lambda inputs: [torch.zeros(1, 8), torch.zeros(1, 8), torch.zeros(1), torch.zeros(1, 8)]

    monkeypatch.setattr(rounds, "compile_exported", compile_exported)
    monkeypatch.setattr(ahead, "load_compiled", other)
    target, plain = compiled(), Target(tiny_model("llama"), linear="auto")
    before = target.steps.num_programs
    drafter = ready(MAKERS["eagle3"](), target)
    (remark,) = target.remarks
    assert why in remark
    assert target.steps.num_programs == before
    expected = drafts(ready(MAKERS["eagle3"](), plain), plain, together=False)
    assert_same(drafts(drafter, target, together=False), expected)


def test_weights_that_are_no_inputs_are_refused(made: list[Path]) -> None:
    """A program that holds them would serve a head with others."""
    target = compiled()
    drafter: Any = Eagle(architecture="eagle3", tree=TREE, head="random")
    drafter.bind(target)
    drafter._round._modules = drafter._round._modules[1:]
    target.steps.choose(["dynamic"], 1)
    drafter.warm_up(1)
    (remark,) = target.remarks
    assert "reads weights" in remark
    assert not made
