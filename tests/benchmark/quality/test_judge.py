"""Quality stands beside every lossy row: counted by hand, recorded, shown; without it nothing is shown."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from harness.analysis.row import Row
from harness.analysis.summary import pairwise, summarise
from harness.config import ConfigError
from harness.reports import formatting
from harness.reports.markdown import markdown
from harness.reports.page.content import content
from harness.reports.tables import console_table, output_table
from harness.store.records import Verdict
from harness.store.run_store import load_run
from harness.tasks.conversation import Conversation
from harness.tasks.numbers import final_number
from harness.tasks.sources import HubTask, HumanEvalTask
from tests.benchmark.test_experiment import measured, plan_of
from tests.support.builders import CELL, make_record, make_run, sample_records

LOSSY = Verdict("lossy")


def judged_run(**changes: Any) -> Any:
    records = [
        replace(
            one,
            verdict=LOSSY if one.arm != "vanilla" else one.verdict,
            num_agreeing=len(one.output_ids) - 2 * (one.arm != "vanilla"),
            surprisal_unat=500_000 * len(one.output_ids),
            **changes,
        )
        for one in sample_records({"ngram": 0.5})
    ]
    return make_run(records, acceptor="top_k 2")


def test_a_lossy_row_without_quality_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="must not be shown"):
        Row(where=CELL, method="ngram", verdict="lossy", num_prompts=3)


def test_lossy_records_without_quality_are_a_failed_row_without_numbers() -> None:
    records = [
        replace(one, verdict=LOSSY) if one.arm == "ngram" else one for one in sample_records({"ngram": 0.5})
    ]
    vanilla, ngram = summarise(make_run(records))
    assert vanilla.tokens_per_s > 0
    assert ngram.failed
    assert ngram.is_bad
    assert math.isnan(ngram.tokens_per_s)
    assert "quality was not recorded" in formatting.marks(ngram)
    # One unjudged generation is enough.
    run = judged_run()
    run.records[-1] = replace(run.records[-1], num_agreeing=None)
    assert [row.failed for row in summarise(run)] == [False, True]


def test_quality_is_pooled_over_tokens_and_shown_in_tables_page_and_json_line() -> None:
    run = judged_run(score_ppm=500_000)
    rows = summarise(run)
    num_tokens = sum(len(one.output_ids) for one in run.records if one.arm == "ngram")
    num_records = sum(one.arm == "ngram" for one in run.records)
    quality = rows[1].quality
    assert quality is not None
    assert quality.agreement == pytest.approx(1 - 2 * num_records / num_tokens)
    assert quality.log_likelihood == pytest.approx(-0.5)
    assert quality.score == 0.5
    for headers, body in (console_table(rows), output_table(rows)):
        shown = dict(zip(headers, body[1], strict=True))
        assert shown["log-likelihood / token"] == "-0.500"
        assert shown["score"] == "50.0 %"
        assert shown["agreement"] == formatting.percent(quality.agreement)
    page = content(rows, pairwise(run), [run], [])
    assert page["rows"][1]["quality"]["log_likelihood"] == -0.5
    assert "log-likelihood / token" in markdown(rows, pairwise(run))


def test_rows_that_must_equal_vanilla_have_no_such_columns() -> None:
    headers, _ = console_table(summarise(make_run(sample_records({"ngram": 0.5}))))
    assert not {"agreement", "score", "log-likelihood / token"} & set(headers)
    headers, _ = console_table(summarise(judged_run()))
    assert "score" not in headers


def test_a_run_records_the_quality_of_every_arm_as_counted_by_hand(tmp_path: Path) -> None:
    overrides = ("accept=top_k", "acceptor.k=1000", "method=[eagle3]", "methods.eagle3.head=random")
    run = load_run(measured(plan_of(tmp_path, *overrides, "measure=acceptance", "ladder=none"), tmp_path))
    by_arm = {row.method: row for row in summarise(run)}
    assert by_arm["eagle3"].verdict == "lossy"
    vanilla, relaxed = by_arm["vanilla"].quality, by_arm["eagle3"].quality
    assert vanilla is not None
    assert relaxed is not None
    assert vanilla.agreement == 1.0
    assert 0 < relaxed.agreement < 1
    assert relaxed.log_likelihood < vanilla.log_likelihood
    for record in run.records:
        assert record.surprisal_unat is not None
        assert record.num_agreeing is not None
        assert 0 <= record.num_agreeing <= len(record.output_ids)


def test_the_number_of_an_answer_is_the_marked_or_last_one() -> None:
    cases = {
        "so 3 + 4 = 7 apples": 7,
        "#### 1,234": 1234,
        "The answer is \\boxed{-5} of 9": -5,
        "It costs $2.50.": 2.5,
        "none": None,
        "12 then 13\n#### 18\nDone in 3 steps": 18,
    }
    for text, expected in cases.items():
        found = final_number(text)
        assert (None if found is None else float(found)) == expected


def test_gsm8k_answers_are_scored_by_their_number(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"question": "2+2?", "answer": "2+2=<<2+2=4>>4\n#### 4"}))
    task = HubTask(
        name="gsm8k",
        dataset="x/y",
        split="test",
        turns=("{question}",),
        category="math",
        answer_column="answer",
        path=str(file),
    )
    (one,) = task.load()
    assert [task.score(one, text) for text in ("It is 4.", "It is 5.", "four")] == [1.0, 0.0, 0.0]
    assert task.score(replace(one, answer=""), "4") is None


PROBLEM = {
    "prompt": "from math import sqrt\n\ndef half(x):\n    '''Half of x.'''\n",
    "test": "def check(candidate):\n    assert candidate(4) == 2 and sqrt(4) == 2\n",
    "entry_point": "half",
}
ANSWERS = {
    "```python\ndef half(x):\n    return x / 2\n```": 1.0,
    "Sure:\n```\nimport os\ndef half(x):\n    return x\n```": 0.0,
    "    return x / 2": 1.0,
    "```python\ndef half(x):\n    return x / 2": 1.0,
    "```python\nwhile True: pass\ndef half(x): ...\n```": 0.0,
    "```python\ndef half(x):\n    raise SystemExit(0)\n```": 0.0,
    "no code": 0.0,
}


def test_code_is_run_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from harness.tasks import code_check

    monkeypatch.setattr(code_check, "_SECONDS", 1)
    conversation = Conversation(id="x", category="code", turns=("?",), answer=json.dumps(PROBLEM))
    off, running = HumanEvalTask(name="humaneval"), HumanEvalTask(name="humaneval", run_code=True)
    for text, expected in ANSWERS.items():
        assert off.score(conversation, text) is None
        assert running.score(conversation, text) == expected, text


def test_an_engine_that_accepts_by_its_own_rule_refuses_a_relaxed_one() -> None:
    from harness.decoding.relaxed.thresholds import TopK
    from harness.engines.engine import Engine

    with pytest.raises(ConfigError, match="forced or relaxed"):
        Engine.refuse(type("Server", (), {"name": "server"})(), {}, {}, TopK())


def test_a_record_keeps_quality_through_json() -> None:
    record = make_record(num_agreeing=3, surprisal_unat=5, score_ppm=1_000_000)
    assert record.to_json()["score_ppm"] == 1_000_000
