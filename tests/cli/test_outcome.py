"""The end of a command: conf/ names the callback that makes it, and a job without an outcome is an error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import conf
from harness.cli.job_files import JobFiles
from harness.cli.outcome import FAILED, OUTCOME, WRONG, Collect


def test_the_benchmark_ends_in_the_callback_of_this_module() -> None:
    """The YAML names the class as a text, which would not follow it to another module."""
    config = OmegaConf.load(Path(conf.__file__).parent / "bench.yaml")
    named = [str(callback["_target_"]) for callback in config.hydra.callbacks.values()]
    assert named == [f"{kind.__module__}.{kind.__qualname__}" for kind in (JobFiles, Collect)]


def ended(folder: Path) -> int:
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}})
    with pytest.raises(SystemExit) as exit_:
        Collect().on_multirun_end(config=config)
    return int(str(exit_.value.code))


def test_a_job_without_an_outcome_fails_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "0" / ".hydra").mkdir(parents=True)
    assert ended(tmp_path) == FAILED
    out, err = capsys.readouterr()
    assert f"{tmp_path / '0'}: the job ended without an outcome" in err
    assert json.loads(out) == {"rows": [], "run_dirs": []}


def test_a_wrong_command_line_has_no_json_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "0" / ".hydra").mkdir(parents=True)
    outcome = {"run_dirs": [], "errors": ["target=tny: no such option"], "status": WRONG}
    (tmp_path / "0" / OUTCOME).write_text(json.dumps(outcome))
    assert ended(tmp_path) == WRONG
    out, err = capsys.readouterr()
    assert out == ""
    assert "target=tny" in err
