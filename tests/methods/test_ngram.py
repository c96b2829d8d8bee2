"""N-gram: what the rules of prompt lookup leave out; tests/conformance compares all drafts with the codes."""

from __future__ import annotations

import pytest

from methods.ngram import NGram


def drafted(drafter: NGram, text: list[int]) -> list[int]:
    state = drafter.start_one()
    drafter.extend_one(state, text)
    return list(drafter.propose_one(text, state, 100))


def test_the_original_rule_takes_no_latest_occurrence() -> None:
    with pytest.raises(ValueError, match="first occurrence"):
        NGram(rule="original", occurrence="latest")


def test_the_draft_ends_before_the_end_token() -> None:
    text = [5, 6, 7, 2, 8, 5]
    assert drafted(NGram(draft_length=4), text) == [6, 7, 2, 8]
    assert drafted(NGram(draft_length=4, end_token_id=2), text) == [6, 7]
    assert drafted(NGram(draft_length=4, end_token_id=6), text) == []
