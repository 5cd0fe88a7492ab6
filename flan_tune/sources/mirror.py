"""Rows from files on disk in the hub's layout, for machines without internet.

    <root>/<hub_id>/<config or "default">/<split>[-NNNNN].{parquet,jsonl,jsonl.gz}

A dataset with a single configuration may leave it unnamed: the only folder there is taken. Shards are numbered
from 0 without a gap; a split lies there in one form only, so that no row is lost or read twice.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from flan_tune.errors import SourceError, did_you_mean

_FILE = re.compile(r"(?P<split>.+?)(-(?P<shard>\d{5})(-of-(?P<shards>\d{5}))?)?\.(?P<kind>parquet|jsonl|jsonl\.gz)")
_HASHED_BYTES = 1 << 20


class JsonLines:
    """Rows of JSON-lines files, kept as bytes and parsed when read. The files are read at the first row."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = files
        self.fingerprint = files_fingerprint(files)

    @cached_property
    def _lines(self) -> list[bytes]:
        return [line for file in self._files for line in read_lines(file)]

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        try:
            row = json.loads(self._lines[number])
        except ValueError as error:
            raise SourceError(f"{self.where(number)}: this is not JSON: {error}. Fetch the file again.") from None
        if not isinstance(row, dict):
            raise SourceError(f"{self.where(number)}: a row is a JSON object, found {type(row).__name__}.")
        return row

    def where(self, number: int) -> str:
        """'file, row n' of a row, for messages; n counts the rows of its file from 0."""
        return _where(number, [(file, len(read_lines(file))) for file in self._files])


class ParquetRows:
    """Rows of parquet files, memory-mapped."""

    def __init__(self, files: Sequence[Path]) -> None:
        import pyarrow as pa

        self.fingerprint = files_fingerprint(files)
        tables = [_read_parquet(file) for file in files]
        self._sizes = [(file, int(table.num_rows)) for file, table in zip(files, tables, strict=True)]
        try:
            self._table = pa.concat_tables(tables)
        except pa.ArrowException as error:
            raise SourceError(f"{files[0]}: its shards have different columns: {error}. Fetch them again.") from None

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def where(self, number: int) -> str:
        """'file, row n' of a row, for messages; n counts the rows of its file from 0."""
        return _where(number, self._sizes)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        row: dict[str, Any] = self._table.slice(number, 1).to_pylist()[0]
        return row


def _read_parquet(file: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(file, memory_map=True, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
        raise SourceError(f"{file}: this is not a whole parquet file: {first} Fetch the file again.") from None


def _where(number: int, sizes: Sequence[tuple[Path, int]]) -> str:
    for file, size in sizes:
        if number < size:
            return f"{file}, row {number}"
        number -= size
    raise IndexError(number)


def read_lines(file: Path) -> list[bytes]:
    """The non-empty lines of a .jsonl or .jsonl.gz file. Raises SourceError if it is damaged."""
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{file}: cannot be read: {error}. Fetch the file again.") from None
    return [line for line in data.split(b"\n") if line.strip()]


def files_fingerprint(files: Sequence[Path]) -> str:
    """Hash of names, sizes, and the first and last MiB of each file.

    The price of not reading whole files: a change in the middle that keeps the size is not seen.
    """
    digest = hashlib.sha256()
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_HASHED_BYTES))
            if size > _HASHED_BYTES:
                stream.seek(max(size - _HASHED_BYTES, _HASHED_BYTES))
                digest.update(stream.read())
    return digest.hexdigest()


def split_files(folder: Path) -> dict[str, list[Path]]:
    """Split name -> its files in order, for the data files in a folder."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        match = _FILE.fullmatch(path.name)
        if match:
            found.setdefault(match["split"], []).append(path)
    return found


def _config_folder(name: str, config: str | None, root: Path) -> Path:
    base = root / name
    if not base.is_dir():
        raise SourceError(
            f"{name!r} is not in the data root {root}. Put it at {name}/<config>/<split>.parquet there, "
            "or unset the data root to read from the hub."
        )
    folders = sorted(path.name for path in base.iterdir() if path.is_dir() and not path.name.startswith("."))
    wanted = config or ("default" if "default" in folders or len(folders) != 1 else folders[0])
    if wanted not in folders:
        raise SourceError(f"{name!r} has no configuration {wanted!r} in the data root {root}; there are {folders}.")
    return base / wanted


def list_splits(name: str, config: str | None, root: Path) -> list[str]:
    """The splits of a dataset in the data root; empty if it is not there."""
    try:
        return sorted(split_files(_config_folder(name, config, root)))
    except SourceError:
        return []


def open_mirror(name: str, config: str | None, split: str, root: Path) -> JsonLines | ParquetRows:
    """The rows of one split. Raises SourceError naming the splits that are there; never another in its place."""
    folder = _config_folder(name, config, root)
    found = split_files(folder)
    if split not in found:
        near = did_you_mean(split, found)
        raise SourceError(f"{folder}: there is no split {split!r}.{near} There are {sorted(found)}.")
    return open_files(found[split])


def open_files(files: Sequence[Path]) -> JsonLines | ParquetRows:
    """Rows of the files of one split, in order.

    Raises: SourceError if the split is there in two forms, or a shard of it is missing.
    """
    names = [file.name for file in files]
    matches = [match for match in map(_FILE.fullmatch, names) if match]
    if len({(match["kind"], match["shard"] is None, match["shards"]) for match in matches}) > 1:
        raise SourceError(f"{files[0].parent}: one split is there in two forms: {names}. Keep one of them.")
    shards = [int(match["shard"]) for match in matches if match["shard"]]
    wanted = int(matches[0]["shards"] or len(shards)) if shards else 0
    if shards != list(range(wanted)):
        raise SourceError(f"{files[0].parent}: a shard is missing; they count from 0, found {names}. Fetch the rest.")
    return ParquetRows(files) if files[0].suffix == ".parquet" else JsonLines(files)
