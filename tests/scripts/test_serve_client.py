"""guidellm completes a run against our server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.serve_client import counted_tau, table, write_prompts

SCRIPT = Path(__file__).parents[2] / "scripts" / "serve_client.py"


def test_the_first_token_of_a_request_is_nobody_s_round() -> None:
    names = [f"specbench_{name}_total" for name in ("generation_tokens", "requests", "rounds")]
    before, after = dict(zip(names, (10, 2, 4), strict=True)), dict(zip(names, (32, 4, 14), strict=True))
    assert counted_tau(before, after) == 2.0


def test_both_clients_get_the_same_prompts(tmp_path: Path) -> None:
    theirs, ours = (file.read_text().splitlines() for file in write_prompts(tmp_path, 3, 8))
    assert len(theirs) == len(ours) == 3
    assert '"output_tokens_count": 8' in theirs[0]
    assert theirs[0].split('"')[3] == ours[0].split('["')[1].removesuffix('"]}')


def test_a_table_has_a_line_for_each_row() -> None:
    assert table([{"arm": "a", "x": 1.23456}]) == "| arm | x |\n| --- | --- |\n| a | 1.235 |"


def test_guidellm_completes_a_run_against_our_server(tmp_path: Path) -> None:
    client = os.environ.get("SPECBENCH_CLIENT_PYTHON", "")
    if not client:
        pytest.skip("SPECBENCH_CLIENT_PYTHON names no interpreter with guidellm")
    command = [sys.executable, str(SCRIPT), "--client", client, "--target", "tiny", "--method", "ngram"]
    command += ["--prompts", "2", "--tokens", "8", "--out", str(tmp_path)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-2000:]
    rows = [line.split(" | ") for line in made.stdout.splitlines()[-4:]]
    assert [(row[0].strip("| "), row[1]) for row in rows] == [
        *(("vanilla", "guidellm"), ("ngram", "guidellm")),
        *(("vanilla", "harness.bench"), ("ngram", "harness.bench")),
    ]
    assert {tuple(row[2:4]) for row in rows} == {("2", "16")}
