"""On a CUDA device: the same tokens by every kind of step. Skipped where there is none."""

from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch

from harness.decoding.acceptance import Coupled
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.drafting.trees import DynamicTree
from harness.target.model import Target
from methods.eagle import Eagle
from methods.vanilla import Vanilla
from tests.support.targets import END, RandomTrees, oracle, requests, tiny_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
PARAMS = [
    DecodingParams(name="greedy", max_new_tokens=40),
    DecodingParams(name="sampled", temperature=1.0, max_new_tokens=40, ignore_end_token=True),
]


@pytest.mark.parametrize("params", PARAMS, ids=lambda params: params.name)
@pytest.mark.parametrize("step", ["dynamic", "static", "compiled"])
def test_every_step_emits_what_the_cpu_emits(params: DecodingParams, step: str) -> None:
    outputs = []
    for device in ("cpu", "cuda"):
        model = copy.deepcopy(tiny_model("llama")).to(device)
        cache = "dynamic" if step == "dynamic" or device == "cpu" else "static"
        compiled = step == "compiled" and device == "cuda"
        loop = DecodingLoop(Target(model, cache=cache, compiled=compiled), {END}, 512)
        vanilla = Vanilla()
        vanilla.bind(loop.target)
        plain = [loop.generate([one], vanilla, params, Coupled())[0].output_ids for one in requests()]
        drafter = RandomTrees(oracle=oracle(requests(), plain))
        drafter.bind(loop.target)
        made = loop.generate(requests(), drafter, params, Coupled())
        assert [one.output_ids for one in made] == plain
        outputs.append(plain)
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("architecture", ["eagle", "eagle3"])
def test_captured_steps_of_a_head_emit_what_vanilla_emits(architecture: Literal["eagle", "eagle3"]) -> None:
    """Nothing is captured after the warm-up."""
    target = Target(copy.deepcopy(tiny_model("llama")).to("cuda"), cache="static", compiled=True)
    loop = DecodingLoop(target, {END}, 512)
    vanilla = Vanilla()
    vanilla.bind(target)
    tree = DynamicTree(total_token=14, depth=3, top_k=4)
    drafter = Eagle(architecture=architecture, tree=tree, head="random")
    drafter.bind(target)
    target.set_taps(drafter.taps)
    target.reserve(512)
    plain = [loop.generate([one], vanilla, PARAMS[0], Coupled())[0].output_ids for one in requests()]
    drafter.warm_up(1)
    loop.generate([requests()[0]], drafter, PARAMS[0], Coupled())
    num_programs = target.steps.num_programs
    made = [loop.generate([one], drafter, PARAMS[0], Coupled())[0].output_ids for one in requests()]
    assert made == plain
    assert target.steps.num_programs == num_programs
