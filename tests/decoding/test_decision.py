"""Faults of a drafter or of the target end the call by name, whatever the temperature and the acceptor."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.config import configurable
from harness.decoding.acceptance import Acceptor, Coupled, Rejection, sweep
from harness.decoding.decision import read
from harness.decoding.faults import DecodingFault, IllegalDraft, LogitsNotFinite, MethodError
from harness.decoding.forced_acceptance import Forced
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams, TokenSampler
from harness.drafting.draft import Draft, Riders
from harness.drafting.drafter import Drafter, Outcome
from harness.drafting.sequence_drafter import SequenceDrafter
from harness.target.model import Target
from methods.vanilla import Vanilla
from tests.support.targets import END, VOCAB, engine, requests, tiny_model

GREEDY = DecodingParams(name="greedy", max_new_tokens=12)
SAMPLED = DecodingParams(name="sampled", temperature=0.7, top_k=20, top_p=0.9, max_new_tokens=12)


def norm(model: Any) -> None:
    model.model.norm.weight[5] = torch.nan


def one_row(model: Any) -> None:
    model.lm_head.weight[17] = torch.nan


def one_number(model: Any) -> None:
    model.lm_head.weight[17, 3] = torch.nan


def infinite_row(model: Any) -> None:
    model.lm_head.weight[17] = torch.inf


def everything(model: Any) -> None:
    model.model.layers[1].mlp.down_proj.weight.fill_(torch.nan)


@pytest.mark.parametrize("acceptor", [Coupled(), Rejection()], ids=lambda one: one.name)
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=lambda one: one.name)
@pytest.mark.parametrize("spoil", [norm, one_row, one_number, infinite_row, everything])
def test_weights_that_are_no_numbers_end_the_call_at_the_first_token(
    spoil: Callable[[Any], None], params: DecodingParams, acceptor: Acceptor
) -> None:
    model = copy.deepcopy(tiny_model("llama"))
    with torch.no_grad():
        spoil(model)
    loop, drafter = DecodingLoop(Target(model), {END}, 512), Vanilla()
    drafter.bind(loop.target)
    with pytest.raises(LogitsNotFinite, match=r"after the prompt are NaN or infinite.*target\.dtype=float32"):
        loop.generate(requests(), drafter, params, acceptor)


@configurable
class Chain(SequenceDrafter):
    """Drafts the same tokens in every round."""

    tokens: Any = (5, 6, 7)

    def propose_one(self, context: Sequence[int], state: Any, room: int) -> Sequence[int]:
        return list(self.tokens)


class SpoiledRows(Target):
    """From the second round on, the logits after the pending token are no numbers."""

    spoiled = torch.nan

    def verify(self, pending: Tensor, draft: Draft) -> Tensor:
        logits = super().verify(pending, draft)
        self.num_rounds = getattr(self, "num_rounds", 0) + 1
        if self.num_rounds > 1:
            logits[0, 0, 9] = self.spoiled
        return logits


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("acceptor", [Coupled(), Rejection(), Forced(tau=2.0)], ids=lambda one: one.name)
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=lambda one: one.name)
def test_a_fault_in_a_later_round_is_found_with_its_place(
    params: DecodingParams, acceptor: Acceptor, value: float
) -> None:
    target = SpoiledRows(tiny_model("llama"))
    target.spoiled = value
    loop, drafter = DecodingLoop(target, (), 512), Chain()
    drafter.bind(target)
    if isinstance(acceptor, Forced):
        drafter = Vanilla()  # the row after the last kept token decides, and here that is the pending one
        drafter.bind(target)
    with pytest.raises(LogitsNotFinite, match=r"after \d+ tokens of the answer|in a round"):
        loop.generate(requests()[:1], drafter, params, acceptor)


def decided(spoiled_row: int, value: float = torch.nan) -> int | None:
    """The fault of a tree whose node 1 is accepted and whose node 0 is not. Rows: pending, node 0, node 1."""
    logits = torch.zeros(1, 3, VOCAB)
    logits[0, 0, 8], logits[0, 2, 4] = 5, 5
    logits[0, spoiled_row, 11] = value
    draft = Draft(tokens=torch.tensor([[7, 8]]), parents=torch.tensor([[-1, -1]]), size=torch.tensor([2]))
    sampler = TokenSampler(GREEDY, [1], VOCAB, torch.device("cpu"))
    accepted = sweep(logits, draft, sampler, torch.zeros(1, dtype=torch.int64))
    return read(accepted, draft, logits).not_finite


def test_only_rows_that_decide_a_token_count() -> None:
    assert decided(0) == 0
    assert decided(1) is None
    assert decided(2) == 0


def test_masked_tokens_are_no_fault_but_a_row_without_any_token_is() -> None:
    assert decided(0, -torch.inf) is None
    logits = torch.full((1, 1, VOCAB), -torch.inf)
    sampler = TokenSampler(GREEDY, [1], VOCAB, torch.device("cpu"))
    draft = Draft.empty(1, torch.device("cpu"))
    accepted = Coupled().accept(logits, draft, sampler, torch.zeros(1, dtype=torch.int64))
    assert read(accepted, draft, logits).not_finite == 0


def fault_of(drafter: Drafter, params: DecodingParams = GREEDY) -> DecodingFault:
    loop = engine()
    drafter.bind(loop.target)
    with pytest.raises(DecodingFault) as caught:
        loop.generate(requests(), drafter, params, Coupled())
    return caught.value


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=lambda one: one.name)
@pytest.mark.parametrize(
    ("tokens", "named"),
    [
        ((5, VOCAB), rf"proposed the token {VOCAB}; the vocabulary is 0\.\.{VOCAB - 1}"),
        ((5, -1), "proposed the token -1"),
        ((5, 2**40), "proposed the token 1099511627776"),
        ((5.5, 6.0), "proposed tokens of torch.float32"),
        ((float("nan"),), "proposed tokens of torch.float32"),
        ((True, False), "proposed tokens of torch.bool"),
    ],
    ids=str,
)
def test_ids_that_are_no_tokens_are_refused_by_name(tokens: Any, named: str, params: DecodingParams) -> None:
    fault = fault_of(Chain(tokens=tokens), params)
    assert isinstance(fault, IllegalDraft)
    assert fault.kind == "illegal-draft"
    with pytest.raises(IllegalDraft, match=named):
        raise fault


@pytest.mark.parametrize("tokens", [(5, None), ("a",), None], ids=str)
def test_what_is_no_number_at_all_is_the_drafters_own_error(tokens: Any) -> None:
    fault = fault_of(Chain(tokens=tokens))
    assert isinstance(fault, MethodError)
    assert "Error: " in str(fault)


@configurable
class Proposes(Drafter):
    """Proposes whatever it was given."""

    what: Any = None

    def reset(self, num_rows: int) -> None:
        pass

    def propose(self, room: Sequence[int]) -> Draft:
        return self.what  # type: ignore[no-any-return]

    def observe(self, outcome: Outcome) -> None:
        pass

    def keep(self, rows: Sequence[int]) -> None:
        pass


def tree(**changes: Any) -> Draft:
    tokens = torch.tensor([[5, 6]] * 3)
    legal = Draft(tokens=tokens, parents=torch.tensor([[-1, 0]] * 3), size=torch.tensor([2] * 3))
    return replace(legal, **changes)


RIDERS = Riders(
    tokens=torch.full((3, 1), VOCAB),
    offsets=torch.ones(3, 1, dtype=torch.int64),
    visible=torch.ones(3, 1, 4, dtype=torch.bool),
)


@pytest.mark.parametrize(
    ("what", "named"),
    [
        (None, "proposed NoneType instead of a Draft"),
        (tree(parents=torch.tensor([[-1, 1]] * 3)), "node 1 has the parent 1"),
        (tree(parents=torch.tensor([[-2, 0]] * 3)), "node 0 has the parent -2"),
        (tree(parents=torch.tensor([[-1, 9]] * 3)), "node 1 has the parent 9"),
        (tree(size=torch.tensor([2, 3, 2])), r"sizes \[2, 3, 2\] in 2 columns"),
        (tree(size=torch.tensor([2, -1, 2])), r"sizes \[2, -1, 2\] in 2 columns"),
        (tree(size=torch.tensor([2, 2])), r"size of torch.int64 \[2\]; needs torch.int64 \[3\]"),
        (tree(tokens=torch.tensor([[5, 6]])), r"tokens of torch.int64 \[1, 2\]"),
        (tree(riders=RIDERS), "proposed a rider outside the vocabulary"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_what_is_no_tree_is_refused_by_name(what: Any, named: str) -> None:
    with pytest.raises(IllegalDraft, match=named):
        raise fault_of(Proposes(what=what))


@pytest.mark.parametrize("where", ["new_call", "reset", "propose", "observe", "keep"])
def test_an_exception_in_any_hook_of_a_drafter_is_its_own(where: str) -> None:
    class Raises(Chain):
        pass

    def fail(*_: Any) -> None:
        raise IndexError("list index out of range")

    setattr(Raises, where, fail)
    loop, drafter = engine(), Raises()
    drafter.bind(loop.target)
    params = replace(SAMPLED, max_new_tokens=40)
    with pytest.raises(MethodError, match=r"IndexError: list index out of range \(test_decision\.py:\d+\)"):
        loop.generate(requests(), drafter, params, Coupled())


def test_lack_of_memory_is_no_fault_of_a_drafter() -> None:
    class Large(Chain):
        def propose_one(self, *_: Any) -> Sequence[int]:
            raise torch.OutOfMemoryError("no room")

    loop, drafter = engine(), Large()
    drafter.bind(loop.target)
    with pytest.raises(torch.OutOfMemoryError, match="no room"):
        loop.generate(requests(), drafter, GREEDY, Coupled())


@pytest.mark.parametrize("temperature", [1e-39, 1e-30, 9e-4, float("nan"), -1.0, 101.0])
def test_temperatures_that_float32_cannot_serve_are_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        DecodingParams(name="any", temperature=temperature)


def test_the_smallest_temperature_is_named() -> None:
    with pytest.raises(ValueError, match=r"smallest temperature above 0 is 0\.001.*type 0"):
        DecodingParams(name="any", temperature=1e-39)


def test_at_the_smallest_temperature_equal_logits_are_drawn_alike() -> None:
    """Below it the noise is rounded to a few values, and ties among them go to the lower id."""
    logits = torch.full((1, 4000, 2), 30.0)
    params = DecodingParams(name="any", temperature=1e-3)
    sampler = TokenSampler(params, [5], 2, torch.device("cpu"))
    drawn = sampler.choose(logits, torch.arange(4000)[None])
    assert 0.45 < float(drawn.float().mean()) < 0.55
