"""Headroom by hand: what the ledger and a table say of seconds that were not spent."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from harness.analysis.summary import summarise
from harness.costs.grid import Grid
from harness.costs.headroom import contexts, headroom, run_identity, table_of
from harness.costs.table import CostTable, DraftingCost
from harness.reports.markdown import markdown
from tests.support.builders import make_record, make_run, make_table

TABLE = make_table()
RECORD = make_record("ngram", "c00", [2, 0], [4, 0], num_prompt_tokens=90)
DRAFTING = DraftingCost(
    settings={"draft_length": 4},
    round=Grid(axes={"batch": (1, 4), "context": (100, 500)}, values=np.full((2, 2), 0.25)),
)


def with_drafting(table: CostTable) -> CostTable:
    return replace(table, drafters={"ngram": DRAFTING})


def test_the_context_of_a_round_is_what_lies_in_the_cache() -> None:
    # Prompt 90; the first round keeps two and adds one, of which the last is pending.
    assert contexts([RECORD]).tolist() == [90, 93]


def test_an_oracle_verifies_only_what_it_keeps() -> None:
    found = headroom([RECORD], TABLE, "ngram", None)
    spent, tokens = RECORD.total_ns * 1e-9, len(RECORD.output_ids)
    ratio = make_table.seconds(1, 100, 3) / make_table.seconds(1, 100, 5)
    saved = RECORD.verify_ns[0] * 1e-9 * (1 - ratio)
    drafting = sum(RECORD.draft_ns) * 1e-9
    assert found.free_drafter == pytest.approx(tokens / (spent - drafting))
    assert found.oracle_length == pytest.approx(tokens / (spent - saved))
    assert found.both == pytest.approx(tokens / (spent - saved - drafting))


def test_a_prediction_is_the_prefill_and_the_tables_rounds() -> None:
    found = headroom([RECORD], with_drafting(TABLE), "ngram", {"draft_length": 4})
    rounds = float(TABLE.step_seconds(1, 100, 5) + TABLE.step_seconds(1, 100, 1)) + 2 * 0.25
    assert found.predicted == pytest.approx(len(RECORD.output_ids) / (RECORD.prefill_ns * 1e-9 + rounds))
    shared = replace(RECORD, batch_size=4)
    batched = headroom([shared], with_drafting(TABLE), "ngram", {"draft_length": 4})
    rounds = float(TABLE.step_seconds(4, 100, 5) + TABLE.step_seconds(4, 100, 1)) + 2 * 0.25
    assert batched.predicted == pytest.approx(
        len(RECORD.output_ids) / (RECORD.prefill_ns * 1e-9 + rounds / 4)
    )


def test_what_the_table_does_not_know_is_not_known() -> None:
    assert math.isnan(headroom([RECORD], None, "ngram", None).oracle_length)
    assert math.isnan(headroom([RECORD], TABLE, "ngram", {"draft_length": 4}).predicted)
    assert math.isnan(headroom([RECORD], with_drafting(TABLE), "ngram", {"draft_length": 5}).predicted)
    wide = make_record("ngram", "c00", [2], [60])
    assert math.isnan(headroom([wide], with_drafting(TABLE), "ngram", {"draft_length": 4}).oracle_length)
    assert not math.isnan(headroom([RECORD], None, "ngram", None).free_drafter)


def test_rows_have_it_where_a_table_is_of_their_machine_and_target() -> None:
    records = [make_record("vanilla", "c00", [0] * 6, [0] * 6), RECORD]
    arms = {"vanilla": {"scope": "conversation"}, "ngram": {"draft_length": 4, "scope": "conversation"}}
    run = make_run(records, arms=arms)
    own = replace(with_drafting(TABLE), identity=run_identity(run.manifest))
    assert table_of(run.manifest, [TABLE, own]) is own
    vanilla, ngram = summarise(run, [TABLE, own])
    assert vanilla.speedup_oracle_length == pytest.approx(1.0)
    assert vanilla.speedup_predicted == pytest.approx(1.0)
    assert ngram.speedup_free_and_oracle > ngram.speedup_oracle_length > ngram.speedup
    assert math.isfinite(ngram.speedup_predicted)
    assert "| oracle length |" in markdown([vanilla, ngram])
    plain = summarise(run, [TABLE])
    assert math.isnan(plain[1].speedup_oracle_length)
    assert "| oracle length |" not in markdown(plain)
