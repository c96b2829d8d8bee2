"""Measure how reports scale: write synthetic runs with the store's own writer, time `report build` on them.

    python scripts/store_scale.py FOLDER --runs 10 100 1000

Writes FOLDER/N/runs for each N (1,000 records per run; existing runs are kept) and prints the seconds and
peak memory of `python -m harness.report build` over it, in a process of its own. A run holds vanilla and one
of ten methods on 125 conversations of two turns, each measured twice; ten methods share a cell.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from harness.store.records import Cell, GenerationRecord, NullReplay, Probe, RunManifest, Verdict
from harness.store.run_store import ResultStore

TARGETS = tuple(f"target_{number}" for number in range(5))
TASKS = tuple(f"task_{number}" for number in range(10))
DECODINGS = (("greedy", 0.0), ("sampled", 1.0))
METHODS = tuple(f"method_{number}" for number in range(10))
RUNS = [
    (target, task, decoding, method)
    for target in TARGETS
    for task in TASKS
    for decoding in DECODINGS
    for method in METHODS
]
NUM_CONVERSATIONS, NUM_TURNS, NUM_REPEATS = 125, 2, 2
LENGTHS = 16, 64
ROUND_NS = {"draft_ns": 2_000_000, "verify_ns": 30_000_000, "accept_ns": 500_000, "commit_ns": 200_000}


def make_manifest(number: int) -> RunManifest:
    """The manifest of run `number` of `RUNS`."""
    target, task, (decoding, temperature), method = RUNS[number]
    settings = {"_target_": f"methods.{method}", "draft_length": 4, "scope": "conversation"}
    return RunManifest(
        run_id=f"{target}.{task}.{decoding}.{number:04}",
        cell=Cell(
            target=target,
            task=task,
            decoding=decoding,
            temperature=temperature,
            batch_size=1,
            profile="full",
            baseline="eager",
            acceptor="coupled",
        ),
        arms={"vanilla": {"scope": "conversation"}, method: settings},
        rungs=[],
        config={
            "decoding": {"name": decoding, "temperature": temperature, "seeds": [0], "max_new_tokens": 64},
            "target": {"name": target, "dtype": "float32"},
            "task": {"name": task, "path": f"{task}.jsonl"},
            "measure": {"profile": "full", "repeats": NUM_REPEATS},
        },
        overrides=[f"target={target}", f"task={task}", f"method=[{method}]"],
        target={"source": target, "step_bytes": 500_000_000, "cache_bytes_per_token": 20_000},
        prompts={"num_conversations": NUM_CONVERSATIONS, "hash": task, "template_hash": target},
        provenance={"packages": {"torch": "2"}, "device": {"name": "made up"}, "source_hash": "0"},
        created=f"2026-01-01T00:00:{number:06}",
    )


def make_records(number: int) -> list[GenerationRecord]:
    """The records of run `number`, conversation by conversation; a number always gives the same records."""
    method = RUNS[number][3]
    noise = np.random.default_rng(number)
    chance = 0.3 + 0.05 * METHODS.index(method)
    records = []
    for place in range(NUM_CONVERSATIONS * NUM_TURNS):
        conversation, turn = divmod(place, NUM_TURNS)
        # All methods of a cell give the same text.
        length = int(np.random.default_rng([number // len(METHODS), place]).integers(*LENGTHS))
        ids = noise.integers(0, 49_000, length).tolist()
        for arm in ("vanilla", method):
            num_drafted = 0 if arm == "vanilla" else 4
            kept = np.minimum(noise.geometric(1 - chance, length) - 1, num_drafted)
            num_rounds = int(np.searchsorted(np.cumsum(kept + 1), length - 1)) + 1
            accepted = kept[:num_rounds].tolist()
            emitted = [count + 1 for count in accepted]
            emitted[-1] -= sum(emitted) - (length - 1)
            for repeat in range(NUM_REPEATS):
                spent = {
                    name: (mean * noise.uniform(0.9, 1.2, num_rounds)).astype(int).tolist()
                    for name, mean in ROUND_NS.items()
                }
                prefill = int(80_000_000 * noise.uniform(0.9, 1.2))
                total = prefill + sum(map(sum, spent.values())) + 100_000 * num_rounds
                records.append(
                    GenerationRecord(
                        arm=arm,
                        conversation=f"{conversation:04}",
                        category="made up",
                        turn=turn,
                        repeat=repeat,
                        prompt_hash=f"{place:08x}",
                        num_prompt_tokens=60 + place,
                        output_ids=ids,
                        stop="cap",
                        drafted=[num_drafted] * num_rounds,
                        depth=[num_drafted] * num_rounds,
                        accepted=accepted,
                        emitted=emitted,
                        prefill_ns=prefill,
                        total_ns=total,
                        latency_ns=total,
                        verdict=Verdict("identical"),
                        **spent,
                    )
                )
    return records


def make_store(results: Path, num_runs: int) -> None:
    """Write the first `num_runs` runs below `results`; finished ones stay as they are."""
    store, sync = ResultStore(results / "runs"), os.fsync
    # Synthetic records need not survive a power cut, and a million waits for the disk would take an hour.
    os.fsync = lambda descriptor: None  # type: ignore[assignment]
    try:
        for number in range(num_runs):
            manifest = make_manifest(number)
            if store.is_finished(manifest.run_id):
                continue
            with store.open_run(manifest) as run:
                run.write_probe(Probe(2e10, 60.0, [30_000_000] * 5))
                written = run.finished_blocks
                blocks: dict[str, list[GenerationRecord]] = {}
                for record in make_records(number):
                    blocks.setdefault(record.conversation, []).append(record)
                for name, records in blocks.items():
                    if name in written:
                        continue
                    run.begin_block(name)
                    for record in records:
                        run.write_record(record)
                    run.write_null(NullReplay(name, 256, 0))
                    run.finish_block(name)
                run.finish()
    finally:
        os.fsync = sync


def measure(results: Path, formats: list[str]) -> dict[str, Any]:
    """Seconds and peak bytes of `report build` over `results`."""
    command = [sys.executable, "-m", "harness.report", "build", "--results", str(results)]
    begin = time.perf_counter()
    process = subprocess.Popen([*command, "--format", *formats], stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        sys.exit(f"{' '.join(command)}: ended with {os.waitstatus_to_exitcode(status)}")
    return {"seconds": round(seconds, 1), "cpu_s": round(usage.ru_utime + usage.ru_stime, 1)} | {
        "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2)
    }


def main() -> None:
    """Make the stores and time the report over each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--runs", type=int, nargs="+", default=[10, 100, 1000], metavar="N")
    parser.add_argument("--format", nargs="+", default=["md", "tex", "csv"])
    parser.add_argument("--make-only", action="store_true")
    given = parser.parse_args()
    for num_runs in given.runs:
        results = given.folder / str(num_runs)
        begin = time.perf_counter()
        make_store(results, num_runs)
        made = time.perf_counter() - begin
        if not given.make_only:
            measured = {"runs": num_runs, "formats": given.format, **measure(results, given.format)}
            print(json.dumps({**measured, "making_s": round(made, 1)}), flush=True)


if __name__ == "__main__":
    main()
