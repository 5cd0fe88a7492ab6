"""Rows of parquet files by number. They lie there in compressed groups, so that none of them can be read alone.

They are unpacked once, into the cache, as lines of JSON: then a row is read and parsed in a few microseconds, and
memory stays flat. The price is their size on disk, once more and not compressed. Only where a column holds what JSON
cannot (times, bytes), or the cache cannot be written, rows are read by the group.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property, lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from flan_tune.errors import SourceError
from flan_tune.sources.fingerprint import files_fingerprint
from flan_tune.sources.lines import Lines, NoCacheError

Row = Mapping[str, Any]

_ROWS_AT_ONCE = 1024
_BYTES_AT_ONCE = 1 << 24
_BUFFER_BYTES = 1 << 20  # of each column; without it a whole group is read before its first row comes
_GROUPS_IN_MEMORY = 4


class ParquetRows:
    """Rows of parquet files with the same columns."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.fingerprint = files_fingerprint(files)
        self._files = files
        metadata = [_read_metadata(file) for file in files]
        self._schema = _same_schema(files, metadata)
        self._ends: list[int] = list(accumulate(one.num_rows for one in metadata))
        self._group_rows = [[one.row_group(n).num_rows for n in range(one.num_row_groups)] for one in metadata]

    @property
    def columns(self) -> list[str]:
        """Names of the columns, in order."""
        names: list[str] = self._schema.names
        return names

    @cached_property
    def _rows(self) -> Lines | _Groups:
        if all(_is_plain(field.type) for field in self._schema):
            lines = Lines(self._files, self.fingerprint, _as_lines)
            with suppress(NoCacheError):
                len(lines)  # which unpacks them
                return lines
        return _Groups(self._files, self._group_rows)

    def __len__(self) -> int:
        return self._ends[-1]

    def where(self, number: int) -> str:
        """'file, row n' of a row, for messages; n counts the rows of its file from 0."""
        place = bisect_right(self._ends, number)
        return f"{self._files[place]}, row {number - (self._ends[place - 1] if place else 0)}"

    def __getitem__(self, number: int) -> Row:
        found = self._rows[number]
        row: Row = json.loads(found) if isinstance(found, bytes) else found
        return row

    def scan(self, start: int, stop: int, columns: Collection[str] | None = None) -> Iterator[Row]:
        """Rows start .. stop-1 in order, sooner than one by one; only `columns` of them, if there is any of these."""
        columns = None if columns is None else [name for name in self.columns if name in columns] or None
        before = 0
        for file, groups, end in zip(self._files, self._group_rows, self._ends, strict=True):
            if start < end and before < stop:
                yield from _scan_file(file, groups, max(start - before, 0), min(stop, end) - before, columns)
            before = end


class _Groups:
    """Rows by number, of which a few groups are in memory."""

    def __init__(self, files: Sequence[Path], group_rows: Sequence[Sequence[int]]) -> None:
        self._groups = [
            (file, number) for file, rows in zip(files, group_rows, strict=True) for number in range(len(rows))
        ]
        self._ends = list(accumulate(rows for of_file in group_rows for rows in of_file))
        self._read = lru_cache(maxsize=_GROUPS_IN_MEMORY)(_read_group)

    def __getitem__(self, number: int) -> Row:
        if not 0 <= number < self._ends[-1]:
            raise IndexError(number)
        place = bisect_right(self._ends, number)
        table = self._read(*self._groups[place])
        row: Row = table.slice(number - (self._ends[place - 1] if place else 0), 1).to_pylist()[0]
        return row


def _read_metadata(file: Path) -> Any:
    import pyarrow.parquet as pq

    with _told_if_damaged(file):
        return pq.read_metadata(file)


def _same_schema(files: Sequence[Path], metadata: Sequence[Any]) -> Any:
    schemas = [one.schema.to_arrow_schema().remove_metadata() for one in metadata]
    for file, schema in zip(files, schemas, strict=True):
        if {field.name: field.type for field in schema} != {field.name: field.type for field in schemas[0]}:
            columns, others = (", ".join(f"{field.name} {field.type}" for field in one) for one in (schemas[0], schema))
            raise SourceError(
                f"{files[0]}: its shards have different columns: {columns}; but {file.name} has {others}. "
                "Fetch them again."
            )
    return schemas[0]


def _read_group(file: Path, number: int) -> Any:
    import pyarrow.parquet as pq

    with _told_if_damaged(file), pq.ParquetFile(file, memory_map=True) as opened:
        return opened.read_row_group(number)


def _scan_file(file: Path, groups: Sequence[int], start: int, stop: int, columns: list[str] | None) -> Iterator[Row]:
    ends = list(accumulate(groups))
    wanted = range(bisect_right(ends, start), bisect_left(ends, stop) + 1)
    before = ends[wanted.start - 1] if wanted.start else 0
    for batch in _batches(file, wanted, columns):
        yield from batch.slice(max(start - before, 0), max(stop - max(before, start), 0)).to_pylist()
        before += batch.num_rows


def _as_lines(file: Path) -> Iterator[bytes]:
    for batch in _batches(file, range(_read_metadata(file).num_row_groups), None):
        yield "".join([json.dumps(row) + "\n" for row in batch.to_pylist()]).encode()


def _batches(file: Path, groups: range, columns: list[str] | None) -> Iterator[Any]:
    import pyarrow.parquet as pq

    with _told_if_damaged(file), pq.ParquetFile(file, buffer_size=_BUFFER_BYTES, pre_buffer=False) as opened:
        rows = _rows_at_once(opened.metadata)
        yield from opened.iter_batches(rows, row_groups=list(groups), columns=columns)


def _rows_at_once(metadata: Any) -> int:
    """As many rows as take some MiB, unpacked."""
    size: int = sum(metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups))
    rows: int = metadata.num_rows
    return max(min(_ROWS_AT_ONCE, _BYTES_AT_ONCE * rows // max(size, 1)), 1)


@contextmanager
def _told_if_damaged(file: Path) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
        raise SourceError(f"{file}: this is not a whole parquet file: {first} Fetch the file again.") from None


def _is_plain(kind: Any) -> bool:
    """Whether JSON gives back a value of this type as it is."""
    import pyarrow.types as of

    if of.is_list(kind) or of.is_large_list(kind) or of.is_fixed_size_list(kind):
        return _is_plain(kind.value_type)
    if of.is_struct(kind):
        return all(_is_plain(field.type) for field in kind)
    if of.is_dictionary(kind):
        return _is_plain(kind.value_type)
    is_number = of.is_integer(kind) or of.is_floating(kind) or of.is_boolean(kind)
    return bool(is_number or of.is_string(kind) or of.is_large_string(kind) or of.is_null(kind))
