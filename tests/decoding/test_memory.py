"""What a drafter may remember from one call of the loop to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pytest

from harness.config import configurable
from harness.decoding.acceptance import Coupled
from harness.decoding.batch import Generation
from harness.decoding.loop import DecodingLoop
from harness.decoding.sampling import DecodingParams
from harness.drafting.drafter import SCOPES, Scope, keeps_memory
from harness.drafting.sequence_drafter import SequenceDrafter
from harness.reports.formatting import NARROW_SCOPES
from methods.suffix import Suffix
from tests.support.targets import engine, requests

GREEDY = DecodingParams(name="greedy", max_new_tokens=20)


@configurable
class Rememberer(SequenceDrafter):
    """Drafts what followed the last three tokens in earlier calls, and nothing from the text itself."""

    reach: Literal["call", "question", "process"] = "question"

    @property
    def scope(self) -> Scope:
        return self.reach

    def __post_init__(self) -> None:
        self._new = {}

    def new_call(self, keep_memory: bool) -> None:
        self._followers: dict[tuple[int, ...], list[int]] = {**self._new} if keep_memory else {}
        self._new: dict[tuple[int, ...], list[int]] = {}

    def extend_one(self, state: Any, tokens: Sequence[int]) -> None:
        context = [*self._contexts[0]]
        for end in range(max(3, len(context) - len(tokens)), len(context)):
            self._new[tuple(context[end - 3 : end])] = context[end : end + 4]

    def propose_one(self, context: Sequence[int], state: Any, room: int) -> Sequence[int]:
        return self._followers.get(tuple(context[-3:]), [])[:room]


def played(loop: DecodingLoop, drafter: Rememberer, row: int, same_question: bool) -> Generation:
    return loop.generate([requests()[row]], drafter, GREEDY, Coupled(), same_question=same_question)[0]


def drafts_at_all(reach: str, same_question: bool) -> bool:
    """Whether the second of two calls with the same prompt has drafted; both emit the same."""
    loop, drafter = engine(), Rememberer(reach=reach)  # type: ignore[arg-type]
    drafter.bind(loop.target)
    first = played(loop, drafter, 1, False)
    second = played(loop, drafter, 1, same_question)
    assert first.output_ids == second.output_ids, "memory changes the speed alone"
    assert sum(first.drafted) == 0
    assert (sum(second.accepted) > 5) == (sum(second.drafted) > 0)
    return sum(second.drafted) > 0


@pytest.mark.parametrize(
    ("reach", "same_question", "remembers"),
    [
        ("call", True, False),
        ("question", True, True),
        ("question", False, False),
        ("process", True, True),
        ("process", False, True),
    ],
)
def test_memory_reaches_as_far_as_the_scope_says(reach: str, same_question: bool, remembers: bool) -> None:
    assert drafts_at_all(reach, same_question) is remembers


def test_a_wider_scope_never_forgets_more() -> None:
    for same_question in (False, True):
        kept = [keeps_memory(scope, same_question) for scope in SCOPES]
        assert kept == sorted(kept)
    assert not any(keeps_memory(scope, True) for scope in ("round", "call"))


def test_tables_name_every_scope_that_is_wider_than_a_call() -> None:
    assert [scope for scope in SCOPES if scope not in NARROW_SCOPES] == ["question", "process"]
    assert Suffix().knowledge in NARROW_SCOPES
    assert Suffix(corpus_path="outputs.jsonl").knowledge == "corpus outputs.jsonl"
    assert Rememberer().knowledge == "question"
