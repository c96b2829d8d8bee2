"""The suffix automaton against brute force, and the method that drafts from it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.config import ConfigError
from harness.decoding.acceptance import Coupled
from harness.decoding.sampling import DecodingParams
from methods.shared.suffix_automaton import ROOT, SuffixAutomaton
from methods.suffix import Suffix
from methods.suffix.drafter import read_corpus
from tests.support.targets import engine, requests

texts = st.lists(st.integers(0, 2), max_size=40)


def ends_of(part: list[int], text: list[int]) -> list[int]:
    size = len(part)
    return [end for end in range(size, len(text) + 1) if text[end - size : end] == part]


@given(texts, st.none() | st.integers(1, 5))
def test_the_repeated_suffix_is_the_longest_one_and_its_first_place_is_told(
    text: list[int], most: int | None
) -> None:
    match = SuffixAutomaton(text, max_match=most).repeated()
    longest = 0
    for size in range(1, len(text) + 1):
        if len(ends_of(text[-size:], text)) > 1 and (most is None or size <= most):
            longest = size
    assert match.length == longest
    if longest:
        assert match.end == ends_of(text[-longest:], text)[0]
        assert match.end < len(text)


@given(texts, texts)
def test_following_another_text_keeps_its_longest_suffix_that_occurs(
    corpus: list[int], text: list[int]
) -> None:
    automaton, place = SuffixAutomaton(corpus), (ROOT, 0)
    for end in range(1, len(text) + 1):
        place = automaton.step(*place, text[end - 1])
        seen = text[:end]
        longest = max([size for size in range(end + 1) if size == 0 or ends_of(seen[-size:], corpus)])
        match = automaton.found(*place)
        assert match.length == longest
        if longest:
            assert match.end == ends_of(seen[-longest:], corpus)[0]


@given(st.lists(st.integers(0, 3), min_size=2, max_size=300))
def test_the_automaton_stays_linear(text: list[int]) -> None:
    assert len(SuffixAutomaton(text)._next) <= 2 * len(text)


def drafted(text: list[int], room: int = 99, **settings: object) -> list[int]:
    method = Suffix(**settings)  # type: ignore[arg-type]
    method._corpus = read_corpus(method.corpus_path) if method.corpus_path else None
    state = method.start_one()
    method.extend_one(state, text)
    return list(method.propose_one(text, state, room))


def test_it_drafts_what_followed_the_longest_suffix() -> None:
    text = [1, 2, 3, 9, 8, 2, 3, 7, 1, 2, 3]
    assert drafted(text) == [9, 8, 2, 3, 7, 1, 2, 3]
    assert drafted(text, draft_length=2) == [9, 8]
    assert drafted(text, room=1) == [9]
    assert drafted(text, length_factor=1.0) == [9, 8, 2]
    assert drafted(text, min_match=4) == []


def test_no_more_of_the_suffix_than_max_match_decides(tmp_path: Path) -> None:
    text = [3, 9, 2, 3, 4, 2, 3]
    assert drafted(text, min_match=1, draft_length=1) == [4]
    assert drafted(text, min_match=1, draft_length=1, max_match=1) == [9]
    file = tmp_path / "records.jsonl"
    file.write_text("\n".join(json.dumps({"output_ids": ids}) for ids in ([3, 9], [2, 3, 4])))
    assert drafted([2, 3], min_match=1, corpus_path=str(file)) == [4]
    assert drafted([2, 3], min_match=1, corpus_path=str(file), max_match=1) == [9]


def test_the_longer_match_of_a_corpus_wins_and_ends_with_its_output(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    file.write_text("\n".join(json.dumps({"output_ids": ids}) for ids in ([1, 2, 3, 4], [3, 4, 5])))
    assert drafted([2, 3, 9, 1, 2, 3], corpus_path=str(file)) == [4]
    assert drafted([1, 2, 3, 9, 1, 2, 3], corpus_path=str(file)) == [9, 1, 2, 3]
    assert Suffix(corpus_path=str(file)).knowledge == "corpus records.jsonl"
    assert Suffix().knowledge == "call"


def test_the_card_changes_with_what_the_corpus_holds(tmp_path: Path) -> None:
    file, cards = tmp_path / "records.jsonl", []
    for ids in ([1, 2], [1, 3]):
        file.write_text(json.dumps({"output_ids": ids}))
        cards.append(Suffix(corpus_path=str(file)).card()["corpus_sha256"])
    assert len(set(cards)) == 2
    assert Suffix().card() == {}


def test_a_bad_corpus_is_told_by_line(tmp_path: Path) -> None:
    file = tmp_path / "corpus.jsonl"
    with pytest.raises(ConfigError, match="no such file"):
        read_corpus(str(file))
    file.write_text('{"output_ids": [1]}\n{"ids": []}\n')
    with pytest.raises(ConfigError, match=r"corpus.jsonl:2"):
        read_corpus(str(file))


def test_lengths_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ValueError, match="above max_match"):
        Suffix(min_match=3, max_match=2)


@pytest.mark.parametrize("max_match", [None, 2])
def test_permuting_the_prompts_changes_no_round(max_match: int | None) -> None:
    loop, method = engine(), Suffix(min_match=1, max_match=max_match)
    method.bind(loop.target)
    params = DecodingParams(name="greedy", max_new_tokens=40)
    asked = requests()
    rounds = []
    for order in ([0, 1, 2], [2, 0, 1]):
        made = {row: loop.generate([asked[row]], method, params, Coupled())[0] for row in order}
        rounds.append([(made[row].drafted, made[row].accepted) for row in range(3)])
    assert rounds[0] == rounds[1]
    assert any(sum(drafted) for drafted, _ in rounds[0])
