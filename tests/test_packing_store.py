"""The pack store: what is written is read back, by number; damage is named with what to do."""

from __future__ import annotations

import doctest
import json
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_packs import edit

from flan_tune.cli import inspect
from flan_tune.errors import StreamError
from flan_tune.packing import manifest
from flan_tune.packing.store import (
    Pack,
    PackReader,
    count_targets,
    file_hash,
    finished_windows,
    join_content_hashes,
    open_packs,
    read_summary,
    staged,
    write_index,
    write_json,
    write_shard,
    write_vouched,
)


@st.composite
def packs(draw: st.DrawFn) -> Pack:
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    number = len(lengths)
    texts = st.lists(st.text(max_size=8), min_size=number, max_size=number)

    def integers(high: int, dtype: Any) -> np.ndarray:
        return np.array(draw(st.lists(st.integers(0, high), min_size=number, max_size=number)), dtype=dtype)

    prefixes = np.array([draw(st.integers(0, length)) for length in lengths], dtype=np.int32)
    return Pack(
        input_ids=np.array([draw(st.integers(0, 2**31 - 1)) for _ in range(sum(lengths))], dtype=np.int32),
        segment_lengths=np.array(lengths, dtype=np.int32),
        prefix_lengths=prefixes,
        task=integers(1000, np.int32),
        kind=draw(texts),
        row=integers(2**62, np.int64),
        epoch=integers(2**31 - 1, np.int32),
        template=draw(texts),
        presentation=draw(texts),
        shots=integers(127, np.int8),
        cut=integers(1000, np.int32),
        replaced=integers(64, np.int8),
        target_tokens=count_targets(np.array(lengths, dtype=np.int32), prefixes),
    )


def write(directory: Path, windows: Sequence[Sequence[Pack]]) -> PackReader:
    """Packs written window by window and sealed with a manifest of the least there can be."""
    directory.mkdir(parents=True, exist_ok=True)
    summaries = [write_shard(directory, number, window, {}) for number, window in enumerate(windows)]
    index = write_index(directory, len(windows), summaries)
    content_hash = join_content_hashes(summaries)
    write_vouched(directory / "manifest.json", {"windows": summaries, "index": index, "content_hash": content_hash})
    return open_packs(directory)


def as_plain(pack: Pack) -> dict[str, Any]:
    values = {field.name: getattr(pack, field.name) for field in fields(Pack)}
    return {n: (v.dtype.str, v.tolist()) if isinstance(v, np.ndarray) else v for n, v in values.items()}


def some_packs(count: int = 2) -> list[Pack]:
    one = Pack(
        input_ids=np.arange(9, dtype=np.int32),
        segment_lengths=np.array([5, 4], dtype=np.int32),
        prefix_lengths=np.array([3, 0], dtype=np.int32),
        task=np.array([0, 1], dtype=np.int32),
        kind=["supervised", "causal"],
        row=np.array([7, 2**40], dtype=np.int64),
        epoch=np.array([0, 1], dtype=np.int32),
        template=["a/b/answer/0", ""],
        presentation=["zero_shot", "statement"],
        shots=np.array([0, 4], dtype=np.int8),
        cut=np.array([0, 1], dtype=np.int32),
        replaced=np.array([2, 0], dtype=np.int8),
        target_tokens=5,
    )
    return [replace(one, input_ids=one.input_ids + number) for number in range(count)]


def test_the_examples_of_the_docstrings_are_true() -> None:
    for module in (manifest, inspect):
        assert doctest.testmod(module).failed == 0
    one = some_packs()[0]
    assert count_targets(one.segment_lengths, one.prefix_lengths) == 5


@settings(max_examples=25, deadline=None)
@given(windows=st.lists(st.lists(packs(), max_size=4), min_size=1, max_size=3))
def test_packs_are_read_back_as_written(tmp_path_factory: pytest.TempPathFactory, windows: list[list[Pack]]) -> None:
    reader = write(tmp_path_factory.mktemp("packs"), windows)
    written = [pack for window in windows for pack in window]
    assert reader.num_packs == len(written)
    assert [as_plain(reader.pack(number)) for number in range(reader.num_packs)] == [as_plain(p) for p in written]
    assert reader.target_tokens.tolist() == [pack.target_tokens for pack in written]
    assert reader.num_segments.tolist() == [len(pack.segment_lengths) for pack in written]
    for outside in (-1, len(written)):
        with pytest.raises(StreamError, match=f"there is no pack {outside}"):
            reader.pack(outside)


def test_a_shard_is_a_dataset(tmp_path: Path) -> None:
    import datasets

    reader = write(tmp_path / "packs", [some_packs(3)])
    dataset = datasets.Dataset.from_file(str(tmp_path / "packs" / "window-00000.arrow"))
    assert dataset.column_names == [field.name for field in fields(Pack)]
    assert dataset[1]["input_ids"] == reader.pack(1).input_ids.tolist()
    assert dataset[2]["template"] == ["a/b/answer/0", ""]


def test_the_content_hash_is_of_what_packs_hold_not_of_the_file(tmp_path: Path) -> None:
    first, same = some_packs(), some_packs()
    changed = [replace(first[0], template=["a/b/answer/1", ""]), first[1]]
    hashes = [
        write(tmp_path / str(number), [window]).manifest["content_hash"]
        for number, window in enumerate((first, same, changed, first[:1]))
    ]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_nothing_but_the_finished_files_is_left(tmp_path: Path) -> None:
    write(tmp_path, [some_packs()])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "index-00001.arrow",
        "manifest.json",
        "window-00000.arrow",
        "window-00000.json",
    ]


def test_a_window_is_finished_when_both_its_files_are_there(tmp_path: Path) -> None:
    write(tmp_path, [some_packs(), some_packs(3), some_packs(), some_packs(), some_packs()])
    (tmp_path / "window-00000.arrow").unlink()
    (tmp_path / "window-00002.json").unlink()
    (tmp_path / "window-00003.json").write_text('{"window": 3')
    edit(tmp_path / "window-00004.json", '"packs": 2', '"packs": 3')
    done = finished_windows(tmp_path)
    assert {number: window.packs for number, window in done.items()} == {1: 3}
    assert read_summary(tmp_path, 1)["sha256"] == done[1].sha256 == file_hash(tmp_path / "window-00001.arrow")


def test_a_window_of_another_recipe_is_not_finished(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, some_packs(), {"fingerprint": "mine"})
    write_shard(tmp_path, 1, some_packs(), {"fingerprint": "another's"})
    assert list(finished_windows(tmp_path, "mine")) == [0]
    assert list(finished_windows(tmp_path)) == [0, 1]


def test_more_windows_than_names_have_digits_for_stay_in_order(tmp_path: Path) -> None:
    for number in (100_000, 99_999, 7):
        write_shard(tmp_path, number, some_packs(), {})
    assert list(finished_windows(tmp_path)) == [7, 99_999, 100_000]


def test_a_folder_without_packs_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(StreamError, match=r"no sealed packs here.*flan-tune prepare"):
        open_packs(tmp_path)


def test_a_missing_shard_is_named_with_what_to_do(tmp_path: Path) -> None:
    reader = write(tmp_path, [some_packs(), some_packs()])
    (tmp_path / "window-00001.arrow").unlink()
    assert reader.pack(0).target_tokens == 5
    with pytest.raises(StreamError, match=r"window-00001\.arrow: this file is missing\. Remake it: `flan-tune prepare"):
        reader.pack(2)


@pytest.mark.parametrize("place", [0, 700, -1])
def test_a_changed_byte_is_seen_when_the_shard_is_first_read(tmp_path: Path, place: int) -> None:
    reader = write(tmp_path, [some_packs()])
    path = tmp_path / "window-00000.arrow"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StreamError, match=r"window-00000\.arrow: this file is not the one that was written") as caught:
        reader.pack(0)
    assert "Remake it: `flan-tune prepare RECIPE --repair`." in str(caught.value)


@pytest.mark.parametrize("name", ["index-00001.arrow", "manifest.json"])
def test_a_damaged_file_beside_the_shards_is_named_too(tmp_path: Path, name: str) -> None:
    write(tmp_path, [some_packs()])
    data = bytearray((tmp_path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / name).write_bytes(bytes(data))
    with pytest.raises(StreamError, match=rf"{name}: .* Remake it: `flan-tune prepare RECIPE --repair`"):
        print(open_packs(tmp_path).target_tokens)


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_json(path, {"windows": 1})
    with pytest.raises(TypeError):
        write_json(path, {"windows": object()})
    assert json.loads(path.read_text()) == {"windows": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_written_to_the_end_leaves_nothing(tmp_path: Path) -> None:
    def break_off() -> Iterator[dict[str, Any]]:
        yield {"per_pack": {"target_tokens": [1], "num_segments": [1]}}
        raise KeyError("stop")

    with pytest.raises(KeyError):
        write_index(tmp_path, 2, break_off())
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_file_have_names_of_their_own(tmp_path: Path) -> None:
    """Two machines may have processes with the same number."""
    path = tmp_path / "plan.json"
    with staged(path) as one, staged(path) as other:
        assert one != other
        one.write_text("a")
        other.write_text("a")
    assert [made.name for made in tmp_path.iterdir()] == ["plan.json"]
