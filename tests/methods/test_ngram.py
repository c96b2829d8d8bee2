"""N-gram: both rules of prompt lookup draft what the codes drafted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from methods.ngram import NGram

RECORDED = Path(__file__).parents[3] / "shared/fixtures/ngram/public"
CASES = sorted([*RECORDED.glob("pld_specbench/*.json"), *RECORDED.glob("pld_transformers/*.json")])


def drafter_of(case: dict[str, Any]) -> NGram:
    params = case["params"]
    if case["method"] == "pld_specbench":
        return NGram(
            max_ngram=params["max_ngram_size"], draft_length=params["num_pred_tokens"], rule="original"
        )
    return NGram(max_ngram=params["max_matching_ngram_size"], draft_length=params["num_output_tokens"])


@pytest.mark.skipif(not CASES, reason="the recorded cases are not beside this checkout")
@pytest.mark.parametrize("file", CASES, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_draft_is_that_of_the_code(file: Path) -> None:
    case = json.loads(file.read_text())
    drafter = drafter_of(case)
    end, longest = case["params"].get("eos_token_id"), case["params"].get("max_length", 1 << 30)
    for number, call in enumerate(case["calls"]):
        script, state, known = call["script"], drafter.start_one(), 0
        for index, told in enumerate(call["rounds"]):
            context = script[: told["n"] + 1]
            drafter.extend_one(state, context[known:])
            known = len(context)
            own = list(drafter.propose_one(context, state, 1000))
            # What the callers of the two functions cut off: after an end token, and where no room is left.
            if case["method"] == "pld_transformers":
                own = own[: own.index(end)] if end in own else own
                own = [] if known + 1 >= longest else own
            assert own == told["draft_tokens"], f"call {number}, round {index}"


def test_the_original_rule_takes_no_latest_occurrence() -> None:
    with pytest.raises(ValueError, match="first occurrence"):
        NGram(rule="original", occurrence="latest")
