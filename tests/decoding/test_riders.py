"""Tokens that ride along in a forward change nothing but what the drafter sees."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from harness.config import configurable
from harness.decoding.acceptance import Coupled, Rejection
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.drafting.draft import Draft, Riders
from harness.drafting.drafter import Outcome
from harness.target.model import Target
from methods.vanilla import Vanilla
from tests.support.targets import END, VOCAB, RandomTrees, ending_apart, engine, oracle, requests, tiny_model

GREEDY = DecodingParams(name="greedy", max_new_tokens=24)
SAMPLED = DecodingParams(name="sampled", temperature=1.0, max_new_tokens=24, ignore_end_token=True)
BOTH = pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=lambda params: params.name)


@configurable
class Escorted(RandomTrees):
    """The same trees, in the company of random riders that see random nodes and riders."""

    num_riders: int = 3

    def reset(self, num_rows: int) -> None:
        super().reset(num_rows)
        self._of_riders = torch.Generator().manual_seed(11)
        self.shown: list[Outcome] = []

    def propose(self, room: Sequence[int]) -> Draft:
        draft, r = super().propose(room), self.num_riders
        rows, random = len(draft.tokens), self._of_riders
        seen = torch.rand(rows, r, 1 + draft.width + r, generator=random) < 0.5
        seen[..., 1 + draft.width :] |= torch.eye(r, dtype=torch.bool)
        riders = Riders(
            tokens=torch.randint(0, VOCAB, (rows, r), generator=random),
            offsets=torch.randint(0, 9, (rows, r), generator=random),
            visible=seen,
        )
        draft = replace(draft, riders=riders)
        draft.check(VOCAB)
        return draft

    def observe(self, outcome: Outcome) -> None:
        super().observe(outcome)
        if outcome.draft is not None:
            self.shown.append(outcome)


def plain_outputs(params: DecodingParams) -> list[list[int]]:
    loop, drafter = engine(), Vanilla()
    drafter.bind(loop.target)
    return [loop.generate([one], drafter, params, Coupled())[0].output_ids for one in requests()]


@BOTH
@pytest.mark.parametrize("kernel", ["grouped", "sdpa", "eager"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_riders_change_neither_output_nor_ledger(
    params: DecodingParams, kernel: str, cache: str, batch_size: int
) -> None:
    target = Target(tiny_model("llama"), kernel, cache=cache)
    loop = DecodingLoop(target, {END}, 512, batch_size=batch_size)
    expected = plain_outputs(params)
    made = []
    right = oracle(requests(), expected)
    for drafter in (RandomTrees(oracle=right), *(Escorted(oracle=right, num_riders=r) for r in (1, 5))):
        drafter.bind(target)
        made.append(loop.generate(requests(), drafter, params, Coupled()))
    alone, *escorted = made
    assert [one.output_ids for one in alone] == expected
    assert sum(sum(one.accepted) for one in alone) > 10, "the oracle's tokens should be accepted"
    for num_riders, generations in zip((1, 5), escorted, strict=True):
        for one, other in zip(alone, generations, strict=True):
            assert one.output_ids == other.output_ids
            assert (one.drafted, one.accepted, one.depth) == (other.drafted, other.accepted, other.depth)
            assert other.riders == [num_riders] * len(other.emitted)
            assert one.riders == [0] * len(one.emitted)


def test_no_acceptor_is_shown_the_riders_and_the_drafter_is() -> None:
    loop, widths = engine(), []

    class Watching(Rejection):
        def accept(self, logits, draft, *rest):  # type: ignore[no-untyped-def]
            widths.append(logits.shape[1] - draft.width)
            return super().accept(logits, draft, *rest)

    drafter = Escorted(num_riders=2)
    drafter.bind(loop.target)
    loop.generate(requests(), drafter, GREEDY, Watching())
    assert set(widths) == {1}
    for outcome in drafter.shown:
        assert outcome.draft is not None
        assert outcome.logits is not None
        assert outcome.rider_logits is not None
        assert outcome.logits.shape[1] == 1 + outcome.draft.width
        assert outcome.rider_logits.shape[1:] == (2, VOCAB)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_a_rider_has_the_logits_of_a_plain_forward_over_what_it_sees(cache: str) -> None:
    """Two riders in a row behind the pending token, beside a draft that they do not see."""
    target = Target(tiny_model("llama"), cache=cache)
    target.set_taps(())
    target.begin(2)
    prompts = [[5, 6, 7, 8], [9, 4, 11]]
    target.prefill([0, 1], prompts, together=False)
    pending = torch.tensor([10, 12])
    seen = torch.tensor([[1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 1, 1]]).bool()
    riders = Riders(
        tokens=torch.tensor([[20, 21], [22, 23]]),
        offsets=torch.tensor([[1, 2], [1, 2]]),
        visible=seen.expand(2, 2, 6),
    )
    draft = replace(
        Draft.chain(torch.tensor([[30, 31, 32], [33, 34, 35]]), torch.tensor([3, 2])), riders=riders
    )
    draft.check(VOCAB)
    _, found = draft.split(target.verify(pending, draft))
    assert found is not None
    for row, prompt in enumerate(prompts):
        text = [*prompt, int(pending[row]), *riders.tokens[row].tolist()]
        logits, _ = target.trace(torch.tensor([text]), [])
        torch.testing.assert_close(found[row], logits[0, -2:], atol=1e-4, rtol=1e-4)
    target.commit(None, [1, 2])
    assert target.cache.lengths == [4 + 2, 3 + 3], "no row of a rider is committed"


@pytest.mark.parametrize("kind", ["static", "compiled"])
def test_a_program_carries_riders_and_a_graph_falls_to_the_dynamic_step(kind: str) -> None:
    target = Target(tiny_model("llama"), cache="static")
    draft = Draft.empty(1, target.device)
    riders = Riders(
        tokens=torch.zeros(1, 1, dtype=torch.int64),
        offsets=torch.ones(1, 1, dtype=torch.int64),
        visible=torch.ones(1, 1, 2, dtype=torch.bool),
    )
    escorted = replace(draft, riders=riders)
    with target.steps.only(kind):
        target.steps.compiles = lambda num_rows, width: True  # type: ignore[method-assign]
        assert target._kind(1, draft) == target._kind(1, escorted) == kind
        target._replayed = lambda *tensors, **more: None  # type: ignore[assignment]
        assert target._kind(1, draft) == kind
        assert target._kind(1, escorted) == ("dynamic" if kind == "compiled" else kind)


def test_padding_a_draft_leaves_its_riders_what_they_see() -> None:
    seen = torch.tensor([[[1, 1, 0, 1]]]).bool()
    riders = Riders(tokens=torch.tensor([[7]]), offsets=torch.tensor([[1]]), visible=seen)
    draft = replace(Draft.chain(torch.tensor([[4, 5]]), torch.tensor([2])), riders=riders)
    wider = draft.padded(4)
    assert wider.riders is not None
    assert wider.riders.visible[0, 0].tolist() == [True, True, False, False, False, True]
    assert torch.equal(wider.visible[:, :3, :3], draft.visible[:, :3, :3])
    assert not wider.visible[:, :5, 5:].any(), "no node sees a rider"
    more = draft.with_rows(2)
    more.check(VOCAB)
    assert more.num_riders == 1
    assert copy.deepcopy(draft).copied().riders is not None


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")
@BOTH
def test_riders_go_through_a_program_of_a_batch_that_has_shrunk(
    params: DecodingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Drafts are padded so that nodes and riders together are as many as a program serves."""
    monkeypatch.setattr(
        "harness.runtime.programs.blocks.program", lambda call, *_: lambda given: [call(given)]
    )
    end = ending_apart(plain_outputs(params))
    params = replace(params, ignore_end_token=False)
    plain = DecodingLoop(Target(tiny_model("llama")), {end}, 512)
    vanilla = Vanilla()
    vanilla.bind(plain.target)
    expected = [one.output_ids for one in plain.generate(requests(), vanilla, params, Coupled())]
    assert len({len(ids) for ids in expected}) > 1, "the batch has not shrunk"
    target = Target(copy.deepcopy(tiny_model("llama")), cache="static", compiled=True)
    target.steps.choose(["compiled"], 3)
    program, shapes = target.steps.forward, []
    assert program is not None
    step = program._step
    program._step = lambda ids, *rest: (shapes.append(tuple(ids.shape)), step(ids, *rest))[1]
    drafter = Escorted(oracle=oracle(requests(), expected), width=5, num_riders=2)
    drafter.bind(target)
    loop = DecodingLoop(target, {end}, 512, widths=[0, *[7] * 7])
    made = loop.generate(requests(), drafter, params, Coupled())
    assert [one.output_ids for one in made] == expected
    assert set(shapes) == {(3, 8)}
