"""The suite of the built-in generators: new rows of the tasks trained on, and of tasks held out whole.

The generators and the wording come in as a callable, so this file knows neither. What it does is keep the
questions apart from training: a row whose content was drawn there, or earlier here, is left out and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Protocol

from flan_tune.errors import ScoreError
from flan_tune.evaluation.suites.suite import HELD_OUT, SEEN, Item, Suite, SuiteTask, mean_chance

ROWS_TRIED_PER_ITEM = 200


class ProceduralTask(Protocol):
    """What is asked of a task here."""

    @property
    def name(self) -> str: ...
    @property
    def held_out(self) -> bool: ...


@dataclass(frozen=True)
class RenderedRow:
    """A row of the split 'test' as text. Two rows with the same `content_key` ask the same question."""

    inputs: str
    targets: str
    options: list[str] | None
    content_key: int
    references: list[str] | None = None

    def item(self, task: str, row: int) -> Item:
        """The question, as row `row` of a task."""
        return Item(f"{task}/{row}", task, self.inputs, self.targets, self.options, self.references)


Render = Callable[[str, int], RenderedRow]


def procedural_suite(
    tasks: Sequence[ProceduralTask],
    render: Render,
    n: int,
    seen_content: AbstractSet[int],
    *,
    metric: str = "answer",
    layout: str = "zero_shot",
    shots: int = 0,
) -> tuple[Suite, dict[str, int]]:
    """A suite with `n` new, distinct questions per task, and how many rows of each task were left out for it.

    render: (task name, row number of the split 'test') -> RenderedRow; rows 0, 1, 2, ... are tried in order.
    seen_content: content keys of every row drawn in training (of all tasks).
    Example: rows with contents 5, 7, 7, 8, n = 2, 5 seen in training: items are rows 1 and 3, removed is 2.
    Raises: ScoreError if fewer than `n` of the first 200 * n rows of a task are new.
    """
    taken: set[int] = set()
    removed: dict[str, int] = {}
    suite_tasks = []
    for task in tasks:
        items, removed[task.name] = _new_items(task.name, render, n, seen_content, taken)
        suite_tasks.append(
            SuiteTask(
                name=task.name,
                group=HELD_OUT if task.held_out else SEEN,
                items=items,
                chance=mean_chance(items),
                metric=metric,
                layout=layout,
                split="test",
                shots=shots,
            )
        )
    return Suite("procedural", suite_tasks), removed


def _new_items(
    task: str, render: Render, n: int, seen_content: AbstractSet[int], taken: set[int]
) -> tuple[list[Item], int]:
    items: list[Item] = []
    for row in range(ROWS_TRIED_PER_ITEM * n):
        rendered = render(task, row)
        if rendered.content_key in seen_content or rendered.content_key in taken:
            continue
        taken.add(rendered.content_key)
        items.append(rendered.item(task, row))
        if len(items) == n:
            return items, row + 1 - n
    raise ScoreError(
        f"task {task!r}: only {len(items)} of the first {ROWS_TRIED_PER_ITEM * n} rows of split 'test' are new, "
        f"{n} are wanted. Ask for fewer questions, or train on fewer rows of this task."
    )
