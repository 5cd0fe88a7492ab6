"""Several examples of one row: numbered one after the other, none lost, none twice, wherever rows are counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_data import write
from small_packs import small_settings

from flan_tune.errors import CardError, SourceError
from flan_tune.packing.prepare import prepare
from flan_tune.packing.store import open_packs
from flan_tune.sources import each as module
from flan_tune.sources.cache import CACHE_VARIABLE
from flan_tune.sources.rows import open_rows, open_task
from flan_tune.strict_yaml import read_text
from flan_tune.tasks.adapters import compile_adapt
from flan_tune.tasks.card import parse_card
from flan_tune.tasks.card_check import check_faults
from flan_tune.tasks.catalog import load_catalog
from flan_tune.tasks.task import Task

CARD = """\
# Talks, made up.
family: custom
tasks:
  - name: talks
    shape: question_answer
    category: Talk
    languages: [English]
    source: {hub: toy/talks, license: mit}
    each: =questions
    keep: =each != 'skip'
    adapt:
      question: "{{ title }}{% for q in questions[:each_index] %} {{ q }}{% endfor %} > {{ each }}"
      answer: "{{ answers[each_index] }}"
    templates: [question_answer/core]
check:
  - row: {title: T, questions: [a, b], answers: ["1", "2"], each_index: 1}
    answer: "2"
  - row: {title: T, questions: [a, b], answers: ["1", "2"]}
    answer: "1"
"""
talk = st.lists(st.tuples(st.sampled_from(["a", "b", "skip"]), st.sampled_from(["1", "2", ""])), max_size=4)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(module, "_WORTH_KEEPING", 2)
    return tmp_path / "cache"


def task(**changes: Any) -> Task:
    (found,), faults = parse_card(read_text(CARD, "talks.yaml"))
    assert faults == []
    return replace(found, **changes)


def rows_of(talks: list[list[tuple[str, str]]]) -> list[dict[str, Any]]:
    return [
        {"title": f"T{n}", "questions": [q for q, _ in one], "answers": [a for _, a in one], "other": n}
        for n, one in enumerate(talks)
    ]


def plainly(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(question, answer) of every item that can be used."""
    return [
        (" ".join([row["title"], *row["questions"][:n]]) + f" > {q}", row["answers"][n])
        for row in rows
        for n, q in enumerate(row["questions"])
        if q != "skip" and row["answers"][n]
    ]


@settings(deadline=None)
@given(st.lists(talk, min_size=1, max_size=6), st.sampled_from(["jsonl", "parquet"]), st.data())
def test_every_item_is_a_row_by_number_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, talks: list[list[tuple[str, str]]], kind: str, data: st.DataObject
) -> None:
    root, rows = tmp_path_factory.mktemp("talks"), rows_of([*talks, [("a", "1")]])
    write(root / f"toy/talks/default/train.{kind}", rows)
    items = [(row["other"], n) for row in rows for n in range(len(row["questions"]))]
    opened: Any = open_rows(task(), "train", root)
    assert [(row["other"], row["each_index"]) for row in map(opened.__getitem__, range(len(opened)))] == items
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, len(items))] * 2)))
    assert [(row["other"], row["each_index"]) for row in opened.scan(start, stop)] == items[start:stop]
    assert [opened.where(n).rpartition(" ")[2] for n in range(len(items))] == [str(row) for row, _ in items]
    usable = open_task(task(), "train", root)
    assert [tuple(usable.fields(n).values()) for n in range(len(usable))] == plainly(rows)
    assert len(usable) + usable.drops.total() == len(items)


TALKS = rows_of([[("a", "1"), ("b", "2")], [], [("c", "3"), ("skip", "4"), ("d", "5")], [("e", "6")]])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "toy/talks/default/train.parquet", TALKS)
    return tmp_path


def test_reserved_and_removed_rows_are_counted_in_items(root: Path) -> None:
    reserving = task(splits={"train": "train"}, reserve=2)
    train, validation = (open_task(reserving, split, root) for split in ("train", "validation"))
    answers = [[rows.fields(n)["answer"] for n in range(len(rows))] for rows in (train, validation)]
    assert answers == [["1", "2", "3"], ["5", "6"]]
    rows = open_task(task(), "train", root, lambda *_: {1: "seen", 5: "seen"})
    assert [rows.fields(n)["answer"] for n in range(len(rows))] == ["1", "3", "5"]
    assert rows.drops == {"not kept": 1, "removed: seen": 2}


def test_what_is_in_a_row_is_counted_once_and_by_its_expression(
    root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(open_rows(task(), "train", root)) == 6
    other = open_rows(task(each="=answers[:1]"), "train", root)
    assert len(other) == 3
    assert other.fingerprint != open_rows(task(), "train", root).fingerprint
    monkeypatch.setattr(module.EachRows, "_count", lambda *_: pytest.fail("counted again"))
    assert len(open_rows(task(), "train", root)) == 6
    for entry in (cache / "items").rglob("*"):
        if entry.is_file():
            entry.write_bytes(entry.read_bytes()[:-1])
    monkeypatch.undo()
    monkeypatch.setenv(CACHE_VARIABLE, str(cache))
    assert len(open_rows(task(), "train", root)) == 6


def test_each_item_is_in_the_packs_once_in_an_epoch(tmp_path: Path, root: Path) -> None:
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards/talks.yaml").write_text(CARD)
    folder = tmp_path / "made"
    folder.mkdir()
    (folder / "mixture.yaml").write_text("members:\n  - {tasks: [talks]}\npresentations: {zero_shot: 1.0}\n")
    settings = small_settings(
        folder, data_root=str(root), task_paths=(str(tmp_path / "cards"),), window_examples=10, num_packs=1
    )
    prepare(settings)
    reader = open_packs(folder / "packs")
    packs = [reader.pack(n) for n in range(reader.num_packs)]
    drawn = Counter(pair for one in packs for pair in zip(one.epoch.tolist(), one.row.tolist(), strict=True))
    assert drawn == Counter((epoch, row) for epoch in range(2) for row in range(5))


def test_a_check_row_may_say_which_item_it_is() -> None:
    document = read_text(CARD, "talks.yaml")
    assert check_faults(document, [task()]) == []
    assert "gives 'no answer: " in check_faults(read_text(CARD.replace("_index: 1", "_index: 2"), "x"), [task()])[0]


def test_a_row_of_which_there_is_no_list_is_named(tmp_path: Path) -> None:
    write(tmp_path / "toy/talks/default/train.jsonl", [TALKS[0], {**TALKS[0], "questions": None}])
    with pytest.raises(
        SourceError, match=r"train\.jsonl, row 1: .*talks\.yaml:4: each gives None, where a list is wanted"
    ):
        open_task(task(), "train", tmp_path)
    with pytest.raises(CardError, match=r"'question' is undefined .* The row has \['answers', 'other', 'questions'"):
        open_task(task(each="=question"), "train", tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("hub: toy/talks", "natural_instructions: task001", "`each` is for rows of ['hub', 'data_root', 'file']"),
        ("each: =questions", "each: 1", "each is 1, a int, where text is wanted"),
    ],
)
def test_a_card_that_cannot_have_items_is_refused(old: str, new: str, fault: str) -> None:
    tasks, faults = parse_card(read_text(CARD.replace(old, new), "talks.yaml"))
    assert not tasks
    assert any(fault in one for one in faults), faults


def test_each_question_of_quac_is_asked_after_those_before_it() -> None:
    quac = load_catalog()["quac"]
    row = {
        "wikipedia_page_title": "Ada",
        "background": "",
        "section_title": "Life",
        "context": "She was born in Riga. She flew. CANNOTANSWER",
        "questions": ["where was she born", "what did she do", "why"],
        "orig_answers": {"texts": ["She was born in Riga.", "She flew.", "CANNOTANSWER"]},
    }
    adapt = compile_adapt(quac)
    asked = [adapt({**row, "each_index": n}) for n in range(3)]
    assert [one["question"] for one in asked] == row["questions"]
    assert [one["answer"] for one in asked] == ["She was born in Riga.", "She flew.", "the text does not say"]
    assert [one["context"].count("Student:") for one in asked] == [0, 1, 2]
    assert asked[1]["context"].endswith("\n\nStudent: where was she born\nTeacher: She was born in Riga.")
