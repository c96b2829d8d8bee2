"""JSON of a store as records and manifests: every value has its type, or the error names its place."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from harness.store.integrity.ledger import check_exhibit, check_load, check_null, check_probe, check_record
from harness.store.integrity.lines import Line
from harness.store.integrity.paths import fault_of_name
from harness.store.records import (
    BlockLoad,
    Exhibit,
    Failure,
    GenerationRecord,
    NullReplay,
    Probe,
    RunManifest,
)

_MAX_DEPTH = 64
"""Levels of nesting in a manifest; a configuration has about six."""


class Moment(TypedDict, total=False):
    """What opens a run, or finishes it."""

    at: str
    """ISO 8601."""
    pid: int
    num_records: int


class Attempt(TypedDict):
    """A void measurement of a block, or a further one of a block that is finished."""

    block: str
    counts: bool
    """Whether it takes the place of earlier measurements."""


_KINDS: dict[str, Any] = {
    "open": Moment,
    "begin_block": str,
    "finish_block": str,
    "begin_attempt": Attempt,
    "load": BlockLoad,
    "record": GenerationRecord,
    "null": NullReplay,
    "exhibit": Exhibit,
    "failure": Failure,
    "probe": Probe,
    "finished": Moment,
}
"""The type of the data of each kind of line."""


class _Decoding(TypedDict, total=False):
    name: str
    temperature: float
    max_new_tokens: int
    seeds: list[int] | None
    ignore_end_token: bool


class _Config(TypedDict, total=False):
    decoding: _Decoding | None
    target: dict[str, Any] | None
    task: dict[str, Any] | None
    acceptor: dict[str, Any] | None
    measure: dict[str, Any] | None
    methods: dict[str, Any] | None
    rungs: dict[str, dict[str, Any]] | None


class _Target(TypedDict, total=False):
    source: str | None
    vocab_size: int | None
    step_bytes: int
    cache_bytes_per_token: int | None


class _Prompts(TypedDict, total=False):
    num_conversations: int


class _Provenance(TypedDict, total=False):
    git: dict[str, Any] | None
    packages: dict[str, str | None] | None
    device: dict[str, Any] | None
    source_hash: str | None


class _Card(TypedDict, total=False):
    known: dict[str, Any] | None


class _Arm(TypedDict, total=False):
    scope: str
    card: _Card | None
    tree: dict[str, Any] | None


class _Parts(TypedDict):
    """What the code reads of the parts of a manifest that are free otherwise."""

    config: _Config
    target: _Target
    prompts: _Prompts
    provenance: _Provenance
    arms: dict[str, _Arm]


@cache
def _reader(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def read_json(kind: Any, text: bytes) -> Any:
    """`text` as a value of the type `kind`, without any conversion.

    Raises:
        ValueError: it is no JSON, or no such value; says where in it.
    """
    if b"\\ud" in text:
        # Older versions of the harness wrote halves of surrogate pairs, which the strict reader refuses.
        try:
            whole = json.dumps(json.loads(text), ensure_ascii=False)
        except RecursionError as error:
            raise ValueError("is nested too deep") from error
        text = whole.encode("utf-8", "replace")
    try:
        return _reader(kind).validate_json(text, strict=True)
    except ValidationError as error:
        raise ValueError(_described(error)) from error


def read_entry(line: Line, vocab_size: int | None = None) -> Any:
    """The data of a line as what its kind says, with the arithmetic of records checked.

    vocab_size: of the target, if it is known.

    Raises:
        ValueError: it is something else.
    """
    if line.kind not in _KINDS:
        raise ValueError(f"unknown kind {line.kind!r}")
    entry = read_json(_KINDS[line.kind], line.data)
    match entry:
        case GenerationRecord():
            check_record(entry, vocab_size)
        case NullReplay():
            check_null(entry)
        case Exhibit():
            check_exhibit(entry)
        case Probe():
            check_probe(entry)
        case BlockLoad():
            check_load(entry)
    return entry


def read_manifest_json(text: bytes) -> RunManifest:
    """A manifest, with the types of all that the code reads from it.

    Raises:
        ValueError: it is something else.
    """
    manifest: RunManifest = read_json(RunManifest, text)
    if fault := fault_of_name(manifest.run_id):
        raise ValueError(f"run_id: {manifest.run_id!r} {fault}")
    parts = {name: getattr(manifest, name) for name in _Parts.__annotations__}
    try:
        _reader(_Parts).validate_python(parts, strict=True)
    except ValidationError as error:
        raise ValueError(_described(error)) from error
    for name, value in {**parts, "cell": vars(manifest.cell)}.items():
        for place, number in _leaves(value, name, _MAX_DEPTH):
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{place}: {number} is no number")
    return manifest


def _leaves(value: Any, place: str, depth: int) -> Iterator[tuple[str, Any]]:
    if not depth:
        raise ValueError(f"{place}: is nested more than {_MAX_DEPTH} levels deep")
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{place}.{key}", depth - 1)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _leaves(item, f"{place}[{number}]", depth - 1)
    else:
        yield place, value


def _described(error: ValidationError) -> str:
    """The first fault, and how many more there are."""
    faults = error.errors(include_url=False, include_input=False)
    place = ".".join(str(step) for step in faults[0]["loc"])
    more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
    return f"{f'{place}: ' if place else ''}{faults[0]['msg']}{more}"
