"""Measuring again: which blocks, how many, which measurement counts, and what a run says and stores of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from harness.analysis.summary import summarise
from harness.benchmark.noise import again
from harness.benchmark.noise.again import ProcessStopped
from harness.engines.local import Local
from harness.reports import formatting
from harness.store.journal import JOURNAL, read_journal
from harness.store.records import BlockLoad, Run
from harness.store.run_store import load_run
from tests.benchmark.test_experiment import measured, plan_of

QUICK = (
    *("measure=quick", "ladder=none", "measure.repeats=1", "measure.num_warmup=0", "max_new_tokens=4"),
    *("+measure.bandwidth_gib=0.01", "measure.num_null=0"),
)
BLOCKS = ["1", "2", "3"]


def load(name: str = "1", others: float = 0.0, void: str = "") -> BlockLoad:
    causes = {"others": others} if others else {}
    return BlockLoad(block=name, wall_s=10.0, others_share=others, causes=causes, void=void)


def test_the_worst_blocks_are_measured_again_and_at_most_a_quarter_of_the_run() -> None:
    loads = {str(number): [load(str(number), others=number / 20)] for number in range(12)}
    names = list(loads)
    assert again.disturbed_blocks(names, loads.__getitem__) == ["11", "10", "9"]
    loads["11"].append(load("11", others=0.6))
    loads["10"].append(load("10"))
    assert again.disturbed_blocks(names, loads.__getitem__) == ["9"], "once each, and those count as done"


def test_a_quiet_run_measures_nothing_again() -> None:
    assert again.disturbed_blocks(BLOCKS, lambda name: [load(name)]) == []
    assert again.disturbed_blocks(BLOCKS, lambda name: []) == [], "blocks of an older version have no load"


@pytest.mark.parametrize(
    ("now", "earlier", "expected"),
    [
        (load(), [], True),
        (load(void="stopped"), [], False),
        (load(), [load(others=0.3)], True),
        (load(others=0.2), [load(others=0.3)], True),
        (load(others=0.3), [load(others=0.2)], False),
        (load(others=0.3), [load(void="stopped")], True),
    ],
)
def test_the_less_disturbed_measurement_counts(
    now: BlockLoad, earlier: list[BlockLoad], expected: bool
) -> None:
    assert again.counts(now, earlier) is expected


class Script:
    """A watch that finds what a test wants: per block, the load of each of its measurements."""

    def __init__(self, finds: Callable[[str, int], BlockLoad]) -> None:
        self.finds, self.ended = finds, list[str]()

    def begin(self, block: str) -> None: ...

    def after_pass(self) -> None: ...

    def end(self, block: str) -> BlockLoad:
        self.ended.append(block)
        return self.finds(block, self.ended.count(block))


def run_with(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, finds: Callable[[str, int], BlockLoad], *overrides: str
) -> tuple[Run, list[str]]:
    """The run as it is stored, and the blocks in the order in which they were measured."""
    script = Script(finds)
    monkeypatch.setattr("harness.benchmark.experiment.watch_of", lambda *_: script)
    return load_run(measured(plan_of(tmp_path, *QUICK, *overrides), tmp_path)), script.ended


def test_a_disturbed_block_is_measured_again_at_the_end_and_the_quiet_one_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, order = run_with(
        monkeypatch, tmp_path, lambda name, number: load(name, others=0.4 * (name == "2" and number == 1))
    )
    assert order == ["1", "2", "3", "2"]
    assert run.finished
    assert [one.block for one in run.loads] == BLOCKS
    assert not any(one.causes for one in run.loads)
    journal = read_journal(Path(run.folder) / JOURNAL, run.manifest)
    assert [(one.name, len(one.records)) for one in journal.set_aside] == [("2", 3)]
    assert len(run.records) == 2 * (2 + 1 + 1) + 4, "two vanilla passes and one of ngram over four turns"
    assert not any(row.disturbed for row in summarise(run))
    told = capsys.readouterr().err
    assert "warning: 2: disturbed (others used 40 % of the machine)" in told
    assert "measured again, because others disturbed it: 2" in told


def test_on_a_machine_that_is_never_quiet_the_rows_carry_the_mark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, order = run_with(
        monkeypatch, tmp_path, lambda name, number: load(name, others=0.1 * int(name) + 0.1 * number)
    )
    assert order == [*BLOCKS, "3"], "one of three blocks is at most a quarter of them, rounded up"
    rows = summarise(run)
    assert [formatting.marks(row) for row in rows] == [
        "quick, indicative, disturbed for 100 % of the time (others used 40 % of the machine)"
        + ", not distinguishable" * (row.difference == "not distinguishable")
        for row in rows
    ]
    assert rows[0].others_share == pytest.approx((0.2 + 0.3 + 0.4) / 3), "the first of block 3 counts"


REMEMBERING = ("method=[suffix]", "methods.suffix.memory=process", "max_new_tokens=16")


def test_a_run_with_an_arm_that_remembers_all_prompts_measures_no_disturbed_block_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, order = run_with(monkeypatch, tmp_path, lambda name, _: load(name, others=0.3), *REMEMBERING)
    assert order == BLOCKS, "a second measurement would draft from the answers of the first"


def test_a_void_block_is_measured_again_without_its_own_answers_in_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def accepted(folder: str, void: str) -> list[list[int]]:
        (tmp_path / folder).mkdir()
        run, order = run_with(
            monkeypatch,
            tmp_path / folder,
            lambda name, number: load(name, void=void * (name == "1" and number == 1)),
            *REMEMBERING,
        )
        assert order == [*BLOCKS, "1"] if void else BLOCKS
        return [one.accepted for one in run.records if (one.arm, one.conversation) == ("suffix", "1")]

    quiet = accepted("quiet", "")
    assert accepted("stopped", "stopped") == quiet
    monkeypatch.setattr(Local, "begin_run", lambda self, logs=None: None)
    assert accepted("never forgets", "stopped") != quiet


def test_off_only_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, order = run_with(monkeypatch, tmp_path, lambda name, _: load(name, others=0.3), "measure.quiet=off")
    assert order == BLOCKS
    assert [one.causes for one in run.loads] == [{"others": 0.3}] * 3
    assert summarise(run)[0].disturbed
    assert "disturbed" not in capsys.readouterr().err


@pytest.mark.parametrize("quiet", ["warn", "off"])
def test_a_block_in_which_the_process_was_stopped_is_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], quiet: str
) -> None:
    run, order = run_with(
        monkeypatch,
        tmp_path,
        lambda name, number: load(name, void="the process was stopped" * (name == "1" and number == 1)),
        f"measure.quiet={quiet}",
    )
    assert order == [*BLOCKS, "1"]
    assert run.finished
    assert sorted(one.block for one in run.loads) == BLOCKS
    assert not any(one.void for one in run.loads)
    assert "1: the process was stopped, so that its times mean nothing" in capsys.readouterr().err


def test_a_process_that_is_stopped_every_time_ends_the_run_and_the_same_command_resumes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ProcessStopped, match=r"^2: measured 3 times.*the same command resumes"):
        run_with(monkeypatch, tmp_path, lambda name, _: load(name, void="stopped" * (name == "2")))
    (folder,) = [path for path in (tmp_path / "runs").iterdir() if path.is_dir()]
    broken_off = load_run(folder)
    assert not broken_off.finished
    assert [one.kind for one in broken_off.failures] == ["stopped"]
    assert [one.block for one in broken_off.loads] == ["1", "3"]
    run, order = run_with(monkeypatch, tmp_path, lambda name, _: load(name))
    assert order == ["2"]
    assert run.finished
    assert run.failures == []


def test_a_real_watch_knows_how_much_this_process_used(tmp_path: Path) -> None:
    run = load_run(measured(plan_of(tmp_path, *QUICK, "measure.quiet=off"), tmp_path))
    assert [one.block for one in run.loads] == BLOCKS
    for one in run.loads:
        assert one.wall_s > 0
        assert one.own_share is not None
        assert one.others_share is not None
        assert one.bandwidth_loss is not None
        assert 0 <= one.bandwidth_loss < 1
    row = summarise(run)[0]
    assert row.others_share >= 0
    assert row.disturbed_share >= 0


def test_yaml_may_spell_off_without_quotes(tmp_path: Path) -> None:
    assert plan_of(tmp_path, *QUICK, "measure.quiet=false").measure.quiet == "off"
