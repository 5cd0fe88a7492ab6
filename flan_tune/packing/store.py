"""The pack store: one Arrow IPC stream file per window, a `plan.json` before the work, a `manifest.json` after it.

    packs/
      plan.json                how many windows there will be, written once window 0 is known
      window-00000.arrow       one row = one pack; readable by datasets.Dataset.from_file
      window-00000.json        what is in it: hashes, counts, drops; written after the shard, so it marks it done
      manifest.json            everything at once, written when every window is there ("sealed")

A pack is addressed by its number over all windows. Nothing here knows how packs are made: see compile.py.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from flan_tune.errors import StreamError

STORE_FORMAT = 1

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
        ("target_tokens", pa.int32()),
    ],
    metadata={"flan_tune.store_format": str(STORE_FORMAT)},
)


@dataclass(frozen=True)
class Pack:
    """One packed row: the tokens of its segments one after the other, not padded, and where each came from.

    The lists and arrays after `input_ids` have one entry per segment, in order. A segment's first
    `prefix_lengths` tokens are its input; target tokens are those at index >= max(prefix_length, 1).
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
    target_tokens: int


def count_targets(segment_lengths: npt.NDArray[np.int32], prefix_lengths: npt.NDArray[np.int32]) -> int:
    """Target tokens of a pack. Lengths (5, 4) with prefixes (3, 0) have 2 + 3: a first token has no predecessor."""
    return int((segment_lengths - np.maximum(prefix_lengths, 1)).sum())


def shard_name(window: int) -> str:
    """File name of a window's shard, without its ending."""
    return f"window-{window:05d}"


def write_shard(directory: Path, window: int, packs: Sequence[Pack], summary: Mapping[str, Any]) -> dict[str, Any]:
    """Writes one window and its summary, each to a temporary name that is then renamed.

    Returns the summary with `packs`, `sha256` (of the file) and `content_hash` (of ids, lengths and provenance,
    independent of the Arrow version) added. A window without its .json was never finished.
    """
    table = _to_table(packs)
    name = shard_name(window)
    path = directory / f"{name}.arrow"
    staging = directory / f".{name}.{os.getpid()}.tmp"
    with pa.OSFile(str(staging), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
        writer.write_table(table)
    full = {
        "window": window,
        "packs": len(packs),
        "sha256": file_hash(staging),
        "content_hash": _content_hash(packs),
        **summary,
    }
    os.replace(staging, path)
    write_json(directory / f"{name}.json", full)
    return full


def _to_table(packs: Sequence[Pack]) -> pa.Table:
    columns = {f.name: [getattr(pack, f.name) for pack in packs] for f in fields(Pack)}
    arrays = [pa.array(columns[field.name], type=field.type) for field in _SCHEMA]
    return pa.Table.from_arrays(arrays, schema=_SCHEMA).combine_chunks()


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
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    staging.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(staging, path)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, empty if there is no such file."""
    if not path.exists():
        return {}
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data


class PackReader:
    """Sealed packs, read by number from memory-mapped shards. Each shard's hash is checked when first touched.

    Raises: StreamError if the folder is not sealed, or a shard is missing or not the one that was written.
    """

    def __init__(self, directory: Path, manifest: dict[str, Any]) -> None:
        self.directory = directory
        self.manifest = manifest
        self._windows: list[dict[str, Any]] = manifest["windows"]
        self._ends = np.cumsum([window["packs"] for window in self._windows])
        self._tables: dict[int, pa.Table] = {}
        self.num_packs = int(self._ends[-1]) if len(self._ends) else 0

    @property
    def target_tokens(self) -> npt.NDArray[np.int32]:
        """Target tokens of every pack, int32 [num_packs]: what loss denominators are made of."""
        return self._per_pack("target_tokens")

    @property
    def num_segments(self) -> npt.NDArray[np.int32]:
        """Segments of every pack, int32 [num_packs]."""
        return self._per_pack("num_segments")

    def _per_pack(self, name: str) -> npt.NDArray[np.int32]:
        values = [np.asarray(window["per_pack"][name], dtype=np.int32) for window in self._windows]
        return np.concatenate(values) if values else np.zeros(0, dtype=np.int32)

    def pack(self, number: int) -> Pack:
        """Pack `number`, in [0, num_packs)."""
        if not 0 <= number < self.num_packs:
            raise StreamError(
                f"{self.directory}: there is no pack {number}; the store holds packs 0 to {self.num_packs - 1}."
            )
        window = int(np.searchsorted(self._ends, number, side="right"))
        start = int(self._ends[window]) - self._windows[window]["packs"]
        return _row_to_pack(self._table(window), number - start)

    def _table(self, window: int) -> pa.Table:
        if window not in self._tables:
            self._tables[window] = self._open(window)
        return self._tables[window]

    def _open(self, window: int) -> pa.Table:
        path = self.directory / f"{shard_name(self._windows[window]['window'])}.arrow"
        if not path.exists():
            raise StreamError(
                f"{path}: this shard is missing. Run `flan-tune prepare` again: it remakes what is missing."
            )
        if file_hash(path) != self._windows[window]["sha256"]:
            raise StreamError(
                f"{path}: this shard is not the one that was written (its SHA-256 differs from manifest.json). "
                "Delete it and its .json, and run `flan-tune prepare` again."
            )
        with pa.memory_map(str(path)) as source:
            return pa.ipc.open_stream(source).read_all()


def _row_to_pack(table: pa.Table, row: int) -> Pack:
    values: dict[str, Any] = {}
    for field in _SCHEMA:
        scalar = table.column(field.name)[row]
        if field.name == "target_tokens" or pa.types.is_string(field.type.value_type):
            values[field.name] = scalar.as_py()
        else:
            values[field.name] = scalar.values.to_numpy(zero_copy_only=True)
    return Pack(**values)


def open_packs(directory: str | Path) -> PackReader:
    """The sealed packs in `directory`. Raises StreamError if there are none."""
    path = Path(directory) / "manifest.json"
    if not path.exists():
        raise StreamError(
            f"{directory}: there are no sealed packs here (no manifest.json). "
            "Make them with `flan-tune prepare RECIPE`."
        )
    return PackReader(Path(directory), read_json(path))


def finished_windows(directory: Path) -> dict[int, dict[str, Any]]:
    """Summaries of the windows that are done: their .json was written and their shard is there."""
    done = {}
    for path in sorted(directory.glob("window-*.json")):
        if path.with_suffix(".arrow").exists():
            summary = read_json(path)
            done[int(summary["window"])] = summary
    return done


def join_content_hashes(summaries: Iterable[Mapping[str, Any]]) -> str:
    """One hash over the windows' content hashes, in window order."""
    digest = hashlib.sha256()
    for summary in summaries:
        digest.update(str(summary["content_hash"]).encode())
    return digest.hexdigest()
