"""An engine that is a server: measured end to end without a target, rounds or a probe in this process."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar
from urllib.request import urlopen

import pytest
from hydra import compose, initialize_config_module
from typing_extensions import override

from harness.analysis.row import Row
from harness.analysis.summary import summarise
from harness.benchmark.dry_run.survey import survey
from harness.benchmark.experiment import Experiment
from harness.benchmark.plan import Plan, make_plan
from harness.benchmark.session import Session
from harness.config import ConfigError, configurable
from harness.decoding.acceptance import Acceptor
from harness.decoding.batch import Generation, Request
from harness.decoding.sampling import DecodingParams
from harness.engines.engine import Engine, Method, Note, ServedModel, Workload
from harness.reports import tables
from harness.store.records import GenerationRecord, Run
from harness.store.run_store import ResultStore, load_run, load_runs
from harness.system.console import Console
from harness.target.random_target import byte_tokenizer
from harness.target.spec import TargetSpec

VOCAB, END = 259, 258
LINES = [
    {"question_id": 1, "category": "a", "turns": ["one two", "and three"]},
    {"question_id": 2, "category": "b", "turns": ["four five"]},
]


class Server:
    """Answers POST {prompt, max_tokens, num_speculated} with {ids, stop}; a token is a sum of the last three.

    faulty: the fourth token of an answer is another one where the server speculates.
    """

    def __init__(self) -> None:
        self.faulty = False
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()

    def answer(self, prompt: list[int], max_tokens: int, num_speculated: int) -> dict[str, Any]:
        ids: list[int] = []
        while len(ids) < max_tokens and ids[-1:] != [END]:
            ids.append((sum([*prompt, *ids][-3:]) + 7 * len(ids)) % VOCAB)
            if self.faulty and num_speculated and len(ids) == 4:
                ids[-1] = (ids[-1] + 1) % END
        return {"ids": ids, "stop": "end" if ids[-1] == END else "cap"}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                text = json.dumps(server.answer(**asked)).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: object) -> None: ...

        return Handler


@configurable
class Speculation:
    """An arm: how many tokens the server speculates on at a time."""

    num_tokens: int = 0
    samples: ClassVar[bool] = True
    knowledge: ClassVar[str] = "call"
    training_prompts: ClassVar[tuple[()]] = ()

    def card(self) -> dict[str, Any]:
        return {}


@configurable
class Loopback(Engine):
    """Asks a server for token ids and takes the time; knows nothing else of it."""

    name: ClassVar[str] = "loopback"
    url: str

    @override
    def device_facts(self, target: TargetSpec) -> dict[str, Any]:
        return {"type": "server", "name": "loopback"}

    @override
    def baseline(self, target: TargetSpec) -> str:
        return "served"

    @override
    def load(self, target: TargetSpec, arms: Mapping[str, Method], note: Note) -> ServedModel:
        return ServedModel(
            tokenizer=byte_tokenizer(VOCAB),
            end_token_ids=(END,),
            max_context=512,
            vocab_size=VOCAB,
            card={"source": "loopback"},
        )

    @override
    def prepare(self, workload: Workload, note: Note) -> None:
        self._workload = workload

    @override
    def generate(
        self,
        requests: Sequence[Request],
        method: Method,
        params: DecodingParams,
        acceptor: Acceptor,
        same_question: bool = False,
    ) -> list[Generation]:
        assert isinstance(method, Speculation)

        def ask(request: Request) -> Generation:
            asked = {"prompt": list(request.prompt), "max_tokens": params.max_new_tokens}
            body = json.dumps({**asked, "num_speculated": method.num_tokens}).encode()
            begin = time.perf_counter_ns()
            with urlopen(self.url, body) as reply:
                answer = json.loads(reply.read())
            spent_ns = (time.perf_counter_ns() - begin) * self._workload.timed
            return Generation(output_ids=answer["ids"], stop=answer["stop"], latency_ns=spent_ns)

        begin = time.perf_counter_ns()
        with ThreadPoolExecutor(self._workload.batch_size) as pool:
            generations = list(pool.map(ask, requests))
        spent_ns = (time.perf_counter_ns() - begin) * self._workload.timed
        return [replace(one, total_ns=spent_ns // len(generations)) for one in generations]


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.close()


def plan_of(folder: Path, server: Server, *overrides: str) -> Plan:
    """Composed as on the command line: the YAML lies in a folder of its own on Hydra's search path."""
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(map(json.dumps, LINES)))
    given = [
        f"hydra.searchpath=[file://{Path(__file__).parent / 'conf'}]",
        *("~experiment", "engine=loopback", f"engine.url='{server.url}'", "target=tiny"),
        *("task=local", f"task.path={file}", "tracker=none", "max_new_tokens=12", f"results={folder}"),
        *("measure=quick", *overrides),
    ]
    with initialize_config_module("conf", version_base="1.3"):
        return make_plan(compose("bench", overrides=given), given)


def measured(plan: Plan) -> Run:
    (params,) = plan.decodings.values()
    return load_run(Experiment(Session(plan, Console()), params).run(ResultStore(plan.results / "runs")))


def verdicts(run: Run, arm: str) -> set[str]:
    return {record.verdict.kind for record in run.records if record.arm == arm and record.verdict}


def shown(rows: list[Row], column: str) -> list[str]:
    """Entries of the console's table."""
    headers, body = tables.console_table(rows)
    place = next(number for number, header in enumerate(headers) if header.startswith(column))
    return [line[place] for line in body]


def test_a_server_is_measured_against_its_own_vanilla_into_a_stored_run(
    tmp_path: Path, server: Server
) -> None:
    plan = plan_of(tmp_path, server)
    assert [cell["state"] for cell in survey(plan)] == ["missing"]
    run = measured(plan)
    assert run.finished
    assert len(run.records) == 3 * 2 * plan.measure.repeats
    assert {record.kind for record in run.records} == {"roundless"}
    assert verdicts(run, "vanilla") == verdicts(run, "fast") == {"identical"}
    assert run.manifest.provenance["device"]["type"] == "server"
    assert run.probes == []
    # Vanilla's repeats are the null.
    assert sum(null.num_differing for null in run.nulls) == 0
    assert sum(null.num_tokens for null in run.nulls) > 0
    assert [cell["state"] for cell in survey(plan)] == ["done"]


def test_whatever_is_counted_in_rounds_is_unknown_in_its_row(tmp_path: Path, server: Server) -> None:
    measured(plan_of(tmp_path, server))
    # Read as a report does: from the columns of the store.
    (run,) = load_runs(tmp_path / "runs")
    rows = summarise(run)
    assert [(row.method, row.kind, row.verdict) for row in rows] == [
        ("vanilla", "arm", "identical"),
        ("fast", "arm", "identical"),
    ]
    for row in rows:
        assert row.speedup > 0
        assert row.latency_s > 0
        unknown = (row.tau, row.forward_s, row.round_forwards, row.loop_overhead, row.roof_fraction)
        assert all(map(math.isnan, (*unknown, row.speedup_decode_only, row.speedup_predicted)))
        assert (row.ledger, row.split, row.tau_ci) == (None, {}, None)
    assert shown(rows, "tau") == ["-", "-"]


def test_a_difference_that_no_weights_can_explain_is_unexplained_and_marked(
    tmp_path: Path, server: Server
) -> None:
    server.faulty = True
    run = measured(plan_of(tmp_path, server))
    assert verdicts(run, "vanilla") == {"identical"}
    # The second turn has another prompt then.
    assert verdicts(run, "fast") == {"unexplained", "unpaired"}
    judged = [record.verdict for record in run.records if record.verdict]
    assert {one.position for one in judged if one.kind == "unexplained"} == {3}
    row = summarise(run)[1]
    assert (row.method, row.verdict) == ("fast", "unexplained")
    assert "unexplained" in str(tables.console_table([row]))


def test_above_temperature_zero_a_server_draws_by_itself(tmp_path: Path, server: Server) -> None:
    run = measured(plan_of(tmp_path, server, "decoding=[sampled]"))
    assert verdicts(run, "vanilla") == verdicts(run, "fast") == {"unpaired"}


def test_requests_run_together_and_untimed_runs_have_no_seconds(tmp_path: Path, server: Server) -> None:
    run = measured(plan_of(tmp_path, server, "measure=acceptance", "measure.batch_size=2"))
    assert len(run.records) == 3 * 2
    assert sum(record.total_ns + record.latency_ns for record in run.records) == 0
    assert math.isnan(summarise(run)[1].speedup)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ladder=transformers", r"rungs\.generate: needs a target in this process.*ladder=none"),
        ("accept=forced", r"acceptor: engine=loopback accepts drafted tokens by its own rule"),
    ],
)
def test_what_needs_a_target_here_is_refused_with_what_to_type(
    tmp_path: Path, server: Server, override: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        plan_of(tmp_path, server, override)


def test_the_local_engine_refuses_the_arm_of_another_engine() -> None:
    arm = "+methods.fast={_target_: tests.engines.test_server_engine.Speculation}"
    with (
        initialize_config_module("conf", version_base="1.3"),
        pytest.raises(ConfigError, match=r"methods\.fast.*Speculation is no Drafter.*engine=NAME"),
    ):
        make_plan(compose("bench", overrides=["~experiment", arm]), [])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "arm"}, "tokens and rounds disagree"),
        ({"kind": "roundless", "emitted": [2], "accepted": [1]}, "rounds of an arm that tells none"),
    ],
)
def test_the_ledger_insists_on_the_rounds_of_an_arm_and_on_none_of_a_roundless_one(
    changes: dict[str, Any], message: str
) -> None:
    common: dict[str, Any] = {"arm": "a", "conversation": "c", "category": "x", "prompt_hash": "p"}
    common |= {"num_prompt_tokens": 1, "output_ids": [1, 2, 3], "stop": "cap"}
    assert GenerationRecord(**common, kind="roundless").emitted == []
    with pytest.raises(AssertionError, match=message):
        GenerationRecord(**{**common, **changes})
