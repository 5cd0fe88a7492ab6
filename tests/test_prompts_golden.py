"""One rendered example of every shape that has a card, by every presentation it supports, as files to read.

The rows are generated: one task stands for each shape. The files are tests/golden/<shape>/<presentation>.txt.
"""

from __future__ import annotations

from functools import lru_cache

import pytest
from golden_files import FOLDER, assert_golden
from small_packs import task as shipped_task

from flan_tune.prompts.present import PRESENTATIONS, Example, Presenter
from flan_tune.prompts.template import load_templates
from flan_tune.sources.rows import open_task
from flan_tune.tasks.catalog import load_catalog

ROW = 7
TASK_OF_SHAPE = {
    "classification": "sentiment",
    "completion": "next_in_sequence",
    "data_to_text": "describe_pet",
    "entailment": "entailment_facts",
    "fact_check": "true_sum",
    "instruction": "count_letter",
    "multiple_choice": "odd_one_out",
    "question_answer": "add",
    "reading": "transitive_comparison",
    "text_pair": "same_meaning",
    "transform": "first_letter",
}


@lru_cache
def presenter_of(shape: str) -> Presenter:
    task = shipped_task(TASK_OF_SHAPE[shape])
    return Presenter(open_task(task, "train", None), load_templates(task), seed=0, shots=(2, 2))


CASES = [(shape, name) for shape in TASK_OF_SHAPE for name in PRESENTATIONS if presenter_of(shape).supports(name)]


def as_text(example: Example) -> str:
    inputs, targets = example.text()
    head = (
        f"task {example.task}, row {example.row}, epoch {example.epoch}, template {example.template}\n"
        f"options {example.options_style or 'off'}, exemplar rows {list(example.exemplar_rows)}\n"
    )
    return f"{head}=== inputs\n{inputs}\n=== targets\n{targets}\n=== end\n"


@pytest.mark.parametrize(("shape", "presentation"), CASES)
def test_the_golden_text(shape: str, presentation: str) -> None:
    assert_golden(f"{shape}/{presentation}", as_text(presenter_of(shape).example(ROW, 0, presentation)))


def test_every_shape_with_a_card_has_golden_texts() -> None:
    assert set(TASK_OF_SHAPE) == {task.shape.name for task in load_catalog().values()}
    for shape, task in TASK_OF_SHAPE.items():
        assert shipped_task(task).shape.name == shape


def test_no_golden_text_is_left_over() -> None:
    there = {(path.parent.name, path.stem) for path in FOLDER.glob("*/*.txt")}
    assert there <= {*CASES, *(("order", path.stem) for path in FOLDER.glob("order/*.txt"))}
