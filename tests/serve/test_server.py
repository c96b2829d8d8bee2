"""Our loop over HTTP: what clients get, what they may not do, and that our own engine can measure it."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest

from harness.config import ConfigError
from harness.serve.job import Serving
from tests.engines.servers.measuring import measured, plan_of
from tests.serve.serving import running

Served = tuple[str, Serving]
PROMPT = [10, 20, 30, 10, 20, 30, 10, 20]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with running("method=[ngram]") as one:
        yield one


@pytest.fixture(scope="module")
def plain() -> Iterator[Served]:
    with running() as one:
        yield one


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def ask(url: str, **more: Any) -> Any:
    given: dict[str, Any] = {"model": "tiny", "prompt": PROMPT, "max_tokens": 24, "temperature": 0}
    return client(url).completions.create(**{**given, **more}, extra_body={"return_token_ids": True})


def test_a_stream_has_the_tokens_of_the_whole_answer_round_by_round(server: Served, plain: Served) -> None:
    whole = ask(plain[0])
    ids = whole.choices[0].token_ids
    assert whole.usage.completion_tokens == len(ids)
    events = list(ask(server[0], stream=True, stream_options={"include_usage": True}))
    bursts = [event.choices[0].token_ids for event in events[:-1]]
    assert [token for burst in bursts for token in burst] == ids
    # Drafts are kept in some rounds, and the first burst is the prompt's.
    assert len(bursts[0]) == 1
    assert max(map(len, bursts)) > 1
    assert "".join(event.choices[0].text for event in events[:-1]) == whole.choices[0].text
    assert [event.choices[0].finish_reason for event in events[:-1]][-1] == whole.choices[0].finish_reason
    assert events[-1].choices == []
    assert events[-1].usage.model_dump()["prompt_tokens"] == len(PROMPT)
    assert events[-1].usage.completion_tokens == len(ids)


def test_the_same_seed_draws_the_same_tokens_whatever_is_drafted(server: Served, plain: Served) -> None:
    drawn = [
        ask(url, temperature=0.8, seed=seed).choices[0].token_ids
        for url in (server[0], plain[0])
        for seed in (1, 2)
    ]
    assert drawn[:2] == drawn[2:]
    assert drawn[0] != drawn[1]


def test_a_chat_is_rendered_and_streams_its_text(server: Served) -> None:
    messages: Any = [{"role": "user", "content": [{"type": "text", "text": "one two"}]}]
    whole = client(server[0]).chat.completions.create(
        model="tiny", messages=messages, max_tokens=9, temperature=0
    )
    events = list(
        client(server[0]).chat.completions.create(
            model="tiny", messages=messages, max_tokens=9, temperature=0, stream=True
        )
    )
    assert events[0].choices[0].delta.role == "assistant"
    assert (
        "".join(event.choices[0].delta.content or "" for event in events) == whole.choices[0].message.content
    )
    assert whole.usage is not None
    assert whole.usage.prompt_tokens > len("one two")


def post(url: str, **body: Any) -> httpx2.Response:
    given = {"model": "tiny", "prompt": PROMPT, "max_tokens": 2, "temperature": 0}
    return httpx2.post(f"{url}/v1/completions", json={**given, **body}, timeout=30)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"model": "other"}, 404, "'other' is not here; there is 'tiny'"),
        ({"prompt": []}, 400, "prompt: empty"),
        ({"prompt": [259]}, 400, "0..258"),
        ({"prompt": [1] * 2048}, 400, "2048 tokens; with the answer 2048 are allowed"),
        ({"prompt": ["a", "b"]}, 400, "several texts"),
        ({"n": 2}, 400, "one answer per request"),
        ({"stop": ["x"]}, 400, "stop"),
        ({"max_tokens": 0}, 400, "max_tokens"),
        ({"temperature": -1}, 400, "temperature"),
        ({"top_p": 0}, 400, "top_p"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_the_reason(
    server: Served, body: dict[str, Any], status: int, message: str
) -> None:
    refused = post(server[0], **body)
    assert refused.status_code == status
    assert message in refused.json()["error"]["message"]
    assert post(server[0]).status_code == 200


def test_requests_have_a_limit_of_size_whether_or_not_they_state_it() -> None:
    with running("serve.max_request_bytes=2000") as (url, _):
        assert post(url).status_code == 200
        assert post(url, prompt="x" * 3000).status_code == 413

        def chunks() -> Iterator[bytes]:
            for _ in range(100):
                yield b" " * 100

        refused = httpx2.post(f"{url}/v1/completions", content=chunks(), timeout=30)
        assert refused.status_code == 413
        assert "more than 2000 bytes" in refused.json()["error"]["message"]
        assert post(url).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_place(server: Served, stream: bool) -> None:
    url, serving = server
    before = serving.decoder.counters.cancelled_requests
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 2000, "temperature": 0, "ignore_eos": True}
    with httpx2.Client(timeout=30) as one:
        if stream:
            with one.stream("POST", f"{url}/v1/completions", json={**body, "stream": True}) as response:
                next(response.iter_lines())
        else:
            with pytest.raises(httpx2.ReadTimeout):
                one.post(f"{url}/v1/completions", json=body, timeout=0.2)
    assert post(url).status_code == 200
    deadline = time.monotonic() + 20
    counters = serving.decoder.counters
    while counters.cancelled_requests == before or counters.running:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_too_many_waiting_requests_are_refused() -> None:
    with running("serve.max_waiting=1") as (url, serving):
        body: dict[str, Any] = {"prompt": PROMPT, "max_tokens": 2000, "ignore_eos": True, "stream": True}
        with (
            httpx2.Client(timeout=30) as one,
            one.stream("POST", f"{url}/v1/completions", json=body) as first,
        ):
            lines = first.iter_lines()
            next(lines)
            with one.stream("POST", f"{url}/v1/completions", json=body):
                while not serving.decoder.num_waiting:
                    time.sleep(0.01)
                assert post(url).status_code == 503


def test_a_batch_answers_each_of_its_requests_as_if_it_were_alone(server: Served) -> None:
    from concurrent.futures import ThreadPoolExecutor

    prompts = [PROMPT, [7, 8, 9], [40, 41, 40, 41, 40]]
    alone = [ask(server[0], prompt=prompt).choices[0].token_ids for prompt in prompts]
    with running("method=[ngram]", "serve.batch_size=3") as (url, _), ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda prompt: ask(url, prompt=prompt).choices[0].token_ids, prompts))
    assert together == alone


def test_a_fault_of_the_loop_is_the_clients_error_and_the_server_goes_on(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, serving = server

    def fail(*_: Any) -> None:
        raise RuntimeError("no luck")

    with monkeypatch.context() as patched:
        patched.setattr(serving.decoder._loop, "generate", fail)
        failed = post(url)
        assert (failed.status_code, failed.json()["error"]["message"]) == (500, "no luck")
        with httpx2.stream(
            "POST", f"{url}/v1/completions", json={"prompt": PROMPT, "stream": True}
        ) as response:
            assert "no luck" in "".join(response.iter_lines())
    assert post(url).status_code == 200


def test_metrics_models_and_health_answer(server: Served) -> None:
    before = dict(
        line.split() for line in httpx2.get(f"{server[0]}/metrics").text.splitlines() if line[0] != "#"
    )
    ask(server[0])
    after = dict(
        line.split() for line in httpx2.get(f"{server[0]}/metrics").text.splitlines() if line[0] != "#"
    )
    grown = {name: int(after[name]) - int(before[name]) for name in after}
    assert grown["specbench_requests_total"] == 1
    assert grown["specbench_prompt_tokens_total"] == len(PROMPT)
    tokens, rounds = grown["specbench_generation_tokens_total"], grown["specbench_rounds_total"]
    assert 1 < rounds < tokens
    assert [one.id for one in client(server[0]).models.list()] == ["tiny"]
    assert httpx2.get(f"{server[0]}/health").status_code == 200


def test_our_engine_measures_our_server_as_our_loop_measures_itself(
    tmp_path: Path, server: Served, plain: Served
) -> None:
    given = (
        "engine=server",
        "method=[ngram]",
        f"+engine.urls.vanilla='{plain[0]}'",
        f"+engine.urls.ngram='{server[0]}'",
    )
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    served = measured(plan_of(tmp_path / "a", *given))
    local = measured(plan_of(tmp_path / "b", "method=[ngram]", "ladder=none", "measure=acceptance"))
    assert served.finished
    assert {one.verdict.kind for one in served.records if one.verdict} == {"identical"}
    ours = {(one.arm, one.conversation): one for one in local.records}
    for one in served.records:
        same = ours[one.arm, one.conversation]
        assert one.output_ids == same.output_ids
        assert one.arrived[1:] == same.emitted
        assert one.engine_drafted == sum(same.drafted)
        assert one.engine_accepted == sum(same.accepted)
        assert one.engine_rounds == sum(drafted > 0 for drafted in same.drafted)


def test_a_taken_port_and_two_methods_are_refused(server: Served) -> None:
    port = server[0].rpartition(":")[2]
    with pytest.raises(ConfigError, match=r"serve\.port=.*type serve\.port=0"), running(f"serve.port={port}"):
        pass
    with pytest.raises(ConfigError, match=r"a server has one, not 2"), running("method=[ngram,suffix]"):
        pass


def test_the_command_says_where_it_listens_and_ends_on_interrupt(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "harness.serve",
        "target=tiny",
        "serve.port=0",
        "serve.choose_steps=false",
    ]
    root = Path(__file__).parents[2]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=root) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert told["url"].startswith("http://127.0.0.1:")
        assert post(told["url"]).status_code == 200
        process.terminate()
        assert process.wait(timeout=30) == 0
