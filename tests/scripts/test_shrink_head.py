"""Cutting a head's draft vocabulary keeps the rows of the tokens that answers hold most often."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

SCRIPT = Path(__file__).parents[2] / "scripts" / "shrink_head.py"
WORDS = ["a", "b", "c", "d", "e", "f"]
DRAFTED = torch.tensor([0, 2, 3, 5])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="f"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    marked = torch.zeros(len(WORDS), dtype=torch.bool)
    marked[DRAFTED] = True
    head = tmp_path / "head"
    head.mkdir()
    weights = {
        "lm_head.weight": torch.arange(8.0).view(4, 2),
        "d2t": DRAFTED - torch.arange(4),
        "t2d": marked,
        "norm.weight": torch.ones(2),
    }
    save_file(weights, head / "model.safetensors")
    (head / "config.json").write_text(json.dumps({"draft_vocab_size": 4, "hidden_size": 2}))
    # The question's words do not count.
    lines = [{"user": "a a a a", "assistant": "d d b b b c"}, {"user": "a", "assistant": "f f d"}]
    (tmp_path / "dialogues.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    runpy.run_path(str(SCRIPT), run_name="__main__")


def cut(folder: Path, size: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    run(monkeypatch, "vocabulary", folder / "head", folder / "out", size, folder, folder / "dialogues.jsonl")
    return folder / "out"


def test_the_most_frequent_drafted_tokens_of_answers_keep_their_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = cut(folder, 2, monkeypatch)
    weights = load_file(out / "model.safetensors")
    assert (weights["d2t"] + torch.arange(2)).tolist() == [3, 5]
    assert weights["t2d"].nonzero().flatten().tolist() == [3, 5]
    assert weights["lm_head.weight"].tolist() == [[4.0, 5.0], [6.0, 7.0]]
    assert weights["norm.weight"].tolist() == [1.0, 1.0]
    assert json.loads((out / "config.json").read_text()) == {"draft_vocab_size": 2, "hidden_size": 2}


@pytest.mark.parametrize("size", [0, 4])
def test_a_size_that_cuts_nothing_is_refused(
    size: int, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        cut(folder, size, monkeypatch)
    assert stopped.value.code == 2
    assert "from 1 to 3" in capsys.readouterr().err


def test_a_token_map_lists_the_most_frequent_tokens_of_answers_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "tokens", folder / "map.pt", 3, folder, folder / "dialogues.jsonl")
    assert torch.load(folder / "map.pt", weights_only=True) == [1, 3, 5]
    assert "3 of 6 tokens, 88.9% of the answers" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run(monkeypatch, "tokens", folder / "map.pt", 5, folder, folder / "dialogues.jsonl")
    assert "from 1 to 4" in capsys.readouterr().err
