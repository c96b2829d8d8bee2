"""The records of a finished run as a Parquet file, exported from its journal.

The journal is authoritative. An export holds the size and the last line of its journal, and that line has the
time and a checksum; if they do not match the journal, the export is stale and is not read.
"""

from __future__ import annotations

import json
import zlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, TypeVar, overload

import numpy as np
from pydantic import ConfigDict
from typing_extensions import override

from harness.config import ConfigError
from harness.ledger.quantities import BURST_COUNTS, BURST_TIMES, METERED, ROUND_COUNTS, ROUND_TIMES, TIMES
from harness.store.columns import LISTS, NAMES, SCALARS, Columns, Named, Ragged
from harness.store.integrity.ledger import check_columns, check_load, check_null, check_probe
from harness.store.integrity.paths import CorruptJournal, is_local, open_file, read_file, size_of
from harness.store.integrity.shapes import read_json
from harness.store.journal import JOURNAL, Journal, end_of, read_journal
from harness.store.records import (
    STRICT,
    BlockLoad,
    Exhibit,
    Failure,
    GenerationRecord,
    NullReplay,
    Probe,
    RunManifest,
)

COLUMNS = "records.parquet"
_ABOUT, _CHECKSUM = b"journal", b"journal_crc32"
"""The keys of `About` and its checksum in the metadata of the file."""
_TUPLES = ("nulls", "probes", "failures")
_WORDS = ("arm", "kind", "conversation", "category", "prompt_hash", "stop")


@dataclass(frozen=True, kw_only=True)
class About:
    """What a report needs from a finished journal besides the records."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    num_bytes: int
    """The length of the journal."""
    end: str
    """The last line of the journal."""
    num_records: int
    num_exhibits: int
    nulls: list[NullReplay]
    probes: list[Probe]
    failures: list[Failure]
    loads: list[BlockLoad] = field(default_factory=list)
    """One per finished block; an export that was written before loads were recorded has none."""
    columns: str = ""
    """Names and types of the columns, which a damaged file may have lost; "" in files of older versions."""

    @classmethod
    def of(cls, journal: Journal, num_bytes: int, end: bytes) -> About:
        """The facts of a journal of this size that ends in the line `end`."""
        return cls(
            num_bytes=num_bytes,
            end=end.decode(),
            num_records=len(journal.records()),
            num_exhibits=len(journal.exhibits()),
            nulls=journal.nulls(),
            probes=journal.probes,
            loads=journal.loads(),
            failures=journal.failures(),
            columns=_described(_schema()),
        )

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types, which `read_json` reads."""
        return {
            **vars(self),
            **{name: [one._asdict() for one in getattr(self, name)] for name in _TUPLES},
            "loads": [one.to_json() for one in self.loads],
        }


def encode_columns(records: Sequence[GenerationRecord], about: About) -> bytes:
    """The bytes of the file, which has one column per field of the records, and `about` in its metadata."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    text = json.dumps(about.to_json()).encode()
    schema = _schema().with_metadata({_ABOUT: text, _CHECKSUM: b"%08x" % zlib.crc32(text)})
    rows = [record.to_json() for record in records]
    arrays = [pa.array([row[field.name] for row in rows], field.type) for field in schema]
    table, buffer = pa.Table.from_arrays(arrays, schema=schema), BytesIO()
    # Times do not repeat, so encoding them with a dictionary would not pay.
    pq.write_table(table, buffer, compression="zstd", use_dictionary=list(_WORDS), write_page_checksum=True)
    return buffer.getvalue()


def _schema() -> Any:
    import pyarrow as pa

    special = {
        **dict.fromkeys(_WORDS, pa.string()),
        **dict.fromkeys((*TIMES, *METERED), pa.int64()),
        **dict.fromkeys((*ROUND_TIMES, *BURST_TIMES), pa.list_(pa.int64())),
        **dict.fromkeys(("output_ids", *ROUND_COUNTS, *BURST_COUNTS), pa.list_(pa.int32())),
        "timed": pa.bool_(),
        "verdict": pa.struct([("kind", pa.string()), ("position", pa.int32()), ("gap", pa.float64())]),
    }
    return pa.schema([(name, special.get(name, pa.int32())) for name in GenerationRecord.names()])


def _described(schema: Any) -> str:
    """Names and types of columns; Parquet has another name for what a list holds."""
    return ", ".join(f"{field.name}: {field.type}".replace("element:", "item:") for field in schema)


def read_about(folder: Path) -> About | None:
    """The facts of the export in a run folder; None if it is missing or was made from another journal."""
    about = _about(folder / COLUMNS)
    return about if about is not None and _is_of(about, folder / JOURNAL) else None


def _about(path: Path) -> About | None:
    """What the file says about its journal; None if it is damaged or says less (another version)."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        return None
    try:
        metadata = pq.read_schema(_file(path)).metadata or {}
        text = metadata.get(_ABOUT)
        if not text or metadata.get(_CHECKSUM, b"%08x" % zlib.crc32(text)) != b"%08x" % zlib.crc32(text):
            return None
        about: About = read_json(About, text)
        for null in about.nulls:
            check_null(null)
        for probe in about.probes:
            check_probe(probe)
        for load in about.loads:
            check_load(load)
    except ConfigError:
        raise
    except (pa.ArrowException, OSError, ValueError):
        return None
    return about


def _is_of(about: About, journal: Path) -> bool:
    if not journal.exists() or size_of(journal) != about.num_bytes:
        return False
    # Reading the end of a remote file may transfer all of it.
    return not is_local(journal) or end_of(journal, len(about.end.encode())) == about.end.encode()


def read_columns(folder: Path, about: About) -> Columns:
    """Read the columns that a report needs from the export of a run folder.

    about: what the export says of itself.

    Raises:
        CorruptJournal: the export cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / COLUMNS
    try:
        # The data sets of pyarrow take longer to open a small file than this takes to read it.
        file = pq.ParquetFile(_file(path), page_checksum_verification=True)
        names = file.schema_arrow.names
        if about.columns and _described(file.schema_arrow) != about.columns:
            raise ValueError("its columns are not those that were written")
        wanted = [*NAMES, *SCALARS, *TIMES, *METERED, *LISTS, "verdict"]
        table = file.read([name for name in wanted if name in names])
        if len(table) != about.num_records:
            raise ValueError(f"it has {len(table)} records, and {about.num_records} were written")
        columns = _columns(table, wanted)
        check_columns(columns)
    except ConfigError:
        raise
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(path, error) from error
    return columns


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """Every record of the export in a run folder, as JSON types, with the fields that the file has.

    Raises:
        CorruptJournal: the export cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / COLUMNS
    try:
        table = pq.ParquetFile(_file(path), page_checksum_verification=True).read()
        rows: list[dict[str, Any]] = table.to_pylist()
    except ConfigError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _unreadable(path, error) from error
    return rows


def _unreadable(path: Path, error: Exception) -> CorruptJournal:
    return CorruptJournal(
        f"{path}: cannot be read ({error}). Delete it: the journal beside it holds the same records."
    )


def _columns(table: Any, wanted: Sequence[str]) -> Columns:
    kinds, positions, _ = table["verdict"].combine_chunks().flatten()
    missing = set(wanted) - set(table.column_names)
    unknown = {
        **dict.fromkeys(missing & set(TIMES), np.zeros(len(table), np.int64)),
        **dict.fromkeys(missing & set(METERED), np.full(len(table), -1)),
    }
    no_rounds = Ragged(np.zeros(0, np.int64), np.zeros(len(table), np.int32))
    return Columns.build(
        {name: _named(table[name].combine_chunks()) for name in NAMES},
        {
            **{name: table[name].to_numpy() for name in (*SCALARS, *TIMES) if name not in missing},
            **{
                name: table[name].combine_chunks().fill_null(-1).to_numpy()
                for name in METERED
                if name not in missing
            },
            **unknown,
        },
        {name: no_rounds if name in missing else _ragged(table[name].combine_chunks()) for name in LISTS},
        _named(kinds),
        positions.fill_null(-1).to_numpy(),
    )


def _file(path: Path) -> Any:
    """The argument for pyarrow: the path of a local file, or the bytes of a remote one."""
    if not is_local(path):
        return BytesIO(read_file(path))
    open_file(path).close()
    return path


def _named(column: Any) -> Named:
    coded = column.dictionary_encode(null_encoding="encode")
    return Named(tuple(coded.dictionary.to_pylist()), coded.indices.to_numpy())


def _ragged(lists: Any) -> Ragged:
    return Ragged(lists.flatten().to_numpy(), np.diff(lists.offsets.to_numpy()))


Kept = TypeVar("Kept")


class _Stored(Sequence[Kept]):
    """Entries of one kind of a finished run, read from its journal when they are iterated."""

    def __init__(self, folder: Path, manifest: RunManifest, about: About) -> None:
        """Read nothing yet. about: what the export says of the journal."""
        self._folder, self._manifest, self._about = folder, manifest, about

    @abstractmethod
    def __len__(self) -> int: ...

    @overload
    def __getitem__(self, index: int) -> Kept: ...
    @overload
    def __getitem__(self, index: slice) -> list[Kept]: ...
    def __getitem__(self, index: int | slice) -> Kept | list[Kept]:
        return list(self)[index]


class StoredRecords(_Stored[GenerationRecord]):
    """The records of a finished run: columns come from its export, single records from its journal."""

    @override
    def __len__(self) -> int:
        return self._about.num_records

    @override
    def __iter__(self) -> Iterator[GenerationRecord]:
        return iter(read_journal(self._folder / JOURNAL, self._manifest).records())

    def columns(self) -> Columns:
        """Read the columns, each time from disk, because a report needs those of one cell at a time."""
        return read_columns(self._folder, self._about)


class StoredExhibits(_Stored[Exhibit]):
    """The exhibits of a finished run, from its journal."""

    @override
    def __len__(self) -> int:
        return self._about.num_exhibits

    @override
    def __iter__(self) -> Iterator[Exhibit]:
        path = self._folder / JOURNAL
        return iter(read_journal(path, self._manifest, without=("record",)).exhibits())
