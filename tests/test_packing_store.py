"""The pack store: what is written is read back, by number; damage is named with what to do."""

from __future__ import annotations

import doctest
import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_tune.errors import StreamError
from flan_tune.packing import manifest
from flan_tune.packing.store import (
    Pack,
    PackReader,
    count_targets,
    finished_windows,
    join_content_hashes,
    open_packs,
    write_json,
    write_shard,
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
        target_tokens=count_targets(np.array(lengths, dtype=np.int32), prefixes),
    )


def write(directory: Path, windows: Sequence[Sequence[Pack]]) -> PackReader:
    """Packs written window by window and sealed with a manifest of the least there can be."""
    directory.mkdir(parents=True, exist_ok=True)
    summaries = []
    for number, window in enumerate(windows):
        per_pack = {
            "target_tokens": [pack.target_tokens for pack in window],
            "num_segments": [len(pack.segment_lengths) for pack in window],
        }
        summaries.append(write_shard(directory, number, window, {"per_pack": per_pack}))
    write_json(directory / "manifest.json", {"windows": summaries, "content_hash": join_content_hashes(summaries)})
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
        target_tokens=5,
    )
    return [replace(one, input_ids=one.input_ids + number) for number in range(count)]


def test_the_examples_of_the_docstrings_are_true() -> None:
    assert doctest.testmod(manifest).failed == 0
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
        "manifest.json",
        "window-00000.arrow",
        "window-00000.json",
    ]


def test_a_window_is_finished_when_both_its_files_are_there(tmp_path: Path) -> None:
    write(tmp_path, [some_packs(), some_packs(), some_packs()])
    (tmp_path / "window-00001.arrow").unlink()
    (tmp_path / "window-00002.json").unlink()
    assert list(finished_windows(tmp_path)) == [0]


def test_a_folder_without_packs_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(StreamError, match=r"no sealed packs here.*flan-tune prepare"):
        open_packs(tmp_path)


def test_a_missing_shard_is_named_with_what_to_do(tmp_path: Path) -> None:
    reader = write(tmp_path, [some_packs(), some_packs()])
    (tmp_path / "window-00001.arrow").unlink()
    assert reader.pack(0).target_tokens == 5
    with pytest.raises(StreamError, match=r"window-00001\.arrow: this shard is missing\. Run `flan-tune"):
        reader.pack(2)


@pytest.mark.parametrize("place", [0, 700, -1])
def test_a_changed_byte_is_seen_when_the_shard_is_first_read(tmp_path: Path, place: int) -> None:
    reader = write(tmp_path, [some_packs()])
    path = tmp_path / "window-00000.arrow"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StreamError, match=r"window-00000\.arrow: this shard is not the one that was written") as caught:
        reader.pack(0)
    assert "Delete it and its .json, and run `flan-tune prepare` again." in str(caught.value)


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    write_json(path, {"windows": 1})
    with pytest.raises(TypeError):
        write_json(path, {"windows": object()})
    assert json.loads(path.read_text()) == {"windows": 1}
    assert list(tmp_path.iterdir()) == [path]
