"""The folder of a training: its checkpoint, its curves, and the best head so far.

Heads that are kept from every evaluation lie beside it as `head-STEP`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from harness.config import ConfigError
from harness.system.files import append_json, write_text
from harness.system.naming import class_names, digest

CHECKPOINT, CURVES, HEAD = "checkpoint.pt", "curves.jsonl", "head"


class TrainingFolder:
    """Where one training writes. Nothing is written before the first curve or checkpoint."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        """identity: the settings that must match to resume from the checkpoint; JSON types."""
        self.path = path
        self._identity = digest(identity)

    def add_to_curves(self, step: int, numbers: dict[str, float]) -> None:
        """Append a line of numbers that belong to `step`."""
        self.path.mkdir(parents=True, exist_ok=True)
        append_json(self.path / CURVES, [{"step": step, **numbers}])

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint atomically."""
        self.path.mkdir(parents=True, exist_ok=True)
        part = self.path / f"{CHECKPOINT}.part"
        torch.save({"identity": self._identity, **state}, part)
        part.replace(self.path / CHECKPOINT)

    def load(self, device: torch.device) -> dict[str, Any] | None:
        """The state that was saved last; None where there is no checkpoint.

        Raises:
            ConfigError: the checkpoint belongs to a training with other settings.
        """
        file = self.path / CHECKPOINT
        if not file.is_file():
            return None
        state: dict[str, Any] = torch.load(file, map_location=device, weights_only=True)
        if class_names(state["identity"]) != self._identity:
            raise ConfigError(
                f"out={self.path}: holds a training with other settings; type another out=, or delete it"
            )
        return state

    def cut_curves(self, step: int) -> None:
        """Drop the lines that were written after `step`: a resumed training writes them again."""
        file = self.path / CURVES
        if file.is_file():
            kept = [line for line in file.read_text().splitlines() if json.loads(line)["step"] <= step]
            write_text(file, "".join(f"{line}\n" for line in kept))
