"""Servers at URLs: what is kept of their streams, and what becomes of a run when they fail."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.analysis.summary import summarise
from harness.config import ConfigError
from harness.engines.faults import EngineFault
from tests.engines.servers.measuring import measured, plan_of, stored
from tests.support.openai_server import END, OpenAIServer

Servers = dict[str, OpenAIServer]


@pytest.fixture
def servers() -> Iterator[Servers]:
    made = {"vanilla": OpenAIServer().start(), "ngram": OpenAIServer(burst=4).start()}
    yield made
    for one in made.values():
        one.close()


def given(servers: Servers, *more: str) -> tuple[str, ...]:
    urls = [f"+engine.urls.{name}='{one.url}'" for name, one in servers.items()]
    return ("engine=server", "method=[ngram]", *urls, *more)


def test_a_stream_tells_first_token_bursts_and_rounds(tmp_path: Path, servers: Servers) -> None:
    run = measured(plan_of(tmp_path, *given(servers)))
    assert run.finished
    assert {(one.arm, one.verdict.kind) for one in run.records if one.verdict} == {
        ("vanilla", "identical"),
        ("ngram", "identical"),
    }
    for one in run.records:
        assert one.kind == "roundless"
        assert sum(one.arrived) == len(one.output_ids)
        assert one.first_token_ns == one.arrival_ns[0] > 0
        assert one.latency_ns == one.arrival_ns[-1]
        if one.arm == "ngram":
            # One burst is the prefill's; the others are the rounds that the server counts.
            assert one.engine_rounds == len(one.arrived) - 1 == -(-(len(one.output_ids) - 1) // 4)
            assert one.engine_accepted == len(one.output_ids) - 1 - one.engine_rounds
        else:
            assert one.arrived == [1] * len(one.output_ids)
            assert one.engine_rounds is None
    # Vanilla's repeats are the null.
    assert sum(null.num_differing for null in run.nulls) == 0
    assert sum(null.num_tokens for null in run.nulls) == sum(
        len(one.output_ids) for one in run.records if one.arm == "vanilla" and one.repeat
    )


def test_as_many_requests_run_as_the_batch_has_places(tmp_path: Path, servers: Servers) -> None:
    for one in servers.values():
        one.pause_s = 0.002
    run = measured(plan_of(tmp_path, *given(servers, "measure.batch_size=2", "+measure.waves=2")))
    assert run.finished
    assert [one.most_running for one in servers.values()] == [2, 2]


def test_requests_that_come_by_themselves_are_timed_from_when_they_are_due(
    tmp_path: Path, servers: Servers
) -> None:
    for one in servers.values():
        one.pause_s = 0.02
    rate = ("engine.request_rate=1000", "engine.most_at_once=1", "measure.batch_size=3", "+measure.waves=1")
    run = measured(plan_of(tmp_path, *given(servers, *rate)))
    assert [one.most_running for one in servers.values()] == [1, 1]
    waited = sorted(one.first_token_ns or 0 for one in run.records if one.arm == "ngram" and not one.repeat)
    # Who is due at once and has to wait for the two before waits for their whole answers.
    assert waited[2] > waited[0] + 2 * 3 * 20_000_000 * 0.9


def test_more_differences_than_vanilla_has_from_itself_are_broken(tmp_path: Path, servers: Servers) -> None:
    servers["ngram"].wrong = True
    run = measured(plan_of(tmp_path, *given(servers)))
    kinds = {one.verdict.kind for one in run.records if one.arm == "ngram" and one.verdict}
    assert kinds == {"unexplained"}
    vanilla, ngram = summarise(run)
    assert (vanilla.verdict, ngram.verdict) == ("identical", "broken")


FAULTS = {
    "500": ("engine-error", "HTTP status 500.*out of order"),
    "garbage": ("engine-garbage", "no event"),
    "cut": ("engine-cut-off", "ended after"),
    "hang": ("engine-silent", "nothing came for 0.3 s"),
    "error": ("engine-error", "no memory left"),
    "token": ("engine-garbage", "token 259 is outside of 0..258"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_recorded_and_the_same_command_measures_the_rest(
    tmp_path: Path, servers: Servers, fault: str
) -> None:
    kind, text = FAULTS[fault]
    servers["ngram"].fault, servers["ngram"].after = fault, 1
    plan = plan_of(tmp_path, *given(servers, "engine.silence_s=0.3", "measure.repeats=1"))
    with pytest.raises(EngineFault, match=r"2 of 3 blocks could not be measured"):
        measured(plan)
    run = stored(plan)
    assert not run.finished
    *failed, last = run.failures
    assert [(one.kind, one.where) for one in failed] == [(kind, "ngram, 2"), (kind, "ngram, 3")]
    assert all(one.message.startswith("ngram: ") for one in failed)
    assert "the same command measures them" in last.message
    for one in failed:
        assert re.search(text, one.message), one.message
    assert len({one.conversation for one in run.records}) == 1
    servers["ngram"].fault = ""
    asked = servers["ngram"].num_asked
    run = measured(plan_of(tmp_path, *given(servers, "engine.silence_s=0.3", "measure.repeats=1")))
    assert run.finished
    assert not run.failures
    assert len({one.conversation for one in run.records}) == 3
    assert servers["ngram"].num_asked == asked + 2


def test_a_wrong_model_ends_the_run_with_what_the_server_said(tmp_path: Path, servers: Servers) -> None:
    plan = plan_of(tmp_path, *given(servers, "+engine.models.ngram=other"))
    with pytest.raises(EngineFault, match=r"ngram: HTTP status 404.*no model other"):
        measured(plan)
    assert [one.kind for one in stored(plan).failures] == ["engine-refused"]


def test_a_server_that_is_not_there_ends_the_run(tmp_path: Path, servers: Servers) -> None:
    servers["vanilla"].close()
    plan = plan_of(tmp_path, *given(servers))
    with pytest.raises(EngineFault, match="nothing answers there"):
        measured(plan)


def test_text_without_ids_is_refused_unless_asked_for(tmp_path: Path, servers: Servers) -> None:
    servers["ngram"].with_ids = servers["vanilla"].with_ids = False
    with pytest.raises(EngineFault, match=r"text without token ids.*engine\.ids=text"):
        measured(plan_of(tmp_path, *given(servers)))
    run = measured(plan_of(tmp_path, *given(servers, "engine.ids=text")))
    assert run.manifest.target["ids"] == "text"
    # Every token of the made-up text is an x, which has one id.
    assert len({token for one in run.records for token in one.output_ids if token != END}) == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("~engine.urls.ngram", r"engine\.urls\.ngram: no server is given for methods\.ngram"),
        ("engine.request_rate=2", r"engine\.request_rate: with measure\.batch_size=1"),
        ("accept=rejection", r"acceptor: engine=server accepts drafted tokens by its own rule"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_is_asked(
    tmp_path: Path, servers: Servers, override: str, message: str
) -> None:
    urls = [one for one in given(servers) if not (override.startswith("~") and ".ngram=" in one)]
    with pytest.raises(ConfigError, match=message):
        measured(plan_of(tmp_path, *urls, *([override] if not override.startswith("~") else [])))
    assert servers["ngram"].num_asked == 0
