"""The comparison as plain text, for the end of a run in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flan_tune.reports.comparison import grouped_tasks
from flan_tune.reports.inputs import HELD_OUT, SEEN
from flan_tune.reports.page import number

_TITLES = {SEEN: "seen", HELD_OUT: "held out"}
_NOTE = "accuracy above chance, percent: 0 = guessing, 100 = perfect; mean over tasks, ± standard error"


def comparison_table(results: Mapping[str, Any], *, per_task: bool = True) -> str:
    """Models side by side: the mean of each group, and with `per_task` every task of it below.

    results: the file results.json, {"models": {name: {"seen", "held_out", "tasks"}}}, in percent.

        tasks                base        flan
        seen           3.1 ± 0.4  62.0 ± 1.1
          addition           2.0        88.5
    """
    models: Mapping[str, Mapping[str, Any]] = results.get("models") or {}
    if not models:
        return "There are no results."
    rows = [["tasks", *models]]
    for group, tasks in grouped_tasks(models).items():
        rows.append([_TITLES.get(group, group), *(_mean(result, group) for result in models.values())])
        if per_task:
            rows += [[f"  {task}", *(_score(result, task) for result in models.values())] for task in tasks]
    return f"{_align(rows)}\n{_NOTE}"


def _mean(result: Mapping[str, Any], group: str) -> str:
    stored = result.get("groups", {}).get(group, {})
    mean, error = (stored.get("mean"), stored.get("stderr")) if stored else (result.get(group), None)
    if error is None:
        error = result.get(f"{group}_stderr")
    return number(mean) if error is None else f"{number(mean)} ± {number(error)}"


def _score(result: Mapping[str, Any], task: str) -> str:
    return number(result.get("tasks", {}).get(task, {}).get("normalized"))


def _align(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [_line(row, widths) for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
    return "  ".join(cells).rstrip()
