"""Keep evaluation prompts out of training: dialogues that share many words with one are dropped."""

from __future__ import annotations

from collections.abc import Iterable

from harness.tasks.overlap import grams
from harness.tasks.task import Task
from harness.training.dialogues import Sample


def without_overlap(samples: Iterable[Sample], tasks: Iterable[Task]) -> tuple[list[Sample], int]:
    """The samples whose prompt shares no 13 consecutive words with a prompt of the tasks, and the number
    dropped."""
    forbidden: set[tuple[str, ...]] = set()
    for task in tasks:
        for one in task.load():
            forbidden.update(gram for turn in one.turns for gram in grams(turn))
    kept, num_dropped = [], 0
    for sample in samples:
        if forbidden.isdisjoint(grams(sample.prompt)):
            kept.append(sample)
        else:
            num_dropped += 1
    return kept, num_dropped
