"""Task by task: a dot plot of the normalised score of every model, and all numbers behind it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flan_tune.reports.figures import (
    BAND,
    INK,
    NO_MATPLOTLIB,
    RULE,
    SOFT,
    color_of,
    marker_of,
    matplotlib_is_there,
    new_figure,
    plain_label,
    to_svg,
)
from flan_tune.reports.inputs import GROUP_TITLES, ReportInputs
from flan_tune.reports.page import Column, Section, details, escape, figure, notice, number, table

_ROW_INCHES = 0.34
_SPREAD = 0.5  # of a row's height, over which the models of one task are spread so that their bars do not cover
_CAPTION = (
    "Accuracy above chance per task; a line is the 95 % Wilson interval of the score. "
    "Tasks are sorted by the last model's score."
)

Models = Mapping[str, Mapping[str, Any]]


def comparison_section(inputs: ReportInputs) -> Section:
    """The figure, and a table with every number."""
    return Section("tasks", "Task by task", _body(inputs.models))


def _body(models: Models) -> str:
    groups = grouped_tasks(models)
    if not groups:
        return notice("There are no scores of single tasks.")
    drawn = figure(_draw(models, groups), _CAPTION) if matplotlib_is_there() else notice(NO_MATPLOTLIB)
    tables = "".join(f"<h3>{escape(_title(group))}</h3>{_table(models, tasks)}" for group, tasks in groups.items())
    return drawn + details("All numbers", tables)


def grouped_tasks(models: Models) -> dict[str, list[str]]:
    """Group -> names of its tasks, best first by the last model: seen, held out, then the other suites."""
    group_of: dict[str, str] = {}
    for result in models.values():
        for name, task in result.get("tasks", {}).items():
            group_of.setdefault(name, str(task.get("group", "tasks")))
    order = sorted(set(group_of.values()), key=lambda g: (list(GROUP_TITLES).index(g) if g in GROUP_TITLES else 9, g))
    last = list(models.values())[-1].get("tasks", {}) if models else {}

    def rank(name: str) -> tuple[float, str]:
        return -_score(last.get(name)), name

    return {group: sorted((name for name in group_of if group_of[name] == group), key=rank) for group in order}


def _score(task: Mapping[str, Any] | None) -> float:
    value = (task or {}).get("normalized")
    return float("-inf") if value is None else float(value)


def _title(group: str) -> str:
    return GROUP_TITLES.get(group, group)


def _draw(models: Models, groups: Mapping[str, Sequence[str]]) -> str:
    heights = [len(tasks) + 0.9 for tasks in groups.values()]
    drawing, axes = new_figure(10, sum(heights) * _ROW_INCHES + 0.75, heights)
    for axis, (group, tasks) in zip(axes, groups.items(), strict=True):
        _draw_group(axis, models, tasks)
        axis.set_title(plain_label(_title(group)), loc="left", fontsize=11.5, fontweight="bold", color=INK)
    axes[-1].set_xlabel("accuracy above chance, percent (0 = guessing, 100 = perfect)", color=SOFT, fontsize=10)
    handles, labels = axes[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside upper left", ncols=6, frameon=False, fontsize=10.5, labelcolor=INK)
    return to_svg(drawing, "comparison", "Normalised score of every model on every task")


def _draw_group(axis: Any, models: Models, tasks: Sequence[str]) -> None:
    for row in range(0, len(tasks), 2):
        axis.axhspan(row - 0.5, row + 0.5, color=BAND, linewidth=0)
    for position, (name, result) in enumerate(models.items()):
        offset = (position - (len(models) - 1) / 2) * _SPREAD / max(1, len(models) - 1)
        _draw_model(axis, name, position, offset, [result.get("tasks", {}).get(task) for task in tasks])
    axis.axvline(0, color=SOFT, linewidth=0.9)
    axis.grid(axis="x", color=RULE, linewidth=0.8)
    axis.set_yticks(range(len(tasks)), [plain_label(task) for task in tasks])
    axis.tick_params(axis="y", labelcolor=INK)
    axis.set_ylim(len(tasks) - 0.5, -0.5)
    axis.set_xlim(min(-4.0, axis.get_xlim()[0]), max(102.0, axis.get_xlim()[1]))


def _draw_model(axis: Any, name: str, position: int, offset: float, tasks: Sequence[Mapping[str, Any] | None]) -> None:
    known = [(row, task) for row, task in enumerate(tasks) if task and task.get("normalized") is not None]
    color, (marker, size) = color_of(position), marker_of(position)
    for row, task in known:
        ends = _interval(task)
        if ends is not None:
            axis.plot(ends, [row + offset] * 2, color=color, linewidth=1.3, alpha=0.35, solid_capstyle="butt")
    axis.plot(
        [float(task["normalized"]) for _, task in known],
        [row + offset for row, _ in known],
        linestyle="none",
        marker=marker,
        markersize=size,
        color=color,
        markeredgecolor="white",
        markeredgewidth=0.6,
        label=plain_label(name),
    )


def _interval(task: Mapping[str, Any]) -> tuple[float, float] | None:
    """The interval of the score, moved to the normalised scale; None if the results file has none."""
    interval, chance = task.get("interval"), task.get("chance")
    if not interval or chance is None or chance >= 100:
        return None
    low, high = (100 * (end - chance) / (100 - chance) for end in interval)
    return low, high


def _table(models: Models, tasks: Sequence[str]) -> str:
    columns = [Column("Task", numeric=False), Column("n"), Column("chance"), *(Column(name) for name in models)]
    rows = []
    for name in tasks:
        results = [result.get("tasks", {}).get(name) for result in models.values()]
        first: Mapping[str, Any] = next((task for task in results if task), {})
        about = [f"<code>{escape(name)}</code>", number(first.get("n"), 0), number(first.get("chance"))]
        rows.append(about + [_cell(task) for task in results])
    said = '<p class="hint">Accuracy in percent ± its standard error, then accuracy above chance.</p>'
    return said + table(columns, rows)


def _cell(task: Mapping[str, Any] | None) -> str:
    if not task:
        return "–"
    error = task.get("stderr")
    error_said = "" if error is None else f" ± {number(error)}"
    return f'{number(task.get("score"))}{error_said} <span class="above">{number(task.get("normalized"))}</span>'
