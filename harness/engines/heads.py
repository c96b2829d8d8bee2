"""Heads as other engines are given them: where they are, and which blocks of the target they read."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from harness.config import ConfigError


def head_location(head: str) -> str:
    """The folder of a head that ships with this package, or else the folder or hub id itself."""
    shipped = files("methods") / "heads" / head
    if shipped.is_dir():
        return str(shipped)
    folder = Path(head).expanduser()
    return str(folder.resolve()) if folder.is_dir() else head


def head_folder(head: str, where: str) -> Path:
    """The folder of a head that ships with this package, or that the user has. where: begins the message.

    Raises:
        ConfigError: there is none, or it is not whole.
    """
    folder = Path(head_location(head))
    if not folder.is_dir():
        raise ConfigError(f"{where}.head={head}: a folder or a shipped head is needed")
    if not (folder / "config.json").is_file():
        raise ConfigError(
            f"{where}.head={head}: has no config.json; other engines need a whole head, not additions to one"
        )
    return folder


def tapped_blocks(config: dict[str, Any]) -> tuple[int, ...]:
    """The blocks of the target that a head's config.json names; none where the official ones are meant."""
    whole = {**config, **(config.get("eagle_config") or {})}
    return tuple(whole.get("eagle_aux_hidden_state_layer_ids") or ())
