"""Acceptance lengths by task, their mean over tasks, and paired differences between methods.

python scripts/tau_differences.py RESULTS [PATTERN of run ids [OVER/UNDER]] prints Markdown tables, one per
temperature. With OVER/UNDER, such as gto/control, the differences are those of the arms OVER_N and UNDER_N,
and their mean over N, the seeds of two trainings.
Intervals are a bootstrap: conversations are resampled within each task (2,000 times), alike for every method.
The mean gives every task the same weight, as the tables of the EAGLE papers do.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from harness.analysis.stats import CONFIDENCE, Floats, Totals, resample
from harness.store.locations import RUNS
from harness.store.records import BASELINE
from harness.store.run_store import load_run

Cells = dict[str, dict[str, Totals]]
"""Task -> method -> tokens and rounds of each conversation, in the same order for every method."""


def read(results: Path, pattern: str) -> dict[float, Cells]:
    """Temperature -> cells of the finished runs whose id matches the pattern."""
    found: dict[float, Cells] = defaultdict(dict)
    for folder in sorted((results / RUNS).iterdir()):
        if not fnmatchcase(folder.name, pattern):
            continue
        run = load_run(folder)
        if not run.finished:
            continue
        sums: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(lambda: [0, 0]))
        for record in run.records:
            if record.kind == "arm" and record.arm != BASELINE and record.repeat == 0:
                place = sums[record.arm][record.conversation]
                place[0] += sum(record.emitted)
                place[1] += len(record.emitted)
        order = sorted({name for method in sums.values() for name in method})
        task = found[run.manifest.cell.temperature].setdefault(run.manifest.cell.task, {})
        for method, by_conversation in sums.items():
            rows = np.array([by_conversation[name] for name in order], dtype=float)
            task[name_of(method, run.manifest.arms[method])] = Totals(rows[:, 0], rows[:, 1])
    return dict(found)


def name_of(method: str, settings: dict[str, object]) -> str:
    """The method and the size of its trees, if any: of EAGLE three numbers, of others the budget."""
    tree = settings.get("tree")
    own = tree if isinstance(tree, dict) else settings
    sizes = [own.get(key) for key in ("total_token", "depth", "top_k")]
    if None not in sizes:
        return f"{method} {'/'.join(map(str, sizes))}"
    return f"{method} {own['budget']}" if "budget" in own else method


def drawn(cells: Cells, method: str) -> tuple[dict[str, float], Floats, dict[str, Floats]]:
    """A method's tau by task, its resampled means over tasks [R], and its resampled taus by task [R]."""
    values, by_task = {}, {}
    for number, (task, methods) in enumerate(sorted(cells.items())):
        totals = methods[method]
        weights = resample(len(totals.amount), seed=number)
        values[task] = float(totals.amount.sum() / totals.cost.sum())
        by_task[task] = (weights @ totals.amount) / (weights @ totals.cost)
    return values, np.mean(list(by_task.values()), axis=0), by_task


def ends(sample: Floats, digits: int = 2) -> str:
    """The confidence interval as text."""
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.nanpercentile(sample, [tail, 100 - tail])
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def table(cells: Cells, compared: str = "") -> list[str]:
    """One table as lines of Markdown."""
    methods = [
        m for m in dict.fromkeys(m for c in cells.values() for m in c) if all(m in c for c in cells.values())
    ]
    tasks = sorted(cells)
    lines = [f"| method | {' | '.join(tasks)} | mean |", f"|:--|{'--:|' * (len(tasks) + 1)}"]
    means = {}
    for method in methods:
        values, mean, by_task = drawn(cells, method)
        means[method] = mean
        taus = [f"{values[task]:.2f} {ends(by_task[task])}" for task in tasks]
        lines.append(f"| {method} | {' | '.join(taus)} | {np.mean(list(values.values())):.2f} {ends(mean)} |")
    lines += ["", "| difference of means | |", "|:--|--:|"]
    gaps = {f"{over} - {under}": means[over] - means[under] for over, under in pairs(methods, compared)}
    if compared and gaps:
        gaps["mean of these"] = np.mean(list(gaps.values()), axis=0)
    return [*lines, *(f"| {name} | {gap.mean():+.3f} {ends(gap, 3)} |" for name, gap in gaps.items())]


def pairs(methods: Sequence[str], compared: str) -> list[tuple[str, str]]:
    """The methods whose difference is shown: all pairs, or with `OVER/UNDER` those of the same number."""
    if not compared:
        return [(over, under) for n, under in enumerate(methods) for over in methods[n + 1 :]]
    over, under = compared.split("/")
    by_arm = {method.split()[0]: method for method in methods}
    numbers = [arm.removeprefix(f"{over}_") for arm in by_arm if arm.startswith(f"{over}_")]
    return [(by_arm[f"{over}_{n}"], by_arm[f"{under}_{n}"]) for n in numbers if f"{under}_{n}" in by_arm]


def main(results: str, pattern: str = "*", compared: str = "") -> None:
    """Print the tables of the runs below `results`."""
    for temperature, cells in sorted(read(Path(results), pattern).items()):
        counts = [len(next(iter(methods.values())).amount) for methods in cells.values()]
        print(f"\nT = {temperature:g}; prompts by task: {', '.join(map(str, counts))}\n")
        print("\n".join(table(cells, compared)))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
