"""Tables and figures of streamed rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from harness.analysis.row import Row
from harness.analysis.serving.latencies import Percentiles, Serving
from harness.reports.csv_files import csv
from harness.reports.figures import draw
from harness.reports.markdown import markdown
from harness.store.records import Cell

CELL = Cell(
    target="t",
    task="k",
    decoding="greedy",
    temperature=0.0,
    batch_size=1,
    profile="full",
    baseline="served",
    acceptor="coupled",
    engine="vllm",
)


def row(method: str, batch_size: int, speedup: float) -> Row:
    observed = Serving(
        first_token=Percentiles(0.1, 0.2, 0.4),
        burst_gap=Percentiles(0.03, 0.04, 0.05),
        per_token=Percentiles(0.02, 0.03, 0.04),
        request=Percentiles(1.5, 2.5, 3.5),
        user_tokens_per_s=50.0 / batch_size,
        tau_of_bursts=1.8,
        tau_of_counters=2.1,
        goodput=0.75,
        good_share=0.5,
    )
    return Row(
        where=replace(CELL, batch_size=batch_size),
        method=method,
        verdict="identical",
        num_prompts=3,
        tokens_per_s=100.0 * speedup,
        speedup=speedup,
        speedup_ci=(speedup - 0.1, speedup + 0.1),
        serving=observed,
    )


ROWS = [row("vanilla", 1, 1.0), row("ngram", 1, 1.5), row("vanilla", 4, 1.0), row("ngram", 4, 0.8)]


def test_the_report_has_percentiles_both_taus_and_the_break_even_concurrency() -> None:
    text = markdown(ROWS)
    assert "As users of the server see it" in text
    assert "| 100.0 200.0 400.0 |" in text
    assert "| 1.50 2.50 3.50 |" in text
    assert "| 1.80 | 2.10 | 0.75 | 50 % |" in text.replace("50.0 %", "50 %")
    assert "break-even batch" in text
    lines = csv(ROWS).splitlines()
    names = lines[0].split(",")
    assert lines[1].split(",")[names.index("serving.tau_of_counters")] == "2.1"
    assert lines[1].split(",")[names.index("serving.first_token.p99")] == "0.4"


def test_figures_show_latencies_and_throughput_by_user(tmp_path: Path) -> None:
    names = {path.name for path in draw(ROWS, tmp_path)}
    assert {"t.greedy-users.png", "t.greedy-batches.svg"} <= names
    assert {"t.greedy.batch1-latencies.png", "t.greedy.batch4-latencies.png"} <= names
    silent = [replace(one, serving=None) for one in ROWS]
    assert not [
        path for path in draw(silent, tmp_path / "b") if "users" in path.name or "latencies" in path.name
    ]
