"""SAM: every draft is that of the authors' code, in texts that go on over calls too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from methods.sam import SAM

RECORDED = Path(__file__).parents[3] / "shared/fixtures/ngram/public/sam"
CASES = sorted(RECORDED.glob("*.json")) if RECORDED.is_dir() else []


@pytest.mark.skipif(not CASES, reason="the recorded cases are not beside this checkout")
@pytest.mark.parametrize("file", CASES, ids=lambda file: file.stem)
def test_every_draft_is_that_of_the_authors_code(file: Path) -> None:
    case = json.loads(file.read_text())
    drafter = SAM(num_predicts=case["params"]["n_predicts"], alpha=case["params"]["alpha"])
    state = drafter.start_one()
    for number, call in enumerate(case["calls"]):
        if call["memory"] == "fresh":
            state = drafter.start_one()
        drafter.extend_one(state, call["prompt_ids"])
        for index, told in enumerate(call["rounds"]):
            drafter.extend_one(state, [told["root"]])
            own = list(drafter.propose_one([told["root"]], state, 1000))
            assert own == told["draft_tokens"], f"call {number}, round {index}"
            # The root is pushed already; the accepted tokens follow.
            drafter.extend_one(state, told["pushed"][1:])


def test_the_draft_grows_with_the_match_and_stops_at_its_bound() -> None:
    text = list(range(60))
    for bound, expected in ((40, 12), (6, 5)):
        drafter = SAM(num_predicts=bound)
        state = drafter.start_one()
        drafter.extend_one(state, [*text, 7, 8, 9])
        assert list(drafter.propose_one([9], state, 100)) == text[10 : 10 + expected]
