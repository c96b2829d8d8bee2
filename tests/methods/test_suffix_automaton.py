"""The suffix automaton against brute force over every prefix, with its cost counted rather than timed."""

from __future__ import annotations

from itertools import cycle, islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from methods.suffix.automaton import ROOT, SuffixAutomaton

texts = st.lists(st.integers(0, 2), max_size=40)
limits = st.none() | st.integers(1, 6)


class CountedList(list[int]):
    """A list that counts how often it is read."""

    reads = 0

    def __getitem__(self, key):  # type: ignore[no-untyped-def]
        self.reads += 1
        return super().__getitem__(key)


def first_end(part: list[int], text: list[int]) -> int | None:
    """End of the first occurrence; None without one."""
    size = len(part)
    return next((end for end in range(size, len(text) + 1) if text[end - size : end] == part), None)


@given(texts, limits)
def test_while_it_grows_the_repeated_suffix_is_the_longest_one_that_stood_before(
    text: list[int], most: int | None
) -> None:
    automaton = SuffixAutomaton(max_match=most)
    for now in range(1, len(text) + 1):
        automaton.extend(text[now - 1])
        seen = text[:now]
        sizes = range(1, min(now - 1, most or now) + 1)
        longest = max((size for size in sizes if first_end(seen[-size:], seen[:-1])), default=0)
        match = automaton.repeated()
        assert match.length == longest
        if longest:
            assert match.end == first_end(seen[-longest:], seen)
            assert list(automaton.after(match, 1)) == seen[match.end : match.end + 1] != []


@given(texts, texts, limits)
def test_another_text_is_followed_at_its_longest_suffix_within_the_limit(
    corpus: list[int], text: list[int], most: int | None
) -> None:
    automaton, place = SuffixAutomaton(corpus), (ROOT, 0)
    for now in range(1, len(text) + 1):
        place = automaton.step(*place, text[now - 1], most)
        seen = text[:now]
        sizes = range(1, min(now, most or now) + 1)
        longest = max((size for size in sizes if first_end(seen[-size:], corpus) is not None), default=0)
        match = automaton.found(*place)
        assert match.length == longest
        if longest:
            assert match.end == first_end(seen[-longest:], corpus)


@pytest.mark.parametrize("most", [None, 1, 9])
@pytest.mark.parametrize("period", [1, 2, 17])
def test_a_token_costs_the_same_however_long_and_repetitive_the_text(period: int, most: int | None) -> None:
    def reads(count: int) -> int:
        text = list(islice(cycle(range(period)), count))
        corpus = SuffixAutomaton(text)
        automaton, place = SuffixAutomaton(max_match=most), (ROOT, 0)
        for links in (corpus, automaton):
            links._link = CountedList(links._link)
        for token in text:
            automaton.extend(token)
            automaton.repeated()
            place = corpus.step(*place, token, most)
            corpus.found(*place)
        return sum(links._link.reads for links in (corpus, automaton))  # type: ignore[attr-defined]

    assert reads(2000) <= 2.2 * reads(1000) + 50
    assert reads(2000) <= 12 * 2000
