"""The journal of a run: its lines, and the state that they add up to."""

from __future__ import annotations

import io
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from harness.store.integrity.lines import Chain, TornLine
from harness.store.integrity.paths import CorruptJournal as CorruptJournal
from harness.store.integrity.paths import is_local, open_file, read_file, size_of
from harness.store.integrity.shapes import Moment, read_entry
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
_END_BYTES = 4096
"""More bytes than the last line of a finished journal has."""


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
    link: str = ""
    """The link of the last line of that part; "" in a run without a chain."""
    torn: str = ""
    """Why the last line is not valid, "" if it is."""
    _block: Block | None = None

    def add(self, kind: str, entry: Any) -> None:
        """Add the entry of one line; raises ValueError if it does not belong at this place."""
        if self.finished:
            raise ValueError("a line after the run was finished")
        match kind:
            case "open":
                # A new attempt measures again what the earlier one left unfinished.
                self._block, self.loose = None, []
            case "begin_block":
                if entry in self.blocks:
                    raise ValueError(f"block {entry!r} begins again although it is finished")
                self.loose += self._block.failures if self._block else []
                self._block = Block(entry)
            case "begin_attempt":
                # A void measurement, or a further one of a block; the line says whether it counts.
                self.loose += self._block.failures if self._block else []
                self._block = Block(entry["block"], counts=bool(entry["counts"]))
            case "finish_block":
                if self._current().name != entry:
                    raise ValueError(f"block {entry!r} ends inside block {self._current().name!r}")
                self._finish(self._current())
            case "load":
                block = self._current()
                if entry.block != block.name or (entry.void and block.counts):
                    raise ValueError(f"the load of {entry.block!r} does not belong to block {block.name!r}")
                block.load = entry
            case "record":
                self._current().records.append(entry)
            case "null":
                self._current().nulls.append(entry)
            case "exhibit":
                self._current().exhibits.append(entry)
            case "failure":
                (self._block.failures if self._block else self.loose).append(entry)
            case "probe":
                self.probes.append(entry)
            case "finished":
                self.finished = True
            case _:
                raise ValueError(f"unknown kind {kind!r}")

    def check_end(self, moment: Moment, without: Sequence[str]) -> None:
        """Raise ValueError if a finished run lacks records, or has two of one generation."""
        if "record" in without:
            return
        records = self.records()
        if moment.get("num_records", len(records)) != len(records):
            raise ValueError(f"{moment['num_records']} records were written, and {len(records)} are here")
        counts = Counter((one.arm, one.conversation, one.turn, one.sample, one.repeat) for one in records)
        if double := next((place for place, number in counts.items() if number > 1), None):
            raise ValueError(f"two records of {', '.join(map(str, double))} (arm to repeat)")

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
        """The failures of all measurements of finished blocks and of the last attempt, each once.

        An arm that failed stays out of the run, also where the block in which it failed is measured again.
        """
        blocks = [*self.set_aside, *self.blocks.values(), *([self._block] if self._block else [])]
        every = [failure for block in blocks for failure in block.failures] + self.loose
        return list(dict.fromkeys(every))

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
    def _write(self, kind: str, entry: Any) -> None:
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

    @property
    def failures(self) -> list[Failure]:
        """What failed so far in finished blocks and in this attempt."""
        return self._journal.failures()

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
        self._write("record", record)

    def write_null(self, null: NullReplay) -> None:
        """Keep one null replay of the current block."""
        self._write("null", null)

    def write_exhibit(self, exhibit: Exhibit) -> None:
        """Keep the text and trees of one generation of the current block for readers of the report."""
        self._write("exhibit", exhibit)

    def write_probe(self, probe: Probe) -> None:
        """Keep the speed of the machine as it was when this process began."""
        self._write("probe", probe)

    def write_load(self, load: BlockLoad) -> None:
        """Keep who used the machine while the current block was measured."""
        self._write("load", load)

    def write_failure(self, failure: Failure) -> None:
        """Keep a failure; one outside a finished block is forgotten when a later attempt opens the run."""
        self._write("failure", failure)

    def finish_block(self, name: str) -> None:
        """End a block: all of its records are there and count from now on."""
        self._write("finish_block", name)


def plain(entry: Any) -> Any:
    """An entry as JSON types."""
    if isinstance(entry, GenerationRecord | Exhibit | BlockLoad):
        return entry.to_json()
    return entry._asdict() if isinstance(entry, NullReplay | Probe | Failure) else entry


def read_journal(path: Path, manifest: RunManifest, without: Sequence[str] = ()) -> Journal:
    """Read and check every line; a missing file is an empty journal.

    Only the last line may be damaged, because a crash tears the line that is being written: it is left out,
    and `torn` says so.

    manifest: of the run, which the first line follows. without: kinds whose lines are checked but not kept.

    Raises:
        CorruptJournal: any other line is not what was written, or does not belong where it stands.
        ConfigError: it is not a plain file.
    """
    chain, journal = Chain(manifest.run_id, manifest.chain), Journal(link=manifest.chain)
    vocab_size = manifest.target.get("vocab_size")
    try:
        lines = list(io.BytesIO(read_file(path)))
    except FileNotFoundError:
        return journal
    for number, line in enumerate(lines, 1):
        try:
            taken = chain.take(line)
            if taken.kind not in without:
                journal.add(taken.kind, read_entry(taken, vocab_size))
            if taken.kind == "finished":
                journal.check_end(read_entry(taken), without)
        except ValueError as error:
            if number == len(lines) and isinstance(error, TornLine):
                journal.torn = f"line {number}, the last, is torn ({error})"
                return journal
            raise CorruptJournal(
                f"{path}, line {number} of {len(lines)}: {error}. The file was changed after it was"
                " written. Restore it, or move the folder away and measure again."
            ) from error
        journal.num_bytes, journal.link = journal.num_bytes + len(line), chain.link
    return journal


def seconds_of(path: Path, manifest: RunManifest) -> float | None:
    """Seconds from the beginning to the end of a run, None if it is not finished.

    Only the first and the last line are read.

    Raises:
        CorruptJournal: these lines are not what was written.
    """
    try:
        first, last = _ends(path)
    except FileNotFoundError:
        return None
    chain = Chain(manifest.run_id, manifest.chain)
    begun, ended = chain.is_of(first), chain.is_of(last)
    if ended is None or ended.kind != "finished":
        return None
    try:
        if begun is None or begun.kind != "open":
            raise ValueError("its first line does not open a run")
        times: list[Moment] = [read_entry(begun), read_entry(ended)]
        start, end = (datetime.fromisoformat(one["at"]).timestamp() for one in times)
    except (ValueError, KeyError) as error:
        raise CorruptJournal(f"{path}: {error}. Restore it, or move the folder away.") from error
    return end - start


def _ends(path: Path) -> tuple[bytes, bytes]:
    """The first and the last line of a file."""
    if not is_local(path):
        # Of an archive or a URL, all must be read anyway to reach the end.
        lines = read_file(path).splitlines(keepends=True) or [b""]
        return lines[0], lines[-1]
    with open_file(path) as file:
        first = file.readline()
        file.seek(max(0, size_of(path) - _END_BYTES))
        return first, (file.read().splitlines(keepends=True) or [b""])[-1]


def end_of(path: Path, num_bytes: int) -> bytes:
    """The last bytes of a journal on this machine."""
    with open_file(path) as file:
        file.seek(-min(num_bytes, size_of(path)), os.SEEK_END)
        return file.read()
