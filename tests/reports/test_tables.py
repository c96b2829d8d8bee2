"""Tables: golden files for the layouts, and what no layout may hide.

After an intended change, `python -m tests.reports.test_tables` writes the golden files anew.
"""

from __future__ import annotations

import csv as csv_format
import dataclasses
import io
import re
from pathlib import Path

import pytest

from harness.analysis.row import Row
from harness.analysis.summary import pairwise, summarise
from harness.reports import csv_files, formatting, tables
from harness.reports.csv_files import csv, csv_of
from harness.reports.latex import escape, latex
from harness.reports.markdown import markdown
from harness.store.records import Failure, Run, Verdict
from tests.support.builders import JUDGED, make_record, make_run, sample_records, sample_run, sample_runs

GOLDEN = Path(__file__).parent / "golden"
NOTES = ['a: device.name = "one_two"']


def reports() -> dict[str, str]:
    runs = sample_runs()
    rows, pairs = summarise(runs), pairwise(runs)
    return {"report.md": markdown(rows, pairs, NOTES), "report.tex": latex(rows, NOTES)}


def console(*runs: Run) -> dict[str, dict[str, str]]:
    headers, body = tables.console_table(summarise(runs))
    return {line[headers.index("method")]: dict(zip(headers, line, strict=True)) for line in body}


@pytest.mark.parametrize("name", ["report.md", "report.tex"])
def test_the_report_is_the_golden_one(name: str) -> None:
    assert reports()[name] == (GOLDEN / name).read_text(encoding="utf-8")


def test_the_console_names_only_axes_that_vary() -> None:
    assert tables.console_table(summarise(sample_run()))[0][:2] == ["method", "tokens/s"]
    assert tables.console_table(summarise(sample_runs()))[0][:3] == ["task", "T", "method"]


def test_vanilla_shows_its_floor_and_methods_their_intervals() -> None:
    found = console(sample_run())
    assert re.fullmatch(r"1\.00x ±0\.\d\d A/A", found["vanilla"]["speedup"])
    assert re.fullmatch(r"\d\.\d\dx \[\d\.\d\d, \d\.\d\d\]", found["suffix"]["speedup"])
    assert re.fullmatch(r"\d\.\d\dx \[\d\.\d\d, \d\.\d\d\]", found["suffix"]["vs transformers.generate"])
    assert found["suffix"]["prompts"] == "16"
    assert found["suffix"]["% of roof"].endswith(" %")


def test_every_mark_is_shown() -> None:
    records = [
        *sample_records({"idle": 0.0}, num_prompts=5),
        make_record("lossy", verdict=Verdict("lossy"), **JUDGED),
    ]
    run = make_run(
        records,
        profile="quick",
        finished=False,
        arms={"vanilla": {}, "idle": {"scope": "run"}, "lossy": {}},
        config={"decoding": {"ignore_end_token": True}},
    )
    found = console(run)
    told = "quick, indicative, forced length, scope: run, partial, not distinguishable"
    assert found["idle"]["marks"] == told
    assert "lossy" in found["lossy"]["marks"]
    assert "quick" in found["vanilla"]["marks"]


def test_a_broken_row_is_struck_out_and_a_failed_one_says_why() -> None:
    rows = summarise(sample_runs())
    headers, body = tables.console_table(rows)
    broken = next(line for line in body if "~~broken~~" in line)
    assert all(cell in ("-", "") or cell.startswith("~~") for cell in broken)
    failed = [line for line in body if line[headers.index("marks")].startswith("FAILED: out-of-memory")]
    assert len(failed) == 2


def test_a_pair_with_a_broken_method_is_struck_out() -> None:
    headers, body = tables.pairs_table(pairwise(sample_runs()))
    for line in body:
        named = dict(zip(headers, line, strict=True))
        is_void = "humaneval" in named["task"] and any(
            "suffix" in named[side] for side in ("method", "against")
        )
        assert named["which is"].startswith("~~") == is_void


def test_an_untimed_report_has_acceptance_and_no_ladder() -> None:
    run = make_run(sample_records({"ngram": 0.5}, timed=False), profile="acceptance")
    text = markdown(summarise(run), pairwise(run))
    assert "Acceptance in other tools' words" in text
    assert "The ladder" not in text
    assert "nan" not in text + latex(summarise(run))


def test_the_csv_holds_every_raw_number() -> None:
    rows = summarise(sample_runs())
    read = list(csv_format.DictReader(io.StringIO(csv_files.csv(rows))))
    assert len(read) == len(rows)
    for line, row in zip(read, rows, strict=True):
        if not row.failed:
            assert float(line["speedup"]) == row.speedup
            assert row.tau_ci is None or float(line["tau_ci_low"]) == row.tau_ci[0]
            assert row.ledger is None or float(line["ledger.as_eagle"]) == row.ledger.as_eagle
        assert line["failed"] == str(row.failed)
    assert "nan" not in csv_files.csv(rows)
    pairs = list(csv_format.DictReader(io.StringIO(csv_files.pairs_csv(pairwise(sample_runs())))))
    assert {pair["difference"] for pair in pairs} >= {"faster", "slower"}


def test_every_line_of_a_latex_table_has_the_same_columns_and_braces_match() -> None:
    text = reports()["report.tex"]
    assert text.isascii()
    plain = re.sub(r"\\[\\{}&%$#_]", "", text)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    assert text.count(r"\begin{") == text.count(r"\end{")
    body = [line for line in text.splitlines() if line.endswith(r"\\") and "multicolumn{7}" not in line]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body if not line.startswith(" & ")} == {6}
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body if line.startswith(" & ")} == {3}


def test_the_best_lossless_number_is_bold_and_never_a_broken_or_lossy_one() -> None:
    lines = [line for line in reports()["report.tex"].splitlines() if line.endswith(r"\\")]
    at_one = lines[next(i for i, line in enumerate(lines) if "Temperature $= 1$" in line) :]
    suffix = next(line for line in at_one if line.startswith("suffix")).split(" & ")
    assert r"\dagger" in suffix[1]
    assert "bfseries" not in suffix[1] + suffix[2]
    assert "bfseries" in suffix[3]
    assert "bfseries" in next(line for line in at_one if line.startswith("ngram")).split(" & ")[1]
    lossy = [
        make_record("lossy", f"c{i:02}", [4], [4], verdict=Verdict("lossy"), **JUDGED) for i in range(12)
    ]
    text = latex(summarise(make_run([*sample_records({"ngram": 0.5}, num_prompts=12), *lossy])))
    line = next(line for line in text.splitlines() if line.startswith("lossy"))
    assert "bfseries" not in line
    assert r"\ddagger" in line
    assert r"lossy, T = 0, smoke: 33.3 \%, -0.500, 50.0 \%" in text


def test_only_what_is_distinguishable_from_vanilla_is_bold_and_vanilla_never() -> None:
    idle = summarise(make_run(sample_records({"idle": 0.0}, num_prompts=12)))
    assert "bfseries" not in latex(idle)
    slower = [dataclasses.replace(row, speedup=0.9, speedup_ci=(0.8, 0.95)) for row in idle]
    assert "bfseries" not in latex(slower)
    unclear = [
        dataclasses.replace(row, speedup_ci=(0.9, 3.0)) if row.method == "suffix" else row
        for row in summarise(sample_run())
    ]
    lines = latex(unclear).splitlines()
    suffix = next(line for line in lines if line.startswith("suffix")).split(" & ")
    assert ["bfseries" in cell for cell in suffix[1:]] == [False, True]
    assert "bfseries" not in next(line for line in lines if line.startswith("ngram"))


def test_rows_of_one_name_are_told_apart_in_every_layout() -> None:
    runs = [
        make_run(sample_records({"ngram": 0.1 * length}), f"r{length}", arms={"ngram": {"length": length}})
        for length in (4, 8)
    ]
    rows = summarise(runs)
    for text in (latex(rows), markdown(rows, pairwise(runs))):
        assert {f"ngram [{letter}]" for letter in "ab"} <= set(re.findall(r"ngram \[.\]", text))
    assert latex(rows).count(r"\begin{table}") == 1


def test_names_cannot_break_the_markup() -> None:
    records = sample_records({"a_b|c&d%": 0.5}, num_prompts=3)
    rows = summarise(make_run(records))
    assert "| a\\_b\\|c&d% |" in markdown(rows)
    assert r"a\_b\textbar{}c\&d\%" in latex(rows)


ATTACKS = (
    "![x](https://example.org/pixel)",
    "[click](javascript:alert(1))",
    "[a] [b]: https://example.org",
    "<img src=x onerror=alert(1)>",
    "see https://example.org/x or www.example.org",
    "&lt;img&gt; &#60;b&#62;",
)


def attacked_rows(text: str) -> list[Row]:
    failed = make_run(
        [], failures=[Failure("error", text, text)], finished=False, task=text, arms={"vanilla": {}}
    )
    return summarise([failed, make_run(sample_records({text: 0.5}, num_prompts=3), task=text)])


@pytest.mark.parametrize("text", ATTACKS)
def test_texts_of_others_make_no_link_image_or_html_in_markdown(text: str) -> None:
    written = formatting.escape(text)
    assert not re.search(r"(?<!\\)\](\s*)[(\[:]", written), "a link or an image"
    assert not re.search(r"(?<!\\)<|(?<!\\)&#?\w+;|\w://|www\.", written), "HTML or an address"
    report = markdown(attacked_rows(text), notes=[text])
    assert not re.search(rf"(?<!\\){re.escape(text)}", report)
    assert written in report


@pytest.mark.parametrize("text", ["=1+1", "+1", "-2+3", "@SUM(A1)", " =1", "\t=1", '"=1', "\uff1d1"])
def test_a_text_is_no_formula_in_a_spreadsheet_and_a_number_stays_one(text: str) -> None:
    for line in (csv_of([{"a": text}]), csv_of([{text: 1}])):
        cells = [cell for row in csv_format.reader(io.StringIO(line)) for cell in row]
        assert f"'{text}" in cells
    assert csv_of([{"a": -1.5, "b": "plain - text", "c": None}]) == "a,b,c\n-1.5,plain - text,\n"
    parsed = [cell for row in csv_format.reader(io.StringIO(csv(attacked_rows(text)))) for cell in row]
    assert text not in parsed


def test_latex_keeps_letters_of_all_scripts_and_says_what_they_need() -> None:
    rows = [
        row
        for task in ("\u4efb\u52a1\u4e00", "\u4efb\u52a1\u4e8c")
        for row in summarise(make_run(sample_records({"ngram": 0.5}, num_prompts=3), task=task))
    ]
    written = latex(rows)
    assert "\u4efb\u52a1\u4e00" in written
    assert "\u4efb\u52a1\u4e8c" in written
    assert "LuaLaTeX" in written.splitlines()[1]
    assert "LuaLaTeX" not in latex(summarise(make_run(sample_records({"caf\u00e9": 0.5}, num_prompts=3))))
    assert escape("\U0001f600 \\input{x}") == r"? \textbackslash{}input\{x\}"


if __name__ == "__main__":
    for name, text in reports().items():
        (GOLDEN / name).write_text(text, encoding="utf-8", newline="\n")
