"""Noise of a row by the loads of its blocks: weights, marks in every layout, runs that recorded none."""

from __future__ import annotations

import csv
import io
import math

import pytest

from harness.analysis.disturbance import disturbance
from harness.analysis.row import to_json
from harness.analysis.summary import summarise
from harness.reports import csv_files
from harness.reports.latex import latex
from harness.reports.markdown import markdown
from harness.reports.page.content import content
from harness.store.records import BlockLoad
from tests.support.builders import sample_run

LOADS = [
    BlockLoad(block="a", wall_s=30.0, others_share=0.02),
    BlockLoad(block="b", wall_s=10.0, others_share=0.31, causes={"others": 0.31, "bandwidth": 0.25}),
]


def test_blocks_count_by_their_seconds_and_causes_by_their_worst() -> None:
    more = BlockLoad(block="c", wall_s=10.0, others_share=None, causes={"bandwidth": 0.4})
    found = disturbance([*LOADS, more])
    assert found["disturbed_share"] == pytest.approx(0.4)
    assert found["others_share"] == pytest.approx((30 * 0.02 + 10 * 0.31) / 40), "of the blocks that know it"
    assert found["disturbances"] == {"others": 0.31, "bandwidth": 0.4}


def test_a_run_without_loads_is_unknown_and_not_quiet() -> None:
    row = summarise(sample_run())[0]
    assert math.isnan(row.disturbed_share)
    assert math.isnan(row.others_share)
    assert not row.disturbed
    assert to_json(row)["disturbed_share"] is None
    table = markdown([row])
    assert "disturbed for" not in table
    assert "used by others" not in table


def test_the_mark_and_its_figure_are_in_every_layout() -> None:
    run = sample_run(loads=LOADS)
    rows = summarise(run)
    causes = "others used 31 % of the machine; 25 % of the read bandwidth was missing"
    mark = f"disturbed for 25 % of the time ({causes})"
    written = markdown(rows)
    assert written.count(mark) == len(rows)
    assert "| used by others | disturbed |" in written
    assert [one["marks"] for one in content(rows, [], [run], [])["rows"] if mark not in one["marks"]] == []
    tex = latex(rows)
    assert r"$^{\wr}$" in tex
    assert r"others used 31 \% of the machine" in tex
    line = next(csv.DictReader(io.StringIO(csv_files.csv(rows))))
    assert float(line["disturbed_share"]) == 0.25
    assert float(line["disturbances.others"]) == 0.31
    assert to_json(rows[0])["disturbed_share"] == 0.25


def test_a_quiet_run_has_figures_and_no_mark() -> None:
    rows = summarise(sample_run(loads=LOADS[:1]))
    assert "disturbed for" not in markdown(rows)
    assert "| 2.0 % | 0.0 % |" in markdown(rows)
