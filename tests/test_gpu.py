"""On a CUDA device: the same tokens by every kind of step. Skipped where there is none."""

from __future__ import annotations

import copy

import pytest
import torch

from harness.accept import Coupled
from harness.decoding import DecodingParams
from harness.engine import LocalEngine
from harness.target import Target
from methods.vanilla import Vanilla
from tests.targets import END, RandomTrees, requests, tiny_model

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
        loop = LocalEngine(Target(model, cache=cache, compiled=compiled), {END}, 512)
        vanilla = Vanilla()
        vanilla.bind(loop.target)
        plain = [loop.generate([one], vanilla, params, Coupled())[0].output_ids for one in requests()]
        drafter = RandomTrees(oracle=[output[1:] for output in plain])
        drafter.bind(loop.target)
        made = loop.generate(requests(), drafter, params, Coupled())
        assert [one.output_ids for one in made] == plain
        outputs.append(plain)
    assert outputs[0] == outputs[1]
