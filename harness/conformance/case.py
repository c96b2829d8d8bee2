"""A recorded case, its target, and how numbers are compared."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from harness.target.model import Target

TOLERANCE = 1e-4
"""Absolute and relative, for float32 against float32; scores that are closer count as tied."""


class Check(NamedTuple):
    """The result of one comparison."""

    name: str
    passed: bool
    note: str = ""
    """The difference, or how close a match is."""


@dataclass(frozen=True)
class Case:
    """A JSON file and the tensors beside it."""

    file: Path
    root: Path
    """The folder that holds `models/`; paths in the case are relative to it."""
    data: dict[str, Any]

    @property
    def kind(self) -> str:
        """The folder below the root that the case lies in."""
        return self.file.relative_to(self.root).parts[0]

    @property
    def name(self) -> str:
        """The path below the root, without the suffix."""
        return self.file.relative_to(self.root).with_suffix("").as_posix()

    @property
    def model_folder(self) -> Path:
        """The folder of the case's head."""
        return (self.root / "models" / str(self.data["model"])).resolve()

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The recorded tensors."""
        named = self.data["tensors"]
        beside = self.file.with_suffix(".safetensors")
        # A list names the tensors of the file beside the case.
        file = beside if isinstance(named, list) else self.file.parent / named
        tensors: dict[str, Tensor] = load_file(file)
        return tensors


def read_case(file: Path, root: Path) -> Case:
    """The case in a JSON file."""
    data = json.loads(file.read_text(encoding="utf-8"))
    return Case(file=file, root=root, data=data if isinstance(data, dict) else {})


@dataclass
class Targets:
    """The targets of all cases, each loaded once."""

    _targets: dict[Path, Target] = field(default_factory=dict)

    def of(self, case: Case) -> Target:
        """The case's target, in the case's dtype.

        Raises:
            OSError: it cannot be loaded.
        """
        folder = (case.root / _target_folder(case.data)).resolve()
        if folder not in self._targets:
            dtype = getattr(torch, case.data.get("dtype", "float32"))
            # Plain transformers: a case has token ids, so its target needs no tokenizer.
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="sdpa")
            self._targets[folder] = Target(model.eval().requires_grad_(False))
        return self._targets[folder]


def _target_folder(data: dict[str, Any]) -> str:
    """Where a case says that its target lies: a path, or the name of one of the models beside it."""
    if "target_dir" in data:
        return str(data["target_dir"])
    return f"models/{data['target'] if 'target' in data else data['verifier']}"


def equal(name: str, ours: Any, theirs: Any) -> Check:
    """Compare exactly."""
    if isinstance(ours, Tensor):
        same = ours.shape == theirs.shape and bool((ours.to(theirs.dtype) == theirs).all())
        return Check(name, same, "" if same else "differs")
    return Check(name, ours == theirs, "" if ours == theirs else f"{ours} instead of {theirs}")


def close(name: str, ours: Tensor, theirs: Tensor, tolerance: float = TOLERANCE) -> Check:
    """Compare within a tolerance, absolute and relative."""
    if ours.shape != theirs.shape:
        return Check(name, False, f"shape {list(ours.shape)} instead of {list(theirs.shape)}")
    ours, theirs = ours.double().cpu(), theirs.double()
    gap = float((ours - theirs).abs().max()) if theirs.numel() else 0.0
    passed = bool(torch.isclose(ours, theirs, rtol=tolerance, atol=tolerance).all())
    return Check(name, passed, "" if passed else f"off by {gap:.2g}")
