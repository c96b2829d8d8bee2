"""W&B: one run per arm, written from the store when a run has ended. Offline unless asked otherwise."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from harness.config import configurable
from harness.provenance import redact
from harness.records import GenerationRecord, Run, RunManifest
from harness.reporters import Console, cause
from harness.store import MANIFEST, RECORDS

_PLACE = ["conversation", "category", "turn", "sample", "repeat"]
_HISTORY = ["tokens", "rounds", "tau", "seconds"]
_COLUMNS = [*_PLACE, *_HISTORY, "verdict"]


@configurable
class NoTracker:
    """Tracks nothing."""

    def start(self, manifest: RunManifest) -> None:
        """See `harness.reporters.Reporter`."""

    def record(self, record: GenerationRecord) -> None:
        """See `harness.reporters.Reporter`."""

    def finish(self, run: Run, rows: Sequence[Mapping[str, Any]], files: Sequence[Path]) -> None:
        """See `harness.reporters.Reporter`."""

    def curves(self, name: str, config: Mapping[str, Any]) -> Callable[[Mapping[str, float], int], None]:
        """Begin the curves of a training; what takes their points: numbers and the step."""
        return lambda numbers, step: None


@configurable
class WandbTracker(NoTracker):
    """Weights & Biases.

    Every arm is a run `<run id>-<arm>` of the group `<run id>`. mode: `offline` writes files that
    `wandb sync` uploads later, `online` uploads at once, `disabled` does nothing. dir: where the files
    go. log_records: also the per-prompt table and an artifact with the records and the manifest.
    """

    project: str = "specbench-harness"
    entity: str | None = None
    mode: Literal["offline", "online", "disabled"] = "offline"
    dir: str = "results/wandb"
    tags: tuple[str, ...] = ()
    log_records: bool = True

    def finish(self, run: Run, rows: Sequence[Mapping[str, Any]], files: Sequence[Path]) -> None:
        """Write the W&B runs that are not there yet. What goes wrong is a warning and stops nothing."""
        if self.mode == "disabled":
            return
        console = Console()
        missing = [arm for arm in run.manifest.arms if not self._is_written(run, arm)]
        try:
            folders = [self._write_arm(run, arm, rows, files) for arm in missing]
        except Exception as error:
            console.warn(cause("W&B", error) + " `tracker=none` leaves W&B out.")
            return
        if self.mode == "offline" and folders:
            console.note(f"upload with: wandb sync {shlex.join(folders)}")

    def curves(self, name: str, config: Mapping[str, Any]) -> Callable[[Mapping[str, float], int], None]:
        """See `NoTracker`. What goes wrong at the beginning is a warning and stops nothing."""
        if self.mode == "disabled":
            return NoTracker.curves(self, name, config)
        import wandb

        try:
            Path(self.dir).mkdir(parents=True, exist_ok=True)
            tracked = wandb.init(
                project=self.project,
                entity=self.entity,
                name=name,
                job_type="training",
                tags=list(self.tags),
                mode=self.mode,
                dir=self.dir,
                reinit="create_new",
                config=dict(config),
                settings=_quiet(wandb),
            )
        except Exception as error:
            Console().warn(cause("W&B", error) + " `tracker=none` leaves W&B out.")
            return NoTracker.curves(self, name, config)
        return lambda numbers, step: tracked.log(dict(numbers), step=step)

    def _is_written(self, run: Run, arm: str) -> bool:
        kind = "offline-run" if self.mode == "offline" else "run"
        return any(Path(self.dir).glob(f"wandb/{kind}-*-{_id(run, arm)}"))

    def _write_arm(self, run: Run, arm: str, rows: Sequence[Mapping[str, Any]], files: Sequence[Path]) -> str:
        """One W&B run; the folder of its files."""
        import wandb

        manifest = run.manifest
        Path(self.dir).mkdir(parents=True, exist_ok=True)
        tracked = wandb.init(
            project=self.project,
            entity=self.entity,
            id=_id(run, arm),
            name=f"{manifest.run_id}-{arm}",
            group=manifest.run_id,
            job_type=arm,
            tags=list(self.tags),
            mode=self.mode,
            dir=self.dir,
            reinit="create_new",
            config=redact({**manifest.config, "cell": manifest.cell._asdict(), "arm": arm}),
            settings=_quiet(wandb),
        )
        # As a context manager the run ends, and with an exit status, whatever happens inside.
        with tracked:
            self._log(wandb, tracked, run, arm, files)
            for row in rows:
                if row["method"] == arm:
                    tracked.summary.update(dict(row))
        return str(tracked.settings.sync_dir)

    def _log(self, wandb: Any, tracked: Any, run: Run, arm: str, files: Sequence[Path]) -> None:
        """Per-prompt history and table, figures, and the artifact with the records."""
        measured = [_values(record) for record in run.records if record.arm == arm]
        for values in measured:
            told = {f"prompt/{key}": values[key] for key in _HISTORY if values[key] is not None}
            tracked.log(told)
        for path in files:
            if path.suffix == ".png":
                tracked.log({f"figures/{path.stem}": wandb.Image(str(path))})
        if not self.log_records:
            return
        data = [[values[column] for column in _COLUMNS] for values in measured]
        tracked.log({"prompts": wandb.Table(columns=_COLUMNS, data=data)})
        artifact = wandb.Artifact(_name(run.manifest.run_id), type="results")
        for name in (MANIFEST, RECORDS):
            # The store's files do not change after the end, so W&B need not copy them aside.
            artifact.add_file(str(Path(run.folder) / name), policy="immutable")
        tracked.log_artifact(artifact)


def _values(record: GenerationRecord) -> dict[str, Any]:
    """A record in the words of the per-prompt table; None where it has no such number."""
    rounds = len(record.emitted)
    return {
        "conversation": record.conversation,
        "category": record.category,
        "turn": record.turn,
        "sample": record.sample,
        "repeat": record.repeat,
        "tokens": len(record.output_ids),
        "rounds": rounds,
        "tau": sum(record.emitted) / rounds if rounds else None,
        "seconds": record.total_ns * 1e-9 if record.timed else None,
        "verdict": record.verdict.kind if record.verdict else None,
    }


def _quiet(wandb: Any) -> Any:
    """Settings under which W&B prints nothing and learns nothing of this machine and its user."""
    return wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        save_code=False,
        host="",
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )


def _id(run: Run, arm: str) -> str:
    return _name(f"{run.manifest.run_id}-{arm}")


def _name(text: str) -> str:
    """`text` in the characters that W&B allows in ids and artifact names, at most 128 of them."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text)[-128:]
