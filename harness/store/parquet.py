"""The records of a finished run as a Parquet file, exported from its journal.

The journal is authoritative. An export holds the size and the last line of its journal, and that line has the
time and a checksum; if they do not match the journal, the export is stale and is not read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np

from harness.ledger.quantities import METERED, ROUND_COUNTS, ROUND_TIMES, TIMES
from harness.store.columns import LISTS, NAMES, SCALARS, Columns, Named, Ragged
from harness.store.journal import JOURNAL, CorruptJournal, Journal, read_journal
from harness.store.locations import is_local, size_of
from harness.store.records import BlockLoad, Exhibit, Failure, GenerationRecord, NullReplay, Probe

COLUMNS = "records.parquet"
_ABOUT = b"journal"
"""The key of `About` in the metadata of the file."""
_TUPLES = {"nulls": NullReplay, "probes": Probe, "failures": Failure}
_WORDS = ("arm", "kind", "conversation", "category", "prompt_hash", "stop")


@dataclass(frozen=True, kw_only=True)
class About:
    """What a report needs from a finished journal besides the records."""

    num_bytes: int
    """The length of the journal."""
    end: str
    """The last line of the journal."""
    num_records: int
    num_exhibits: int
    nulls: list[NullReplay]
    probes: list[Probe]
    loads: list[BlockLoad]
    failures: list[Failure]

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
        )

    def to_json(self) -> dict[str, Any]:
        """A dict of JSON types; `from_json` is its inverse."""
        return {
            **vars(self),
            **{name: [one._asdict() for one in getattr(self, name)] for name in _TUPLES},
            "loads": [one.to_json() for one in self.loads],
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> About:
        """Read what `to_json` wrote."""
        lists: dict[str, Any] = {name: [kind(**one) for one in data[name]] for name, kind in _TUPLES.items()}
        # An export that was written before loads were recorded has none.
        lists["loads"] = [BlockLoad.from_json(one) for one in data.get("loads", [])]
        return cls(**{**data, **lists})


def encode_columns(records: Sequence[GenerationRecord], about: About) -> bytes:
    """The bytes of the file, which has one column per field of the records, and `about` in its metadata."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    schema = _schema().with_metadata({_ABOUT: json.dumps(about.to_json())})
    rows = [record.to_json() for record in records]
    arrays = [pa.array([row[field.name] for row in rows], field.type) for field in schema]
    table, buffer = pa.Table.from_arrays(arrays, schema=schema), BytesIO()
    # Times do not repeat, so encoding them with a dictionary would not pay.
    pq.write_table(table, buffer, compression="zstd", use_dictionary=list(_WORDS))
    return buffer.getvalue()


def _schema() -> Any:
    import pyarrow as pa

    special = {
        **dict.fromkeys(_WORDS, pa.string()),
        **dict.fromkeys((*TIMES, *METERED), pa.int64()),
        **dict.fromkeys(ROUND_TIMES, pa.list_(pa.int64())),
        **dict.fromkeys(("output_ids", *ROUND_COUNTS), pa.list_(pa.int32())),
        "timed": pa.bool_(),
        "verdict": pa.struct([("kind", pa.string()), ("position", pa.int32()), ("gap", pa.float64())]),
    }
    return pa.schema([(name, special.get(name, pa.int32())) for name in GenerationRecord.names()])


def read_about(folder: Path) -> About | None:
    """The facts of the export in a run folder; None if it is missing or was made from another journal."""
    about = _about(folder / COLUMNS)
    return about if about is not None and _is_of(about, folder / JOURNAL) else None


def _about(path: Path) -> About | None:
    """What the file says about its journal; None also if another version of the harness wrote less of it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.exists():
        return None
    try:
        told = (pq.read_schema(_file(path)).metadata or {}).get(_ABOUT)
        return About.from_json(json.loads(told)) if told else None
    except (pa.ArrowInvalid, TypeError, KeyError, ValueError):
        return None


def _is_of(about: About, journal: Path) -> bool:
    if not journal.exists() or size_of(journal) != about.num_bytes:
        return False
    if not is_local(journal):
        # Reading the end of a remote file may transfer all of it.
        return True
    end = about.end.encode()
    with journal.open("rb") as file:
        file.seek(-len(end), os.SEEK_END)
        return file.read() == end


def read_columns(folder: Path) -> Columns:
    """Read the columns that a report needs from the export of a run folder.

    Raises:
        CorruptJournal: the export cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / COLUMNS
    try:
        # The data sets of pyarrow take longer to open a small file than this takes to read it.
        file = pq.ParquetFile(_file(path))
        wanted = [*NAMES, *SCALARS, *TIMES, *METERED, *LISTS, "verdict"]
        table = file.read([name for name in wanted if name in file.schema_arrow.names])
    except (pa.ArrowInvalid, OSError) as error:
        raise CorruptJournal(
            f"{path}: cannot be read ({error}). Delete it: the journal beside it holds the same records."
        ) from error
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
    return path if is_local(path) else BytesIO(path.read_bytes())


def _named(column: Any) -> Named:
    coded = column.dictionary_encode(null_encoding="encode")
    return Named(tuple(coded.dictionary.to_pylist()), coded.indices.to_numpy())


def _ragged(lists: Any) -> Ragged:
    return Ragged(lists.flatten().to_numpy(), np.diff(lists.offsets.to_numpy()))


Kept = TypeVar("Kept")


class _Stored(Sequence[Kept]):
    """Entries of one kind of a finished run, read from its journal when they are iterated."""

    def __init__(self, folder: Path, count: int) -> None:
        """Read nothing yet. count: the number of entries."""
        self._folder, self._count = folder, count

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Kept: ...
    @overload
    def __getitem__(self, index: slice) -> list[Kept]: ...
    def __getitem__(self, index: int | slice) -> Kept | list[Kept]:
        return list(self)[index]


class StoredRecords(_Stored[GenerationRecord]):
    """The records of a finished run: columns come from its export, single records from its journal."""

    def __iter__(self) -> Iterator[GenerationRecord]:
        return iter(read_journal(self._folder / JOURNAL).records())

    def columns(self) -> Columns:
        """Read the columns, each time from disk, because a report needs those of one cell at a time."""
        return read_columns(self._folder)


class StoredExhibits(_Stored[Exhibit]):
    """The exhibits of a finished run, from its journal."""

    def __iter__(self) -> Iterator[Exhibit]:
        return iter(read_journal(self._folder / JOURNAL, without=("record",)).exhibits())
