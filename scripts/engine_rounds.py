"""Rounds and tau of every engine in a folder of runs: by its counters, by its stream, and those of our loop.

    python scripts/engine_rounds.py RESULTS

`scripts/engine_vllm.sh` ends with it. A round by the stream is a burst behind the first one; a round by the
counters has a draft, so both are the same only for a method that always drafts, at one request at a time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from harness.store.records import GenerationRecord, Run
from harness.store.run_store import load_run

_HEAD = (
    *("engine", "batch", "method", "requests", "tokens", "rounds by counters", "rounds by stream"),
    *("drafted", "accepted", "tau of counters", "tau of bursts", "our rounds", "our tau"),
)
_UNKNOWN = "-"


def local_rounds(runs: Sequence[Run]) -> dict[tuple[str, str, int], int]:
    """The rounds of our loop, by method, conversation and turn."""
    found: dict[tuple[str, str, int], int] = {}
    for run in runs:
        if run.manifest.cell.engine == "local":
            found |= {(one.arm, one.conversation, one.turn): len(one.emitted) for one in run.records}
    return found


def row(
    run: Run, arm: str, records: Sequence[GenerationRecord], ours: dict[tuple[str, str, int], int]
) -> list[str]:
    """The line of one method of one run."""
    tokens = sum(len(one.output_ids) - 1 for one in records)
    bursts = sum(len(one.arrived) - 1 for one in records)
    counted = [one for one in records if one.engine_drafted is not None]
    rounds = sum(one.engine_rounds or 0 for one in counted)
    drafted, accepted = (
        sum(getattr(one, f"engine_{name}") or 0 for one in counted) for name in ("drafted", "accepted")
    )
    local = [ours.get((arm, one.conversation, one.turn)) for one in records]
    known = [one for one in local if one is not None]
    whole = len(known) == len(records)
    return [
        run.manifest.cell.engine,
        *map(str, (run.manifest.cell.batch_size, arm, len(records), tokens)),
        str(rounds) if rounds else _UNKNOWN,
        str(bursts),
        *((str(drafted), str(accepted)) if counted else (_UNKNOWN, _UNKNOWN)),
        f"{1 + accepted / rounds:.3f}" if rounds else _UNKNOWN,
        f"{tokens / bursts:.3f}" if bursts else _UNKNOWN,
        *((str(sum(known)), f"{tokens / sum(known):.3f}") if whole else (_UNKNOWN, _UNKNOWN)),
    ]


def table(runs: Sequence[Run]) -> str:
    """A Markdown table; its tokens are those behind the first one of each answer, which prefill gives."""
    ours = local_rounds(runs)
    lines = [list(_HEAD), ["---"] * len(_HEAD)]
    for run in sorted(runs, key=lambda one: (one.manifest.cell.engine, one.manifest.cell.batch_size)):
        if run.manifest.cell.engine == "local":
            continue
        for arm in dict.fromkeys(one.arm for one in run.records):
            lines.append(row(run, arm, [one for one in run.records if one.arm == arm], ours))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    """Print the table of a folder of runs."""
    if len(sys.argv) != 2:
        raise SystemExit("usage: python scripts/engine_rounds.py RESULTS")
    folders = sorted(one.parent for one in Path(sys.argv[1]).glob("runs/*/manifest.json"))
    if not folders:
        raise SystemExit(f"{sys.argv[1]}: no runs; type the results folder of a measurement")
    print(table([load_run(folder) for folder in folders]))


if __name__ == "__main__":
    main()
