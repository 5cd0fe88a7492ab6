"""The pack store: one Arrow IPC stream file per window, a `plan.json` before the work, a `manifest.json` after it.

    packs/
      fingerprint.json         what the packs are made from, by part: see fingerprint.py
      plan.json                how many windows there will be, written once window 0 is known
      window-00000.arrow       one row = one pack; readable by datasets.Dataset.from_file
      window-00000.json        what is in it: hashes, counts, drops; written after the shard, so it marks it done
      index-00001.arrow        target tokens and segments of every pack of the first so many windows
      manifest.json            what all windows add up to, written when every one of them is there ("sealed")
      .window-00001.*.tmp      being written; any number of processes on any number of machines may share the folder

A pack is addressed by its number over all windows. Nothing here knows how packs are made: see compile.py.
Packs of decoders and of encoder-decoders are stored alike; the manifest's "layout" says which they are.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flan_tune.errors import StreamError
from flan_tune.objectives.segment import Layout

STORE_FORMAT = 3  # 2: encoder-decoder packs. 3: which rows took the place of another one
REPAIR = "flan-tune prepare RECIPE --repair"

_OWN_HASH = "hash_of_the_rest"
_STALE_SECONDS = 3600.0  # another run's unfinished file is younger: writing one takes seconds
_INDEX_COLUMNS = ("target_tokens", "num_segments")
_INDEX_SCHEMA = pa.schema([(name, pa.int32()) for name in _INDEX_COLUMNS])
_SCHEMA = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("segment_lengths", pa.list_(pa.int32())),
        ("prefix_lengths", pa.list_(pa.int32())),
        ("task", pa.list_(pa.int32())),
        ("kind", pa.list_(pa.string())),
        ("row", pa.list_(pa.int64())),
        ("epoch", pa.list_(pa.int32())),
        ("template", pa.list_(pa.string())),
        ("presentation", pa.list_(pa.string())),
        ("shots", pa.list_(pa.int8())),
        ("cut", pa.list_(pa.int32())),
        ("replaced", pa.list_(pa.int8())),
        ("target_tokens", pa.int32()),
    ],
    metadata={"flan_tune.store_format": str(STORE_FORMAT)},
)


@dataclass(frozen=True)
class Pack:
    """One packed row: the tokens of its segments one after the other, not padded, and where each came from.

    The lists and arrays after `input_ids` have one entry per segment, in order. A segment's first
    `prefix_lengths` tokens are its input; target tokens are those at index >= max(prefix_length, 1).

    Of an encoder-decoder a segment's first `prefix_lengths` tokens (one at least, EOS) are what its encoder reads, the
    others what its decoder has to give. All the encoder's tokens of a pack fit into the manifest's `max_length`
    together, all its decoder's into `max_target_length`:

        segments [8 9 1 | 5 1] and [7 1 | 6 4 1]   ->   encoder 8 9 1 7 1      decoder 5 1 6 4 1
        input_ids 8 9 1 5 1 7 1 6 4 1, segment_lengths 5 5, prefix_lengths 3 2
    """

    input_ids: npt.NDArray[np.int32]
    segment_lengths: npt.NDArray[np.int32]
    prefix_lengths: npt.NDArray[np.int32]
    task: npt.NDArray[np.int32]  # index into manifest["tasks"]
    kind: list[str]  # "supervised", "causal" or a denoiser's name
    row: npt.NDArray[np.int64]
    epoch: npt.NDArray[np.int32]
    template: list[str]
    presentation: list[str]
    shots: npt.NDArray[np.int8]
    cut: npt.NDArray[np.int32]
    replaced: npt.NDArray[np.int8]  # rows tried before `row` took a scheduled one's place; 0 for a scheduled row
    target_tokens: int


def count_targets(segment_lengths: npt.NDArray[np.int32], prefix_lengths: npt.NDArray[np.int32]) -> int:
    """Target tokens of a pack. Lengths (5, 4) with prefixes (3, 0) have 2 + 3: a first token has no predecessor.

    Of an encoder-decoder these are all of the decoder's, since its encoder always has a token.
    """
    return int((segment_lengths - np.maximum(prefix_lengths, 1)).sum())


def shard_name(window: int) -> str:
    """File name of a window's shard, without its ending."""
    return f"window-{window:05d}"


def write_shard(directory: Path, window: int, packs: Sequence[Pack], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Writes one window and its summary, each to a temporary name that is then renamed.

    Returns the summary with `window`, `packs`, `sha256` (of the file), `content_hash` (of ids, lengths and provenance,
    independent of the Arrow version) and `per_pack` added. A window without its .json was never finished.
    """
    table = _to_table(packs)
    name = shard_name(window)
    with staged(directory / f"{name}.arrow") as staging:
        with staging.open("wb") as file:
            with pa.ipc.new_stream(file, _SCHEMA) as writer:
                writer.write_table(table)
            file.flush()
            os.fsync(file.fileno())  # the summary vouches for these bytes, after a power cut too
        sha256 = file_hash(staging)
    full = {
        "window": window,
        "packs": len(packs),
        "sha256": sha256,
        "content_hash": _content_hash(packs),
        **summary,
        "per_pack": {
            "target_tokens": [pack.target_tokens for pack in packs],
            "num_segments": [len(pack.segment_lengths) for pack in packs],
        },
    }
    write_vouched(directory / f"{name}.json", full)
    return full


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to: it becomes `path` if all goes well, and is removed if not."""
    staging = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")  # of one process of one machine
    try:
        yield staging
        os.replace(staging, path)
    except OSError as error:
        error.filename = error.filename or str(path)  # a disk that is full does not say what it was to hold
        raise
    finally:
        staging.unlink(missing_ok=True)


def remove_stale(directory: Path) -> None:
    """Removes what killed runs left half written, but nothing that a run may be writing now."""
    for path in directory.glob(".*.tmp"):
        try:
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()
        except FileNotFoundError:
            continue


def _to_table(packs: Sequence[Pack]) -> pa.Table:
    """Buffers put together in numpy: `pa.array` would import pandas, which takes a new process a third of a second."""
    columns = {f.name: [getattr(pack, f.name) for pack in packs] for f in fields(Pack)}
    return pa.Table.from_arrays([_to_array(field.type, columns[field.name]) for field in _SCHEMA], schema=_SCHEMA)


_DTYPES = {pa.int8(): np.int8, pa.int32(): np.int32, pa.int64(): np.int64}


def _to_array(kind: pa.DataType, values: Sequence[Any]) -> pa.Array:
    if pa.types.is_list(kind):
        flat = [one for value in values for one in value] if pa.types.is_string(kind.value_type) else values
        children = [_to_array(kind.value_type, flat)]
        return pa.Array.from_buffers(kind, len(values), [None, _ends(map(len, values))], children=children)
    if pa.types.is_string(kind):
        encoded = [text.encode() for text in values]
        buffers = [None, _ends(map(len, encoded)), pa.py_buffer(b"".join(encoded))]
        return pa.Array.from_buffers(kind, len(encoded), buffers)
    dtype = _DTYPES[kind]
    numbers = np.concatenate([np.zeros(0, dtype=dtype), *map(np.atleast_1d, values)]).astype(dtype, copy=False)
    return pa.Array.from_buffers(kind, len(numbers), [None, pa.py_buffer(numbers)])


def _ends(lengths: Iterable[int]) -> pa.Buffer:
    return pa.py_buffer(np.array([0, *accumulate(lengths)], dtype=np.int32))


def _content_hash(packs: Sequence[Pack]) -> str:
    digest = hashlib.sha256()
    for pack in packs:
        for f in fields(Pack):
            value = getattr(pack, f.name)
            digest.update(value.tobytes() if isinstance(value, np.ndarray) else json.dumps(value).encode())
            digest.update(b"\0")
    return digest.hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, data: Any) -> None:
    """Writes JSON so that a reader sees the old file or the whole new one, never half."""
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    with staged(path) as staging:
        staging.write_text(text, encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, empty if there is no such file. Raises: ValueError if it holds anything else."""
    if not path.exists():
        return {}
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise ValueError(f"{path} holds no JSON object")
    return data


def write_vouched(path: Path, data: Mapping[str, Any]) -> None:
    """Writes a JSON object with a hash over itself, for read_vouched."""
    write_json(path, {**data, _OWN_HASH: _hash_of(data)})


def read_vouched(path: Path) -> dict[str, Any]:
    """What write_vouched wrote, empty if there is no such file. Raises: ValueError if it is not what was written."""
    data = read_json(path)
    if data and data.pop(_OWN_HASH, "") != _hash_of(data):
        raise ValueError(f"{path} is not what was written")
    return data


def _hash_of(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def read_summary(directory: Path, window: int, fingerprint: str | None = None) -> dict[str, Any] | None:
    """What write_shard returned for a window; None unless it is finished: both files are there, the summary is whole.

    fingerprint: a window whose summary says that it was made from something else does not count either.
    """
    path = directory / f"{shard_name(window)}.json"
    try:
        summary = read_vouched(path)
    except ValueError:
        return None
    is_ours = fingerprint is None or summary.get("fingerprint") == fingerprint
    return summary if summary and is_ours and path.with_suffix(".arrow").exists() else None


class Finished(NamedTuple):
    """What is kept in memory of a finished window."""

    packs: int
    sha256: str


def finished_windows(directory: Path, fingerprint: str | None = None) -> dict[int, Finished]:
    """The windows that are done by number, in order; see read_summary."""
    done: dict[int, Finished] = {}
    for path in sorted(directory.glob("window-*.json")):
        number = path.stem.removeprefix("window-")
        summary = read_summary(directory, int(number), fingerprint) if number.isdecimal() else None
        if summary is not None:
            done[summary["window"]] = Finished(summary["packs"], summary["sha256"])
    return dict(sorted(done.items()))


def write_index(directory: Path, windows: int, summaries: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Writes the numbers that loss denominators need of every pack; returns the manifest's entry for it.

    `summaries` are those of the windows, in order; they are taken one at a time, so that memory does not grow.
    """
    path = directory / f"index-{windows:05d}.arrow"
    with staged(path) as staging:
        with staging.open("wb") as file:
            with pa.ipc.new_stream(file, _INDEX_SCHEMA) as writer:
                for summary in summaries:
                    columns = [pa.array(summary["per_pack"][name], type=pa.int32()) for name in _INDEX_COLUMNS]
                    writer.write_batch(pa.record_batch(columns, schema=_INDEX_SCHEMA))
            file.flush()
            os.fsync(file.fileno())
        sha256 = file_hash(staging)
    return {"file": path.name, "sha256": sha256}


def check_file(path: Path, sha256: str) -> None:
    """Raises StreamError, with the command that remakes the file, if it is missing or has another hash."""
    if not path.exists():
        raise StreamError(f"{path}: this file is missing. Remake it: `{REPAIR}`.")
    if file_hash(path) != sha256:
        raise StreamError(
            f"{path}: this file is not the one that was written (its SHA-256 differs). Remake it: `{REPAIR}`."
        )


class PackReader:
    """Sealed packs, read by number from memory-mapped shards. Each file's hash is checked when it is first touched.

    Raises: StreamError if the folder is not sealed, or a file is missing or not the one that was written.
    """

    def __init__(self, directory: Path, manifest: dict[str, Any]) -> None:
        self.directory = directory
        self.manifest = manifest
        self._windows: list[dict[str, Any]] = manifest["windows"]
        self._ends = np.cumsum([window["packs"] for window in self._windows], dtype=np.int64)
        self._shards: dict[int, _Shard] = {}
        self.num_packs = int(self._ends[-1]) if len(self._ends) else 0

    @property
    def layout(self) -> Layout:
        """Whether these are packs of a decoder or of an encoder-decoder, see Pack."""
        layout: Layout = self.manifest.get("layout", "decoder_only")
        return layout

    @property
    def target_tokens(self) -> npt.NDArray[np.int32]:
        """Target tokens of every pack, int32 [num_packs]: what loss denominators are made of."""
        return self._index["target_tokens"]

    @property
    def num_segments(self) -> npt.NDArray[np.int32]:
        """Segments of every pack, int32 [num_packs]."""
        return self._index["num_segments"]

    @cached_property
    def _index(self) -> dict[str, npt.NDArray[np.int32]]:
        table = self._open(self.manifest["index"]["file"], self.manifest["index"]["sha256"])
        return {name: table.column(name).to_numpy() for name in _INDEX_COLUMNS}

    def pack(self, number: int) -> Pack:
        """Pack `number`, in [0, num_packs)."""
        if not 0 <= number < self.num_packs:
            raise StreamError(
                f"{self.directory}: there is no pack {number}; the store holds packs 0 to {self.num_packs - 1}."
            )
        window = int(np.searchsorted(self._ends, number, side="right"))
        start = int(self._ends[window]) - self._windows[window]["packs"]
        return self._shard(window).pack(number - start)

    def _shard(self, window: int) -> _Shard:
        if window not in self._shards:
            record = self._windows[window]
            self._shards[window] = _Shard(self._open(f"{shard_name(record['window'])}.arrow", record["sha256"]))
        return self._shards[window]

    def _open(self, name: str, sha256: str) -> pa.Table:
        path = self.directory / name
        check_file(path, sha256)
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_stream(source).read_all()


class _Shard:
    """The columns of a shard as flat arrays over the mapped file; a pack is a slice of each."""

    def __init__(self, table: pa.Table) -> None:
        columns = {name: _single(table.column(name)) for name in table.column_names}
        self._target_tokens = columns.pop("target_tokens").to_numpy()
        self._texts = [name for name in columns if pa.types.is_string(columns[name].type.value_type)]
        self._ends = {name: column.offsets.to_numpy() for name, column in columns.items()}
        self._values = {
            name: column.values if name in self._texts else column.values.to_numpy(zero_copy_only=True)
            for name, column in columns.items()
        }

    def pack(self, row: int) -> Pack:
        values: dict[str, Any] = {
            name: flat[self._ends[name][row] : self._ends[name][row + 1]] for name, flat in self._values.items()
        }
        for name in self._texts:
            values[name] = values[name].to_pylist()
        return Pack(**values, target_tokens=int(self._target_tokens[row]))


def _single(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def open_packs(directory: str | Path) -> PackReader:
    """The sealed packs in `directory`. Raises StreamError if there are none, or the manifest is damaged."""
    path = Path(directory) / "manifest.json"
    try:
        manifest = read_vouched(path)
    except ValueError:
        raise StreamError(f"{path}: this file is not the one that was written. Remake it: `{REPAIR}`.") from None
    if not manifest:
        raise StreamError(
            f"{directory}: there are no sealed packs here (no manifest.json). "
            "Make them with `flan-tune prepare RECIPE`."
        )
    return PackReader(Path(directory), manifest)


def join_content_hashes(summaries: Iterable[Mapping[str, Any]]) -> str:
    """One hash over the windows' content hashes, in window order."""
    digest = hashlib.sha256()
    for summary in summaries:
        digest.update(str(summary["content_hash"]).encode())
    return digest.hexdigest()
