"""A method in another method, chosen by its name: `methods.tts.base=eagle2` is an option, not a text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import conf


def as_options(arguments: Sequence[str]) -> list[str]:
    """The words of a command line, with choices of such a part as Hydra's choices of an option.

    Then the part is composed as a whole: its settings can be given beside it, several are swept, and a name
    that does not exist is refused with those that do.
    """
    parts = "|".join(sorted(_parts()))
    chosen = re.compile(rf"(methods\.\w+\.(?:{parts}))=([\w,]+)")
    found = [chosen.fullmatch(word) for word in arguments]
    return [
        f"method@{match[1]}={match[2]}" if match else word
        for word, match in zip(arguments, found, strict=True)
    ]


@cache
def _parts() -> frozenset[str]:
    """Keys at which a method of conf/method holds another one."""
    files = (Path(conf.__file__).parent / "method").glob("*.yaml")
    return frozenset(
        key for file in files for key in re.findall(r"/method@(\w+):", file.read_text(encoding="utf-8"))
    )
