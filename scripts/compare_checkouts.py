"""Two checkouts of this project, interleaved: are the tokens and ledgers the same, and is the speed?

python scripts/compare_checkouts.py BEFORE AFTER OUT [--pairs N] OVERRIDES... runs `python -m
harness.bench` with the overrides N times in each checkout (a folder), in alternating order, into
OUT/before-K and OUT/after-K. It reads the records as JSON, so that it compares versions that know nothing
of each other. Prints how many records differ in their token ids, stops or ledgers, and for every arm the
ratio of its tokens/s, after to before: median, smallest and largest over the pairs. Status 1 if any
record differs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

COUNTED = (
    "output_ids",
    "stop",
    "drafted",
    "depth",
    "accepted",
    "emitted",
    "prompt_hash",
    "num_prompt_tokens",
    "verdict",
)
"""Fields of a record that no clock changes."""

Key = tuple[Any, ...]


def measure(checkout: Path, results: Path, overrides: list[str]) -> None:
    """Run the benchmark of a checkout into `results`; its own output goes to standard error."""
    command = [sys.executable, "-m", "harness.bench", *overrides, f"results={results}", "replicate=next"]
    subprocess.run(command, cwd=checkout, check=True, stdout=sys.stderr)


def read(results: Path) -> dict[Key, list[dict[str, Any]]]:
    """(target, task, decoding, batch size, arm, prompt, ...) -> its records, one per run of the benchmark."""
    found: dict[Key, list[dict[str, Any]]] = defaultdict(list)
    for cell, record in _lines(results):
        place = [cell[key] for key in ("target", "task", "decoding", "batch_size")]
        call = [record[key] for key in ("arm", "conversation", "turn", "sample", "repeat")]
        found[tuple(map(str, place + call))].append(record)
    return found


def _lines(results: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for run in sorted((results / "runs").iterdir()):
        cell = json.loads((run / "manifest.json").read_text())["cell"]
        for line in (run / "records.jsonl").read_text().splitlines():
            yield cell, json.loads(line)


def differing(before: dict[Key, list[dict[str, Any]]], after: dict[Key, list[dict[str, Any]]]) -> list[str]:
    """One text per record that is missing on one side or differs in a counted field."""
    found = [f"{' '.join(key)}: on one side only" for key in sorted(before.keys() ^ after.keys())]
    for key in before.keys() & after.keys():
        seen = {json.dumps([record[name] for name in COUNTED]) for record in before[key] + after[key]}
        if len(seen) > 1:
            found.append(f"{' '.join(key)}: differs")
    return found


def rates(results: Path) -> dict[str, float]:
    """Arm -> tokens per second of all its timed calls, prompts included."""
    tokens: dict[str, int] = defaultdict(int)
    nanoseconds: dict[str, int] = defaultdict(int)
    for _, record in _lines(results):
        if record["timed"]:
            tokens[record["arm"]] += len(record["output_ids"])
            nanoseconds[record["arm"]] += record["total_ns"]
    return {arm: tokens[arm] / nanoseconds[arm] * 1e9 for arm in tokens}


def main() -> int:
    """Run the pairs and print the comparison; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("before", "after", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--pairs", type=int, default=1)
    arguments, overrides = parser.parse_known_args()
    sides = {"before": arguments.before, "after": arguments.after}
    ratios: dict[str, list[float]] = defaultdict(list)
    differences: list[str] = []
    num_records = 0
    for pair in range(arguments.pairs):
        folders = {name: (arguments.out / f"{name}-{pair}").absolute() for name in sides}
        for name in sorted(sides, reverse=pair % 2 == 0):
            measure(sides[name], folders[name], overrides)
        found = {name: read(folder) for name, folder in folders.items()}
        num_records += sum(map(len, found["after"].values()))
        differences += differing(found["before"], found["after"])
        speed = {name: rates(folder) for name, folder in folders.items()}
        for arm in speed["before"].keys() & speed["after"].keys():
            ratios[arm].append(speed["after"][arm] / speed["before"][arm])
    print(f"{num_records} records after, {len(differences)} differ")
    print("\n".join(differences[:20]))
    for arm, values in sorted(ratios.items()):
        low, middle, high = min(values), median(values), max(values)
        print(f"{arm}: after / before {middle:.3f} [{low:.3f}, {high:.3f}], {len(values)} pairs")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
