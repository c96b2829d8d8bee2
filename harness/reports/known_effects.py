"""Known effects: the settings in which two runs may differ, and what each may have done to the numbers.

`known_effects.yaml` beside this file holds the table and describes its format.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf

FILE = Path(__file__).with_suffix(".yaml")
ARM = r"method\[(?P<who>[^]]*)\]"
"""Beginning of the names of an arm's facts."""
_WITHOUT_TEMPERATURE = ("filters", "seeds")
"""Topics that greedy decoding does not have."""


class Topic(NamedTuple):
    """One setting in which two runs may differ."""

    name: str
    """Name as printed, with {who} for an arm or a rung."""
    pattern: str
    """Regular expression of the whole names of its facts; the first topic that matches counts."""
    effect: str
    """What a difference may have done to the numbers, in full sentences."""


class Consequence(NamedTuple):
    """A fact that follows from others."""

    pattern: str
    """Regular expression of the fact's whole name."""
    causes: tuple[str, ...]
    """Names of the topics that explain the fact if they differ too, with {who} as in `Topic.name`."""


def _load() -> tuple[tuple[Topic, ...], tuple[Consequence, ...]]:
    data: Any = OmegaConf.to_container(OmegaConf.load(FILE))
    return (
        tuple(Topic(one["name"], "|".join(one["facts"]), one["effect"]) for one in data["topics"]),
        tuple(Consequence(one["fact"], tuple(one["causes"])) for one in data["consequences"]),
    )


TOPICS, CONSEQUENCES = _load()


def topic_of(name: str) -> tuple[str, Topic]:
    """The topic of a fact, and the topic's name with the arm or rung filled in."""
    for topic in TOPICS:
        if match := re.fullmatch(topic.pattern, name):
            return topic.name.format(**match.groupdict()), topic
    raise AssertionError(name)


def causes_of(name: str, one_sided: bool) -> tuple[int, tuple[str, ...]]:
    """Rank of a fact among the consequences, and the names of the topics that may explain it.

    (0, ()) if the fact is no consequence. one_sided: only one of the two runs has the fact.
    """
    for rank, (pattern, causes) in enumerate(CONSEQUENCES):
        if match := re.fullmatch(pattern, name):
            return rank, tuple(cause.format(**match.groupdict()) for cause in causes)
    without = one_sided and topic_of(name)[0] in _WITHOUT_TEMPERATURE
    return 0, ("temperature",) if without else ()
