"""LaTeX: what is written compiles, fits the page, and says what the rows say."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from harness.analysis.row import Row
from harness.analysis.summary import summarise
from harness.reports.latex import PREAMBLE, latex
from tests.support.builders import CELL, sample_runs

needs_tex = pytest.mark.skipif(
    not (shutil.which("pdflatex") and shutil.which("pdftotext")),
    reason="apt-get install texlive-latex-recommended texlive-latex-extra texlive-science poppler-utils",
)
DOCUMENT = r"""\documentclass[11pt,a4paper]{article}
\usepackage[margin=25mm]{geometry}
%s
\begin{document}
\input{report}
\end{document}
"""


def grid(tasks: Sequence[str], methods: Sequence[str]) -> list[Row]:
    """Rows with numbers of all lengths, without the work of computing them."""
    return [
        Row(
            where=replace(
                CELL,
                task=task,
                decoding="sampled" if temperature else "greedy",
                temperature=temperature,
                profile="quick",
            ),
            method=method,
            verdict="identical",
            num_prompts=16,
            speedup=speedup,
            speedup_ci=(0.9 * speedup, 1.1 * speedup),
            tau=1.2 * speedup,
            tau_ci=(1.1 * speedup, 1.3 * speedup),
        )
        for task in tasks
        for temperature in (0.0, 1.0)
        for speedup, method in ((0.75 + 0.5 * place, name) for place, name in enumerate(methods))
    ]


TASKS = ["mt_bench", "humaneval", "gsm8k", "alpaca", "cnn_dm"]
BIG = grid(TASKS, ["transformers.prompt_lookup", *(f"method_{n}" for n in range(21))])
HOSTILE = grid(["a_b & $c$", "100 % {x}"], [r"\input{/etc/passwd}", "~^#|<>", "ngram [a]"])


def compiled(text: str, folder: Path) -> tuple[str, str]:
    """The text of the PDF, and what LaTeX had to say."""
    (folder / "report.tex").write_text(text)
    (folder / "page.tex").write_text(DOCUMENT % PREAMBLE)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    for _ in range(2):  # a longtable finds its widths in the second pass
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:]
    told = subprocess.run(
        ["pdftotext", "-layout", "page.pdf", "-"], cwd=folder, capture_output=True, text=True
    )
    return told.stdout, done.stdout


@needs_tex
@pytest.mark.parametrize("rows", [summarise(sample_runs()), BIG, HOSTILE], ids=["sample", "big", "hostile"])
def test_the_tables_compile_and_fit_the_page(tmp_path: Path, rows: list[Row]) -> None:
    text, log = compiled(latex(rows, ['a: device.name = "one_two"']), tmp_path)
    assert "Overfull" not in log
    assert "LaTeX Warning: Float too large" not in log
    found = re.findall(r"\d+\.\d\d", text)
    assert {f"{row.speedup:.2f}" for row in rows if row.speedup > 0} <= set(found)
    # An underscore is a rule in the PDF, which reads as a space.
    shown = text.replace("_", " ")
    assert all(row.method.replace("_", " ") in shown for row in rows if re.fullmatch(r"[\w.]+", row.method))


def test_a_grid_that_is_too_long_goes_on_over_the_page_and_one_too_wide_in_parts() -> None:
    text = latex(BIG)
    assert text.count(r"\begin{longtable}") == text.count(r"\end{longtable}") == 2
    assert r"\begin{table}" not in text
    assert "Part 1 of 2." in text
    assert "Part 2 of 2." in text
    tasks = [
        re.findall(r"multicolumn\{2\}\{c\}\{([^}]*)\}", part) for part in text.split(r"\endfirsthead")[:2]
    ]
    assert tasks[0] == ["mt\\_bench", "humaneval", "gsm8k"]
    small = latex(summarise(sample_runs()))
    assert "longtable}" not in small.split("\n", 1)[1]


def test_numbers_are_bare_and_all_else_in_their_columns_is_in_braces() -> None:
    for line in latex(summarise(sample_runs())).splitlines():
        if not line.endswith(r"\\") or "multicolumn" in line:
            continue
        for cell in line.removesuffix(r"\\").split(" & ")[1:]:
            bare = re.sub(r"\{.*\}", "", cell.strip()).removeprefix(r"\bfseries").strip()
            assert bare == "" or re.fullmatch(r"\d+\.\d\d", bare), cell
