"""Find and read the files of draft heads of any kind: those that ship, in a folder, or on the hub."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from harness.config import ConfigError
from harness.drafting.drafter import TRAINING_PROMPTS
from harness.system import hub
from methods.shared import adapters

_WITHOUT_HUB = "Without the hub: methods.NAME.head=FOLDER (a downloaded head)."
SHIPPED = Path(__file__).parents[1] / "heads"
"""Heads that come with the package, one folder each."""
CARDS = SHIPPED / "cards.yaml"
"""Known heads and who made them."""
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""In order of preference; either may be split into shards, listed in NAME.index.json."""


@dataclass(frozen=True, kw_only=True)
class HeadFiles:
    """The files as they were read, not yet checked."""

    config: dict[str, Any]
    """config.json as it is."""
    tensors: dict[str, Tensor]
    """They may be mapped from the file."""
    card: dict[str, Any]
    """JSON types: path, revision (commit on the hub), sha256 (of the weight files, its first 16 hex digits),
    and `training` if the head's own card.json describes it; of an EAGLE head also format (whose)."""


def read_head(path: str, revision: str | None, where: str) -> HeadFiles:
    """Read the head in the folder, or at the hub id, `path`; `where` begins each message. Tensors keep the
    names that they have in the file. An adapter (see `adapters`) is read with its base.

    Raises:
        ConfigError: there is none, or a file cannot be read.
    """
    folder, commit = _find(path, revision, where)
    base: dict[str, Any] = {}
    if (folder / adapters.CONFIG).is_file():
        config, tensors, base = _read_adapter(folder, where)
        files = [folder / adapters.WEIGHTS]
    else:
        config = _read_json(folder / "config.json", where)
        files, tensors = _read_weights(folder, where)
    card = {"path": path, "revision": commit, "sha256": _hash(files), **base}
    if (folder / "card.json").is_file():
        own = _read_json(folder / "card.json", where)
        card |= {"training": own["training"]} if "training" in own else {}
    return HeadFiles(config=config, tensors=tensors, card=card)


def read_part(path: str, revision: str | None, where: str, wanted: Callable[[str], bool]) -> HeadFiles:
    """As `read_head`, of a checkpoint that holds more than a head: only the tensors with `wanted` names.

    The hash is that of these tensors. Only the files that hold them are opened.

    Raises:
        ConfigError: there is none, it has no safetensors, or a file cannot be read.
    """
    folder, commit = _find(path, revision, where)
    files = [file for file in _weight_files(folder, where) if file.suffix == ".safetensors"]
    tensors: dict[str, Tensor] = {}
    total = hashlib.sha256()
    for file in files:
        try:
            with safe_open(file, framework="pt") as opened:
                names = list(opened.keys())
                tensors |= {name: opened.get_tensor(name) for name in names if wanted(name)}
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{where}: {file.name} cannot be read; is it whole? ({error})") from error
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    card = {"path": path, "revision": commit, "sha256": total.hexdigest()[:16]}
    return HeadFiles(config=_read_json(folder / "config.json", where), tensors=tensors, card=card)


def prompts_beside(card: Mapping[str, Any]) -> list[Path]:
    """The files of fingerprints beside the head with this card, and beside those that its training names as
    `prompts_of` (one or a list), as far as there are any; see `TRAINING_PROMPTS`."""
    path, revision = card.get("path"), card.get("revision")
    heads = [(path, revision)] if path is not None else []
    named = card.get("training", {}).get("prompts_of", [])
    heads += [(name, None) for name in ([named] if isinstance(named, str) else named)]
    files = [_folder_at(*head) / TRAINING_PROMPTS for head in heads]
    return [file for file in files if file.is_file()]


def _folder_at(path: str, revision: str | None) -> Path:
    """The folder of a head that was read; of one from the hub, all files came together."""
    if revision is None:
        return _find(path, None, f"head={path}")[0]
    return Path(huggingface_hub.snapshot_download(path, revision=revision, local_files_only=True))


def _read_adapter(folder: Path, where: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """The base's configuration, the tensors of the whole head, and what a card says of the base."""
    config = _read_json(folder / adapters.CONFIG, where)
    path = config.get("base_model_name_or_path")
    if not isinstance(path, str):
        raise ConfigError(f"{where}: its {adapters.CONFIG} names no base_model_name_or_path.")
    base = read_head(path, None, f"{where}: its base {path}")
    wanted, found = config.get("base_sha256"), base.card["sha256"]
    if wanted not in (None, found):
        raise ConfigError(
            f"{where}: was made for other weights of {path} (sha256 {wanted}, not {found}); train it again"
        )
    try:
        factors = load_file(folder / adapters.WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{where}: {adapters.WEIGHTS} cannot be read; is it whole? ({error})") from error
    tensors = adapters.merged(base.tensors, config, factors, where)
    return base.config, tensors, {"base": {"path": path, "sha256": found}}


def _find(path: str, revision: str | None, where: str) -> tuple[Path, str | None]:
    """The folder with the files, and their commit if they come from the hub."""
    folder = SHIPPED / path if "/" not in path and (SHIPPED / path).is_dir() else Path(path).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ConfigError(f"revision={revision}: the head {path} is a folder; leave it out.")
        return folder, None
    if folder.is_absolute() or path.startswith((".", "~")) or path.count("/") != 1:
        shipped = ", ".join(sorted(one.name for one in SHIPPED.iterdir() if one.is_dir()))
        raise ConfigError(
            f"{where}: no such folder. Allowed: a folder, a hub id ORG/NAME, or one that ships ({shipped})."
        )
    try:
        with hub.asking(where, f"revision={revision} of the head {path}", _WITHOUT_HUB):
            info = huggingface_hub.HfApi().model_info(path, revision=revision, timeout=hub.TIMEOUT_S)
            names = [file.rfilename for file in info.siblings or ()]
            safe = any(name.startswith("model") and ".safetensors" in name for name in names)
            weights = "model*.safetensors*" if safe else "pytorch_model*"
            own = ["config.json", "card.json", TRAINING_PROMPTS, adapters.CONFIG, adapters.WEIGHTS]
            wanted = [*own, weights]
            fetched = huggingface_hub.snapshot_download(path, revision=info.sha, allow_patterns=wanted)
    except hub.Unreachable as why:
        return _earlier_download(path, revision, where, why)
    return Path(fetched), info.sha


def _earlier_download(path: str, revision: str | None, where: str, why: hub.Unreachable) -> tuple[Path, str]:
    try:
        folder = huggingface_hub.snapshot_download(path, revision=revision, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{where}: the hub cannot be reached ({why}) and there is no earlier download. {_WITHOUT_HUB}"
        ) from error
    return Path(folder), Path(folder).name


def _read_json(file: Path, where: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: its {file.name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{where}: its {file.name} is not a JSON object.")
    return content


def _read_weights(folder: Path, where: str) -> tuple[list[Path], dict[str, Tensor]]:
    """The weight files, and their tensors under the names that they have there."""
    files = _weight_files(folder, where)
    tensors: dict[str, Tensor] = {}
    for file in files:
        try:
            if file.suffix == ".safetensors":
                tensors |= load_file(file)
            else:
                tensors |= torch.load(file, weights_only=True, map_location="cpu", mmap=True)
        except Exception as error:  # each format raises classes of its own
            raise ConfigError(
                f"{where}: {file.name} cannot be read; is it whole? ({type(error).__name__}: {error})"
            ) from error
    others = [str(name) for name, tensor in tensors.items() if not isinstance(tensor, Tensor)]
    if others:
        raise ConfigError(f"{where}: {files[0].name} holds more than tensors: {', '.join(others)}.")
    return files, tensors


def _weight_files(folder: Path, where: str) -> list[Path]:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.is_file():
            shards = _read_json(index, where).get("weight_map")
            if not shards or not isinstance(shards, dict):
                raise ConfigError(f"{where}: its {index.name} has no weight_map.")
            return [_shard(folder, shard, name, where) for shard in sorted(set(map(str, shards.values())))]
    raise ConfigError(f"{where}: has no weights. Looked for, whole or in shards: {', '.join(_WEIGHTS)}.")


def _shard(folder: Path, shard: str, name: str, where: str) -> Path:
    """A file that an index names, which must lie beside it and be of its kind: a `.bin` is a pickle."""
    if shard != Path(shard).name or Path(shard).suffix != Path(name).suffix:
        raise ConfigError(
            f"{where}: its {name}.index.json names the file {shard!r}. Allowed: files of the same folder that"
            f" end in {Path(name).suffix}."
        )
    return folder / shard


def _hash(files: Sequence[Path]) -> str:
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: total)
    return total.hexdigest()[:16]
