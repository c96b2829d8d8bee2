"""Answers: the exhibits of the runs, joined with their records, as the explorer's JSON; bounded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any

from harness.analysis.comparability import variants
from harness.reports.page.content import place
from harness.store.records import Exhibit, GenerationRecord, Run

MAX_SHOWN = 1_000_000
"""Tokens of answers and nodes of trees in one page: about 10 MB of it."""


def answers(runs: Sequence[Run], max_shown: int = MAX_SHOWN) -> dict[str, Any]:
    """Every answer that has an exhibit, within `max_shown` tokens and nodes of trees.

    num_kept: how many the runs have. vocabularies: token texts, one map a target; an answer's `vocabulary`
    is an index into them. The first conversation of every run comes before anybody's second.
    """
    letters, _ = variants(runs)
    found = [one for run in runs if run.manifest.run_id in letters for one in _joined(run)]
    found.sort(key=lambda one: one[0])
    vocabularies: dict[tuple[str, str], dict[int, str]] = {}
    shown: list[dict[str, Any]] = []
    left = max_shown
    for _, run, record, exhibit in found:
        left -= len(record.output_ids) + sum(len(tree.tokens) for tree in exhibit.trees)
        left -= sum(map(len, exhibit.picture or ()))
        if left < 0:
            break
        manifest = run.manifest
        source = (manifest.cell.target, str(manifest.target.get("source")))
        vocabularies.setdefault(source, {}).update(exhibit.pieces)
        answer = _answer(record, exhibit)
        answer |= {"at": place(manifest.cell), "run": manifest.run_id, "variant": letters[manifest.run_id]}
        shown.append({**answer, "vocabulary": list(vocabularies).index(source)})
    return {
        "num_kept": len(found),
        "shown": shown,
        "vocabularies": [
            {str(token): text for token, text in sorted(pieces.items())} for pieces in vocabularies.values()
        ],
    }


def _joined(run: Run) -> Iterator[tuple[int, Run, GenerationRecord, Exhibit]]:
    """Exhibits with their records and the rank of their conversation in the run."""
    records = {
        (record.arm, record.conversation, record.turn): record
        for record in run.records
        if record.sample == record.repeat == 0
    }
    ranks: dict[str, int] = {}
    for exhibit in run.exhibits:
        record = records.get((exhibit.arm, exhibit.conversation, exhibit.turn))
        if record is not None:
            yield ranks.setdefault(exhibit.conversation, len(ranks)), run, record, exhibit


def _answer(record: GenerationRecord, exhibit: Exhibit) -> dict[str, Any]:
    return {
        "arm": record.arm,
        "conversation": record.conversation,
        "category": record.category,
        "turn": record.turn,
        "prompt": exhibit.prompt,
        "num_prompt_tokens": record.num_prompt_tokens,
        "ids": list(takewhile(exhibit.pieces.__contains__, record.output_ids)),
        "num_tokens": len(record.output_ids),
        "stop": record.stop,
        "verdict": record.verdict.kind if record.verdict else None,
        "drafted": record.drafted,
        "accepted": record.accepted,
        "emitted": record.emitted,
        "total_ns": record.total_ns,
        "trees": [tree._asdict() for tree in exhibit.trees],
        **({"picture": exhibit.picture} if exhibit.picture else {}),
    }
