from __future__ import annotations

import copy
import shutil
import time
from collections import defaultdict
from dataclasses import replace
from typing import Any

import pytest
import torch

from harness.benchmark.lossless_verdict import Judge
from harness.config import ConfigError, configurable
from harness.decoding.acceptance import Accepted, Coupled, sweep, walk
from harness.decoding.batch import Request, trim
from harness.decoding.decision import read
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams, TokenSampler
from harness.drafting.draft import Draft
from harness.drafting.drafter import HiddenTap, Outcome
from harness.engines.transformers_generate import EagerLoop, Generate, PromptLookup
from harness.runtime.packed_linear import pack
from harness.runtime.programs.step import Program
from harness.store.records import Verdict
from harness.target.model import Target
from methods.vanilla import Vanilla
from tests.support.targets import END, RandomTrees, ending_apart, engine, oracle, requests, tiny_model

GREEDY = DecodingParams(name="greedy", max_new_tokens=40)
SAMPLED = DecodingParams(name="sampled", temperature=1.0, max_new_tokens=40, ignore_end_token=True)
BOTH = pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=lambda params: params.name)


def vanilla(loop: DecodingLoop, params: DecodingParams) -> list[list[int]]:
    drafter = Vanilla()
    drafter.bind(loop.target)
    return [loop.generate([one], drafter, params, Coupled())[0].output_ids for one in requests()]


@BOTH
@pytest.mark.parametrize("family", ["llama", "qwen3"])
@pytest.mark.parametrize("kernel", ["grouped", "sdpa", "eager"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_random_trees_in_a_ragged_batch_emit_what_vanilla_emits(
    params: DecodingParams, family: str, kernel: str, cache: str
) -> None:
    loop = DecodingLoop(Target(tiny_model(family), kernel, cache=cache), {END}, 512)
    expected = vanilla(loop, params)
    drafter = RandomTrees(oracle=oracle(requests(), expected))
    drafter.bind(loop.target)
    made = loop.generate(requests(), drafter, params, Coupled())
    assert [one.output_ids for one in made] == expected
    assert sum(sum(one.accepted) for one in made) > 20, "the oracle's tokens should be accepted"


def many(num_seeds: int = 3) -> list[Request]:
    return [one for seed in range(num_seeds) for one in requests(seed)]


@BOTH
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_trees_of_sequences_that_enter_as_others_leave_emit_what_each_emits_alone(
    params: DecodingParams, batch_size: int
) -> None:
    loop, plain = engine(batch_size=batch_size), Vanilla()
    plain.bind(loop.target)
    expected = [loop.generate([one], plain, params, Coupled())[0].output_ids for one in many()]
    drafter = RandomTrees(oracle=oracle(many(), expected))
    drafter.bind(loop.target)
    made = loop.generate(many(), drafter, params, Coupled())
    assert [one.output_ids for one in made] == expected
    assert sum(sum(one.accepted) for one in made) > 40, "the oracle's tokens should be accepted"


def test_a_place_is_never_empty_while_somebody_waits() -> None:
    loop, drafter = engine(batch_size=2), Vanilla()
    drafter.bind(loop.target)
    lengths: list[int] = []
    right = loop.target.verify

    def verify(pending: torch.Tensor, draft: Draft) -> torch.Tensor:
        lengths.append(len(pending))
        return right(pending, draft)

    loop.target.verify = verify  # type: ignore[method-assign]
    made = loop.generate(many(), drafter, replace(SAMPLED, max_new_tokens=5), Coupled())
    num_rounds = sum(len(one.emitted) for one in made)
    # Nine sequences of four rounds in two places: the last one runs alone.
    assert num_rounds == 36
    assert lengths == [2] * 16 + [1] * 4


def test_sequences_that_end_with_their_first_token_let_all_others_in() -> None:
    loop, drafter = engine(batch_size=2), Vanilla()
    drafter.bind(loop.target)
    made = loop.generate(many(), drafter, replace(SAMPLED, max_new_tokens=1), Coupled())
    assert [len(one.output_ids) for one in made] == [1] * 9
    assert all(one.stop == "cap" and one.latency_ns > 0 for one in made)


def test_shares_of_time_add_up_and_latency_counts_the_others_too() -> None:
    loop, drafter = engine(batch_size=3), Vanilla()
    drafter.bind(loop.target)
    params = replace(SAMPLED, max_new_tokens=6)
    begin = time.perf_counter_ns()
    made = loop.generate(many(), drafter, params, Coupled())
    whole = time.perf_counter_ns() - begin
    assert sum(one.total_ns for one in made) <= whole
    for one in made:
        assert one.prefill_ns > 0
        assert one.prefill_ns + sum(one.verify_ns) < one.total_ns < one.latency_ns < whole
    alone = loop.generate([many()[0]], drafter, params, Coupled())[0]
    assert 0 < alone.latency_ns <= alone.total_ns


@BOTH
def test_vanilla_and_rungs_emit_what_transformers_emits(params: DecodingParams) -> None:
    loop = engine()
    expected = vanilla(loop, params)
    for rung in (Generate(), PromptLookup(), EagerLoop(drafter=Vanilla())):
        assert [rung.generate(loop, one, params).output_ids for one in requests()] == expected


@BOTH
def test_both_forms_of_the_coupled_acceptor_decide_alike(params: DecodingParams) -> None:
    logits = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(1))
    sampler = TokenSampler(params, [1, 2], 9, torch.device("cpu"))
    start = torch.tensor([4, 0])
    choice = sampler.choose(logits, start[:, None] + torch.tensor([0, 1, 1, 2, 2, 3]))
    parents = torch.tensor([[-1, -1, 1, 1, 3], [-1, -1, 0, 2, 2]])
    tokens = torch.tensor([[8, 7, 1, 2, 0], [3, 2, 1, 0, 4]])
    tokens[0, 1] = choice[0, 0]
    tokens[0, 0] = (choice[0, 0] + 1) % 9
    tokens[0, 3] = choice[0, 2]
    tokens[0, 2] = (choice[0, 2] + 1) % 9
    draft = Draft(tokens=tokens, parents=parents, size=torch.tensor([4, 2]))
    one, other = walk(logits, draft, sampler, start), sweep(logits, draft, sampler, start)
    assert one.length.tolist() == other.length.tolist()
    assert one.length[0] >= 2
    assert one.token.tolist() == other.token.tolist()
    assert read(one, draft, logits).path_tokens == read(other, draft, logits).path_tokens


@configurable
class Probe(RandomTrees):
    """Writes down the states that it is shown of every token, and what was pending after how many."""

    @property
    def taps(self) -> tuple[HiddenTap, ...]:
        return (HiddenTap(0, "input"), HiddenTap(1), HiddenTap(-1), HiddenTap(0, "normed"))

    def reset(self, num_rows: int) -> None:
        super().reset(num_rows)
        # All by prompt: rows are the batch's business.
        self.tokens: dict[tuple[int, ...], list[int]] = defaultdict(list)
        self.states: dict[tuple[int, ...], list[torch.Tensor]] = defaultdict(list)
        self.pending: dict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)

    def observe(self, outcome: Outcome) -> None:
        self.follow(outcome)
        states = torch.stack(outcome.taps)
        assert states.shape[2] == max(map(len, outcome.committed)), "no state but of committed tokens"
        for b, (prompt, committed) in enumerate(zip(self.prompts, outcome.committed, strict=True)):
            self.tokens[prompt] += committed
            self.states[prompt].append(states[:, b, : len(committed)])
            self.pending[prompt].append((len(self.tokens[prompt]), outcome.pending[b]))


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_taps_are_the_states_of_a_plain_forward_in_path_order_and_none_of_the_pending_token(
    family: str,
) -> None:
    loop = engine(family)
    probe = Probe(oracle=oracle(requests(), vanilla(loop, GREEDY)))
    probe.bind(loop.target)
    made = loop.generate(requests(), probe, GREEDY, Coupled())
    assert sum(sum(one.accepted) for one in made) > 20, "the oracle's tokens should be accepted"
    for request, one in zip(requests(), made, strict=True):
        prompt = tuple(request.prompt)
        # A sequence that has just finished is shown its last round untrimmed.
        text = [*request.prompt, *one.output_ids]
        tokens = probe.tokens[prompt][: len(text)]
        assert tokens == text[: len(tokens)]
        assert all(text[place] == token for place, token in probe.pending[prompt] if place < len(text))
        _, plain = loop.target.trace(torch.tensor([tokens]), probe.taps)
        seen = torch.cat(probe.states[prompt], dim=1)[:, : len(tokens)]
        torch.testing.assert_close(seen, torch.cat(plain), atol=1e-4, rtol=1e-4)


def test_what_a_models_own_generation_config_asks_for_does_not_reach_a_rung() -> None:
    model = copy.deepcopy(tiny_model("llama"))
    model.generation_config.update(
        do_sample=True, temperature=0.3, top_k=2, top_p=0.1, repetition_penalty=2.0, eos_token_id=4
    )
    loop = DecodingLoop(Target(model), {END}, 512)
    for params in (GREEDY, SAMPLED):
        for rung in (Generate(), PromptLookup()):
            assert [rung.generate(loop, one, params).output_ids for one in requests()] == vanilla(
                loop, params
            )


def test_trim_cuts_at_the_first_end_token_and_at_the_limit() -> None:
    assert trim([5, END, 6], {END}, 9) == ([5, END], True)
    assert trim([5, END, 6], {END}, 1) == ([5], False)
    assert trim([5, 6], {END}, 2) == ([5, 6], False)


def test_context_limit_stops_and_is_named() -> None:
    loop = DecodingLoop(Target(tiny_model("llama")), (), 30)
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

    def accept(self, logits, draft, sampler, start):  # type: ignore[no-untyped-def]
        accepted = super().accept(logits, draft, sampler, start)
        wrong = (accepted.token + 1) % logits.shape[-1]
        return Accepted(
            accepted.length, accepted.path, torch.where(accepted.length > 0, wrong, accepted.token)
        )


def judged(loop: DecodingLoop, acceptor: Coupled, params: DecodingParams, seed: int = 0) -> list[Verdict]:
    plain = Vanilla()
    clean = DecodingLoop(Target(loop.target.model), {END}, 512)
    plain.bind(clean.target)
    references = [clean.generate([one], plain, params, Coupled())[0] for one in requests(seed)]
    drafter = RandomTrees(oracle=oracle(requests(seed), [one.output_ids for one in references]))
    drafter.bind(loop.target)
    made = loop.generate(requests(seed), drafter, params, acceptor)
    judge = Judge(loop.target, params)
    return [
        judge.compare(request, reference, one)
        for request, reference, one in zip(requests(seed), references, made, strict=True)
    ]


def coarse_engine(dtype: torch.dtype) -> DecodingLoop:
    return DecodingLoop(Target(copy.deepcopy(tiny_model("llama")).to(dtype)), {END}, 512)


DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@BOTH
@DTYPES
def test_a_wrong_acceptor_is_broken(params: DecodingParams, dtype: torch.dtype) -> None:
    assert "broken" in {verdict.kind for verdict in judged(coarse_engine(dtype), LateAcceptor(), params)}


@BOTH
@DTYPES
def test_a_wrong_mask_is_broken(
    params: DecodingParams, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Target._mask

    def siblings_see_each_other(self: Target, draft: Draft) -> torch.Tensor | None:
        mask = right(self, draft)
        return None if mask is None else mask | torch.ones_like(mask).tril(mask.shape[-1] - mask.shape[-2])

    monkeypatch.setattr(Target, "_mask", siblings_see_each_other)
    assert "broken" in {verdict.kind for verdict in judged(coarse_engine(dtype), Coupled(), params)}


@BOTH
@DTYPES
def test_a_wrong_cache_move_is_broken(
    params: DecodingParams, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Target.commit
    monkeypatch.setattr(Target, "commit", lambda self, path, length: right(self, None, length))
    assert "broken" in {verdict.kind for verdict in judged(coarse_engine(dtype), Coupled(), params)}


def test_what_rounding_chose_is_a_tie_also_where_it_does_not_come_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop, right, not_reproduced = coarse_engine(torch.bfloat16), Judge._rounding, []

    def rounding(self: Judge, *logits: torch.Tensor) -> float:
        not_reproduced.append(logits)
        return right(self, *logits)

    monkeypatch.setattr(Judge, "_rounding", rounding)
    passes = [judged(loop, Coupled(), params, seed) for params in (GREEDY, SAMPLED) for seed in range(4)]
    found = [verdict.kind for verdicts in passes for verdict in verdicts]
    assert set(found) == {"identical", "tie"}
    assert len(not_reproduced) > found.count("tie") / 2


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


@BOTH
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_packed_linear_layers_emit_what_plain_ones_emit(params: DecodingParams, family: str) -> None:
    plain = engine(family)
    packed = DecodingLoop(Target(copy.deepcopy(tiny_model(family)), linear="packed"), {END}, 512)
    assert packed.target.linear == "packed"
    expected = vanilla(plain, params)
    assert vanilla(packed, params) == expected
    drafter = RandomTrees(oracle=oracle(requests(), expected))
    drafter.bind(packed.target)
    assert [one.output_ids for one in packed.generate(requests(), drafter, params, Coupled())] == expected
    # A rung runs the same model with torch's own layers.
    assert [Generate().generate(packed, one, params).output_ids for one in requests()] == expected
    assert not any(layer.plain for layer in packed.target._packed)


def test_packing_is_refused_where_it_cannot_be_and_left_out_where_it_need_not_be() -> None:
    half = copy.deepcopy(tiny_model("llama")).to(torch.bfloat16)
    with pytest.raises(ConfigError, match=r"target\.linear=plain"):
        Target(half, linear="packed")
    assert Target(half, linear="auto").linear == "plain"


def test_packed_layers_share_their_weights_copy_to_plain_ones_and_pass_gradients() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.Linear(4, 3, bias=False))
    weights = [layer.weight for layer in model]
    rows = torch.randn(2, 6)
    expected = model(rows)
    assert len(pack(model)) == len(pack(model)) == 2
    assert [layer.weight for layer in model] == weights
    with torch.no_grad():
        torch.testing.assert_close(model(rows), expected)
    assert all(type(layer) is torch.nn.Linear for layer in copy.deepcopy(model))
    asked = rows.clone().requires_grad_()
    model(asked).sum().backward()
    assert asked.grad is not None


def two_layers() -> Any:
    """A copy of the tiny model with the fewest layers that taps can tell apart: compiling costs per layer."""
    model = copy.deepcopy(tiny_model("llama"))
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2
    return model


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")
def test_a_compiled_step_emits_what_the_plain_one_emits_and_serves_all_arms(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Trees and single tokens, another batch size, more slots than were allocated at first."""
    monkeypatch.setattr("harness.runtime.cache_memory._STEP", 48)
    expected = vanilla(DecodingLoop(Target(two_layers()), {END}, 512), GREEDY)
    loop = DecodingLoop(Target(two_layers(), cache="static", compiled=True), {END}, 512)
    drafter = RandomTrees(oracle=oracle(requests(), expected))
    drafter.bind(loop.target)
    loop.target.set_taps(drafter.taps)
    before = loop.target.steps.num_programs
    loop.target.steps.choose(["compiled"], 1)
    assert vanilla(loop, GREEDY) == expected
    assert loop.target.steps.num_programs == before + 1, "one program for any number of slots"
    # The batch keeps its program as sequences leave it, so that one serves it to the end.
    loop.target.steps.choose(["compiled"], 3)
    made = loop.generate(requests(), drafter, GREEDY, Coupled())
    assert [one.output_ids for one in made] == expected
    assert sum(sum(one.accepted) for one in made) > 20
    assert loop.target.steps.num_programs == before + 2


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")
def test_a_place_that_is_tapped_after_compiling_is_recorded_and_another_model_has_programs_of_its_own() -> (
    None
):
    def states(target: Target, tap: HiddenTap) -> torch.Tensor:
        target.set_taps([tap])
        target.begin(1)
        target.prefill([0], [[5, 6, 7]])
        logits = target.verify(torch.tensor([3]), Draft.empty(1, target.device))
        return torch.cat([logits[0], *(state[0] for state in target._taps.states())], dim=-1)

    models = [two_layers() for _ in range(2)]
    with torch.no_grad():
        for parameter in models[1].parameters():
            parameter.mul_(1.1)
    for model, taps in zip(models, ([HiddenTap(0), HiddenTap(0, "input")], [HiddenTap(0)]), strict=True):
        target = Target(copy.deepcopy(model), linear="packed", cache="static", compiled=True)
        for tap in taps:
            torch.testing.assert_close(states(target, tap), states(Target(model), tap))


def test_tracing_leaves_no_hook_that_would_make_a_compiled_step_another_program() -> None:
    target = Target(copy.deepcopy(tiny_model("llama")))
    target.set_taps([HiddenTap(0)])
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in target.model.modules()]
    _, (state,) = target.trace(torch.tensor([[5, 6, 7]]), [HiddenTap(1, "input")])
    assert state.shape[:2] == (1, 3)
    after = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in target.model.modules()]
    assert hooks == after
    assert target._taps.watched == (HiddenTap(0),)


@BOTH
def test_steps_that_are_chosen_by_width_emit_what_one_kind_emits(params: DecodingParams) -> None:
    expected = vanilla(engine(), params)
    loop = DecodingLoop(Target(copy.deepcopy(tiny_model("llama")), cache="auto"), {END}, 512)
    loop.target.steps.choose(["dynamic", "static", "dynamic", "static"], 3)
    drafter = RandomTrees(oracle=oracle(requests(), expected))
    drafter.bind(loop.target)
    made = loop.generate(requests(), drafter, params, Coupled())
    assert [one.output_ids for one in made] == expected


def test_a_compiled_step_is_taken_for_the_batch_it_was_chosen_at_and_where_it_alone_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = Target(copy.deepcopy(tiny_model("llama")), cache="auto")
    taken: list[int] = []

    class Stand(Program):
        def __call__(self, ids: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
            taken.append(len(ids))
            return torch.zeros(*ids.shape, target.vocab_size)

    target.steps.kinds = ("dynamic", "static", "compiled")
    monkeypatch.setattr("harness.runtime.verify_steps.Program", Stand)
    target.steps.forward = target.program(target._step)
    target.steps.choose(["compiled"], 1)
    for num_rows in (1, 2):
        target.begin(num_rows)
        for row in range(num_rows):
            target.cache.lengths[row] = 0
            with target.steps.only("dynamic"):
                target.prefill([row], [[5, 6, 7]])
        pending = torch.ones(num_rows, dtype=torch.int64)
        target.verify(pending, Draft.empty(num_rows, target.device))
        with target.steps.only("compiled"):
            target.verify(pending, Draft.empty(num_rows, target.device))
    assert taken == [1, 1, 2]


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")
@BOTH
def test_a_batch_that_has_shrunk_keeps_its_compiled_step(
    params: DecodingParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows behind the sequences are empty; one program, and what each sequence alone would say."""
    monkeypatch.setattr(
        "harness.runtime.programs.blocks.program", lambda call, *_: lambda given: [call(given)]
    )
    target = Target(copy.deepcopy(tiny_model("llama")), cache="static", compiled=True)
    target.steps.choose(["compiled"], 3)
    program = target.steps.forward
    assert program is not None
    plain, seen = program._step, []
    program._step = lambda ids, *rest: (seen.append(len(ids)), plain(ids, *rest))[1]
    end = ending_apart(vanilla(DecodingLoop(Target(tiny_model("llama")), (), 512), params))
    loop = DecodingLoop(target, {end}, 512, widths=[0, *[7] * 7])
    expected = vanilla(DecodingLoop(Target(tiny_model("llama")), {end}, 512), params)
    for drafter in (Vanilla(), RandomTrees(oracle=oracle(requests(), expected))):
        drafter.bind(target)
        for most in (3, 2):
            made = loop.generate(requests()[:most], drafter, params, Coupled())
            assert [one.output_ids for one in made] == expected[:most]
    assert set(seen) == {3}


@torch.no_grad()
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")
def test_a_batch_that_has_shrunk_grows_in_steps_of_any_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain steps and compiled ones in turns, over more slots than there were: all see the same rows."""
    monkeypatch.setattr(
        "harness.runtime.programs.blocks.program", lambda call, *_: lambda given: [call(given)]
    )
    monkeypatch.setattr("harness.runtime.cache_memory._STEP", 16)
    mixed = Target(copy.deepcopy(tiny_model("llama")), cache="auto", compiled=True)
    mixed.steps.choose(["dynamic", *["compiled"] * 7], 3)
    plain = Target(tiny_model("llama"))
    for target in (mixed, plain):
        target.begin(3)
        for row, request in enumerate(requests()):
            target.prefill([row], [request.prompt])
        target.keep([2, 0])
    tokens = torch.arange(8).expand(2, 8)
    for number in range(12):
        width = 7 * (number % 2)
        draft = Draft.chain(tokens[:, 1 : 1 + width], torch.tensor([width, width]))
        logits = [target.verify(tokens[:, 0] + number, draft) for target in (mixed, plain)]
        torch.testing.assert_close(*logits)
        for target in (mixed, plain):
            target.commit(None, [width, width // 2])
    assert mixed.cache.memory.allocated_rows == 3
