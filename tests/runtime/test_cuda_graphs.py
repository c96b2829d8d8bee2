"""Rounds as graphs where there is no CUDA device: a stand-in replays as one does and refuses what one cannot.

It copies inputs to where the function reads, writes what the function gives over what it gave before, and
lets nothing through that asks the device or copies from the host.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.utils._python_dispatch import TorchDispatchMode

from harness.decoding.acceptance import Coupled
from harness.decoding.forced_acceptance import Forced
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.drafting.trees import DynamicTree
from harness.runtime import cache as cache_module
from harness.runtime.attention import products
from harness.runtime.programs.regions import divide
from harness.target.model import Target
from methods.eagle import Eagle
from methods.vanilla import Vanilla
from tests.support.targets import END, RandomTrees, ending_apart, oracle, requests, tiny_model

PARAMS = [
    DecodingParams(name="greedy", max_new_tokens=40),
    DecodingParams(name="sampled", temperature=1.0, max_new_tokens=40, ignore_end_token=True),
]
_WAITS = ("_local_scalar_dense", "lift_fresh", "nonzero", "masked_select", "equal", "unique")


class DeviceOnly(TorchDispatchMode):
    """Nothing that a capture refuses: a look by the host, or a copy from it.

    written: where caches were written to.
    """

    def __init__(self) -> None:
        super().__init__()
        self.written: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        assert name not in _WAITS, f"{name} within a capture"
        if name == "index_put_":
            self.written.append(args[0].data_ptr())
        return func(*args, **(kwargs or {}))


class Replayed:
    """In the place of `captured.Graph`."""

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Tensor]) -> None:
        self._function = function
        self._inputs = [tensor.clone() for tensor in inputs]
        function(*self._inputs)
        with DeviceOnly() as seen:
            self._outputs = function(*self._inputs)
        self._written = seen.written
        for tensor in tensors_of(self._outputs):
            # A capture computes nothing.
            tensor.fill_(1)

    def replay(self, inputs: Sequence[Tensor]) -> Any:
        for place, tensor in zip(self._inputs, inputs, strict=True):
            place.copy_(tensor)
        with DeviceOnly() as seen:
            made = self._function(*self._inputs)
        assert seen.written == self._written, "what a graph writes has moved"
        for place, tensor in zip(tensors_of(self._outputs), tensors_of(made), strict=True):
            place.copy_(tensor)
        return self._outputs


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if is_dataclass(value):
        return tensors_of([getattr(value, field.name) for field in fields(value)])
    if isinstance(value, dict):
        return tensors_of(list(value.values()))
    return [one for part in value for one in tensors_of(part)] if isinstance(value, (list, tuple)) else []


@pytest.fixture(autouse=True)
def _graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is captured, nothing compiled; within a capture the host's lengths are not there."""
    real = cache_module.SlotCache.lengths_on_device

    @contextmanager
    def unknown(self: Any, lengths: Tensor) -> Iterator[None]:
        known, self.lengths = self.lengths, [None] * len(self.lengths)
        try:
            with real(self, lengths):
                yield
        finally:
            self.lengths = known

    monkeypatch.setattr(cache_module.SlotCache, "lengths_on_device", unknown)
    for module in ("programs.step", "packed_linear"):
        monkeypatch.setattr(f"harness.runtime.{module}.can_capture", lambda device: True)
    monkeypatch.setattr("harness.runtime.programs.step.torch.compile", lambda step, **_: step)
    monkeypatch.setattr("harness.runtime.cuda_graphs.Graph", Replayed)


def captured_target() -> Target:
    return Target(copy.deepcopy(tiny_model("llama")), cache="static", compiled=True)


@pytest.mark.parametrize("params", PARAMS, ids=lambda params: params.name)
@pytest.mark.parametrize("most", [None, 2], ids=["together", "refilled"])
def test_replayed_steps_emit_what_plain_ones_emit(params: DecodingParams, most: int | None) -> None:
    plain_loop = DecodingLoop(Target(tiny_model("llama"), linear="plain"), {END}, 512)
    vanilla = Vanilla()
    vanilla.bind(plain_loop.target)
    plain = [plain_loop.generate([one], vanilla, params, Coupled())[0].output_ids for one in requests()]
    target = captured_target()
    target.reserve(256)
    loop = DecodingLoop(target, {END}, 512, batch_size=most)
    for drafter in (RandomTrees(oracle=oracle(requests(), plain)), Vanilla()):
        drafter.bind(target)
        made = loop.generate(requests(), drafter, params, Coupled())
        assert [one.output_ids for one in made] == plain
    assert target.steps.num_programs > 0


def eagle(target: Target, architecture: Literal["eagle", "eagle3"], tree: DynamicTree) -> Eagle:
    drafter = Eagle(architecture=architecture, tree=tree, head="random")
    drafter.bind(target)
    target.set_taps(drafter.taps)
    return drafter


@pytest.mark.parametrize("tau", [2.5, 8.0], ids=["some", "as-many-as-are-fed"])
@pytest.mark.parametrize("architecture", ["eagle", "eagle3"])
def test_replayed_rounds_of_a_head_draft_what_plain_ones_draft(
    architecture: Literal["eagle", "eagle3"], tau: float
) -> None:
    """A round of eight tokens brings as many pairs as are compiled for, also when the batch has shrunk."""
    made = []
    for target in (Target(copy.deepcopy(tiny_model("llama"))), captured_target()):
        target.reserve(256)
        loop = DecodingLoop(target, {END}, 512)
        drafter = eagle(target, architecture, DynamicTree(total_token=40, depth=7, top_k=4))
        if target.steps.by_shape:
            target.steps.choose(["compiled"], 3)
            drafter.warm_up(3)
        # Forced, so that paths of every length are kept.
        made.append(loop.generate(requests(), drafter, PARAMS[0], Forced(tau=tau)))
        num_graphs = target.steps.num_programs
        loop.generate(requests(), drafter, PARAMS[0], Forced(tau=tau))
        assert target.steps.num_programs == num_graphs
    for plain, replayed in zip(*made, strict=True):
        assert plain.output_ids == replayed.output_ids
        assert plain.accepted == replayed.accepted
        for (one, row), (other, same) in zip(plain.drafts, replayed.drafts, strict=True):
            assert torch.equal(one.tokens[row], other.tokens[same])
            assert torch.equal(one.parents[row], other.parents[same])
    assert num_graphs > 0


def test_a_new_batch_finds_its_graphs_again() -> None:
    """Though the last one has shrunk, and a smaller one was between them."""
    target = captured_target()
    target.reserve(256)
    vanilla = Vanilla()
    vanilla.bind(target)
    plain = DecodingLoop(target, (), 512).generate(requests(), vanilla, PARAMS[0], Coupled())
    target.steps.choose(["compiled"], 3)
    loop = DecodingLoop(target, {ending_apart([one.output_ids for one in plain])}, 512)
    first = loop.generate(requests(), vanilla, PARAMS[0], Coupled())
    assert len({len(one.output_ids) for one in first}) == 3, "the batch has not shrunk"
    num_graphs = target.steps.num_programs
    loop.generate(requests()[:2], vanilla, PARAMS[0], Coupled())
    again = loop.generate(requests(), vanilla, PARAMS[0], Coupled())
    assert target.steps.num_programs == num_graphs > 0
    for one, other, whole in zip(first, again, plain, strict=True):
        assert one.output_ids == other.output_ids == whole.output_ids[: len(one.output_ids)]


def test_blocks_that_differ_in_weights_alone_are_one_program() -> None:
    first, second = tiny_model("llama"), copy.deepcopy(tiny_model("llama"))
    second.model.layers[1].self_attn.scaling *= 2
    counts = []
    for model in (copy.deepcopy(first), second):
        divide(model.get_decoder())
        counts.append(len({id(block._run) for block in model.get_decoder().layers}))
    assert counts == [1, 2]


@pytest.mark.parametrize("num_new", [1, 5])
def test_products_attend_as_the_usual_kernel_does(num_new: int) -> None:
    torch.manual_seed(0)
    query, key, value = torch.randn(2, 6, num_new, 8), torch.randn(2, 3, 11, 8), torch.randn(2, 3, 11, 8)
    mask = torch.rand(2, 1, num_new, 11) < 0.5
    mask[..., 0] = True
    expected = scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
    torch.testing.assert_close(products(query, key, value, mask, None), expected)
