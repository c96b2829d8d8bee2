"""Forced acceptance: the plan is kept whatever is drafted, in any batch, and nothing calls it lossless."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from harness.analysis.summary import summarise
from harness.config import ConfigError
from harness.decoding.acceptance import Coupled
from harness.decoding.acceptance_trace import read_trace
from harness.decoding.batch import Generation
from harness.decoding.forced_acceptance import Forced
from harness.decoding.sampling import DecodingParams, TokenSampler
from harness.drafting.draft import Draft
from harness.drafting.trees import DynamicTree
from harness.reports import formatting
from harness.store.run_store import load_run
from harness.target.random_target import TinyTarget
from methods.eagle import Eagle
from methods.vanilla import Vanilla
from tests.benchmark.test_experiment import measured, plan_of
from tests.support.builders import make_record, make_run, write_runs
from tests.support.targets import RandomTrees, engine, requests

FULL = DecodingParams(name="greedy", max_new_tokens=200, ignore_end_token=True)


def made(
    acceptor: Forced | Coupled, drafter: RandomTrees | Eagle | Vanilla, batch: bool = True
) -> list[Generation]:
    loop = engine()
    drafter.bind(loop.target)
    acceptor.load()
    parts = [requests()] if batch else [[one] for one in requests()]
    return [one for part in parts for one in loop.generate(part, drafter, FULL, acceptor)]


def deep() -> Eagle:
    return Eagle(
        architecture="eagle3", head="random", tree=DynamicTree(total_token=60, depth=7, top_k=4), seed=1
    )


@pytest.mark.parametrize("tau", [1.0, 2.5, 6.13])
def test_every_sequence_reaches_the_tau_that_was_asked_for_in_two_adjacent_lengths(tau: float) -> None:
    for one in made(Forced(tau=tau), deep()):
        rounds = one.accepted[:-1]
        assert all(depth >= length for depth, length in zip(one.depth, one.accepted, strict=True))
        assert set(rounds) <= {int(tau) - 1, int(tau)}
        # Ends are at most one token from where an even pace would have them.
        assert abs(sum(rounds) + len(rounds) - tau * len(rounds)) <= 1
        assert len(one.output_ids) == FULL.max_new_tokens


def test_what_is_kept_does_not_depend_on_the_batch() -> None:
    together, alone = made(Forced(tau=3.7), deep()), made(Forced(tau=3.7), deep(), batch=False)
    assert [one.accepted for one in together] == [one.accepted for one in alone]
    assert [one.output_ids for one in together] == [one.output_ids for one in alone]
    assert len({tuple(one.accepted) for one in together}) > 1, "sequences should not march in step"


def test_a_shallow_draft_bounds_what_is_kept() -> None:
    for one in made(Forced(tau=7), RandomTrees()):
        assert all(kept <= depth for kept, depth in zip(one.accepted, one.depth, strict=True))
        assert max(one.accepted) > 1


def test_vanilla_stays_as_it_is() -> None:
    forced, plain = made(Forced(tau=5), Vanilla()), made(Coupled(), Vanilla())
    assert [one.output_ids for one in forced] == [one.output_ids for one in plain]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_path_is_a_path_and_the_token_after_it_the_targets_own(temperature: float) -> None:
    params = DecodingParams(name="any", temperature=temperature)
    sampler = TokenSampler(params, [5, 9], 11, torch.device("cpu"))
    logits = torch.randn(2, 6, 11, generator=torch.Generator().manual_seed(2))
    draft = Draft(
        tokens=torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]),
        parents=torch.tensor([[-1, -1, 1, 2, 0], [-1, 0, 1, -1, -1]]),
        size=torch.tensor([5, 4]),
    )
    start = torch.tensor([1, 4])
    found = Forced(tau=4).accept(logits, draft, sampler, start)
    assert found.length.tolist() == (Forced(tau=4)._planned(start, sampler) - 1).clamp(max=3).tolist()
    for row, length in enumerate(found.length.tolist()):
        path = found.path[row, :length].tolist()
        assert [draft.parents[row, node].item() for node in path] == [-1, *path][:length]
        last = 1 + path[-1] if path else 0
        index = torch.full((2, 1), int(start[row]) + length)
        assert found.token[row] == sampler.choose(logits[:, last : last + 1], index)[row, 0]


def test_a_trace_is_replayed_in_order_where_the_draft_is_deep_enough(tmp_path: Path) -> None:
    trace = [3, 0, 5, 1, 1, 4]
    file = tmp_path / "trace.json"
    file.write_text(json.dumps(trace))
    twice = [*trace, *trace]
    orders = [twice[begin : begin + len(trace)] for begin in range(len(trace))]
    for one in made(Forced(trace=str(file)), deep()):
        assert one.accepted[: len(trace)] in orders
    assert Forced(trace=str(file)).name == "forced trace trace"


def test_a_run_folder_and_its_records_are_the_same_trace_without_repeats(tmp_path: Path) -> None:
    records = [
        make_record(arm, f"c{i}", accepted, [4, 4], repeat=repeat)
        for arm in ("vanilla", "suffix")
        for i in range(2)
        for repeat in range(2)
        for accepted in ([[0, 0]] if arm == "vanilla" else [[i, 2]])
    ]
    write_runs([make_run(records)], tmp_path)
    (folder,) = (tmp_path / "runs").iterdir()
    assert read_trace(str(folder)) == read_trace(str(folder / "records.jsonl")) == [0, 2, 1, 2]
    with pytest.raises(ConfigError, match="it holds suffix"):
        read_trace(str(folder), "ngram")


@pytest.mark.parametrize(
    ("text", "told"),
    [("[1, -2]", "integers from 0"), ('{"tau": 3}', "accepted"), ("[", "trace.jsonl:1"), ("", "holds none")],
)
def test_a_trace_that_cannot_be_read_is_told_by_its_line(tmp_path: Path, text: str, told: str) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(text)
    with pytest.raises(ConfigError, match=told):
        read_trace(str(file))


def test_one_plan_is_needed_and_one_is_enough() -> None:
    for wrong in ({}, {"tau": 3.0, "trace": "x"}):
        with pytest.raises(ValueError, match=r"acceptor\.tau="):
            Forced(**wrong)
    with pytest.raises(ConfigError, match="neither the folder of a finished run"):
        Forced(trace="nowhere").load()


def test_end_tokens_may_not_cut_forced_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"decodings\.greedy\.ignore_end_token"):
        plan_of(tmp_path, "accept=forced", "decodings.greedy.ignore_end_token=false")


def test_a_forced_run_is_marked_and_its_vanilla_is_not(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, "accept=forced", "acceptor.tau=2", "measure=acceptance", "max_new_tokens=30")
    run = load_run(measured(plan, tmp_path))
    vanilla, ngram = summarise(run)
    assert {len(record.output_ids) for record in run.records} == {30}
    assert (vanilla.verdict, ngram.verdict) == ("identical", "forced")
    assert not ngram.lossless
    assert "forced" in formatting.marks(ngram).split(", ")
    assert "forced" not in formatting.marks(vanilla).split(", ")
    assert ngram.where.acceptor == "forced tau 2"


def test_a_random_target_is_made_in_its_dtype_without_reading_or_converting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    filled = []
    right = torch.Tensor.normal_

    def normal_(self: torch.Tensor, *args: float, **options: float) -> torch.Tensor:
        filled.append(self.dtype)
        return right(self, *args, **options)

    monkeypatch.setattr(torch.Tensor, "normal_", normal_)
    spec = TinyTarget(dtype="bfloat16", vocab_size=1000, intermediate_size=48)
    loaded = spec.load(lambda _: None)
    assert set(filled) == {torch.bfloat16}
    assert loaded.card["vocab_size"] == 1000
    assert loaded.tokenizer.decode([70, 999]) == "g"
