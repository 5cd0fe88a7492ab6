"""Which rows are usable: judged once, kept in the cache, the same with and without it."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from card_rows import rows_of_checks
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import write

from flan_tune.errors import CardError, RowError
from flan_tune.sources import row_filter as module
from flan_tune.sources.cache import CACHE_VARIABLE
from flan_tune.sources.mirror import open_files
from flan_tune.sources.row_filter import Usable, Verdicts, columns_read, judge
from flan_tune.sources.rows import open_task
from flan_tune.tasks.adapters import compile_adapt, compile_keep
from flan_tune.tasks.shapes import SHAPES
from flan_tune.tasks.task import Source, Task

ADAPT = {"text": "{{ text }}", "options": ["no", "yes"], "answer": "{{ pick(options, label) }}"}
SOURCE = Source("hub", "toy/reviews", "mit")
TASK = Task(
    "reviews", "t0_sf", SHAPES["classification"], SOURCE, "reviews", adapt=ADAPT, keep="=stars != 3", where="x:1"
)
ROWS = [
    {"text": "" if n % 11 == 5 else f"Review {n}.", "label": n % 4 - 1, "stars": n % 5, "user": n} for n in range(100)
]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for each test, in which verdicts over a few rows are kept."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_WORTH_KEEPING", 10)
    return tmp_path / "cache"


@pytest.fixture(params=["train.jsonl", "train.parquet"])
def root(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    write(tmp_path / "root/toy/reviews/default" / request.param, ROWS)
    return tmp_path / "root"


def plainly(task: Task, rows: list[dict[str, Any]]) -> tuple[list[int], dict[str, int]]:
    """(usable rows, drops) one row after the other."""
    kept, drops = [], {}
    is_kept, adapt = compile_keep(task), compile_adapt(task)
    for number, row in enumerate(rows):
        try:
            reason = "" if is_kept(row) else "not kept"
            adapt(row) if not reason else None
        except RowError as error:
            reason = error.reason
        if reason:
            drops[reason] = drops.get(reason, 0) + 1
        else:
            kept.append(number)
    return kept, drops


def opened(root: Path, task: Task = TASK, removed: Mapping[int, str] | None = None) -> tuple[list[int], dict[str, int]]:
    rows = open_task(task, "train", root, (lambda *_: removed) if removed is not None else None)
    return [rows.raw(number)["user"] for number in range(len(rows))], dict(rows.drops)


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in (cache / "usable").rglob("*") if path.is_file())


def test_the_verdicts_are_those_of_one_row_after_the_other_and_are_kept(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert opened(root) == plainly(TASK, ROWS)
    assert len(entries(cache)) == 1
    monkeypatch.setattr(module, "_judge", lambda *_: pytest.fail("judged again"))
    assert opened(root) == plainly(TASK, ROWS)


@pytest.mark.parametrize(
    "changes",
    [
        {"keep": None},
        {"keep": "=stars == 3"},
        {"adapt": {**ADAPT, "text": "{{ text }}!"}},
        {"adapt": {**ADAPT, "options": ["no", "no"]}, "keep": "=label == -1 or stars != 3"},
        {"shape": SHAPES["transform"], "adapt": {"text": "{{ user }}", "answer": "{{ text }}"}},
    ],
)
def test_another_card_is_judged_anew(root: Path, cache: Path, changes: dict[str, Any]) -> None:
    opened(root)
    task = replace(TASK, **changes)
    wanted = plainly(task, ROWS)
    if wanted[0]:
        assert opened(root, task) == wanted
    else:
        assert dict(judge(task, open_files([*root.rglob("train.*")])).counts()) == wanted[1]
    assert len(entries(cache)) == 2


def test_other_rows_and_other_code_are_judged_anew(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened(root)
    write(next(root.rglob("train.*")), ROWS[:50])
    assert opened(root) == plainly(TASK, ROWS[:50])
    monkeypatch.setattr(module, "_code_hash", lambda: "other")
    opened(root)
    assert len(entries(cache)) == 3


@pytest.mark.parametrize("damage", [b"", b"junk", b"\0" * 40])
def test_a_damaged_cache_is_not_believed(root: Path, cache: Path, damage: bytes) -> None:
    opened(root)
    (entry,) = entries(cache)
    content = entry.read_bytes()
    for broken in (damage, content[:-5], content[:40] + damage + content[40:], content[:-3] + b"abc"):
        entry.write_bytes(broken)
        assert opened(root) == plainly(TASK, ROWS)
        assert entry.read_bytes() == content


def test_many_may_open_it_at_once(root: Path, cache: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: opened(root), range(16)))
    assert all(one == plainly(TASK, ROWS) for one in found)
    assert len(entries(cache)) == 1


def test_few_rows_leave_nothing_behind(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_WORTH_KEEPING", 1000)
    opened(root)
    assert entries(cache) == []


@given(removed=st.dictionaries(st.integers(0, 120), st.sampled_from(["a", "b"])))
def test_removed_rows_are_taken_off_whatever_their_verdict(tmp_path_factory: Any, removed: dict[int, str]) -> None:
    root = tmp_path_factory.mktemp("root")
    write(root / "toy/reviews/default/train.jsonl", ROWS)
    rows = [(number, row) for number, row in enumerate(ROWS) if number not in removed]
    kept, drops = plainly(TASK, [row for _, row in rows])
    for number, reason in removed.items():
        if number < len(ROWS):
            drops[f"removed: {reason}"] = drops.get(f"removed: {reason}", 0) + 1
    found = opened(root, removed=removed)
    assert found == ([rows[place][0] for place in kept], drops)


@given(st.integers(0, 40), st.sets(st.integers(0, 39)))
def test_usable_rows_are_found_by_number(rows: int, left_out: set[int]) -> None:
    left_out = {number for number in left_out if number < rows}
    usable = Usable(rows, np.array(sorted(left_out), dtype=np.int64))
    wanted = [number for number in range(rows) if number not in left_out]
    assert [usable[number] for number in range(len(usable))] == wanted
    for outside in (-1, len(wanted)):
        with pytest.raises(IndexError):
            usable[outside]


def test_all_rows_take_no_memory() -> None:
    usable = Usable(10**9, np.zeros(0, dtype=np.int64))
    assert (len(usable), usable[123_456_789]) == (10**9, 123_456_789)


def test_only_columns_that_are_read_are_read() -> None:
    columns = ["text", "label", "stars", "user", "date"]
    assert columns_read(TASK, columns) == {"text", "label", "stars"}
    assert columns_read(replace(TASK, keep="stars != 3"), columns) == {"text", "label", "stars"}
    assert columns_read(replace(TASK, each="=date"), columns) == {"text", "label", "stars", "date"}
    assert columns_read(replace(TASK, keep="=data['a']"), columns) is None, "a name that is no column: all are told"
    assert columns_read(replace(TASK, adapter="split_gsm8k"), columns) is None
    assert columns_read(TASK, [*columns, "pick"]) is None
    assert columns_read(TASK, None) is None
    assert columns_read(replace(TASK, adapt={"answer": "x"}, keep=None), columns) is None


def verdict(task: Task, row: dict[str, Any]) -> str:
    """The fields of a row, or why there are none."""
    try:
        return repr(compile_adapt(task)(row) if compile_keep(task)(row) else "not kept")
    except RowError as error:
        return error.reason
    except CardError:
        return "another task's row"


def test_no_column_is_left_out_that_a_shipped_card_reads() -> None:
    fewer = 0
    for task, row in rows_of_checks():
        names = columns_read(task, list(row))
        some = row if names is None else {name: row[name] for name in names}
        assert verdict(task, some) == verdict(task, row), task.name
        fewer += len(some) < len(row)
    assert fewer > 100


NAMES = "abcde"
sources = st.sampled_from(["{{ %s }}", "=%s", "={'x': %s}.x", "{{ %s if %s is defined else '' }}", "=%s == %s"])


@settings(deadline=None)
@given(
    values=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(["", "1", 2, None, ["x"]])),
    adapt=st.dictionaries(
        st.sampled_from(["text", "answer", "options", "a", "b"]),
        st.tuples(sources, st.sampled_from(NAMES), st.sampled_from(NAMES)),
        min_size=1,
    ),
    keep=st.none() | st.sampled_from(NAMES),
)
def test_a_row_with_the_columns_that_are_read_has_the_same_verdict(values: Any, adapt: Any, keep: str | None) -> None:
    texts = {name: one.replace("%s", x, 1).replace("%s", y) for name, (one, x, y) in adapt.items()}
    task = replace(TASK, adapt=texts, keep=None if keep is None else f"={keep}")
    names = columns_read(task, list(values))
    some = values if names is None else {name: values[name] for name in names}
    assert verdict(task, some) == verdict(task, values)


def test_a_card_that_reads_what_is_not_there_is_told_all_columns(root: Path) -> None:
    with pytest.raises(CardError, match=r"'txt' is undefined .* The row has \['label', 'stars', 'text', 'user'\]"):
        opened(root, replace(TASK, adapt={**ADAPT, "text": "{{ txt }}"}))


def test_reasons_are_counted() -> None:
    verdicts = Verdicts(np.array([1, 4, 9]), np.array([1, 0, 1], dtype=np.uint8), ["a", "b", "c"])
    assert verdicts.counts() == {"a": 1, "b": 2}
    assert verdicts.counts(but=[9, 2]) == {"a": 1, "b": 1}
