"""The identity of a run decides whether two runs are the same measurement; the run id is made from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from harness.store.records import Cell, RunManifest
from harness.system.naming import class_names, digest, slug
from harness.system.provenance import device_identity, packages, source_hash
from harness.system.secrets import redact

_OUTPUT_OPTIONS = frozenset({"tracker", "results", "hydra", "replicate"})
_NOT_OF_A_RUN = frozenset({"results", "tracker", "replicate", "decodings", "dry_run"})
"""Options about output and about the process; the manifest has replicate and decodings in another form."""
_IDENTITY_PACKAGES = ("torch", "transformers")


def run_config(config: Mapping[str, Any], decoding: str) -> dict[str, Any]:
    """The part of a resolved configuration that belongs in the manifest of the run with `decoding`."""
    kept = {key: value for key, value in config.items() if key not in _NOT_OF_A_RUN}
    return {**kept, "decoding": config["decodings"][decoding]}


def identity(config: Mapping[str, Any], replicate: int, device: Mapping[str, Any]) -> dict[str, Any]:
    """The facts that must be equal for two runs to be the same measurement; JSON types only.

    config: the resolved configuration; options that only say where output goes are left out, and so
    are secrets. device: from `device_facts`; what changes by itself (clocks, free memory) is left out.
    """
    return {
        "config": _compared(redact(config)),
        "replicate": replicate,
        "source": source_hash(),
        "packages": {name: packages().get(name) for name in _IDENTITY_PACKAGES},
        "device": device_identity(device),
    }


def stored_identity(manifest: RunManifest) -> dict[str, Any]:
    """The `identity` of a stored run, without its prompts, weights and heads."""
    facts = manifest.provenance
    versions = facts.get("packages") or {}
    return {
        "config": _compared(manifest.config),
        "replicate": manifest.replicate,
        "source": facts.get("source_hash"),
        "packages": {name: versions.get(name) for name in _IDENTITY_PACKAGES},
        "device": device_identity(facts.get("device") or {}),
    }


def _compared(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a configuration whose change makes another measurement."""
    kept: dict[str, Any] = class_names({k: v for k, v in config.items() if k not in _OUTPUT_OPTIONS})
    return kept


def run_id(cell: Cell, identity: Mapping[str, Any]) -> str:
    """`<target>.<task>.<decoding>.<10 hex digits>`, usable as a folder name and stable across processes."""
    names = [slug(name) for name in (cell.target, cell.task, cell.decoding)]
    return ".".join([*names, digest({"cell": asdict(cell), **identity})[:10]])
