"""Keep evaluation prompts out of training: dialogues that share many words with one are dropped."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from harness.tasks.task import Task
from harness.training.dialogues import Sample

_SHARED_GRAM = 13
"""Consecutive words that no training prompt may share with an evaluation prompt (GPT-3: arXiv 2005.14165)."""
_WORD = re.compile(r"\w+")


def without_overlap(samples: Iterable[Sample], tasks: Iterable[Task]) -> tuple[list[Sample], int]:
    """The samples whose prompt shares no 13 consecutive words with a prompt of the tasks, and the number
    dropped."""
    forbidden: set[tuple[str, ...]] = set()
    for task in tasks:
        for one in task.load():
            forbidden.update(gram for turn in one.turns for gram in _grams(turn))
    kept, num_dropped = [], 0
    for sample in samples:
        if forbidden.isdisjoint(_grams(sample.prompt)):
            kept.append(sample)
        else:
            num_dropped += 1
    return kept, num_dropped


def _grams(text: str) -> Iterator[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return (tuple(words[i : i + _SHARED_GRAM]) for i in range(len(words) - _SHARED_GRAM + 1))
