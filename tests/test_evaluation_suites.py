"""Suites: what they refuse, how procedural ones keep apart from training, and the layouts of GSM8K and MMLU."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flan_tune.errors import ScoreError
from flan_tune.evaluation.suites.gsm8k import gsm8k_suite
from flan_tune.evaluation.suites.mmlu import mmlu_suite
from flan_tune.evaluation.suites.procedural import RenderedRow, procedural_suite
from flan_tune.evaluation.suites.suite import Item, Suite, SuiteTask, draw_rows, mean_chance


@dataclass(frozen=True)
class Task:
    name: str
    held_out: bool = False


def render_from(contents: dict[str, list[int]]):
    """Rows whose content is listed; after the list, each row is new."""

    def render(task: str, row: int) -> RenderedRow:
        listed = contents.get(task, [])
        content = listed[row] if row < len(listed) else 10_000 + row
        return RenderedRow(f"{task} {content}?", str(content), None, content)

    return render


def test_rows_seen_in_training_or_before_are_left_out_and_counted() -> None:
    suite, removed = procedural_suite([Task("a")], render_from({"a": [5, 7, 7, 8]}), 2, {5})
    assert [item.id for item in suite.tasks[0].items] == ["a/1", "a/3"]
    assert [item.targets for item in suite.tasks[0].items] == ["7", "8"]
    assert removed == {"a": 2}


def test_a_content_is_asked_once_over_all_tasks() -> None:
    suite, removed = procedural_suite(
        [Task("a"), Task("b", True)], render_from({"a": [1, 2], "b": [2, 3, 4]}), 2, set()
    )
    assert [[item.targets for item in task.items] for task in suite.tasks] == [["1", "2"], ["3", "4"]]
    assert removed == {"a": 0, "b": 1}
    assert [task.group for task in suite.tasks] == ["seen", "held_out"]


def test_too_few_new_rows_end_with_the_numbers() -> None:
    def render(task: str, row: int) -> RenderedRow:
        return RenderedRow("?", "x", None, row % 3)

    with pytest.raises(ScoreError, match=r"'a': only 2 of the first 600 rows of split 'test' are new, 3 are wanted"):
        procedural_suite([Task("a")], render, 3, {0})
    suite, removed = procedural_suite([Task("a")], render, 2, {0})
    assert (len(suite.tasks[0].items), removed) == (2, {"a": 1})


@given(st.lists(st.integers(0, 30), max_size=60), st.sets(st.integers(0, 30)), st.integers(1, 12))
def test_items_are_new_distinct_and_in_order(contents: list[int], seen: set[int], n: int) -> None:
    suite, removed = procedural_suite([Task("a")], render_from({"a": contents}), n, seen)
    items = suite.tasks[0].items
    keys = [int(item.targets) for item in items]
    rows = [int(item.id.split("/")[1]) for item in items]
    assert len(set(keys)) == len(keys) == n
    assert not set(keys) & seen
    assert rows == sorted(rows)
    assert removed["a"] == rows[-1] + 1 - n


def test_chance_is_the_mean_over_items() -> None:
    assert mean_chance([Item("0", "t", "?", "a", ["a", "b"]), Item("1", "t", "?", "7")]) == 0.25


def make_task(**changes: object) -> SuiteTask:
    values = {"name": "t", "group": "seen", "items": [Item("0", "t", "?", "a")], "chance": 0.0, "metric": "answer"}
    return SuiteTask(**{**values, "layout": "plain", "split": "test", **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "A b"}, "may hold a-z"),
        ({"items": []}, "has no items"),
        ({"chance": 1.0}, r"chance is 1.0"),
        ({"items": [Item("0", "t", "?", "a")] * 2}, "given to two items"),
        ({"metric": "choice"}, "must be one of at least two options"),
    ],
)
def test_faults_of_a_task(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ScoreError, match=said):
        make_task(**changes)


def test_faults_of_a_suite() -> None:
    with pytest.raises(ScoreError, match="has no tasks"):
        Suite("s", [])
    with pytest.raises(ScoreError, match="same name"):
        Suite("s", [make_task(), make_task()])


def gsm8k_rows(split: str) -> Iterable[dict]:
    return [{"question": f"{split} {i}?", "answer": f"First <<1+1=2>>2.\nThen {i}.\n#### 1,{i:03d}"} for i in range(5)]


def test_gsm8k_layout() -> None:
    task = gsm8k_suite(gsm8k_rows, shots=1).tasks[0]
    assert task.items[2].inputs == "Q: train 0?\nA: First 2. Then 0. The answer is 1000.\n\nQ: test 2?\nA:"
    assert task.items[2].targets == "1002"
    assert (task.metric, task.chance, task.split, task.shots) == ("number", 0.0, "test", 1)
    assert gsm8k_suite(gsm8k_rows).tasks[0].items[0].inputs == "Q: test 0?\nA:"


def test_gsm8k_refuses() -> None:
    with pytest.raises(ScoreError, match="6 exemplars are asked for, the split 'train' has 5"):
        gsm8k_suite(gsm8k_rows, shots=6)
    with pytest.raises(ScoreError, match="6 questions are asked for, the split has 5"):
        gsm8k_suite(gsm8k_rows, n=6)
    with pytest.raises(ScoreError, match="does not end in"):
        gsm8k_suite(lambda split: [{"question": "?", "answer": "4"}])


def test_drawn_rows_do_not_depend_on_how_many_are_drawn() -> None:
    assert draw_rows(4, None, "gsm8k", 0) == [0, 1, 2, 3]
    assert set(draw_rows(100, 5, "gsm8k", 0)) <= set(draw_rows(100, 20, "gsm8k", 0))
    assert draw_rows(100, 20, "gsm8k", 0) != draw_rows(100, 20, "gsm8k", 1)


def mmlu_rows(split: str) -> Iterable[dict]:
    return [
        {"question": f"{split} {i}?", "subject": subject, "choices": ["w", "x", "y", "z"], "answer": i}
        for subject in ("high_school_physics", "law")
        for i in range(3)
    ]


def test_mmlu_layout() -> None:
    suite = mmlu_suite(mmlu_rows, shots=2)
    assert [task.name for task in suite.tasks] == ["mmlu_high_school_physics", "mmlu_law"]
    item = suite.tasks[0].items[2]
    assert item.inputs == (
        "The following are multiple choice questions (with answers) about high school physics.\n\n"
        "Q: dev 0?\n(A) w (B) x (C) y (D) z\nA: (A)\n\n"
        "Q: dev 1?\n(A) w (B) x (C) y (D) z\nA: (B)\n\n"
        "Q: validation 2?\n(A) w (B) x (C) y (D) z\nA:"
    )
    assert (item.targets, item.options) == ("(C)", ["(A)", "(B)", "(C)", "(D)"])
    assert (suite.tasks[0].chance, suite.tasks[0].metric, suite.tasks[0].split) == (0.25, "choice", "validation")


def test_mmlu_spot_check_is_one_task_over_all_subjects() -> None:
    (task,) = mmlu_suite(mmlu_rows, n=4).tasks
    assert (task.name, len(task.items)) == ("mmlu", 4)


def test_mmlu_refuses() -> None:
    with pytest.raises(ScoreError, match="'high_school_physics' has 3 exemplars in split 'dev', 5 are wanted"):
        mmlu_suite(mmlu_rows, shots=5)
    bad = [{"question": "?", "subject": "law", "choices": ["x", "y"], "answer": 0}]
    with pytest.raises(ScoreError, match="2 choices and the answer 0"):
        mmlu_suite(lambda split: bad)


@pytest.mark.mirror
def test_suites_of_the_mirror() -> None:
    root = os.environ.get("FLAN_TUNE_DATA")
    if not root:
        pytest.skip("FLAN_TUNE_DATA is not set: GSM8K and MMLU are not here")

    def rows_of(folder: str):
        def rows(split: str) -> list[dict]:
            with gzip.open(Path(root) / folder / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
                return [json.loads(line) for line in file]

        return rows

    mmlu = mmlu_suite(rows_of("cais/mmlu/all"), shots=5)
    assert (len(mmlu.tasks), sum(len(task.items) for task in mmlu.tasks)) == (57, 1531)
    assert len(gsm8k_suite(rows_of("openai/gsm8k/main"), n=20).tasks[0].items) == 20


def test_torch_comes_with_lm_py_only() -> None:
    modules = [
        "flan_tune.evaluation.suites.gsm8k",
        "flan_tune.evaluation.suites.lm_eval_task",
        "flan_tune.evaluation.suites.mmlu",
        "flan_tune.evaluation.suites.procedural",
        "flan_tune.evaluation.results",
        "flan_tune.evaluation.run",
        "flan_tune.reports.report",
        "flan_tune.reports.table",
    ]
    program = f"import sys, {', '.join(modules)}; print(sorted({{'torch', 'lm_eval', 'datasets'}} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
