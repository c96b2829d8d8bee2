"""A method within a method is chosen by its name, like any option."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from harness.cli.method_parts import as_options
from tests.support.typing_in import type_bench

SMALL = ["~experiment", "target=tiny", "task=smoke", "measure=acceptance", "task.limit=1"]


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("methods.tts.base=eagle2", "method@methods.tts.base=eagle2"),
        ("methods.hybrid.second=racer,eagle3", "method@methods.hybrid.second=racer,eagle3"),
        ("methods.tts.base.head=random", None),
        ("methods.tts.stride=4", None),
        ("methods.eagle2.tree=cost_aware", None),
        ("~methods.tts.base", None),
        ("--cfg=job", None),
    ],
)
def test_only_the_choice_of_a_part_is_read_as_an_option(typed: str, read: str | None) -> None:
    assert as_options([typed]) == [read or typed]


@pytest.mark.parametrize("base", ["eagle", "eagle2", "eagle3", "fasteagle", "specblock", "gto", "cast"])
def test_a_base_is_typed_by_its_name(
    base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*SMALL, "method=[tts]", f"methods.tts.base={base}", "methods.tts.base.head=random"]
    status, out, err = type_bench([*words, f"results={tmp_path}", "dry_run=true"], monkeypatch, capsys)
    assert status == 0, err
    assert json.loads(out.splitlines()[-1])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["methods.tts.base=eagel2"], r"no such option. Did you mean eagle2"),
        (["methods.tts.base=ngram"], r"NGram cannot be trained while it drafts; .*methods\.tts\.base=eagle3"),
        (["methods.tts.base=tts"], r"Tts cannot be trained while it drafts"),
    ],
)
def test_a_base_that_cannot_be_is_refused_with_a_remedy(
    words: list[str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, _, err = type_bench([*SMALL, "method=[tts]", *words, f"results={tmp_path}"], monkeypatch, capsys)
    assert status == 2, err
    assert re.search(told, " ".join(err.split())), err
