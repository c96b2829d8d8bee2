"""Provenance: what makes two runs the same, and what never leaves the machine."""

from __future__ import annotations

import getpass
import json
import socket
from pathlib import Path

import pytest

from harness import run_identity
from harness.naming import REDACTED, redact, slug
from harness.provenance import device_facts, git_state, source_hash
from harness.records import Cell
from harness.run_identity import identity, run_id

CELL = Cell("tiny", "smoke", "greedy", 0.0, 1, "full", "eager", "coupled")
DEVICE = {"type": "cpu", "name": "a", "num_threads": 2, "cpu_mhz": 1000.0}
CONFIG = {"target": {"name": "tiny"}, "methods": {"ngram": {"max_ngram": 3}}}


def name(config: dict[str, object] = CONFIG, replicate: int = 0, **device: object) -> str:
    return run_id(CELL, identity(config, replicate, {**DEVICE, **device}))


def test_the_id_is_stable_and_ignores_what_only_says_where_output_goes() -> None:
    assert name() == name()
    assert name() == name({**CONFIG, "tracker": {"mode": "online"}, "results": "elsewhere"})
    assert name() == name(cpu_mhz=3000.0)
    assert name().startswith("tiny.smoke.greedy.")


def test_the_id_tells_what_could_change_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    others = {
        name({**CONFIG, "methods": {"ngram": {"max_ngram": 4}}}),
        name(replicate=1),
        name(num_threads=1),
        name(type="cuda"),
    }
    monkeypatch.setattr(run_identity, "source_hash", lambda: "edited")
    others.add(name())
    monkeypatch.setattr(run_identity, "packages", lambda: {"torch": "2.9.0", "transformers": "5.17.0"})
    others.add(name())
    monkeypatch.undo()
    assert len(others | {name()}) == 7


def test_the_source_hash_follows_code_and_data_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "a.yaml").write_text("x: 1")
    first = source_hash(tmp_path)
    (tmp_path / "conf" / "a.pyc").write_text("compiled")
    assert source_hash(tmp_path) == first
    (tmp_path / "conf" / "a.yaml").write_text("x: 2")
    assert source_hash(tmp_path) != first


@pytest.mark.parametrize(
    "secret",
    [
        {"tracker": {"api_key": "0123456789abcdef"}},
        {"hf_token": "abc"},
        ["+target.token=abc", "tracker.api_key=abc"],
        {"url": "https://user:password@example.org/x"},
        {"note": "hf_abcdefghijklmnopqrstuv"},
    ],
)
def test_secrets_are_redacted_wherever_they_stand(secret: object) -> None:
    text = json.dumps(redact(secret))
    assert REDACTED in text
    for word in ("0123456789abcdef", "=abc", '"abc"', "password", "hf_abc"):
        assert word not in text


def test_words_that_only_look_like_secrets_stay() -> None:
    plain = {"max_new_tokens": 48, "mask_token": "<mask>", "stop_tokens": ["<end>"], "revision": "a" * 40}
    assert redact(plain) == plain


def test_the_machine_is_described_without_its_name_and_its_user() -> None:
    text = json.dumps(device_facts("cpu"))
    # In a container the host name can be short enough to stand inside a word.
    assert f'"{socket.gethostname()}"' not in text
    assert f'"{getpass.getuser()}"' not in text
    assert str(Path.home()) not in text
    assert json.loads(text)["num_threads"] >= 1


def test_outside_a_checkout_there_is_no_commit(tmp_path: Path) -> None:
    assert git_state(tmp_path) == {"commit": None, "dirty": None}


def test_names_become_folder_names() -> None:
    assert slug("org/model v1.5") == "org-model-v1-5"
    assert slug("//") == "unnamed"
