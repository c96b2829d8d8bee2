"""SAM: how long a draft is, and how long the text is remembered."""

from __future__ import annotations

from methods.sam import SAM


def drafted(drafter: SAM, text: list[int], room: int = 100) -> list[int]:
    state = drafter.start_one()
    drafter.extend_one(state, text)
    return list(drafter.propose_one(text, state, room))


def test_the_draft_grows_with_the_match_and_stops_at_its_bound() -> None:
    text = list(range(60))
    for bound, expected in ((40, 12), (6, 5)):
        assert drafted(SAM(num_predicts=bound), [*text, 7, 8, 9]) == text[10 : 10 + expected]


def test_a_match_that_is_too_short_drafts_nothing() -> None:
    text = [*range(20), 7, 8]
    assert drafted(SAM(min_match=2), text)
    assert drafted(SAM(min_match=3), text) == []


def test_a_chain_of_fixed_length_takes_the_longest_match_that_enough_tokens_follow() -> None:
    """Two tokens follow the first occurrence of (8, 9), and five that of (9)."""
    text = [9, 1, 2, 8, 9, 3, 8, 9]
    assert drafted(SAM(num_predicts=2, length="fixed"), text) == [3]
    assert drafted(SAM(num_predicts=4, length="fixed"), text) == [1, 2, 8]
    assert drafted(SAM(num_predicts=10, length="fixed"), text) == [1, 2, 8, 9, 3, 8, 0, 0, 0]
    assert drafted(SAM(num_predicts=10, length="fixed"), text, room=2) == [1, 2]


def test_a_sequence_beside_another_one_remembers_the_same_texts() -> None:
    drafter = SAM(memory="process")
    drafter.new_call(keep_memory=False)
    alone = drafter.start_one()
    drafter.extend_one(alone, [1, 2, 3, 4, 5])
    drafter.end_one(alone)
    together = [drafter.start_one(), drafter.start_one()]
    for state in together:
        drafter.extend_one(state, [7, 2])
    assert [list(drafter.propose_one([2], state, 2)) for state in together] == [[3, 4], [3, 4]]
    for state in together:
        drafter.end_one(state)
    last = drafter.start_one()
    drafter.extend_one(last, [9, 7, 2])
    assert list(drafter.propose_one([2], last, 100)) == [7, 2, 9, 7]
