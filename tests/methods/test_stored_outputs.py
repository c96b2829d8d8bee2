"""Stored outputs: lines end at line feeds alone, and bad ones are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.config import ConfigError
from methods.shared.stored_outputs import read_outputs


def test_a_text_may_hold_other_line_separators(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    lines = [{"text": "one\u2028two\x85three", "output_ids": [1, 2]}, {"output_ids": []}]
    written = "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    file.write_bytes((written + "\n\n").encode())
    assert list(read_outputs(str(file))) == [[1, 2], []]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (b"{", "JSONDecodeError"),
        (b"\xff", "UnicodeDecodeError"),
        (b"[1]", "TypeError"),
        (b"{}", "KeyError: 'output_ids'"),
        (b'{"output_ids": "12"}', "ids are whole numbers from 0"),
        (b'{"output_ids": [1, -1]}', "ids are whole numbers from 0"),
        (b'{"output_ids": [1, true]}', "ids are whole numbers from 0"),
        (b'{"output_ids": [1, 9]}', r"got 9; the target's vocabulary is 0\.\.8"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, told: str) -> None:
    file = tmp_path / "records.jsonl"
    file.write_bytes(b'{"output_ids": [8]}\n' + line + b"\n")
    with pytest.raises(
        ConfigError, match=rf"^x={file}:2: needs `output_ids`, a list of token ids \(.*{told}"
    ):
        list(read_outputs(str(file), "x=", vocab_size=9))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere: no such file; the records\.jsonl"):
        list(read_outputs(str(tmp_path / "nowhere")))
