"""Fingerprints of prompts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from harness.config import ConfigError
from harness.tasks.overlap import Fingerprints

SEEN = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"


@pytest.mark.parametrize(
    ("text", "shared"),
    [
        (SEEN, True),
        ("Then: " + SEEN.upper().replace(" ", ", ") + "!", True),
        ("two three four five six seven eight nine ten eleven twelve thirteen fourteen and more", True),
        (SEEN.replace("seven", "7"), False),
        (SEEN.rsplit(" ", 2)[0], False),
        ("", False),
    ],
)
def test_thirteen_words_in_a_row_are_found_whatever_stands_around_them(
    text: str, shared: bool, tmp_path: Path
) -> None:
    Fingerprints.of([SEEN, "another prompt of a few words", SEEN]).save(tmp_path / "prompts.npy")
    known = Fingerprints.load(tmp_path / "prompts.npy")
    assert known.share(["nothing", text]) is shared


def test_ten_thousand_other_texts_are_not_found() -> None:
    known = Fingerprints.of(" ".join(f"w{i}x{j}" for j in range(20)) for i in range(1000))
    assert not known.share(" ".join(f"v{i}x{j}" for j in range(20)) for i in range(10_000))


@pytest.mark.parametrize("stored", [np.zeros(3), np.zeros((3, 4), dtype=np.uint8), None])
def test_a_file_of_anything_else_is_refused_by_name(stored: np.ndarray | None, tmp_path: Path) -> None:
    file = tmp_path / "prompts.npy"
    if stored is None:
        file.write_bytes(b"not an array")
    else:
        np.save(file, stored)
    with pytest.raises(ConfigError, match=r"prompts\.npy: "):
        Fingerprints.load(file)
