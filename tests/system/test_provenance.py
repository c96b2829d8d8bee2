"""Provenance: what makes two runs the same, and what never leaves the machine."""

from __future__ import annotations

import getpass
import json
import re
import socket
from pathlib import Path

import pytest

import conf
import harness
from harness.store import identity as run_identity
from harness.store.identity import identity, run_id
from harness.system import provenance
from harness.system.naming import digest, slug
from harness.system.provenance import device_facts, git_state, source_hash
from harness.system.secrets import REDACTED, redact
from tests.support.builders import CELL

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


CODE = """
def draft(n):
    return n + 1
"""


def source(folder: Path, **texts: str) -> str:
    """The hash of a source tree of these texts."""
    for name, text in texts.items():
        file = folder / digest(texts) / "methods" / name.replace("__", ".")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return source_hash(folder / digest(texts))


def test_the_source_hash_follows_what_code_does_and_not_how_it_is_written(tmp_path: Path) -> None:
    first = source(tmp_path, a__py=CODE)
    prose = '"""A module."""\n# A remark.\n' + CODE.replace("    return", '    """Draft."""\n    return')
    assert source(tmp_path, a__py=prose) == first
    assert source(tmp_path, a__py=CODE, a__pyc="compiled") == first
    others = [
        source(tmp_path, a__py=CODE.replace("1", "2")),
        source(tmp_path, b__py=CODE),
        source(tmp_path, a__py=CODE, a__jsonl="{}"),
        source(tmp_path, a__py=CODE, a__jsonl="[]"),
    ]
    assert len({first, *others}) == 5


def test_what_only_shows_numbers_is_not_in_the_source_hash(tmp_path: Path) -> None:
    for name in ("methods/ngram/drafter.py", "harness/reports/latex.py", "harness/decoding/loop.py"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(CODE)
    source_hash.cache_clear()
    first = source_hash(tmp_path)
    changes = {}
    for name in ("harness/reports/latex.py", "harness/decoding/loop.py"):
        (tmp_path / name).write_text(CODE.replace("1", "2"))
        source_hash.cache_clear()
        changes[name] = source_hash(tmp_path) != first
    assert changes == {"harness/reports/latex.py": False, "harness/decoding/loop.py": True}


def test_every_package_that_measures_is_in_the_source_hash() -> None:
    """A path that is not there would be left out of the hash without a word."""
    root = Path(harness.__file__).parent
    assert [name for name in provenance._MEASURING if not (root / name).exists()] == []


def test_a_source_hash_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no code"):
        source_hash(tmp_path)


def test_an_identity_does_not_follow_a_class_that_moved_to_another_module() -> None:
    config = {"methods": {"eagle": {"_target_": "methods.eagle.Eagle", "trees": [{"_target_": "a.b.Tree"}]}}}
    moved = {"methods": {"eagle": {"_target_": "methods.heads.Eagle", "trees": [{"_target_": "c.Tree"}]}}}
    other = {"methods": {"eagle": {"_target_": "methods.eagle.Other", "trees": [{"_target_": "a.b.Tree"}]}}}
    assert name(config=config) == name(config=moved) != name(config=other)


def test_the_configurable_classes_have_different_names() -> None:
    """Identities name classes without their modules, so two classes of one name would be one setting."""
    named: dict[str, set[str]] = {}
    for file in Path(conf.__file__).parent.rglob("*.yaml"):
        for path in re.findall(r"_target_: *([\w.]+)", file.read_text()):
            named.setdefault(path.rpartition(".")[2], set()).add(path)
    assert {name: paths for name, paths in named.items() if len(paths) > 1} == {}


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
    assert slug("") == "unnamed"


def test_names_in_other_scripts_stay_different() -> None:
    names = [
        "\u4efb\u52a1\u4e00",
        "\u4efb\u52a1\u4e8c",
        "a\u4efb",
        "a\u52a1",
        "...",
        "!!!",
        "x" * 300,
        "x" * 301,
    ]
    slugs = {slug(name) for name in names}
    assert len(slugs) == len(names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,70}", one) for one in slugs)
    assert slug("e\u0301") == slug("\u00e9"), "two forms of one text"
