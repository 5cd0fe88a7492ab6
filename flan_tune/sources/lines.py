"""The lines of text files by number, read when they are asked for: in memory is nothing but small files.

    <cache>/lines/../<key>          where each line begins and its CRC-32, 12 bytes a line
    <cache>/lines/../<key>.jsonl    the lines of a file that had to be unpacked (.gz, parquet)

So a process takes the same memory for a thousand lines as for a hundred million, and opens them as soon. Every line is
compared with its CRC-32: what was damaged in the cache, or written over in the source, is never taken for a line. Where
the cache cannot be written, the beginnings are found anew in each process and kept in memory, and .gz files up to 256
MiB are unpacked there.
"""

from __future__ import annotations

import gzip
import os
import struct
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flan_tune.errors import SourceError
from flan_tune.sources.cache import CACHE_VARIABLE, cache_folder, cache_key, cached_path, staged

Records = npt.NDArray[Any]

_KIND = "lines"
_IN_MEMORY_BYTES = 1 << 17
_MOST_UNPACKED_BYTES = 1 << 28  # in memory, where the cache cannot be written
_READ_BYTES = 1 << 24
_LINES_AT_ONCE = 2048
_OPEN_FILES = 64
_RECORD = np.dtype([("start", "<i8"), ("check", "<u4")])
_TWO_RECORDS = struct.Struct("<qIqI")  # a line ends where the next begins


class NoCacheError(SourceError):
    """A file has to be unpacked, and the cache cannot hold it."""


class _Bytes(Protocol):
    size: int

    def read(self, start: int, stop: int) -> bytes: ...


class _InMemory:
    def __init__(self, data: bytes) -> None:
        self.size = len(data)
        self._data = data

    def read(self, start: int, stop: int) -> bytes:
        return self._data[start:stop]


class FileBytes:
    """A file of which parts are read. It is open only while it is among those read last."""

    def __init__(self, path: Path) -> None:
        found = path.stat()
        self.size = found.st_size
        self._file = str(path), _identity(found)

    def read(self, start: int, stop: int) -> bytes:
        """Bytes start .. stop-1. Raises: OSError if the file is not there any more, has changed, or has fewer."""
        opened = _open(*self._file)
        data = os.pread(opened.number, stop - start, start)
        while len(data) < stop - start:  # no more than 2 GiB come at once
            more = os.pread(opened.number, stop - start - len(data), start + len(data))
            if not more:
                raise OSError(f"{self._file[0]} ends at byte {start + len(data)}, before {stop}")
            data += more
        return data


class _Open:
    """An open file; it is closed when nobody needs it."""

    def __init__(self, path: str, identity: tuple[int, int, int]) -> None:
        self.number = os.open(path, os.O_RDONLY)
        if _identity(os.fstat(self.number)) != identity:
            raise OSError(f"{path} has changed")

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=_OPEN_FILES)
def _open(path: str, identity: tuple[int, int, int]) -> _Open:
    return _Open(path, identity)


def _identity(found: os.stat_result) -> tuple[int, int, int]:
    return found.st_ino, found.st_mtime_ns, found.st_size


class _DamagedError(Exception):
    """What is read is not what was there when the lines were counted."""


class LinesOfFile:
    """The lines of one file that are not blank, without the white space around them.

    index: a record for each, and one with the size of the data. Raises: _DamagedError if it is not that.
    """

    def __init__(self, data: _Bytes, index: _Bytes) -> None:
        self._data = data
        self._index = index
        self._length, rest = index.size // _RECORD.itemsize - 1, index.size % _RECORD.itemsize
        if rest or self._length < 0 or self._records(self._length, self._length)["start"][0] != data.size:
            raise _DamagedError

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> bytes:
        place = number * _RECORD.itemsize
        try:
            start, check, stop, _ = _TWO_RECORDS.unpack(self._index.read(place, place + _TWO_RECORDS.size))
            line = self._data.read(start, stop).strip() if 0 <= start < stop <= self._data.size else b""
        except OSError:
            raise _DamagedError from None
        if not line or zlib.crc32(line) != check:
            raise _DamagedError
        return line

    def scan(self, start: int, stop: int) -> Iterator[bytes]:
        """Lines start .. stop-1, with many read at once."""
        for first in range(start, stop, _LINES_AT_ONCE):
            yield from self._some(first, min(first + _LINES_AT_ONCE, stop))

    def _some(self, first: int, last: int) -> Iterator[bytes]:
        records = self._records(first, last)
        starts = records["start"]
        if starts[0] < 0 or starts[-1] > self._data.size or np.any(np.diff(starts) <= 0):
            raise _DamagedError
        begin = 0
        while begin < last - first:  # only so much at once, however long the lines are
            end = max(int(starts.searchsorted(starts[begin] + _READ_BYTES, "right")) - 1, begin + 1)
            lines = self._whole(starts[begin : end + 1].tolist())
            checks = np.fromiter(map(zlib.crc32, lines), dtype=np.uint32)
            if not all(lines) or not np.array_equal(checks, records["check"][begin:end]):
                raise _DamagedError
            yield from lines
            begin = end

    def _records(self, first: int, last: int) -> Records:
        """Those of lines first .. last-1, and the one after."""
        try:
            data = self._index.read(first * _RECORD.itemsize, (last + 1) * _RECORD.itemsize)
        except OSError:
            raise _DamagedError from None
        return np.frombuffer(data, dtype=_RECORD)

    def _whole(self, places: Sequence[int]) -> list[bytes]:
        try:
            data, begin = self._data.read(places[0], places[-1]), places[0]
        except OSError:
            raise _DamagedError from None
        return [data[a - begin : b - begin].strip() for a, b in pairwise(places)]


def _find_lines(data: _Bytes) -> Iterator[Records]:
    """The records of all lines, some MiB of data at a time, and the last one."""
    begin, wanted = 0, _READ_BYTES
    while begin < data.size:
        stop = min(begin + wanted, data.size)
        lines = data.read(begin, stop).split(b"\n")
        rest = lines.pop() if stop < data.size else b""
        if not lines:  # a line that is longer
            wanted *= 2
            continue
        found = np.zeros(len(lines), dtype=_RECORD)
        after = begin + np.cumsum(np.fromiter(map(len, lines), dtype=np.int64) + 1)
        found["start"] = np.concatenate([[begin], after[:-1]])
        stripped = [line.strip() for line in lines]
        found["check"] = np.fromiter(map(zlib.crc32, stripped), dtype=np.uint32)
        yield found[np.fromiter(map(bool, stripped), dtype=bool)]
        begin, wanted = stop - len(rest), _READ_BYTES
    yield np.array([(data.size, 0)], dtype=_RECORD)


class Lines:
    """The non-blank lines of files, one file after the other.

    fingerprint: of the files; what is kept in the cache is kept under it.
    unpack: gives what is in a file, for kinds that are neither plain lines nor .gz.

    Reading them raises SourceError for files that cannot be read or were changed in the meantime, and NoCacheError.
    """

    def __init__(
        self, files: Sequence[Path], fingerprint: str, unpack: Callable[[Path], Iterator[bytes]] | None = None
    ) -> None:
        self._files = files
        self._fingerprint = fingerprint
        self._unpack = unpack
        self._identities: dict[int, tuple[int, int]] = {}

    @cached_property
    def _parts(self) -> list[LinesOfFile]:
        return [self._open(place) for place in range(len(self._files))]

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(map(len, self._parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __getitem__(self, number: int) -> bytes:
        place, within = self._find(number)
        try:
            return self._parts[place][within]
        except _DamagedError:
            return self._restored(place)[within]

    def scan(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Lines start .. stop-1 in order, sooner than one by one."""
        stop, before = len(self) if stop is None else stop, 0
        for place, part in enumerate(self._parts):
            first, last = max(start - before, 0), min(stop - before, len(part))
            before += len(part)
            try:
                for line in part.scan(first, last):
                    yield line
                    first += 1
            except _DamagedError:
                yield from self._restored(place).scan(first, last)

    def where(self, number: int) -> str:
        """'file, row n' of a line, for messages; n counts the lines of its file from 0."""
        place, within = self._find(number)
        return f"{self._files[place]}, row {within}"

    def _find(self, number: int) -> tuple[int, int]:
        ends = self._ends
        if not 0 <= number < (ends[-1] if ends else 0):
            raise IndexError(number)
        place = bisect_right(ends, number)
        return place, number - (ends[place - 1] if place else 0)

    def _open(self, place: int) -> LinesOfFile:
        file = self._files[place]
        with _told_if_unreadable(file):
            found = file.stat()
            self._identities[place] = found.st_mtime_ns, found.st_size
            if found.st_size <= (_IN_MEMORY_BYTES if self._is_plain(file) else _IN_MEMORY_BYTES // 4):
                return _in_memory(b"".join(self._content(file)))
            try:
                return self._stored(place) or self._store(place)
            except OSError as error:
                return self._without_cache(file, error)

    def _is_plain(self, file: Path) -> bool:
        return self._unpack is None and file.suffix != ".gz"

    def _paths(self, place: int) -> tuple[Path, Path]:
        """(data, index)."""
        file, index = self._files[place], cached_path(_KIND, cache_key(self._fingerprint, place))
        return file if self._is_plain(file) else index.with_suffix(".jsonl"), index

    def _stored(self, place: int) -> LinesOfFile | None:
        data, index = self._paths(place)
        try:
            return LinesOfFile(FileBytes(data), FileBytes(index))
        except (OSError, _DamagedError):
            return None

    def _store(self, place: int) -> LinesOfFile:
        data, index = self._paths(place)
        if data != self._files[place]:
            with staged(data) as staging, staging.open("wb") as file:
                for part in self._content(self._files[place]):
                    file.write(part)
        content = FileBytes(data)
        with staged(index) as staging, staging.open("wb") as file:
            for records in _find_lines(content):
                file.write(records.tobytes())
        return LinesOfFile(content, FileBytes(index))

    def _without_cache(self, file: Path, error: OSError) -> LinesOfFile:
        if self._is_plain(file):
            content = FileBytes(file)
            return LinesOfFile(content, _InMemory(b"".join(one.tobytes() for one in _find_lines(content))))
        parts, size = [], 0
        for part in self._content(file) if self._unpack is None else ():
            parts.append(part)
            size += len(part)
            if size > _MOST_UNPACKED_BYTES:
                break
        else:
            if self._unpack is None:
                return _in_memory(b"".join(parts))
        raise NoCacheError(
            f"{file}: it cannot be unpacked into the cache {cache_folder()}: {error}. Make room there, or set "
            f"{CACHE_VARIABLE} to a folder that can be written."
        )

    def _content(self, file: Path) -> Iterator[bytes]:
        if self._unpack is not None:
            yield from self._unpack(file)
            return
        with _told_if_unreadable(file), gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            while data := stream.read(_READ_BYTES):
                yield data

    def _restored(self, place: int) -> LinesOfFile:
        """The lines of a file, found once more. Raises: SourceError if it is the file that has changed."""
        file = self._files[place]
        with _told_if_unreadable(file):
            found = file.stat()
        if self._identities[place] != (found.st_mtime_ns, found.st_size):
            raise SourceError(f"{file}: it was changed while it was read. Run the same command again.")
        before, part = len(self._parts[place]), self._stored(place)  # which another process may have made again
        if part is None or not _is_whole(part, before):
            for path in {*self._paths(place)} - {file}:
                path.unlink(missing_ok=True)
            part = self._open(place)
        if not _is_whole(part, before):
            raise SourceError(
                f"{cache_folder()}: what is written to the cache comes back otherwise. Check this disk, or set "
                f"{CACHE_VARIABLE} to a folder on another one."
            )
        self._parts[place] = part
        return part


def _is_whole(part: LinesOfFile, length: int) -> bool:
    try:
        return len(part) == length and all(part.scan(0, length))
    except _DamagedError:
        return False


def _in_memory(data: bytes) -> LinesOfFile:
    content = _InMemory(data)
    return LinesOfFile(content, _InMemory(b"".join(records.tobytes() for records in _find_lines(content))))


@contextmanager
def _told_if_unreadable(file: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise SourceError(f"{file}: cannot be read: {error}. Fetch the file again.") from None
