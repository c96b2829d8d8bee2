"""Diff: what differs between two runs and what that may have done to their numbers, in plain words."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from harness.analysis.comparability import NOT_SET, facts
from harness.analysis.row import Row
from harness.analysis.summary import summarise
from harness.config import ConfigError, near
from harness.reports import formatting
from harness.reports.known_effects import ARM, TOPICS, causes_of, topic_of
from harness.store.locations import run_folders
from harness.store.records import BASELINE, Run
from harness.store.run_store import MANIFEST, load_run

_WIDTH = 100
_LONGEST_VALUE = 48
_MAX_LISTED = 8


def find_run(root: Path, name: str) -> Run:
    """The run below `root` of this id, or with this in its id, or in this folder.

    Raises:
        ConfigError: there is none, or several; also what `load_run` raises.
    """
    if (Path(name) / MANIFEST).is_file():
        return load_run(Path(name))
    known = list(run_folders(root)) if root.is_dir() else []
    found = [name] if name in known else [one for one in known if name in one]
    if len(found) == 1:
        return load_run(root / found[0])
    if found:
        raise ConfigError(f"{name!r}: stands in {len(found)} run ids: {_some(found)}. Type more of one.")
    raise ConfigError(
        f"{name!r}: no such run in {root}.{near(name, known)} There are {_some(known)}."
        " Type a run's id, a part of it that no other has, or its folder."
    )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(names[:_MAX_LISTED]) + more or "no runs"


class Fact(NamedTuple):
    """A fact in which two runs differ."""

    name: str
    first: str
    """Its value in the first run as JSON; null where it is not set."""
    second: str
    """The same for the second run."""


class Finding(NamedTuple):
    """A topic in which two runs differ."""

    topic: str
    effect: str
    facts: list[Fact]
    consequences: list[Fact]
    """Facts that differ because of `facts`."""


def findings(first: Run, second: Run) -> list[Finding]:
    """What differs, roughly in the order of how much it matters; nothing for replicates.

    Raises:
        ConfigError: a run has no records, and so no numbers to explain.
    """
    differing = _differing(first, second)
    found: dict[str, Finding] = {}
    later: list[tuple[int, Fact, tuple[str, ...]]] = []
    for fact in differing:
        rank, causes = causes_of(fact.name, NOT_SET in fact[1:])
        if causes:
            later.append((rank, fact, causes))
        else:
            _add(found, fact)
    for _, fact, causes in sorted(later, key=lambda one: one[0]):
        cause = next((one for one in causes if one in found), None)
        if cause is None:
            _add(found, fact)
        else:
            found[cause].consequences.append(fact)
    order = [topic.name for topic in TOPICS]
    ranks = {name: order.index(topic_of(one.facts[0].name)[1].name) for name, one in found.items()}
    return sorted(found.values(), key=lambda one: ranks[one.topic])


def _differing(first: Run, second: Run) -> list[Fact]:
    """Facts whose values differ; of an arm or rung that only one run has, only that the other lacks it."""
    mine, theirs = _plain(first), _plain(second)
    pairs = ((name, mine.get(name, NOT_SET), theirs.get(name, NOT_SET)) for name in {**mine, **theirs})
    one_sided = set(first.manifest.arms) ^ set(second.manifest.arms)
    return [
        Fact(*pair)
        for pair in pairs
        if pair[1] != pair[2] and not ((who := re.match(ARM, pair[0])) and who["who"] in one_sided)
    ]


def _plain(run: Run) -> dict[str, str]:
    """Facts by names that two runs of different targets or tasks share."""
    if not (own := facts(run)):
        raise ConfigError(
            f"{run.manifest.run_id}: holds no records, so there are no numbers to explain."
            " Type its command again to measure it."
        )
    manifest = run.manifest
    found = {f"cell.{name}": json.dumps(value) for name, value in vars(manifest.cell).items()}
    found |= {name: json.dumps(sorted(getattr(manifest, name))) for name in ("arms", "rungs")}
    for name, value in own.items():
        short = re.sub(r"^(target|decoding|prompts|task)\[[^]]*\]", r"\1", name)
        found[re.sub(r"^method\[[^]]*, ([^],]*)\]", r"method[\1]", short)] = value
    return found


def _add(found: dict[str, Finding], fact: Fact) -> None:
    name, topic = topic_of(fact.name)
    found.setdefault(name, Finding(name, topic.effect, [], [])).facts.append(fact)


def describe(first: Run, second: Run) -> str:
    """The whole answer as text: the two runs, what differs, what it may have done, the numbers.

    Raises:
        ConfigError: see `findings`.
    """
    found = findings(first, second)
    parts = [_heading("A", first), _heading("B", second), ""]
    if found:
        parts += [f"They differ in {', '.join(one.topic for one in found)}.", ""]
    else:
        parts += [*_wrapped("Nothing that is written down differs: what remains is noise.", ""), ""]
    for one in found:
        parts += [one.topic, *_listed(one.facts)]
        if one.consequences:
            names = ", ".join(fact.name for fact in one.consequences)
            parts += _wrapped(f"follows from it: {names}", "    ")
        parts += [*_wrapped(one.effect, "  "), ""]
    return "\n".join([*parts, *_numbers(first, second)])


def _heading(letter: str, run: Run) -> str:
    git = run.manifest.provenance.get("git") or {}
    commit = (
        f", commit {git['commit'][:10]}{' and changes' * bool(git.get('dirty'))}" if git.get("commit") else ""
    )
    return f"{letter}: {run.manifest.run_id}, {run.manifest.created or 'no date'}{commit}"


def _listed(differing: Sequence[Fact]) -> list[str]:
    lines = [
        f"    {fact.name}: {_short(fact.first)} in A, {_short(fact.second)} in B"
        for fact in differing[:_MAX_LISTED]
    ]
    rest = len(differing) - len(lines)
    return [*lines, *[f"    and {rest} more"] * (rest > 0)]


def _short(value: str) -> str:
    if len(value) > _LONGEST_VALUE:
        value = f"{value[: _LONGEST_VALUE - 3]}..."
    return "nothing" if value == NOT_SET else value


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False
    )


def _numbers(first: Run, second: Run) -> list[str]:
    """What both measured, side by side, and how a speedup comes about."""
    mine, theirs = ({row.method: row for row in summarise(run)} for run in (first, second))
    header = ["method", "", "tau", "cost of a round", "speedup", "tokens/s", "verdict"]
    lines = [header]
    for method in mine:
        if method in theirs:
            lines += [_line("A", mine[method]), ["", *_line("B", theirs[method])[1:]]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    effects = (
        "Cost of a round: in steps of the same run's vanilla, prefill left out. A method's speedup while it"
        " decodes is tau / cost of a round: see which of the two moved. What lies inside A/A (vanilla against"
        " itself) or has its interval in the other's is noise."
    )
    return [*table, "", *_wrapped(effects, "")]


def _line(letter: str, row: Row) -> list[str]:
    cost = 1.0 if row.method == BASELINE else row.tau / row.speedup_decode_only
    return [
        row.method,
        letter,
        formatting.tau(row),
        formatting.number(cost),
        formatting.speedup(row),
        formatting.number(row.tokens_per_s, 1),
        row.verdict or formatting.UNKNOWN,
    ]
