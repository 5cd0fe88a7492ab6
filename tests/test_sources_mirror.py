"""Files on disk in every layout, what is refused, and fingerprints that follow content alone."""

from __future__ import annotations

import gzip
import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_data import ENTAILMENT, SUMS, write

from flan_tune.errors import SourceError
from flan_tune.sources.mirror import files_fingerprint, list_splits, open_files, open_mirror, read_lines, split_files


def refused(name: str, config: str | None, split: str, root: Path) -> str:
    with pytest.raises(SourceError) as caught:
        open_mirror(name, config, split, root)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "config", "split", "rows"),
    [
        ("toy/entailment", "plain_text", "train_r1", ENTAILMENT),
        ("toy/entailment", None, "dev_r1", ENTAILMENT[:2]),
        ("toy/sharded", "default", "train", SUMS[:8]),
        ("toy/sharded", None, "train", SUMS[:8]),
        ("toy/sharded", None, "validation", SUMS[8:]),
        ("toy/hub_shards", None, "train", SUMS),
        ("toy/only", None, "train", SUMS[:4]),
        ("toy/only", "main", "test", SUMS[4:]),
        ("word", "first", "train", SUMS[:1]),
        ("word", "second", "train", SUMS[1:3]),
    ],
)
def test_rows_come_in_order_from_every_layout(data_root: Path, name: str, config: str, split: str, rows: list) -> None:
    opened = open_mirror(name, config, split, data_root)
    assert len(opened) == len(rows)
    assert [opened[number] for number in range(len(opened))] == list(rows)
    assert opened[len(rows) - 1] == rows[-1]  # by number, in any order
    assert opened.where(0).endswith(", row 0")


def test_a_missing_split_names_those_that_are_there_and_takes_no_other(data_root: Path) -> None:
    folder = data_root / "toy/entailment/plain_text"
    assert refused("toy/entailment", "plain_text", "train", data_root) == (
        f"{folder}: there is no split 'train'. Did you mean 'train_r1'? There are ['dev_r1', 'train_r1']."
    )
    assert refused("toy/only", None, "validation", data_root) == (
        f"{data_root / 'toy/only/main'}: there is no split 'validation'. There are ['test', 'train']."
    )


def test_a_missing_dataset_or_configuration_says_what_is_there(data_root: Path) -> None:
    assert refused("toy/nothing", None, "train", data_root) == (
        f"'toy/nothing' is not in the data root {data_root}. Put it at toy/nothing/<config>/<split>.parquet there, "
        "or unset the data root to read from the hub."
    )
    assert refused("toy/only", "minor", "train", data_root) == (
        f"'toy/only' has no configuration 'minor' in the data root {data_root}; there are ['main']."
    )
    assert refused("word", None, "train", data_root) == (
        f"'word' has no configuration 'default' in the data root {data_root}; there are ['first', 'second']."
    )


def test_splits_are_listed(data_root: Path) -> None:
    assert list_splits("toy/sharded", None, data_root) == ["train", "validation"]
    assert list_splits("toy/entailment", None, data_root) == ["dev_r1", "train_r1"]
    assert list_splits("word", None, data_root) == []
    assert list_splits("toy/nothing", None, data_root) == []


def test_other_files_and_hidden_folders_are_no_data(tmp_path: Path) -> None:
    write(tmp_path / "toy/main/train.jsonl", SUMS)
    (tmp_path / "toy/.cache").mkdir()
    (tmp_path / "toy/main/README.md").write_text("no data")
    (tmp_path / "toy/main/train.json").write_text("[]")
    assert list(split_files(tmp_path / "toy/main")) == ["train"]
    assert len(open_mirror("toy", None, "train", tmp_path)) == 10


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        (["train.jsonl", "train.parquet"], "one split is there in two forms: {names}. Keep one of them."),
        (["train.jsonl", "train.jsonl.gz"], "one split is there in two forms: {names}. Keep one of them."),
        (["train-00000.jsonl", "train.jsonl"], "one split is there in two forms: {names}. Keep one of them."),
        (
            ["train-00000-of-00002.jsonl", "train-00001-of-00003.jsonl"],
            "one split is there in two forms: {names}. Keep one of them.",
        ),
        (
            ["train-00000.jsonl", "train-00002.jsonl"],
            "a shard is missing; they count from 0, found {names}. Fetch the rest.",
        ),
        (["train-00001.jsonl"], "a shard is missing; they count from 0, found {names}. Fetch the rest."),
        (["train-00000-of-00002.jsonl"], "a shard is missing; they count from 0, found {names}. Fetch the rest."),
    ],
)
def test_rows_are_neither_lost_nor_read_twice(tmp_path: Path, files: list[str], fault: str) -> None:
    for name in files:
        write(tmp_path / "toy/default" / name, SUMS[:2])
    assert refused("toy", None, "train", tmp_path) == f"{tmp_path / 'toy/default'}: {fault.format(names=files)}"


@given(st.lists(st.dictionaries(st.text(max_size=4), st.none() | st.integers() | st.text(), max_size=3), max_size=5))
def test_json_lines_give_back_what_was_written(tmp_path_factory: pytest.TempPathFactory, rows: list) -> None:
    folder = tmp_path_factory.mktemp("lines")
    for name in ("a.jsonl", "a.jsonl.gz"):
        opened = open_files([write(folder / name, rows)])
        assert [opened[number] for number in range(len(opened))] == rows


def test_lines_are_split_at_newlines_only(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes('\n{"a": "one\u2028two"}\r\n\n{"a": "\\n"}'.encode())
    assert [json.loads(line) for line in read_lines(file)] == [{"a": "one\u2028two"}, {"a": "\n"}]


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    files = [write(tmp_path / "train-00000.jsonl", SUMS[:2]), tmp_path / "train-00001.jsonl"]
    files[1].write_text('{"a": 1}\n{"a": \n[1, 2]\n', encoding="utf-8")
    rows = open_files(files)
    assert rows[2] == {"a": 1}
    with pytest.raises(
        SourceError, match=r"train-00001\.jsonl, row 1: this is not JSON: Expecting value.*Fetch the file"
    ):
        rows[3]
    with pytest.raises(SourceError, match=r"train-00001\.jsonl, row 2: a row is a JSON object, found list\."):
        rows[4]


@pytest.mark.parametrize("name", ["train.jsonl.gz", "train.parquet"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, SUMS)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(SourceError, match=rf"{name}: .* Fetch the file again\."):
        len(open_files([file]))


def test_shards_with_other_columns_are_refused(tmp_path: Path) -> None:
    files = [write(tmp_path / "a-00000.parquet", SUMS), write(tmp_path / "a-00001.parquet", ENTAILMENT)]
    with pytest.raises(SourceError, match=r"a-00000\.parquet: its shards have different columns"):
        open_files(files)


def test_a_folder_named_like_a_partition_adds_no_column(tmp_path: Path) -> None:
    rows = open_files([write(tmp_path / "language=en" / "train.parquet", SUMS)])
    assert rows[0] == SUMS[0]


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz", "train.parquet"])
def test_a_fingerprint_follows_content_not_place_or_time(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / "here" / name, SUMS)
    before = open_files([file]).fingerprint
    (tmp_path / "there").mkdir()
    moved = Path(shutil.copy(file, tmp_path / "there" / name))
    os.utime(moved, (1, 1))
    assert open_files([moved]).fingerprint == before
    write(moved, [*SUMS[:-1], {"question": "9 + 9?", "answer": "19"}])
    assert open_files([moved]).fingerprint != before
    assert open_files([write(tmp_path / "there" / name, SUMS[:-1])]).fingerprint != before
    assert files_fingerprint([file, file]) != before


def test_a_fingerprint_sees_both_ends_of_large_files(tmp_path: Path) -> None:
    file = tmp_path / "large.jsonl"
    content = bytearray(b"x" * (3 << 20))
    found = set()
    for place in (None, 0, (1 << 20) - 1, (2 << 20) + 1, (3 << 20) - 1):
        changed = bytearray(content)
        if place is not None:
            changed[place] = ord("y")
        file.write_bytes(changed)
        found.add(files_fingerprint([file]))
    assert len(found) == 5
    assert file.stat().st_size == 3 << 20


def test_gzip_members_that_follow_each_other_are_one_file(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(b'{"a": 1}\n') + gzip.compress(b'{"a": 2}\n'))
    assert len(open_files([file])) == 2
