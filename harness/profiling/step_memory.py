"""The choice of steps of an earlier process: kept per machine and target, and never believed unchecked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import transformers

from harness.runtime.torch_internals import machine_facts, programs_folder, runtime_code
from harness.system.files import write_json
from harness.system.processes import num_processes
from harness.target.model import Target


class StepMemory:
    """Which kind of step verified drafts of every width fastest, in an earlier process.

    Whoever recalls it times the recalled steps anew, and some of the others to see whether they are still the
    slower ones; see `time_steps`.
    """

    def __init__(self, target: Target, num_rows: int, widths: Sequence[int]) -> None:
        """num_rows, widths: what the steps are timed for, see `time_steps`."""
        facts = (
            *(machine_facts(), runtime_code(), transformers.__version__),
            *(target.config.to_json_string(), str(target.dtype)),
            *(target.kernel, target.linear, target.steps.kinds, target.remarks, num_rows, list(widths)),
        )
        name = hashlib.sha256(repr(facts).encode()).hexdigest()[:24]
        self._file = programs_folder() / f"steps-{name}.json"
        self._kinds, self._count = target.steps.kinds, len(widths)
        # Processes that share a target must take the same forwards. On CUDA there are few widths to time.
        self._used = num_processes() == 1 and not target.steps.by_shape

    def recall(self) -> list[str] | None:
        """The kind of step for each of the widths; None where nothing is known, or the file is damaged."""
        if not self._used:
            return None
        try:
            steps = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        right = isinstance(steps, list) and len(steps) == self._count and set(steps) <= set(self._kinds)
        return steps if right else None

    def keep(self, steps: Sequence[str]) -> None:
        """Let later processes recall these."""
        if self._used:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, list(steps))
