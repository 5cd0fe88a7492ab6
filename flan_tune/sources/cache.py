"""What is worked out of a source once and kept for the next time: which rows are usable, where they begin.

    <cache>/<kind>/<first two characters of the key>/<key>

The cache is $FLAN_TUNE_CACHE, else flan_tune in $XDG_CACHE_HOME or ~/.cache. It may be deleted at any time, and any
number of processes may share it: a file gets its name when it is whole, and the same key has the same content. What is
damaged counts as not there. Where nothing can be written everything works, but anew each time.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

CACHE_VARIABLE = "FLAN_TUNE_CACHE"

Array = npt.NDArray[Any]

_FORMAT = "2"  # raised when the meaning of what is kept changes
_DIGEST_BYTES = 32
_STALE_SECONDS = 24 * 3600.0


def cache_folder() -> Path:
    """The folder of the cache; it need not be there. Where nobody knows a home, one in which nothing can be written."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "flan_tune"
    home = os.path.expanduser("~")
    return Path(home if os.path.isabs(home) else os.devnull) / ".cache" / "flan_tune"


def cache_key(*parts: Any) -> str:
    """A key over everything that decides what is kept: plain data."""
    text = json.dumps([_FORMAT, *parts], sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def cached_path(kind: str, key: str) -> Path:
    """Where a file of the cache lies."""
    return cache_folder() / kind / key[:2] / key


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; it becomes `path` if all goes well. Folders are made.

    Raises: OSError if nothing can be written there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(path.parent)
    staging = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        yield staging
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


def _remove_stale(folder: Path) -> None:
    """Removes what killed processes left half written, but nothing that another may be writing now."""
    for path in folder.glob(".*.tmp"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()


def keep(kind: str, key: str, header: Mapping[str, Any], arrays: Sequence[Array] = ()) -> None:
    """Keeps plain data and arrays under a key. Does nothing where the cache cannot be written."""
    described = {"header": header, "arrays": [[array.dtype.str, len(array)] for array in arrays]}
    content = json.dumps(described).encode() + b"\n" + b"".join(array.tobytes() for array in arrays)
    with suppress(OSError), staged(cached_path(kind, key)) as staging:
        staging.write_bytes(hashlib.sha256(content).digest() + content)


def kept(kind: str, key: str) -> tuple[dict[str, Any], list[Array]] | None:
    """What was kept under a key; None if it is not there or not what was written."""
    try:
        content = cached_path(kind, key).read_bytes()
    except OSError:
        return None
    digest, content = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
    if hashlib.sha256(content).digest() != digest:
        return None
    line, _, rest = content.partition(b"\n")
    described = json.loads(line)
    arrays: list[Array] = []
    for kind_of, length in described["arrays"]:
        dtype = np.dtype(kind_of)
        arrays.append(np.frombuffer(rest, dtype, length))
        rest = rest[length * dtype.itemsize :]
    return described["header"], arrays
