"""What a YAML of conf/recorded declares: the method's modules and objects that a family's cases exercise."""

from __future__ import annotations

from functools import cached_property
from importlib import import_module
from importlib.resources import files
from types import ModuleType
from typing import Any

from omegaconf import OmegaConf


class Declared:
    """The nodes of conf/recorded/NAME.yaml."""

    def __init__(self, name: str) -> None:
        self._file = files("conf") / "recorded" / f"{name}.yaml"

    @cached_property
    def nodes(self) -> dict[str, Any]:
        """All nodes by name."""
        declared: Any = OmegaConf.to_container(OmegaConf.create(self._file.read_text(encoding="utf-8")))
        return {str(name): node for name, node in declared.items()}

    def module(self, name: str) -> ModuleType:
        """One of the modules whose arithmetic is compared."""
        return import_module(self.nodes[name])
