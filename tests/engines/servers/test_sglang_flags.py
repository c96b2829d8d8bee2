"""The flags that are written for SGLang, against its own argument parser and what was recorded of it.

    SPECBENCH_SGLANG_PYTHON=sglang/bin/python python -m pytest tests/engines/servers/test_sglang_flags.py

The parser needs no GPU: pip install --no-deps sglang, and what `sglang.srt.server_args` then misses.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from harness.engines.servers.served import ServedArm
from harness.engines.servers.sglang import _ALGORITHMS, speculative_flags
from tests.engines.servers.test_commands import commands

RECORDED = Path(__file__).with_name("sglang_flags.json")
"""Every flag of one version, by its number of values: 0, 1, or null for several or none."""
_PARSED = """
import argparse, json, sys
from importlib.metadata import version
from sglang.srt.server_args import ServerArgs
parser = argparse.ArgumentParser()
ServerArgs.add_cli_args(parser)
known = {flag: 1 if one.nargs is None else one.nargs if one.nargs == 0 else None
         for flag, one in sorted(parser._option_string_actions.items())}
parsed = [vars(parser.parse_args(given)) for given in json.loads(sys.argv[1])]
print(json.dumps({"version": version("sglang"), "flags": known, "parsed": parsed}, default=str))
"""


def all_settings() -> list[str]:
    """The flags of every setting of every algorithm."""
    found: list[str] = []
    for algorithm, settings in _ALGORITHMS.items():
        given = {"algorithm": algorithm, **dict.fromkeys(settings, 2)}
        if algorithm not in ("NGRAM", "NEXTN"):
            given["model"] = "HEAD"
        found += [one for one in speculative_flags(ServedArm(name="x", settings=given)) if one[:2] == "--"]
    return found


def our_commands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What each arm's server is given, behind the name of the module."""
    given = ("engine=sglang", "method=[ngram,eagle3_chain]", "methods.eagle3_chain.head=smollm2_135m-eagle3")
    found = commands(folder, monkeypatch, *given, "engine.mem_fraction_static=0.5")
    return {name: ["8000" if one == "PORT" else one for one in line[2:]] for name, line in found.items()}


def test_every_flag_is_among_those_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded: dict[str, int | None] = json.loads(RECORDED.read_text())["flags"]
    for line in our_commands(tmp_path, monkeypatch).values():
        at = 0
        while at < len(line):
            assert line[at] in recorded, line[at]
            at += 1 + (recorded[line[at]] or 0)
    # The last two are written for targets that are not on this machine.
    assert {*all_settings(), "--trust-remote-code", "--tp-size"} <= set(recorded)


def test_its_own_parser_reads_what_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = os.environ.get("SPECBENCH_SGLANG_PYTHON", "")
    if not python:
        pytest.skip("SPECBENCH_SGLANG_PYTHON names no interpreter with sglang")
    lines = our_commands(tmp_path, monkeypatch)
    made = subprocess.run(
        [python, "-c", _PARSED, json.dumps(list(lines.values()))], capture_output=True, text=True, check=True
    )
    found = json.loads(made.stdout.splitlines()[-1])
    parsed: dict[str, dict[str, Any]] = dict(zip(lines, found.pop("parsed"), strict=True))
    assert parsed["vanilla"]["speculative_algorithm"] is None
    assert (parsed["vanilla"]["model_path"], parsed["vanilla"]["port"]) == ("MODEL", 8000)
    assert parsed["vanilla"]["disable_radix_cache"] is True
    assert parsed["ngram"]["speculative_num_draft_tokens"] == 11
    assert parsed["ngram"]["speculative_ngram_max_bfs_breadth"] == 1
    eagle = parsed["eagle3_chain"]
    names = ("num_steps", "eagle_topk", "num_draft_tokens")
    assert {name: eagle[f"speculative_{name}"] for name in names} == dict(zip(names, (5, 1, 6), strict=True))
    assert set(all_settings()) <= set(found["flags"])
    # Another version is recorded by writing what it says here.
    recorded = json.loads(RECORDED.read_text())
    if found["version"] == recorded["version"]:
        assert found == recorded
