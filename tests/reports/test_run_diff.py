"""Diff: names what differs between two runs, that alone, and what follows from it as a consequence."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from harness.benchmark.experiment import Experiment
from harness.benchmark.session import Session
from harness.cli.report_command import main
from harness.reports.known_effects import TOPICS
from harness.reports.run_diff import describe, findings
from harness.store.records import Run
from harness.store.run_store import ResultStore, load_run
from harness.system.console import Console
from tests.benchmark.test_experiment import plan_of
from tests.support.builders import failed_run, make_run, sample_records, sample_run, write_runs

EAGLE = (
    "method=[eagle2]",
    "methods.eagle2.head=random",
    "measure=acceptance",
    "max_new_tokens=6",
    "ladder=none",
)
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "


def topics(first: Run, second: Run) -> list[str]:
    return [one.topic for one in findings(first, second)]


def with_manifest(run: Run, **changes: Any) -> Run:
    return dataclasses.replace(run, manifest=dataclasses.replace(run.manifest, **changes))


def measured(tmp_path: Path, *overrides: str) -> list[Run]:
    """A run of the tiny target for each decoding."""
    plan = plan_of(tmp_path, *EAGLE, *overrides)
    session, store = Session(plan, Console()), ResultStore(tmp_path / "runs")
    return [load_run(Experiment(session, params).run(store)) for params in plan.decodings.values()]


def test_runs_of_another_template_dtype_and_tree_name_exactly_those(tmp_path: Path) -> None:
    template = tmp_path / "plain.jinja"
    template.write_text(TEMPLATE)
    first, sampled = measured(
        tmp_path,
        "methods.eagle2.tree.total_token=6",
        "methods.eagle2.tree.depth=2",
        "decoding=[greedy,sampled]",
    )
    (second,) = measured(
        tmp_path,
        "methods.eagle2.tree.total_token=8",
        "methods.eagle2.tree.depth=3",
        "target.dtype=bfloat16",
        f"target.template={template}",
    )
    found = {one.topic: one for one in findings(first, second)}
    assert list(found) == ["dtype", "template", "tree of eagle2"]
    assert {fact.name for fact in found["template"].consequences} == {"target.template_hash", "prompts.hash"}
    assert [fact[1:] for fact in found["tree of eagle2"].facts] == [("6", "8"), ("2", "3")]
    told = describe(first, second)
    assert "They differ in dtype, template, tree of eagle2." in told
    assert 'target.dtype: "float32" in A, "bfloat16" in B' in told
    # What greedy decoding does not have follows from the temperature.
    assert topics(first, sampled) == ["temperature"]


def test_replicates_differ_in_nothing() -> None:
    first, second = sample_run("r1"), sample_run("r2", seed=1, replicate=1)
    assert findings(first, second) == []
    told = describe(first, second)
    assert "Nothing that is written down differs" in told
    assert told.count("ngram") == 1
    assert "A/A" in told


def test_the_numbers_of_both_runs_stand_side_by_side() -> None:
    lines = describe(sample_run("r1"), sample_run("r2", seed=1)).splitlines()
    place = next(index for index, line in enumerate(lines) if line.startswith("ngram"))
    first, second = lines[place : place + 2]
    assert first.split()[1] == "A"
    assert second.split()[0] == "B"
    assert first.count("x [") == second.count("x [") == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"provenance": {"packages": {"torch": "2.11.0"}}}, ["packages"]),
        ({"provenance": {"packages": {"torch": "2.13.0", "triton": "3.5"}}}, ["packages"]),
        ({"provenance": {"packages": {"torch": "2.13.0"}, "source_hash": "f"}}, ["source"]),
        ({"prompts": {"hash": "other"}}, ["prompts"]),
        ({"prompts": {"hash": "other", "template_hash": "t"}}, ["template"]),
        (
            {"prompts": {"hash": "other", "template_hash": "t", "num_conversations": 3}},
            ["template", "prompts"],
        ),
        ({"card": {"source": "other", "step_bytes": 2, "cache_bytes_per_token": 1000}}, ["target"]),
        ({"card": {"source": "test", "step_bytes": 2, "cache_bytes_per_token": 1000}}, ["size of a step"]),
        ({"batch_size": 4, "profile": "quick"}, ["batch size", "profile"]),
        ({"acceptor": "rejection"}, ["acceptor"]),
        ({"arms": {"vanilla": {"scope": "conversation"}}}, ["methods"]),
    ],
)
def test_each_difference_has_its_name(changes: dict[str, Any], named: list[str]) -> None:
    assert topics(sample_run("r1"), sample_run("r2", **changes)) == named


def test_a_head_and_a_setting_are_named_with_their_method() -> None:
    arms = {"vanilla": {}, "ngram": {"draft_length": 4}, "suffix": {"head": "a", "card": {"sha256": "1"}}}
    other = {"vanilla": {}, "ngram": {"draft_length": 8}, "suffix": {"head": "b", "card": {"sha256": "2"}}}
    first, second = sample_run("r1", arms=arms), sample_run("r2", arms=other)
    assert topics(first, second) == ["head of suffix", "settings of ngram"]
    # The same path, other weights in it.
    other["suffix"] = {"head": "a", "card": {"sha256": "2"}}
    other["ngram"] = arms["ngram"]
    assert topics(first, sample_run("r2", arms=other)) == ["head of suffix"]


def test_every_topic_says_what_it_may_do_and_no_two_share_a_name() -> None:
    assert len({topic.name for topic in TOPICS}) == len(TOPICS)
    assert all(len(topic.effect) > 20 and topic.effect.endswith(".") for topic in TOPICS)


def test_the_command_finds_runs_by_id_part_and_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_runs([sample_run("tiny.a.1"), sample_run("tiny.b.2", profile="quick")], tmp_path)
    folder = tmp_path / "runs" / "tiny.b.2"
    for second in ("tiny.b.2", "b.2", str(folder)):
        assert main(["diff", "a.1", second, "--results", str(tmp_path)]) == 0
        assert "They differ in profile." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "told"),
    [("tiny", "stands in 2 run ids: tiny.a.1, tiny.b.2"), ("tiny.a.3", "Did you mean tiny.a.1")],
)
def test_a_wrong_name_is_told_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, told: str
) -> None:
    write_runs([sample_run("tiny.a.1"), sample_run("tiny.b.2")], tmp_path)
    assert main(["diff", "tiny.a.1", name, "--results", str(tmp_path)]) == 2
    ended = capsys.readouterr()
    assert told in ended.err
    assert ended.out == ""


def test_a_run_without_records_has_nothing_to_explain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_runs([sample_run("tiny.a.1"), failed_run()], tmp_path)
    assert main(["diff", "tiny.a.1", "failed-2", "--results", str(tmp_path)]) == 2
    assert "holds no records" in capsys.readouterr().err


def test_an_untimed_run_is_told_without_a_cost() -> None:
    untimed = make_run(sample_records({"ngram": 0.5}, timed=False), "r2", profile="acceptance")
    assert "profile" in describe(sample_run("r1"), untimed)
