"""Runs apart by the category of their prompts, so that every table can have a line for each."""

from __future__ import annotations

from dataclasses import replace

from harness.store.records import Run


def by_category(run: Run) -> list[Run]:
    """The run as one run for each category of its prompts, in the order of the prompts.

    Their tasks are called `TASK: CATEGORY`; prompts without a category stay with the task's own name. What
    belongs to no prompt is in all of them: failures, and the loads of blocks. Their records are in memory.
    """
    categories = list(dict.fromkeys(record.category for record in run.records))
    return [_of_one(run, category) for category in categories] or [run]


def _of_one(run: Run, category: str) -> Run:
    records = [record for record in run.records if record.category == category]
    conversations = {record.conversation for record in records}
    cell = run.manifest.cell
    named = replace(cell, task=f"{cell.task}: {category}" if category else cell.task)
    return replace(
        run,
        manifest=replace(run.manifest, cell=named, run_id=f"{run.manifest.run_id}/{category}"),
        records=records,
        nulls=[null for null in run.nulls if null.conversation in conversations],
        exhibits=[exhibit for exhibit in run.exhibits if exhibit.conversation in conversations],
    )
