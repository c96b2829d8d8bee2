from __future__ import annotations

import pytest
import torch

from harness.accept import Accepted, Coupled, sweep, walk
from harness.decoding import Chooser, DecodingParams
from harness.draft import Draft
from harness.engine import LocalEngine, read, trim
from harness.peers import Generate, PromptLookup
from harness.records import Verdict
from harness.target import Target
from harness.verdict import Judge
from methods.vanilla import Vanilla
from tests.targets import END, RandomTrees, engine, requests, tiny_model

GREEDY = DecodingParams(name="greedy", max_new_tokens=40)
SAMPLED = DecodingParams(name="sampled", temperature=1.0, max_new_tokens=40, ignore_end_token=True)
BOTH = pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=lambda params: params.name)


def vanilla(loop: LocalEngine, params: DecodingParams) -> list[list[int]]:
    drafter = Vanilla()
    drafter.bind(loop.target)
    return [loop.generate([one], drafter, params, Coupled())[0].output_ids for one in requests()]


@BOTH
@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("kernel", ["grouped", "sdpa", "eager"])
def test_random_trees_in_a_ragged_batch_emit_what_vanilla_emits(
    params: DecodingParams, family: str, kernel: str
) -> None:
    loop = LocalEngine(Target(tiny_model(family), kernel), {END}, 512)
    expected = vanilla(loop, params)
    drafter = RandomTrees(oracle=[output[1:] for output in expected])
    drafter.bind(loop.target)
    made = loop.generate(requests(), drafter, params, Coupled())
    assert [one.output_ids for one in made] == expected
    assert sum(sum(one.accepted) for one in made) > 20, "the oracle's tokens should be accepted"


@BOTH
def test_vanilla_and_rungs_emit_what_transformers_emits(params: DecodingParams) -> None:
    loop = engine()
    expected = vanilla(loop, params)
    for rung in (Generate(), PromptLookup()):
        assert [rung.generate(loop, one, params).output_ids for one in requests()] == expected


@BOTH
def test_both_forms_of_the_coupled_acceptor_decide_alike(params: DecodingParams) -> None:
    logits = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(1))
    chooser = Chooser(params, [1, 2], 9, torch.device("cpu"))
    start = torch.tensor([4, 0])
    choice = chooser.choose(logits, start[:, None] + torch.tensor([0, 1, 1, 2, 2, 3]))
    parents = torch.tensor([[-1, -1, 1, 1, 3], [-1, -1, 0, 2, 2]])
    tokens = torch.tensor([[8, 7, 1, 2, 0], [3, 2, 1, 0, 4]])
    tokens[0, 1] = choice[0, 0]
    tokens[0, 0] = (choice[0, 0] + 1) % 9
    tokens[0, 3] = choice[0, 2]
    tokens[0, 2] = (choice[0, 2] + 1) % 9
    draft = Draft(tokens=tokens, parents=parents, size=torch.tensor([4, 2]))
    one, other = walk(logits, draft, chooser, start), sweep(logits, draft, chooser, start)
    assert one.length.tolist() == other.length.tolist()
    assert one.length[0] >= 2
    assert one.token.tolist() == other.token.tolist()
    assert read(one, draft).path_tokens == read(other, draft).path_tokens


def test_trim_cuts_at_the_first_end_token_and_at_the_limit() -> None:
    assert trim([5, END, 6], {END}, 9) == ([5, END], True)
    assert trim([5, END, 6], {END}, 1) == ([5], False)
    assert trim([5, 6], {END}, 2) == ([5, 6], False)


def test_context_limit_stops_and_is_named() -> None:
    loop = LocalEngine(Target(tiny_model("llama")), (), 30)
    drafter = Vanilla()
    drafter.bind(loop.target)
    made = loop.generate([requests()[1]], drafter, GREEDY, Coupled())[0]
    assert (made.stop, len(made.output_ids)) == ("context", 30 - 11)


def test_untimed_generations_have_no_times() -> None:
    loop = engine(timed=False)
    drafter = Vanilla()
    drafter.bind(loop.target)
    made = loop.generate([requests()[0]], drafter, GREEDY, Coupled())[0]
    assert made.total_ns == made.prefill_ns == sum(made.verify_ns) == 0


class LateAcceptor(Coupled):
    """Wrong on purpose: takes the noise and the arg max of the row before."""

    def accept(self, logits, draft, chooser, start):  # type: ignore[no-untyped-def]
        accepted = super().accept(logits, draft, chooser, start)
        wrong = (accepted.token + 1) % logits.shape[-1]
        return Accepted(
            accepted.length, accepted.path, torch.where(accepted.length > 0, wrong, accepted.token)
        )


def judged(loop: LocalEngine, acceptor: Coupled, params: DecodingParams) -> list[Verdict]:
    plain = Vanilla()
    clean = engine()
    plain.bind(clean.target)
    references = [clean.generate([one], plain, params, Coupled())[0] for one in requests()]
    drafter = RandomTrees(oracle=[one.output_ids[1:] for one in references])
    drafter.bind(loop.target)
    made = loop.generate(requests(), drafter, params, acceptor)
    judge = Judge(loop.target, params)
    return [
        judge.compare(request, reference, one)
        for request, reference, one in zip(requests(), references, made, strict=True)
    ]


@BOTH
def test_a_wrong_acceptor_is_broken(params: DecodingParams) -> None:
    assert "broken" in {verdict.kind for verdict in judged(engine(), LateAcceptor(), params)}


@BOTH
def test_a_wrong_mask_is_broken(params: DecodingParams, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Target._mask

    def siblings_see_each_other(self: Target, draft: Draft) -> torch.Tensor | None:
        mask = right(self, draft)
        return None if mask is None else mask | torch.ones_like(mask).tril(mask.shape[-1] - mask.shape[-2])

    monkeypatch.setattr(Target, "_mask", siblings_see_each_other)
    assert "broken" in {verdict.kind for verdict in judged(engine(), Coupled(), params)}


@BOTH
def test_a_wrong_cache_move_is_broken(params: DecodingParams, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Target.commit
    monkeypatch.setattr(Target, "commit", lambda self, path, length: right(self, None, length))
    assert "broken" in {verdict.kind for verdict in judged(engine(), Coupled(), params)}


@BOTH
def test_a_right_loop_is_identical(params: DecodingParams) -> None:
    assert {verdict.kind for verdict in judged(engine(), Coupled(), params)} == {"identical"}


def test_an_answer_that_only_ends_elsewhere_is_a_stop_rule() -> None:
    loop, drafter, judge = engine(), Vanilla(), Judge(engine().target, GREEDY)
    drafter.bind(loop.target)
    full = loop.generate([requests()[0]], drafter, GREEDY, Coupled())[0]
    cut = loop.generate(
        [requests()[0]],
        drafter,
        DecodingParams(name="short", max_new_tokens=len(full.output_ids) - 1),
        Coupled(),
    )[0]
    assert judge.compare(requests()[0], full, cut) == Verdict("stop-rule", len(cut.output_ids))


def test_the_null_of_vanilla_is_silent_in_float32() -> None:
    loop, drafter = engine(), Vanilla()
    drafter.bind(loop.target)
    for request in requests():
        made = loop.generate([request], drafter, SAMPLED, Coupled())[0]
        replay = Judge(loop.target, SAMPLED).null("one", request, made.output_ids, 7)
        assert (replay.num_tokens, replay.num_differing) == (len(made.output_ids), 0)
