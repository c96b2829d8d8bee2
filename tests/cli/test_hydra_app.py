"""The command as a stranger types it: its one line on stdout, its exit status, its words about mistakes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from harness.cli import hydra_app, report_command
from harness.cli.interrupts import Stopped
from harness.decoding.acceptance import Accepted, Coupled
from harness.store.run_store import load_run
from harness.store.upkeep.archives import compact
from harness.target.model import Target
from harness.tracking.tracker import NoTracker
from methods.vanilla import Vanilla
from tests.support.typing_in import type_bench

ROOT = Path(__file__).parents[2]
KEYS = {
    *("target", "task", "method", "temperature", "batch_size", "profile", "baseline", "acceptor", "tau"),
    *("tau_ci", "engine", "scenario"),
    *("tokens_per_s", "latency_s", "speedup", "speedup_ci", "speedup_vs", "verdict", "roof_fraction"),
    *("num_prompts", "num_tokens", "variant", "others_share", "disturbed_share", "quality"),
}
TINY = [
    "~experiment",
    *("target=tiny", "task=local", "method=[ngram]", "measure=quick", "+measure.bandwidth_gib=0.01"),
    *("measure.quiet=off", "tracker=none", "max_new_tokens=8"),
]


class GreedyOnly(Vanilla):
    samples = False


class Ended(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def document(self) -> dict[str, Any]:
        assert self.out.count("\n") == 1, "stdout has one line"
        document: dict[str, Any] = json.loads(self.out)
        return document


Type = Callable[..., Ended]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    lines = [{"question_id": i, "category": "a", "turns": [f"one two {i} one two"]} for i in range(4)]
    file.write_text("\n".join(map(json.dumps, lines)))
    return file


@pytest.fixture
def type_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, prompts: Path
) -> Type:
    """Run the command in this process."""

    def run(*arguments: str, tiny: bool = True) -> Ended:
        given = [*TINY, f"task.path={prompts}", f"results={tmp_path / 'results'}"] if tiny else []
        ordered = sorted([*given, *arguments], key=lambda one: not one.startswith("--"))
        return Ended(*type_bench(ordered, monkeypatch, capsys))

    return run


def test_a_run_that_was_packed_is_done_and_stays_packed(type_in: Type, tmp_path: Path) -> None:
    before = type_in().document
    runs = tmp_path / "results" / "runs"
    compact(runs, lambda _: None)
    again = type_in()
    assert again.status == 0, again.err
    assert "done already" in again.err
    assert again.document["rows"] == before["rows"]
    assert not [path for path in runs.iterdir() if path.is_dir()]


def test_a_run_prints_one_json_document_and_everything_else_on_stderr(type_in: Type) -> None:
    ended = type_in()
    assert ended.status == 0, ended.err
    document = ended.document
    assert [row["method"] for row in document["rows"]][:2] == ["vanilla", "ngram"]
    assert all(set(row) == KEYS for row in document["rows"])
    assert document["rows"][0]["tau"] == 1.0
    assert {row["verdict"] for row in document["rows"]} == {"identical"}
    (folder,) = document["run_dirs"]
    assert load_run(Path(folder)).finished
    assert "speedup" in ended.err
    assert list(Path(folder).glob("figures/*.png"))


def test_typing_it_again_measures_nothing_and_tells_the_same_rows(type_in: Type) -> None:
    first, second = type_in(), type_in()
    assert first.document == second.document
    assert "done already" in second.err
    third = type_in("replicate=next")
    assert third.document["run_dirs"] != first.document["run_dirs"]


def test_a_multirun_ends_in_one_aggregate(type_in: Type) -> None:
    ended = type_in("--multirun", "method=ngram,suffix", "measure.rung_repeats=0")
    assert ended.status == 0, ended.err
    methods = [row["method"] for row in ended.document["rows"]]
    assert methods[0] == "vanilla"
    assert sorted(methods[1:]) == ["ngram", "suffix"]
    assert len(ended.document["run_dirs"]) == 2


@pytest.mark.parametrize("sweep", ["task.path=missing.jsonl,PROMPTS", "methods.ngram.draft_length=4,0"])
def test_a_failed_cell_is_a_visible_row_and_the_sweep_goes_on(
    type_in: Type, prompts: Path, tmp_path: Path, sweep: str
) -> None:
    ended = type_in("--multirun", sweep.replace("PROMPTS", str(prompts)), "measure.rung_repeats=0")
    assert ended.status == 1
    assert len(ended.document["run_dirs"]) == 2
    rows = ended.document["rows"]
    assert {(row["method"], row["variant"], row["num_prompts"]) for row in rows} == {
        *(("vanilla", "", 4), ("ngram", "", 4), ("vanilla", "a", 0), ("ngram", "a", 0))
    }
    for row in rows:
        assert (row["tau"] is row["speedup"] is row["verdict"] is None) == (row["num_prompts"] == 0)
    assert "FAILED: config" in ended.err
    assert f"a: failed with {sweep.partition('=')[0]}=" in ended.err
    assert report_command.main(["build", "--results", str(tmp_path / "results")]) == 1


def test_a_mended_cell_is_no_failed_row_any_more(type_in: Type, prompts: Path) -> None:
    sweep = [
        "--multirun",
        f"task.path={prompts.with_name('later.jsonl')},{prompts}",
        "measure.rung_repeats=0",
    ]
    assert type_in(*sweep).status == 1
    prompts.with_name("later.jsonl").write_bytes(prompts.read_bytes())
    ended = type_in(*sweep)
    assert ended.status == 0, ended.err
    assert all(row["num_prompts"] for row in ended.document["rows"])


def test_a_run_that_cannot_be_read_is_a_failed_row_and_the_sweep_goes_on(type_in: Type) -> None:
    given = ["--multirun", "measure.rung_repeats=0"]
    (folder,) = type_in(*given, "methods.ngram.draft_length=4").document["run_dirs"]
    journal = Path(folder) / "journal.jsonl"
    lines = journal.read_bytes().split(b"\n")
    journal.write_bytes(b"\n".join([lines[0], b"{}", *lines[2:]]))
    ended = type_in(*given, "methods.ngram.draft_length=4,5")
    assert ended.status == 1
    assert "journal.jsonl, line 2" in ended.err
    assert [row["num_prompts"] for row in ended.document["rows"]] == [4, 4, 0, 0]


def test_the_rows_of_a_sweep_of_settings_are_told_apart(type_in: Type) -> None:
    ended = type_in("--multirun", "methods.ngram.draft_length=4,8", "measure.rung_repeats=0")
    assert ended.status == 0, ended.err
    rows = ended.document["rows"]
    assert {(row["method"], row["variant"]) for row in rows} == {
        (m, v) for m in ("vanilla", "ngram") for v in "ab"
    }
    assert "ngram [b]" in ended.err
    assert re.search(r"^b: method\[tiny, ngram\]\.draft_length = 8", ended.err, re.MULTILINE)


def test_other_prompts_in_the_same_file_are_measured_anew(type_in: Type, prompts: Path) -> None:
    first = type_in("measure.rung_repeats=0")
    prompts.write_text(prompts.read_text().replace("one", "six"))
    second = type_in("measure.rung_repeats=0")
    assert second.status == 0, second.err
    assert "done already" not in second.err
    assert second.document["run_dirs"] != first.document["run_dirs"]


def test_a_report_that_goes_wrong_is_a_warning_and_is_made_when_typed_again(
    type_in: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("no ink")

    with monkeypatch.context() as patch:
        patch.setattr("harness.benchmark.job.draw_once", fail)
        patch.setattr(NoTracker, "finish", fail)
        ended = type_in("measure.rung_repeats=0")
    assert ended.status == 0, ended.err
    assert ended.err.count("RuntimeError: no ink") == 2
    (folder,) = ended.document["run_dirs"]
    assert not list(Path(folder).glob("figures/*"))
    tracked: list[Any] = []
    monkeypatch.setattr(NoTracker, "finish", lambda self, run, rows, files: tracked.extend(files))
    assert type_in("measure.rung_repeats=0").document == ended.document
    assert sorted(tracked) == sorted(Path(folder).glob("figures/*")) != []


def test_ctrl_c_while_a_run_is_reported_still_tells_its_rows(
    type_in: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(NoTracker, "finish", interrupt)
    ended = type_in("measure.rung_repeats=0")
    assert ended.status == 1
    assert "stopped by the user" in ended.err
    assert [row["num_prompts"] for row in ended.document["rows"]] == [4, 4]


def test_ctrl_c_in_a_sweep_ends_in_the_table_of_what_was_measured(
    type_in: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(NoTracker, "finish", interrupt)
    ended = type_in("--multirun", "methods.ngram.draft_length=4,8", "measure.rung_repeats=0")
    assert ended.status == 1
    assert "empty sequence" not in ended.err
    assert [row["num_prompts"] for row in ended.document["rows"]] == [4, 4]


def test_a_disk_that_is_full_at_the_outcome_costs_neither_table_nor_json_line(
    type_in: Type, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("harness.cli.outcome.write_json", full)
    ended = type_in("measure.rung_repeats=0")
    assert ended.status == 1
    assert "No space left on device" in ended.err
    assert len(ended.document["rows"]) == 2


@pytest.mark.parametrize("arguments", [[], ["--multirun"], ["hydra.run.dir=DIR"]])
def test_a_results_folder_that_cannot_be_written_is_told(
    type_in: Type, prompts: Path, tmp_path: Path, arguments: list[str]
) -> None:
    ended = type_in(f"results={prompts}/x", *(one.replace("DIR", str(tmp_path / "job")) for one in arguments))
    assert "cannot be written" in ended.err
    assert "results=FOLDER" in ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""
    assert ended.status == 2


def test_help_is_about_this_command(type_in: Type) -> None:
    ended = type_in("--help", tiny=False)
    assert ended.out.startswith("Measure speedup")
    for told in (
        "python -m harness.bench",
        "method: cast",
        "--multirun methods.ngram",
        "Exit status: 0 good",
    ):
        assert told in ended.out
    assert "Hydra" not in ended.out


def test_the_help_explains_every_group(type_in: Type) -> None:
    told = type_in("--help", tiny=False).out
    explained = re.findall(r"^  (\w+) {2,}\w", told, re.MULTILINE)
    assert set(explained) == set(hydra_app._options()) - {"hydra"}
    assert "dry_run=true" in told
    assert "$$" not in told


def test_a_dry_run_prints_the_grid_and_measures_nothing(type_in: Type, tmp_path: Path) -> None:
    ended = type_in(
        "--multirun", "dry_run=true", "decoding=[greedy,sampled]", "methods.ngram.draft_length=4,8,0"
    )
    # The third length is a mistake, which is what a dry run is for.
    assert ended.status == 1
    assert "draft_length=0" in ended.err
    assert ended.document["rows"] == ended.document["run_dirs"] == []
    cells = ended.document["cells"]
    assert [(cell["temperature"], cell["state"]) for cell in cells] == [(0, "missing"), (1, "missing")] * 2
    assert "4 cells: 4 missing" in ended.err
    assert not (tmp_path / "results" / "runs").exists()


def test_a_failed_cell_of_another_task_keeps_its_empty_row(type_in: Type, prompts: Path) -> None:
    ended = type_in("--multirun", "task.name=gone", f"task.path={prompts.with_name('missing.jsonl')}")
    assert ended.status == 1
    rows = ended.document["rows"]
    assert {row["task"] for row in rows} == {"gone"}
    assert all(row["tau"] is None and row["num_prompts"] == 0 for row in rows)


MISTAKES = [
    (["target=tny"], "Did you mean tiny"),
    (["method=[ngrm]"], "Did you mean ngram"),
    (["taks=smoke"], "Did you mean task"),
    (["methods.ngram.max_ngrm=2"], "Did you mean max_ngram"),
    (["methods.ngram.max_ngram=0"], "greater than or equal to 1"),
    (["methods.ngram.max_ngram=x"], "methods.ngram: max_ngram"),
    (["methods.ngram.max_ngram=1", "methods.ngram.min_ngram=2"], "min_ngram 2 is above max_ngram 1"),
    (["measure.order_seed=3"], "+measure.order_seed="),
    (["target.attention=flash"], "Input should be 'grouped', 'sdpa' or 'eager'"),
    (["decodings.greedy.temperature=-1"], "greater than or equal to 0"),
    (["decodings.greedy.temperature=0.7"], "decoding=sampled decodings.sampled.temperature=0.7"),
    (["~decodings.greedy"], "type decoding=greedy"),
    (["~methods.vanilla"], "methods.vanilla is missing"),
    (["task.path=nowhere.jsonl"], "nowhere.jsonl: no such file"),
    (["task.path=???"], "task.path has no value"),
    (["task.ids=[9]"], "has no '9'"),
    (["task.categories=[b]"], "has no 'b'"),
    (
        ["+methods.only._target_=tests.cli.test_hydra_app.GreedyOnly", "decoding=sampled"],
        "only defined at temp",
    ),
    (["dry_run=perhaps"], "dry_run=perhaps: true or false"),
    (["replicate=-1"], "a number from 0, or `next`"),
    (["target.max_context=8"], "raise target.max_context"),
    (["--multirun", "--cfg=job"], "Only one of"),
    (["nonsense"], "missing EQUAL"),
    (["nonsense"], "nonsense: cannot be read"),
    (["task.path=a=b.jsonl"], """special signs twice: 'task.path="a=b.jsonl"'"""),
    (["task.path=a[1].jsonl"], """task.path=a[1].jsonl: cannot be read"""),
    (["task.path=\u4efb.jsonl"], """'task.path="\u4efb.jsonl"'"""),
    (
        ["task.ids=[1e5]"],
        """task.ids: a name is expected, and what was given was read as the number 100000.0""",
    ),
    (["+target.revision=12e3"], """'target.revision="..."'"""),
]


@pytest.mark.parametrize(("arguments", "told"), MISTAKES, ids=lambda value: " ".join(value)[:40])
def test_a_mistake_is_told_with_what_is_allowed(type_in: Type, arguments: list[str], told: str) -> None:
    ended = type_in(*arguments)
    assert told in ended.err
    assert "Traceback" not in ended.err
    assert ended.out == ""
    assert ended.status == 2


def test_a_malformed_task_file_is_told_by_line(type_in: Type, prompts: Path) -> None:
    prompts.write_text(prompts.read_text() + "\n{broken\n")
    ended = type_in()
    assert f"{prompts}:5" in ended.err
    assert ended.status == 2


def test_a_broken_verdict_fails_the_process(type_in: Type, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Coupled.accept

    def wrong(self: Coupled, logits: Any, draft: Any, sampler: Any, start: Any) -> Accepted:
        accepted = right(self, logits, draft, sampler, start)
        if not draft.width:
            return accepted
        return Accepted(accepted.length, accepted.path, (accepted.token + 1) % logits.shape[-1])

    monkeypatch.setattr(Coupled, "accept", wrong)
    ended = type_in("measure.rung_repeats=0")
    assert ended.status == 1
    assert {row["method"]: row["verdict"] for row in ended.document["rows"]}["ngram"] == "broken"


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (torch.OutOfMemoryError("no room"), "out-of-memory", "turn down measure.batch_size"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), "out-of-memory", "turn down"),
        (KeyboardInterrupt(), "interrupted", "resumes here"),
        (Stopped("stopped by SIGTERM"), "interrupted", "stopped by SIGTERM; the same command resumes here"),
        (RuntimeError("bad luck"), "error", "bad luck"),
    ],
)
def test_a_fault_in_the_middle_loses_no_finished_prompt_and_the_same_command_goes_on(
    type_in: Type, monkeypatch: pytest.MonkeyPatch, error: BaseException, kind: str, told: str
) -> None:
    right, calls = Target.prefill, Counter[str]()

    def faulty(self: Target, *given: Any) -> Any:
        calls["prefill"] += 1
        if calls["prefill"] > 14:
            raise error
        return right(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Target, "prefill", faulty)
        ended = type_in()
    assert ended.status == 1
    assert told in ended.err
    (folder,) = ended.document["run_dirs"]
    broken_off = load_run(Path(folder))
    assert [failure.kind for failure in broken_off.failures] == [kind]
    assert re.match(r"(vanilla|ngram|transformers\.\w+), \d$", broken_off.failures[0].where)
    assert broken_off.records
    assert not broken_off.finished
    again = type_in()
    assert again.status == 0, again.err
    whole = load_run(Path(folder))
    assert whole.finished
    assert whole.records[: len(broken_off.records)] == broken_off.records
    assert_complete(whole.records)


def assert_complete(records: list[Any]) -> None:
    keys = Counter((r.arm, r.conversation, r.turn, r.sample, r.repeat) for r in records)
    assert set(keys.values()) == {1}, "nothing twice"
    arms = Counter(r.arm for r in records)
    assert arms == {
        "vanilla": 8,
        "ngram": 8,
        "transformers.generate": 4,
        "transformers.prompt_lookup": 4,
    }


def test_a_killed_process_is_resumed_without_loss_or_double(
    type_in: Type, tmp_path: Path, prompts: Path
) -> None:
    given = [*TINY, f"task.path={prompts}", f"results={tmp_path / 'results'}"]
    process = subprocess.Popen(
        [sys.executable, "-m", "harness.bench", *given],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 600
    while process.poll() is None and time.monotonic() < deadline:
        journals = list(tmp_path.glob("results/runs/*/journal.jsonl"))
        if journals and journals[0].read_bytes().count(b'"finish_block"') >= 1:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder,) = (tmp_path / "results" / "runs").iterdir()
    before = load_run(folder).records
    assert before
    ended = type_in()
    assert ended.status == 0, ended.err
    assert ended.document["run_dirs"] == [str(folder)]
    whole = load_run(folder)
    assert whole.records[: len(before)] == before
    assert_complete(whole.records)
