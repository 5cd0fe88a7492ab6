"""The suite of a user's own cards: rows that were held back, zero-shot, each task by itself.

Rows and wordings come in as callables, so this file knows neither. Questions that training drew are left out and
counted, as in procedural.py; but here rows are finite: a task with fewer than are wanted is asked all it has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from flan_tune import rng
from flan_tune.errors import ScoreError
from flan_tune.evaluation.suites.procedural import RenderedRow
from flan_tune.evaluation.suites.suite import Item, Suite, SuiteTask, mean_chance

SUITE = "tasks"
SPLITS = ("test", "validation")  # the first that a task has is asked


@dataclass(frozen=True)
class OwnTask:
    """A task as it is asked: `render` gives row `number` of its `split`, which has `rows` of them."""

    name: str
    split: str
    rows: int
    render: Callable[[int], RenderedRow]


def own_tasks_suite(
    tasks: Sequence[OwnTask], n: int, seen_content: AbstractSet[int], *, seed: int = 0
) -> tuple[Suite, dict[str, int]]:
    """A suite with up to `n` distinct questions per task, rows in keyed order, and how many rows of each task were
    passed over because they were seen or asked before.

    seen_content: content keys of every row drawn in training (of all tasks).
    Example: a split of 3 rows, one of them seen in training, n = 50: 2 questions, removed is 1.
    Raises: ScoreError if a task has no new row.
    """
    asked = {task.name: _new_items(task, n, seen_content, seed) for task in tasks}
    suite_tasks = [
        SuiteTask(task.name, SUITE, items, mean_chance(items), "answer", "zero_shot", task.split)
        for task in tasks
        for items, _ in [asked[task.name]]
    ]
    return Suite(SUITE, suite_tasks), {name: removed for name, (_, removed) in asked.items()}


def _new_items(task: OwnTask, n: int, seen_content: AbstractSet[int], seed: int) -> tuple[list[Item], int]:
    taken = set(seen_content)
    items: list[Item] = []
    removed = 0
    for row in rng.permutation(task.rows, rng.key(seed, "suite questions", SUITE, task.name)).tolist():
        if len(items) == n:
            break
        rendered = task.render(row)
        if rendered.content_key in taken:
            removed += 1
            continue
        taken.add(rendered.content_key)
        items.append(rendered.item(task.name, row))
    if not items:
        raise ScoreError(
            f"task {task.name!r}: none of the {task.rows} rows of split {task.split!r} is new. Keep rows back from "
            "training (splits.reserve in its card)."
        )
    return items, removed
