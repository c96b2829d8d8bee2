"""The journal of a run: lines with a checksum each, and the state that they add up to.

A line is `{"crc":"<crc32 of what follows the comma>","kind":...,"data":...}`.
"""

from __future__ import annotations

import io
import json
import zlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness.config import ConfigError
from harness.store.locations import size_of
from harness.store.records import (
    BlockLoad,
    Exhibit,
    Failure,
    GenerationRecord,
    NullReplay,
    Probe,
    RunManifest,
)

JOURNAL = "journal.jsonl"
"""The name of the journal in a run folder."""
_CRC_BYTES = len(b'{"crc":"00000000",')
_END_BYTES = 4096
"""More bytes than the last line of a finished journal has."""


class CorruptJournal(ConfigError):
    """A file of the store does not hold what was written."""


class _TornLine(ValueError):
    """A line is incomplete or does not match its checksum."""


@dataclass
class Block:
    """The entries between the beginning and the end of one conversation or batch."""

    name: str
    records: list[GenerationRecord] = field(default_factory=list)
    nulls: list[NullReplay] = field(default_factory=list)
    exhibits: list[Exhibit] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    load: BlockLoad | None = None
    counts: bool = True
    """False for a measurement that is only kept: its times are void, or another one was less disturbed."""


@dataclass
class Journal:
    """The state that the lines of a journal add up to."""

    blocks: dict[str, Block] = field(default_factory=dict)
    """The finished blocks by name, in the order of measuring; of each the last measurement that counts."""
    set_aside: list[Block] = field(default_factory=list)
    """Finished measurements of blocks that do not count, or no longer."""
    loose: list[Failure] = field(default_factory=list)
    """Failures outside of blocks."""
    probes: list[Probe] = field(default_factory=list)
    finished: bool = False
    num_bytes: int = 0
    """The length of the part of the file that was read without a fault."""
    torn: str = ""
    """Why the last line is not valid, "" if it is."""
    _block: Block | None = None

    def add(self, kind: str, data: Any) -> None:
        """Add one line; raises ValueError, KeyError or TypeError if it is not valid at this place."""
        if self.finished:
            raise ValueError("a line after the run was finished")
        match kind:
            case "open":
                # A new attempt measures again what the earlier one left unfinished.
                self._block, self.loose = None, []
            case "begin_block":
                if data in self.blocks:
                    raise ValueError(f"block {data!r} begins again although it is finished")
                self.loose += self._block.failures if self._block else []
                self._block = Block(data)
            case "begin_attempt":
                # A void measurement, or a further one of a block; the line says whether it counts.
                self.loose += self._block.failures if self._block else []
                self._block = Block(data["block"], counts=bool(data["counts"]))
            case "finish_block":
                if self._current().name != data:
                    raise ValueError(f"block {data!r} ends inside block {self._current().name!r}")
                self._finish(self._current())
            case "load":
                self._current().load = BlockLoad.from_json(data)
            case "record":
                self._current().records.append(GenerationRecord.from_json(data))
            case "null":
                self._current().nulls.append(NullReplay(**data))
            case "exhibit":
                self._current().exhibits.append(Exhibit.from_json(data))
            case "failure":
                (self._block.failures if self._block else self.loose).append(Failure(**data))
            case "probe":
                self.probes.append(Probe(**data))
            case "finished":
                self.finished = True
            case _:
                raise ValueError(f"unknown kind {kind!r}")

    def records(self) -> list[GenerationRecord]:
        """The records of finished blocks, in the order of measuring."""
        return [record for block in self.blocks.values() for record in block.records]

    def nulls(self) -> list[NullReplay]:
        """The null replays of finished blocks, in the order of measuring."""
        return [null for block in self.blocks.values() for null in block.nulls]

    def exhibits(self) -> list[Exhibit]:
        """The exhibits of finished blocks, in the order of measuring."""
        return [exhibit for block in self.blocks.values() for exhibit in block.exhibits]

    def failures(self) -> list[Failure]:
        """The failures of finished blocks, and all failures of the last attempt."""
        blocks = [*self.blocks.values(), *([self._block] if self._block else [])]
        return [failure for block in blocks for failure in block.failures] + self.loose

    def loads(self) -> list[BlockLoad]:
        """The load of every finished block that has one."""
        return [block.load for block in self.blocks.values() if block.load]

    def _finish(self, block: Block) -> None:
        replaced = self.blocks.get(block.name) if block.counts else block
        self.set_aside += [replaced] if replaced else []
        if block.counts:
            self.blocks[block.name] = block
        self._block = None

    def _current(self) -> Block:
        if self._block is None:
            raise ValueError("a line outside a block")
        return self._block


class RunWriter(ABC):
    """What the benchmark writes one run with, a block at a time. Use it as a context manager."""

    def __init__(self, folder: Path, manifest: RunManifest, journal: Journal, healed: str = "") -> None:
        """journal: what was written of the run before. healed: what was mended on opening, "" for nothing."""
        self.folder, self.manifest, self.healed = folder, manifest, healed
        self._journal = journal

    @abstractmethod
    def _write(self, kind: str, data: Any) -> None:
        """Add one line to the journal."""

    @abstractmethod
    def finish(self) -> None:
        """Export the records and mark the run finished; calling it again changes nothing."""

    @abstractmethod
    def close(self) -> None:
        """Let another process have the run; what was written stays."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def finished(self) -> bool:
        """Whether `finish` was called, now or earlier."""
        return self._journal.finished

    @property
    def finished_blocks(self) -> set[str]:
        """Names of the blocks of which a measurement counts."""
        return set(self._journal.blocks)

    def is_measured(self, name: str) -> bool:
        """Whether a block was measured, be it that the process was stopped and its times do not count."""
        return name in self.finished_blocks or any(one.name == name for one in self._journal.set_aside)

    def loads(self, name: str) -> list[BlockLoad]:
        """The load of every finished measurement of a block, the one that counts last."""
        blocks = [one for one in self._journal.set_aside if one.name == name]
        blocks += [self._journal.blocks[name]] if name in self._journal.blocks else []
        return [one.load for one in blocks if one.load]

    def begin_block(self, name: str) -> None:
        """Begin a block; earlier records of it, left by an attempt that did not finish it, are void."""
        self._write("begin_block", name)

    def begin_attempt(self, name: str, counts: bool) -> None:
        """Begin a block whose times are void, or a further measurement of one that is finished.

        counts: whether it takes the place of earlier measurements, which stay in the journal.
        """
        self._write("begin_attempt", {"block": name, "counts": counts})

    def write_record(self, record: GenerationRecord) -> None:
        """Keep one generation of the current block."""
        self._write("record", record.to_json())

    def write_null(self, null: NullReplay) -> None:
        """Keep one null replay of the current block."""
        self._write("null", null._asdict())

    def write_exhibit(self, exhibit: Exhibit) -> None:
        """Keep the text and trees of one generation of the current block for readers of the report."""
        self._write("exhibit", exhibit.to_json())

    def write_probe(self, probe: Probe) -> None:
        """Keep the speed of the machine as it was when this process began."""
        self._write("probe", probe._asdict())

    def write_load(self, load: BlockLoad) -> None:
        """Keep who used the machine while the current block was measured."""
        self._write("load", load.to_json())

    def write_failure(self, failure: Failure) -> None:
        """Keep a failure; one outside a finished block is forgotten when a later attempt opens the run."""
        self._write("failure", failure._asdict())

    def finish_block(self, name: str) -> None:
        """End a block: all of its records are there and count from now on."""
        self._write("finish_block", name)


def encode(kind: str, data: Any) -> bytes:
    """The bytes of one line, with its newline."""
    body = json.dumps({"kind": kind, "data": data}, separators=(",", ":")).encode()[1:]
    return b'{"crc":"%08x",' % zlib.crc32(body) + body + b"\n"


def read_journal(path: Path, without: Sequence[str] = ()) -> Journal:
    """Read and check every line; a missing file is an empty journal. without: kinds that are skipped.

    Only the last line may be damaged, because a crash tears the line that is being written: it is left out,
    and `torn` says so.

    Raises:
        CorruptJournal: any other line is not what was written, or does not belong where it stands.
    """
    journal = Journal()
    lines = list(io.BytesIO(path.read_bytes())) if path.exists() else []
    skipped = tuple(b'"kind":"%s"' % kind.encode() for kind in without)
    for number, line in enumerate(lines, 1):
        if skipped and line.startswith(skipped, _CRC_BYTES):
            continue
        try:
            entry = _parse(line)
            journal.add(entry["kind"], entry["data"])
        except (ValueError, KeyError, TypeError, AssertionError) as error:
            if number == len(lines) and isinstance(error, _TornLine):
                journal.torn = f"line {number}, the last, is torn ({error})"
                return journal
            raise CorruptJournal(
                f"{path}, line {number} of {len(lines)}: {error}. The file was changed after it was"
                " written. Restore it, or move the folder away and measure again."
            ) from error
        journal.num_bytes += len(line)
    return journal


def read_ends(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read only the first and the last line of a journal; {} for one that is missing or torn."""
    if not path.exists():
        return {}, {}
    with path.open("rb") as file:
        first = file.readline()
        file.seek(max(0, size_of(path) - _END_BYTES))
        last = (file.read().splitlines(keepends=True) or [b""])[-1]
    return _parsed(first), _parsed(last)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        return _parse(line)
    except _TornLine:
        return {}


def _parse(line: bytes) -> dict[str, Any]:
    if not line.endswith(b"\n"):
        raise _TornLine("it has no end")
    body = line[_CRC_BYTES:-1]
    if line[:_CRC_BYTES] != b'{"crc":"%08x",' % zlib.crc32(body):
        raise _TornLine("its checksum does not match")
    entry: dict[str, Any] = json.loads(line)
    return entry
