"""Runs and records made by hand, for tests that need no model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from harness.costs.grid import Grid
from harness.costs.table import CostTable
from harness.store.records import (
    Cell,
    DraftTree,
    Exhibit,
    Failure,
    GenerationRecord,
    NullReplay,
    Probe,
    Run,
    RunManifest,
    Verdict,
)
from harness.store.run_store import ResultStore

IDENTICAL = Verdict("identical")
CELL = Cell(
    target="tiny",
    task="smoke",
    decoding="greedy",
    temperature=0.0,
    batch_size=1,
    profile="full",
    baseline="eager",
    acceptor="coupled",
)
ROUND_NS = 10_000_000
_OF_RUN = ("nulls", "exhibits", "probes", "loads", "failures", "finished")


JUDGED = {"num_agreeing": 2, "surprisal_unat": 3_000_000, "score_ppm": 500_000}
"""The quality of an output that may differ from vanilla's, as a record has it."""


def make_record(
    arm: str = "ngram",
    conversation: str = "c00",
    accepted: Sequence[int] = (1, 0),
    drafted: Sequence[int] = (3, 0),
    **changes: Any,
) -> GenerationRecord:
    """An arm's generation whose rounds take ROUND_NS each and its prefill as much; nothing is trimmed."""
    num_rounds = len(accepted)
    emitted = list(changes.pop("emitted", [length + 1 for length in accepted]))
    timed = changes.get("timed", True)
    stages = {"draft_ns": 5, "verify_ns": 80, "accept_ns": 4, "commit_ns": 1}
    given: dict[str, Any] = {
        "arm": arm,
        "conversation": conversation,
        "category": "chat",
        "prompt_hash": "p",
        "num_prompt_tokens": 10,
        "output_ids": list(range(100, 101 + sum(emitted))),
        "stop": "cap",
        "accepted": list(accepted),
        "emitted": emitted,
        "drafted": list(drafted),
        "depth": list(drafted),
        **{name: [ROUND_NS * share // 100 * timed] * num_rounds for name, share in stages.items()},
        "prefill_ns": ROUND_NS * timed,
        "total_ns": ROUND_NS * (num_rounds + 1) * timed,
        "verdict": IDENTICAL,
    }
    return GenerationRecord(**{**given, **changes})


def make_rung(
    arm: str, conversation: str, num_tokens: int, total_ns: int, **changes: Any
) -> GenerationRecord:
    """A generation of somebody else's loop: tokens and a time, no rounds."""
    given: dict[str, Any] = {
        "accepted": (),
        "drafted": (),
        "kind": "rung",
        "output_ids": list(range(100, 100 + num_tokens)),
        "total_ns": total_ns,
        "prefill_ns": 0,
    }
    return make_record(arm, conversation, **{**given, **changes})


def make_exhibit(record: GenerationRecord, prompt: str = "Tell me.", piece: str = "t{} ") -> Exhibit:
    """The trees of a record's first rounds; what was kept is a path, all else a child of the root."""
    trees = []
    for number, (num_nodes, length) in enumerate(zip(record.drafted, record.accepted, strict=True)):
        start = 1 + sum(record.emitted[:number])
        # Trimming may have cut the path's end off the answer.
        path = [*record.output_ids[start : start + length], *range(800, 900)][:length]
        tokens = [*path, *range(900, 900 + num_nodes - length)]
        parents = [*range(-1, length - 1), *[-1] * (num_nodes - length)]
        if num_nodes:
            trees.append(DraftTree(number, tokens, parents, list(range(length)), [0.5] * num_nodes))
    shown = {*record.output_ids, *(token for tree in trees for token in tree.tokens)}
    return Exhibit(
        arm=record.arm,
        conversation=record.conversation,
        turn=record.turn,
        prompt=prompt,
        pieces={token: piece.format(token) for token in sorted(shown)},
        trees=trees[:12],
    )


def make_run(records: Sequence[GenerationRecord], run_id: str = "tiny.smoke.greedy.0", **changes: Any) -> Run:
    """A finished run of these records; changes go to the cell, the run and the manifest by their names.

    card: the manifest's `target`, whose name the cell has taken.
    """
    cell = replace(CELL, **{key: changes.pop(key) for key in vars(CELL) if key in changes})
    arms = dict.fromkeys(record.arm for record in records if record.kind == "arm")
    rungs = dict.fromkeys(record.arm for record in records if record.kind == "rung")
    of_run = {key: changes.pop(key) for key in _OF_RUN if key in changes}
    manifest: dict[str, Any] = {
        "run_id": run_id,
        "cell": cell,
        "arms": {name: {"scope": "conversation"} for name in arms},
        "rungs": list(rungs),
        "config": {"decoding": {"name": cell.decoding, "seeds": [0], "ignore_end_token": False}},
        "overrides": [],
        "target": changes.pop(
            "card", {"source": "test", "step_bytes": 10_000_000, "cache_bytes_per_token": 1000}
        ),
        "prompts": {"hash": "h"},
        "provenance": {"packages": {"torch": "2.13.0"}},
    }
    return Run(
        **{"folder": run_id, "records": list(records), "finished": True, **of_run},
        manifest=RunManifest(**{**manifest, **changes}),
    )


def sample_records(
    methods: dict[str, float], num_prompts: int = 16, num_repeats: int = 2, seed: int = 0, timed: bool = True
) -> list[GenerationRecord]:
    """Vanilla, and methods that accept a drafted token with a given chance; conversations of unequal length.

    Rounds take a little longer or shorter each time; the noise comes from `seed` alone.
    """
    noise, records = random.Random(seed), []
    for number in range(num_prompts):
        num_tokens = 8 + 4 * (number % 5)
        for repeat in range(num_repeats):
            for arm, chance in {"vanilla": 0.0, **methods}.items():
                accepted: list[int] = []
                while sum(accepted) + len(accepted) < num_tokens:
                    length = next((i for i in range(4) if noise.random() >= chance), 4)
                    accepted.append(length)
                drafted = [0 if arm == "vanilla" else 4] * len(accepted)
                over = sum(accepted) + len(accepted) - num_tokens
                emitted = [*(length + 1 for length in accepted[:-1]), accepted[-1] + 1 - over]
                total = int(ROUND_NS * (len(accepted) + 1) * noise.uniform(0.97, 1.03)) * timed
                records.append(
                    make_record(
                        arm,
                        f"c{number:02}",
                        accepted,
                        drafted,
                        emitted=emitted,
                        repeat=repeat,
                        total_ns=total,
                        timed=timed,
                    )
                )
    return records


def sample_run(run_id: str = "tiny.smoke.greedy.0", **changes: Any) -> Run:
    """Vanilla, two methods and a rung; everything that a table can show but faults."""
    records = sample_records({"ngram": 0.5, "suffix": 0.7}, seed=changes.pop("seed", 0))
    slower = [
        make_rung("transformers.generate", one.conversation, len(one.output_ids), int(one.total_ns * 1.1))
        for one in records
        if one.arm == "vanilla" and one.repeat == 0
    ]
    nulls = [NullReplay("c00", 4000, 1), NullReplay("c01", 4000, 1)]
    shown = [one for one in records if one.conversation in ("c00", "c01") and one.repeat == 0]
    given: dict[str, Any] = {
        "nulls": nulls,
        "probes": [Probe(2e9, 50.0, [1000, 1100, 1200, 1300, 1400])],
        "exhibits": [make_exhibit(one) for one in shown],
    }
    return make_run([*records, *slower], run_id, **{**given, **changes})


def broken_run() -> Run:
    """`suffix` writes something else than vanilla in one conversation, on another task and at T = 1."""
    records = sample_records({"ngram": 0.4, "suffix": 0.6}, num_prompts=6, seed=3)
    wrong = [
        make_record(
            "suffix",
            one.conversation,
            one.accepted,
            one.drafted,
            emitted=one.emitted,
            repeat=one.repeat,
            total_ns=one.total_ns,
            verdict=Verdict("broken", 3, 1.5),
        )
        if one.arm == "suffix" and one.conversation == "c02"
        else one
        for one in records
    ]
    return make_run(
        wrong,
        "tiny.humaneval.sampled.1",
        task="humaneval",
        decoding="sampled",
        temperature=1.0,
        profile="full",
    )


def failed_run() -> Run:
    """A cell of a sweep that never measured anything."""
    return make_run(
        [],
        "tiny.humaneval.greedy.failed-2",
        task="humaneval",
        finished=False,
        arms={},
        card={},
        prompts={},
        provenance={},
        config={"methods": {"vanilla": {}, "ngram": {}}},
        failures=[Failure("out-of-memory", "tiny, humaneval, greedy", "no room; turn down a_b | c & 50 %")],
    )


def sample_runs() -> list[Run]:
    """Two tasks at two temperatures, with a broken row and a failed cell."""
    sampled = sample_run("tiny.smoke.sampled.3", seed=5, decoding="sampled", temperature=1.0)
    return [sample_run(), sampled, broken_run(), failed_run()]


def write_runs(runs: Sequence[Run], results: Path) -> None:
    """Put runs into the store below `results`, as the bench would."""
    for run in runs:
        with ResultStore(results / "runs").open_run(run.manifest) as opened:
            for probe in run.probes:
                opened.write_probe(probe)
            if run.records:
                opened.begin_block("all")
                for record in run.records:
                    opened.write_record(record)
                for null in run.nulls:
                    opened.write_null(null)
                for exhibit in run.exhibits:
                    opened.write_exhibit(exhibit)
                opened.finish_block("all")
            for failure in run.failures:
                opened.write_failure(failure)
            if run.finished:
                opened.finish()


class _LinearTable:
    """A table that is linear in each axis, so that what lies between its cells is known."""

    def seconds(self, batch: float, context: float, tokens: float) -> float:
        return (1 + 0.1 * batch) * (1 + 0.001 * context) * (1 + 0.2 * tokens)

    def __call__(self) -> CostTable:
        axes = {"batch": (1, 2, 4), "context": (100, 500), "tokens": (1, 2, 4, 8)}
        cells = [
            [[self.seconds(b, c, t) for t in axes["tokens"]] for c in axes["context"]] for b in axes["batch"]
        ]
        return CostTable(
            identity={
                "device": {"cpu": "one"},
                "target": {"dtype": "float32", "linear": "plain"},
                "software": {"torch": "2"},
            },
            name="tiny",
            forward=Grid(axes=axes, values=np.array(cells)),
            settle=Grid(axes=axes, values=np.array(cells) / 100),
            spread=0.01,
        )


make_table = _LinearTable()
