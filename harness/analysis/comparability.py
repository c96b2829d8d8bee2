"""Comparability: the facts that two runs must share to stand in one table, and those in which they differ."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.config import ConfigError
from harness.store.records import Cell, Run
from harness.system.naming import class_names

Facts = dict[str, str]

SETTING = ("target", "batch_size", "profile", "baseline", "acceptor", "engine", "scenario")
"""Fields of a cell that all rows of one table share."""
_AXES = {"target", "task", "methods", "rungs", "decoding", "decodings", "max_new_tokens", "seeds"}
"""Parts of the configuration whose facts are named separately, because the tables' axes vary them."""
_OUTPUT = {"tracker", "results", "replicate", "hydra", "dry_run"}
_CHANGING = {"cpu_mhz", "gpu_sm_mhz", "gpu_memory_mhz"}
"""Clocks as they happened to be; the limits they are held to stay among the facts."""
_NOT_COMPARED = ("batch_size", "quiet")
"""Settings of the measurement that need not be equal: an axis of the tables, and what is done about noise,
which every row shows by its mark."""
_SETTINGS = ("method[", "rung[")
"""Beginnings of facts that a sweep varies: they make rows of their own and no other table."""
_EVERY_TARGET = ("dtype", "attention", "linear", "cache", "compile", "quantisation")
_EVERY_DECODING = ("max_new_tokens", "ignore_end_token")
_EVERY_SAMPLING = ("filter_order",)
"""Not of a greedy decoding, which filters nothing."""
_OF_THE_TARGET = ("template_hash", "end_token_ids")
"""Parts of the prompt set's card that all tasks of a target share."""
NOT_SET = "null"
"""What a fact is in a run that has the rest of its part."""
_BEFORE_THE_AXES: dict[str, Any] = {
    "engine": {"_target_": "Local"},
    "scenario": {"_target_": "MultiTurn", "name": Cell.scenario, "max_turns": None},
}
"""The settings of runs from before engine and scenario could be chosen; class names without modules."""
_MAX_LISTED = 6


def facts(run: Run) -> Facts:
    """What may explain a number of `run`, by name; two runs compare if they agree on all parts they share.

    A part is what stands before a name's first dot, as `target[tiny]` or `packages`: what belongs to one
    target, task, decoding or method has a part that holds it, so that the tables' axes may vary. Within a
    part, a name that one run lacks is null there: nobody set it. A run without records has no number and no
    facts. The commit is not among them: the hash of the sources says the same, and not that a results file
    was committed.
    """
    if not run.records:
        return {}
    manifest, cell, config = run.manifest, run.manifest.cell, run.manifest.config
    config = class_names(config)
    if config:
        config = {**_BEFORE_THE_AXES, **config}
    found: dict[str, Any] = {"profile": cell.profile, "baseline": cell.baseline}
    found |= _flat("", {k: v for k, v in manifest.provenance.items() if k not in ("git", "created")})
    found |= _flat("config", {k: v for k, v in config.items() if k not in _AXES | _OUTPUT})
    for name in _NOT_COMPARED:
        found.pop(f"config.measure.{name}", None)
    card, decoding = dict(manifest.target), dict(config.get("decoding") or {})
    found |= {f"target.{name}": card.pop(name) for name in _EVERY_TARGET if name in card}
    found |= {f"decoding.{name}": decoding.pop(name) for name in _EVERY_DECODING if name in decoding}
    found |= {f"sampling.{name}": decoding.pop(name) for name in _EVERY_SAMPLING if name in decoding}
    prompts = dict(manifest.prompts)
    card |= {name: prompts.pop(name) for name in _OF_THE_TARGET if name in prompts}
    found |= _flat(f"target[{cell.target}]", {**card, "config": config.get("target") or {}})
    found |= _flat(f"decoding[{cell.decoding}]", decoding)
    found |= _flat(f"prompts[{cell.target}, {cell.task}]", prompts)
    found |= _flat(f"task[{cell.task}]", config.get("task") or {})
    # A method may have another head or tree for another target; on one target it must be the same everywhere.
    for name, settings in class_names(manifest.arms).items():
        found |= _flat(f"method[{cell.target}, {name}]", settings)
    for name, settings in (config.get("rungs") or {}).items():
        found |= _flat(f"rung[{name}]", settings)
    return {
        name: json.dumps(value, sort_keys=True, default=str)
        for name, value in found.items()
        if name.rpartition(".")[2] not in _CHANGING
    }


def _flat(prefix: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        result |= _flat(name, value) if isinstance(value, Mapping) else {name: value}
    return result


def differences(runs: Sequence[Run]) -> dict[str, dict[str, list[str]]]:
    """Fact -> value -> ids of the runs that have it, for the facts in which `runs` differ."""
    known = [(run.manifest.run_id, own, set(map(_part, own))) for run in runs if (own := facts(run))]
    found: dict[str, dict[str, list[str]]] = {}
    for name in sorted({name for _, own, _ in known for name in own}):
        part, values = _part(name), dict[str, list[str]]()
        for run_id, own, parts in known:
            if part in parts:
                values.setdefault(own.get(name, NOT_SET), []).append(run_id)
        if len(values) > 1:
            found[name] = values
    return found


def _part(name: str) -> str:
    """`method[tiny, ngram]` of a fact about it; names of targets and tasks may hold dots."""
    return re.match(r"\w*(\[[^\]]*\])?", name)[0]  # type: ignore[index]


def refuse_mixed(runs: Sequence[Run]) -> None:
    """Raise ConfigError where the runs of a table do not compare, naming what differs and what to type.

    An arm or a rung with other settings is no obstacle: it is another row (see `variants`).
    """
    found = {
        name: values
        for table in _tables(runs)
        for name, values in differences(table).items()
        if not name.startswith(_SETTINGS)
    }
    if not found:
        return
    lines = []
    for name, values in list(found.items())[:_MAX_LISTED]:
        shown = [f"{value} in {ids[0]}{_and_more(len(ids) - 1)}" for value, ids in values.items()]
        lines.append(f"{name}: {', '.join(shown)}")
    rest = len(found) - len(lines)
    lines += [f"{rest} more"] * (rest > 0)
    raise ConfigError(
        f"these runs differ in what a table must hold constant: {'; '.join(lines)}."
        " Choose runs with --only 'PATTERN' (of run ids), or type --allow-mixed for a table with footnotes."
    )


def _and_more(number: int) -> str:
    return f" and {number} more" if number else ""


def variants(runs: Sequence[Run]) -> tuple[dict[str, str], list[str]]:
    """Letter of each run's id ("" where it needs none), and a footnote for each letter.

    Runs of one letter agree on every fact in which any two runs of their table differ. A run that failed
    beside others of its cell has a letter of its own. One that was mended (see `_is_mended`) is left out.
    """
    letters: dict[str, str] = {}
    notes: dict[str, str] = {}
    for table in _tables([run for run in runs if not _is_mended(run, runs)]):
        names = list(differences(table))
        for run in table:
            described = _described(run, names) if run.records else _asked(run, table)
            if described and described not in notes:
                notes[described] = _letter(len(notes))
            letters[run.manifest.run_id] = notes.get(described, "")
    return letters, [f"{letter}: {described}" for described, letter in notes.items()]


def _tables(runs: Sequence[Run]) -> Iterator[list[Run]]:
    """The runs of each table."""
    found: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        found.setdefault(tuple(getattr(run.manifest.cell, name) for name in SETTING), []).append(run)
    yield from found.values()


def _described(run: Run, names: Sequence[str]) -> str:
    """The facts of these names."""
    own = facts(run)
    parts = set(map(_part, own))
    return "; ".join(f"{name} = {own.get(name, NOT_SET)}" for name in names if _part(name) in parts)


def _asked(run: Run, runs: Sequence[Run]) -> str:
    """The overrides that tell a failed run from the other ones of its cell; "" where it is alone."""
    others = [other for other in runs if other.manifest.cell == run.manifest.cell and other is not run]
    if not others:
        return ""
    common = set.intersection(*map(_overrides, others))
    return f"failed with {' '.join(sorted(_overrides(run) - common)) or run.manifest.run_id}"


def _overrides(run: Run) -> set[str]:
    """What was typed, without what only says where output goes."""
    return {one for one in run.manifest.overrides if re.split(r"[.=]", one.lstrip("+~"))[0] not in _OUTPUT}


def _is_mended(run: Run, runs: Sequence[Run]) -> bool:
    """Whether a run without records was measured later, as the same cell with the same overrides."""
    return not run.records and any(
        other.finished
        and other.manifest.cell == run.manifest.cell
        and other.manifest.created >= run.manifest.created
        and _overrides(other) == _overrides(run)
        for other in runs
    )


def _letter(number: int) -> str:
    return chr(ord("a") + number) if number < 26 else f"z{number - 25}"
