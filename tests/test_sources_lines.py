"""Lines of files: by number and in order the same, whatever their size and form; the cache may be lost or damaged."""

from __future__ import annotations

import gzip
import json
import os
import resource
import shutil
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flan_tune.errors import SourceError
from flan_tune.sources import lines as module
from flan_tune.sources.cache import CACHE_VARIABLE, cache_folder, keep, kept
from flan_tune.sources.lines import Lines
from flan_tune.sources.mirror import open_files
from flan_tune.sources.parquet import ParquetRows

line = st.one_of(
    st.binary(max_size=30).map(lambda data: data.replace(b"\n", b"")),
    st.sampled_from([b"", b" ", b"\t\r", b"  {}", b"x" * 400]),
)
contents = st.lists(st.tuples(st.lists(line, max_size=12), st.booleans()), min_size=1, max_size=3)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test, in which even small files are unpacked."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_IN_MEMORY_BYTES", 0)
    return tmp_path / "cache"


def write(folder: Path, parts: list[tuple[list[bytes], bool]], *, packed: bool) -> list[Path]:
    files = []
    for number, (found, ends) in enumerate(parts):
        data = b"\n".join(found) + b"\n" * ends
        files.append(folder / f"{number}.jsonl{'.gz' * packed}")
        files[-1].write_bytes(gzip.compress(data, mtime=0) if packed else data)
    return files


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(contents, st.booleans(), st.integers(1, 9), st.integers(1, 4))
def test_lines_are_the_lines_that_are_not_blank(
    tmp_path_factory: pytest.TempPathFactory, parts: Any, packed: bool, read_bytes: int, at_once: int
) -> None:
    folder = tmp_path_factory.mktemp("lines")
    files = write(folder, parts, packed=packed)
    wanted = [one.strip() for found, _ in parts for one in found if one.strip()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder / "cache"))
        patch.setattr(module, "_READ_BYTES", read_bytes)
        patch.setattr(module, "_LINES_AT_ONCE", at_once)
        for _ in range(2):  # the second time from the cache
            lines = Lines(files, "key")
            assert len(lines) == len(wanted)
            assert [lines[number] for number in range(len(lines))] == wanted
            assert list(lines.scan()) == wanted
            half = len(wanted) // 2
            assert [*lines.scan(0, half), *lines.scan(half, len(wanted))] == wanted
        for outside in (-1, len(wanted)):
            with pytest.raises(IndexError):
                lines[outside]


def packed_file(folder: Path) -> Path:
    file = folder / "train.jsonl.gz"
    file.write_bytes(gzip.compress(b"".join(b'{"n": %d}\n' % n for n in range(50)), mtime=0))
    return file


def packed_rows(folder: Path) -> Any:
    return open_files([packed_file(folder)])


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
        return file
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    file.write_bytes(gzip.compress(data, mtime=0) if file.suffix == ".gz" else data)
    return file


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_what_is_packed_is_unpacked_once(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = packed_rows(tmp_path)
    assert [first[n]["n"] for n in range(50)] == list(range(50))
    assert len(files_in(cache)) == 2
    monkeypatch.setattr(Lines, "_content", lambda *_: pytest.fail("unpacked again"))
    again = open_files([tmp_path / "train.jsonl.gz"])
    assert [row["n"] for row in again.scan(10, 20)] == list(range(10, 20))


@pytest.mark.parametrize("damage", [b"", b"junk", None])
@pytest.mark.parametrize("which", [0, 1])
def test_a_damaged_cache_is_made_again(tmp_path: Path, cache: Path, damage: bytes | None, which: int) -> None:
    len(packed_rows(tmp_path))
    sizes = [path.stat().st_size for path in files_in(cache)]
    broken = files_in(cache)[which]
    if damage is None:
        broken.unlink()
    else:
        content = bytearray(broken.read_bytes())
        content[60:65] = damage
        broken.write_bytes(content)
    rows = open_files([tmp_path / "train.jsonl.gz"])
    assert [rows[n]["n"] for n in range(50)] == list(range(50))
    again = files_in(cache)
    assert [path.stat().st_size for path in again] == sizes


def test_damage_done_while_it_is_open_is_seen_line_by_line(tmp_path: Path, cache: Path) -> None:
    rows = packed_rows(tmp_path)
    assert rows[7] == {"n": 7}
    data = next(path for path in files_in(cache) if path.suffix == ".jsonl")
    with data.open("r+b") as file:  # the same file, not a new one of the same name
        file.seek(5)
        file.write(b"9")
    assert [rows[n]["n"] for n in range(50)] == list(range(50))
    with data.open("r+b") as file:
        file.seek(5)
        file.write(b"9")
    assert [row["n"] for row in open_files([tmp_path / "train.jsonl.gz"]).scan(0, 50)] == list(range(50))


def test_an_index_of_zeros_is_not_believed(tmp_path: Path, cache: Path) -> None:
    """As it may be after a power failure: an empty line would have the check 0."""
    rows = packed_rows(tmp_path)
    assert len(rows) == 50
    index = next(path for path in files_in(cache) if not path.suffix)
    content = index.read_bytes()
    index.write_bytes(bytes(len(content) - 12) + content[-12:])
    again = open_files([tmp_path / "train.jsonl.gz"])
    assert [again[n]["n"] for n in range(50)] == list(range(50))
    assert index.read_bytes() == content


def test_what_another_process_has_made_again_is_taken(tmp_path: Path, cache: Path) -> None:
    mine, other = (Lines([path], "key") for path in [packed_file(tmp_path)] * 2)
    assert mine[3] == other[3]
    shutil.rmtree(cache)
    module._open.cache_clear()
    assert other[3] == b'{"n": 3}'
    made = {path: path.stat().st_ino for path in files_in(cache)}
    assert mine[3] == b'{"n": 3}'
    assert {path: path.stat().st_ino for path in files_in(cache)} == made


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz", "train.parquet"])
def test_a_cache_that_is_deleted_while_it_is_read_is_made_again(tmp_path: Path, cache: Path, name: str) -> None:
    wanted = [{"n": n} for n in range(50)]
    rows = open_files([write_rows(tmp_path / name, wanted)])
    assert rows[0] == wanted[0]
    for scans in (False, True):
        shutil.rmtree(cache)
        module._open.cache_clear()  # as when many other files were read
        assert (list(rows.scan(0, 50)) if scans else [rows[n] for n in range(50)]) == wanted
        assert files_in(cache) or (scans and name.endswith("parquet"))  # which is read in order without it
        rows[0]


def test_a_source_that_changes_while_it_is_read_is_named(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "train.jsonl", [{"n": n} for n in range(50)])
    rows = open_files([file])
    assert len(rows) == 50
    write_rows(file, [{"n": n} for n in range(60)])
    module._open.cache_clear()
    with pytest.raises(
        SourceError, match=r"train\.jsonl: it was changed while it was read\. Run the same command again\."
    ):
        [rows[n] for n in range(50)]
    file.unlink()
    module._open.cache_clear()
    with pytest.raises(SourceError, match=r"train\.jsonl: cannot be read: .*No such file"):
        list(rows.scan(0, 50))


def test_a_line_that_is_changed_in_its_place_is_read_as_it_is_now(tmp_path: Path, cache: Path) -> None:
    """In the middle of a large file, which a fingerprint does not see."""
    padding = "x" * 3000
    file = write_rows(tmp_path / "train.jsonl", [{"n": 1000 + n, "text": padding} for n in range(1000)])
    len(open_files([file]))
    content = file.read_bytes()
    file.write_bytes(content.replace(b'{"n": 1500, "text": "x', b'{"n": 1500 ,"text": "y'))
    rows = open_files([file])
    assert rows[500] == {"n": 1500, "text": "y" + padding[1:]}
    assert [row["n"] for row in rows.scan(0, 1000)] == list(range(1000, 2000))


def test_many_may_unpack_a_file_at_once(tmp_path: Path, cache: Path) -> None:
    file = tmp_path / "train.jsonl.gz"
    packed_rows(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: list(Lines([file], "key").scan()), range(16)))
    assert all(one == found[0] and len(one) == 50 for one in found)
    assert len(files_in(cache)) == 2


def test_lines_take_no_memory(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    file.write_bytes(b"".join(b"%d\n" % n for n in range(50_000)))
    len(Lines([file], "key"))
    tracemalloc.start()
    lines = Lines([file], "key")
    assert lines[49_999] == b"49999"
    assert tracemalloc.get_traced_memory()[1] < 20_000
    tracemalloc.stop()


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow over some bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz", "train.parquet"])
def test_a_disk_that_is_full_stops_nothing(tmp_path: Path, cache: Path, name: str) -> None:
    wanted = [{"n": n} for n in range(50)]
    rows = open_files([write_rows(tmp_path / name, wanted)])
    with full_disk():
        assert [rows[n] for n in range(50)] == wanted
    assert files_in(cache) == []
    assert list(rows.scan(0, 50)) == wanted


def test_what_is_too_large_for_memory_has_to_have_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_UNPACKED_BYTES", 100)
    rows = packed_rows(tmp_path)
    with (
        full_disk(),
        pytest.raises(
            SourceError,
            match=rf"gz: it cannot be unpacked into the cache .*: .*large.* set {CACHE_VARIABLE} to a folder",
        ),
    ):
        rows[0]


def test_without_a_cache_everything_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    rows = packed_rows(tmp_path)
    assert [rows[n]["n"] for n in range(50)] == list(range(50))
    keep("kind", "key", {"a": 1})
    assert kept("kind", "key") is None


def test_a_packed_file_that_is_damaged_is_named(tmp_path: Path) -> None:
    packed_rows(tmp_path)
    file = tmp_path / "train.jsonl.gz"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(SourceError, match=r"train\.jsonl\.gz: cannot be read: .* Fetch the file again\."):
        len(open_files([file]))


def test_a_file_that_changes_is_read_anew(tmp_path: Path) -> None:
    file = tmp_path / "train.jsonl"
    for number in range(3):
        file.write_bytes(b'{"n": %d}\n' % number)
        assert open_files([file])[0] == {"n": number}


def test_few_files_are_open_at_a_time(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    opened = []
    for number in range(200):
        file = tmp_path / f"{number}.jsonl"
        file.write_bytes(b'{"n": %d}\n' % number)
        opened.append(open_files([file]))
        assert opened[-1][0] == {"n": number}
    assert [rows[0]["n"] for rows in opened] == list(range(200))
    if before:
        assert len(os.listdir("/proc/self/fd")) < before + 100


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv(CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "flan_tune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "flan_tune"


def test_without_a_home_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (CACHE_VARIABLE, "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    keep("kind", "key", {"a": 1})
    assert kept("kind", "key") is None


# Parquet.

value = st.none() | st.text(max_size=5)
tables = st.lists(
    st.fixed_dictionaries(
        {
            "text": value,
            "number": st.none() | st.integers(-(2**60), 2**60),
            "score": st.none() | st.floats(allow_nan=False),
            "options": st.none() | st.lists(st.fixed_dictionaries({"label": value, "is": st.booleans()}), max_size=2),
        }
    ),
    max_size=9,
)
SCHEMA = pa.schema(
    [
        ("text", pa.string()),
        ("number", pa.int64()),
        ("score", pa.float64()),
        ("options", pa.list_(pa.struct([("label", pa.string()), ("is", pa.bool_())]))),
    ]
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(tables, min_size=1, max_size=3), st.integers(1, 4), st.integers(0, 27), st.integers(0, 27), st.booleans()
)
def test_rows_of_parquet_are_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, parts: Any, group: int, start: int, stop: int, is_plain: bool
) -> None:
    folder = tmp_path_factory.mktemp("parquet")
    files = []
    for number, rows in enumerate(parts):
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        if not is_plain:
            table = table.append_column("bytes", pa.array([b"x"] * len(rows), type=pa.binary()))
        files.append(folder / f"{number}.parquet")
        pq.write_table(table, files[-1], row_group_size=group)
    wanted = [row if is_plain else {**row, "bytes": b"x"} for rows in parts for row in rows]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(folder / "cache"))
        opened = ParquetRows(files)
        assert len(opened) == len(wanted)
        assert [opened[number] for number in range(len(wanted))] == wanted
        assert list(opened.scan(0, len(wanted))) == wanted
        start, stop = min(start, len(wanted)), min(stop, len(wanted))
        assert list(opened.scan(start, stop)) == wanted[start:stop]
        some = [{"text": row["text"], "score": row["score"]} for row in wanted]
        assert list(opened.scan(start, stop, ["score", "text", "none"])) == some[start:stop]


def test_shards_may_have_their_columns_in_another_order(tmp_path: Path) -> None:
    files = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    pq.write_table(pa.table({"a": ["1"], "b": [2]}), files[0])
    pq.write_table(pa.table({"b": [4], "a": ["3"]}), files[1])
    rows = ParquetRows(files)
    assert [rows[0], rows[1]] == list(rows.scan(0, 2)) == [{"a": "1", "b": 2}, {"a": "3", "b": 4}]


def test_a_group_that_is_damaged_is_named(tmp_path: Path) -> None:
    file = tmp_path / "train.parquet"
    pq.write_table(pa.table({"text": [str(n) for n in range(2000)]}), file, compression="gzip")
    content = bytearray(file.read_bytes())
    content[100:200] = bytes(100)
    file.write_bytes(content)
    with pytest.raises(
        SourceError, match=r"train\.parquet: this is not a whole parquet file: .* Fetch the file again\."
    ):
        list(ParquetRows([file]).scan(0, 2000))
    with pytest.raises(SourceError, match=r"train\.parquet: this is not a whole parquet file"):
        ParquetRows([file])[0]
