"""The rows that the shipped cards are checked by, for tests over all cards."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

from flan_tune import strict_yaml
from flan_tune.tasks.adapters import EACH, EACH_INDEX, compile_each
from flan_tune.tasks.catalog import CARDS_FOLDER, read_card
from flan_tune.tasks.task import Task

INSTRUCTION = {"definition": "Add.", "input": "1 and 1", "output": ["2", "two"], "examples": [], "id": "1"}


def rows_of_checks() -> Iterator[tuple[Task, dict[str, Any]]]:
    """Every task of every shipped card, with every row that its card is checked by: some are about other tasks."""
    for path in sorted(CARDS_FOLDER.rglob("*.yaml")):
        data, tasks = strict_yaml.read_file(path).data, read_card(path)[0]
        checks = data.get("check") or [{"row": INSTRUCTION}]
        alike = "index" in data  # the tasks of an index are all adapted the same way
        rows = [check["row"] for check in checks if "row" in check]
        for task, row in product(tasks[:1] if alike else tasks, rows):
            place = row.get(EACH_INDEX, 0)
            yield task, {**row, EACH: compile_each(task)(row)[place], EACH_INDEX: place} if task.each else row
