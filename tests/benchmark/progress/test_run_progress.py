"""Progress of a run: a table that fills on a terminal, and elsewhere at most one line per block."""

from __future__ import annotations

import io
import re
from itertools import groupby

import pytest

from harness.analysis.summary import summarise
from harness.benchmark.progress import RunProgress, Scoreboard
from harness.store.records import Run
from harness.system.console import Console
from tests.support.builders import make_record, sample_run


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    for name, value in {"COLUMNS": "100", "LINES": "30", "TERM": "xterm"}.items():
        monkeypatch.setenv(name, value)
    return Terminal()


def replay(run: Run, progress: RunProgress) -> None:
    """The events of a stored run, block by block."""
    blocks = {
        name: list(records)
        for name, records in groupby(
            sorted(run.records, key=lambda one: one.conversation), key=lambda one: one.conversation
        )
    }
    progress.plan(len(run.records), len(blocks))
    progress.start(run.manifest)
    for name, records in blocks.items():
        for record in records:
            progress.record(record)
        progress.finish_block(name)


def test_off_a_terminal_a_block_has_at_most_one_line_of_100_columns() -> None:
    file, run = io.StringIO(), sample_run()
    progress = RunProgress(Console(file), interval_s=0.0)
    replay(run, progress)
    progress.stop()
    lines = [line for line in file.getvalue().splitlines() if line.startswith("T = ")]
    assert len(lines) == 16
    assert max(map(len, lines)) <= 100
    assert re.fullmatch(
        r"T = 0: 16 of 16 blocks, 0:00 left, vanilla \d+\.\d tokens/s; suffix [\d.]+x, ngram [\d.]+x",
        lines[-1],
    )
    assert "\x1b" not in file.getvalue()


def test_off_a_terminal_fast_blocks_share_a_line_and_the_last_one_always_has_its_own() -> None:
    file, times = io.StringIO(), iter(range(0, 1000))
    progress = RunProgress(Console(file), interval_s=15.0, clock=lambda: float(next(times)))
    progress.plan(4, 4)
    progress.start(sample_run().manifest)
    for number in range(4):
        progress.record(make_record(accepted=(1, 0)))
        progress.finish_block(f"c{number}")
    lines = [line for line in file.getvalue().splitlines() if line.startswith("T = ")]
    assert [line.split(",")[0] for line in lines] == ["T = 0: 4 of 4 blocks"]


def test_the_table_ends_at_the_numbers_of_the_report() -> None:
    run, board = sample_run(), Scoreboard()
    replay(run, RunProgress(Console(io.StringIO()), board))
    scores = board.columns[0].scores
    for row in summarise(run):
        score = scores[row.method]
        assert score.tokens_per_s == pytest.approx(row.tokens_per_s)
        assert score.speedup.value == pytest.approx(row.speedup)
        assert score.tau == pytest.approx(row.tau, nan_ok=True)
        if row.speedup_ci and row.method != "vanilla":
            assert score.speedup.ends == pytest.approx(row.speedup_ci, abs=1e-9)


def test_a_block_that_is_measured_again_counts_once() -> None:
    board = Scoreboard()
    column = board.begin(0.0, 1)
    slow, fast = (
        [make_record("vanilla", total_ns=spent), make_record("ngram", total_ns=10_000)]
        for spent in (90_000, 20_000)
    )
    column.add("c00", slow)
    column.add("c00", fast)
    assert column.scores["ngram"].speedup.value == pytest.approx(2.0)
    assert column.prefill_share == pytest.approx(fast[0].prefill_ns / 20_000)


def test_the_table_has_a_row_per_method_from_the_start_and_fits_100_columns(terminal: Terminal) -> None:
    console, board = Console(terminal), Scoreboard()
    run = sample_run()
    with console.watching():
        progress = RunProgress(console, board)
        progress.plan(100, 16)
        progress.start(run.manifest)
        begun = terminal.getvalue()
        replay(run, RunProgress(console, board))
        progress.stop()
    for method in ("vanilla", "ngram", "suffix", "transformers.generate"):
        assert method in begun
    plain = Console(file := io.StringIO())
    board.begin(1.0, 16)
    plain.rich.print(board.table(["vanilla", "transformers.prompt_lookup"]))
    lines = file.getvalue().splitlines()
    assert max(map(len, lines)) <= 100
    assert any(re.search(r"^suffix .* [\d.]+x \[[\d.]+, [\d.]+\] +[\d.]+ ", line) for line in lines)
    assert "T = 1" in lines[0]


def test_ctrl_c_takes_the_table_away_and_shows_the_cursor_again(terminal: Terminal) -> None:
    console = Console(terminal)

    def interrupted() -> None:
        with console.watching():
            progress = RunProgress(console)
            progress.plan(4, 4)
            progress.start(sample_run().manifest)
            progress.record(make_record())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    said = terminal.getvalue()
    assert said.rindex("\x1b[?25h") > said.rindex("\x1b[?25l")
    console.note("afterwards")
    assert terminal.getvalue()[len(said) :] == "afterwards\n"
