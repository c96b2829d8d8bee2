"""Our server measured by guidellm, a client that others wrote, beside our own measurement and its counters.

    python scripts/serve_client.py --client client/bin/python --target smollm2_135m --method eagle3

It serves vanilla and the method, has `guidellm run` (pip install guidellm, in an environment of its own) and
`harness.bench engine=server` ask both the same prompts one after the other, and prints a row for each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.engines.clients.counters import samples
from harness.store.run_store import load_run
from harness.tasks.sources import EmbeddedTask

Row = dict[str, Any]
_END_S = 20


def write_prompts(folder: Path, count: int, num_tokens: int) -> tuple[Path, Path]:
    """The first turns of the smoke prompts: a file for guidellm, and one for task=local."""
    prompts = [one.turns[0] for one in EmbeddedTask(name="smoke").read()[:count]]
    theirs = [{"prompt": text, "output_tokens_count": num_tokens} for text in prompts]
    ours = [{"question_id": at, "category": "smoke", "turns": [text]} for at, text in enumerate(prompts)]
    files = folder / "prompts_guidellm.jsonl", folder / "prompts_ours.jsonl"
    for file, lines in zip(files, (theirs, ours), strict=True):
        file.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="utf-8")
    return files


@contextmanager
def serving(target: str, method: str) -> Iterator[str]:
    """The URL of a server that decodes with this method; "vanilla" has none."""
    chosen = [] if method == "vanilla" else [f"method=[{method}]"]
    command = [sys.executable, "-m", "harness.serve", f"target={target}", *chosen, "serve.port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"the server of {method} did not start; it ended with {process.wait()}")
            yield json.loads(line)["url"]
        finally:
            process.terminate()
            process.wait(_END_S)


def counters(url: str) -> dict[str, float]:
    """The counters of a server."""
    with urllib.request.urlopen(f"{url}/metrics") as answer:
        return samples(answer.read().decode())


def counted_tau(before: dict[str, float], after: dict[str, float]) -> float:
    """Tokens per round between two readings; the first token of a request comes without one."""
    tokens, requests, rounds = (
        after[f"specbench_{name}_total"] - before[f"specbench_{name}_total"]
        for name in ("generation_tokens", "requests", "rounds")
    )
    return (tokens - requests) / rounds


def by_guidellm(python: str, url: str, prompts: Path, count: int, report: Path) -> Row:
    """guidellm's numbers for one server, asked one request at a time."""
    backend = {"kind": "openai_http", "target": url, "extras": {"body": {"temperature": 0}}}
    command = [str(Path(python).parent / "guidellm"), "run", "--backend", json.dumps(backend)]
    command += ["--profile", "kind=synchronous", "--constraint", f"kind=max_requests,count={count}"]
    command += ["--data", f"kind=json_file,path={prompts}", "--output", f"kind=json,path={report}"]
    # The prompts lie here, and the server counts the tokens: nothing is needed from a hub.
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    before = counters(url)
    subprocess.run([*command, "--disable-console"], check=True, env=environment)
    (benchmark,) = json.loads(report.read_text(encoding="utf-8"))["benchmarks"]
    done = benchmark["requests"]["successful"]
    if len(done) != count:
        raise SystemExit(f"guidellm completed {len(done)} of {count} requests; see {report}")
    return {
        "requests": len(done),
        "tokens": sum(one["output_tokens"] for one in done),
        "tokens/s": sum(one["output_tokens"] for one in done) / sum(one["request_latency"] for one in done),
        "first token / ms": median(one["time_to_first_token_ms"] for one in done),
        "request / s": median(one["request_latency"] for one in done),
        "tau by /metrics": counted_tau(before, counters(url)),
    }


def by_us(urls: dict[str, str], target: str, prompts: Path, num_tokens: int, out: Path) -> dict[str, Row]:
    """Our numbers for the same servers, by arm; each prompt counts once, behind one for warmth."""
    method = next(name for name in urls if name != "vanilla")
    before = {name: counters(url) for name, url in urls.items()}
    command = [sys.executable, "-m", "harness.bench", "~experiment", f"target={target}", "engine=server"]
    command += [f"method=[{method}]", *(f"+engine.urls.{name}={url}" for name, url in urls.items())]
    command += [
        "task=local",
        f"task.path={prompts}",
        "decoding=[greedy]",
        "decodings.greedy.ignore_end_token=true",
    ]
    command += ["engine.explain=false", "measure=quick", "measure.repeats=1", "measure.quiet=off"]
    command += ["tracker=none", f"results={out}", f"max_new_tokens={num_tokens}"]
    made = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    (folder,) = json.loads(made.stdout.splitlines()[-1])["run_dirs"]
    found: dict[str, Row] = {}
    for name, url in urls.items():
        done = [one for one in load_run(Path(folder)).records if one.arm == name]
        tokens, seconds = sum(len(one.output_ids) for one in done), sum(one.latency_ns for one in done) * 1e-9
        found[name] = {
            "requests": len(done),
            "tokens": tokens,
            "tokens/s": tokens / seconds,
            "first token / ms": median((one.first_token_ns or 0) * 1e-6 for one in done),
            "request / s": median(one.latency_ns * 1e-9 for one in done),
            "tau by /metrics": counted_tau(before[name], counters(url)),
        }
    return found


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    lines = [" | ".join(rows[0]), " | ".join("---" for _ in rows[0])]
    for row in rows:
        lines.append(" | ".join(f"{one:.4g}" if isinstance(one, float) else str(one) for one in row.values()))
    return "\n".join(f"| {line} |" for line in lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Measure our server with guidellm and with harness.bench.")
    parser.add_argument("--client", required=True, help="the interpreter of an environment with guidellm")
    parser.add_argument("--target", default="smollm2_135m")
    parser.add_argument("--method", default="eagle3")
    parser.add_argument("--prompts", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=48, help="of each answer")
    parser.add_argument("--out", type=Path, help="where reports and runs lie; a temporary folder")
    given = parser.parse_args()
    out: Path = given.out or Path(tempfile.mkdtemp(prefix="serve_client_"))
    out.mkdir(parents=True, exist_ok=True)
    theirs, ours = write_prompts(out, given.prompts, given.tokens)
    with serving(given.target, "vanilla") as plain, serving(given.target, given.method) as drafted:
        urls = {"vanilla": plain, given.method: drafted}
        rows = [
            {
                "arm": name,
                "client": "guidellm",
                **by_guidellm(given.client, url, theirs, given.prompts, out / f"guidellm_{name}.json"),
            }
            for name, url in urls.items()
        ]
        found = by_us(urls, given.target, ours, given.tokens, out / "results")
        rows += [{"arm": name, "client": "harness.bench", **row} for name, row in found.items()]
    print(table(rows))


if __name__ == "__main__":
    main()
