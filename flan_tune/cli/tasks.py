"""`tasks list`, `tasks show`, `mixture show`: looking at the registry."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flan_tune.errors import RecipeError, did_you_mean
from flan_tune.mixtures.mixture import load_mixture
from flan_tune.packing.stream import ExampleStream
from flan_tune.prompts.present import PRESENTATIONS, Example, Presenter
from flan_tune.prompts.template import load_templates
from flan_tune.sources.rows import describe_status, find_data_root, open_task
from flan_tune.tasks.card import Task
from flan_tune.tasks.catalog import load_catalog


def list_command(
    family: str | None, category: str | None, task_paths: Sequence[str], data_root: str | None, *, as_json: bool
) -> None:
    """Prints a line, or a record, for each task."""
    catalog = load_catalog(task_paths)
    root = find_data_root(data_root)
    tasks = [task for task in catalog.values() if task.family == family] if family else catalog.counted()
    if family and not tasks:
        families = sorted({task.family for task in catalog.values()})
        raise RecipeError(f"there is no family {family!r}.{did_you_mean(family, families)} They are {families}.")
    chosen = [task for task in tasks if category is None or category.lower() in task.category.lower()]
    records = [_record(task, root) for task in chosen]
    if as_json:
        print(json.dumps(records, ensure_ascii=False))
        return
    for record in records:
        print(f"{record['name']:58s} {record['family']:10s} {record['shape']:16s} {record['status']}")
    print(f"{len(records)} tasks")


def _record(task: Task, root: Path | None) -> dict[str, Any]:
    return {
        "name": task.name,
        "published_name": task.published_name,
        "family": task.family,
        "category": task.category,
        "shape": task.shape.name,
        "source": f"{task.source.kind}:{task.source.name}" + (f"/{task.source.config}" if task.source.config else ""),
        "license": task.source.license,
        "languages": list(task.languages),
        "held_out": task.held_out,
        "status": describe_status(task, root),
    }


def show_command(
    name: str,
    *,
    index: int,
    split: str,
    style: str,
    shots: int | None,
    template: str,
    no_options: bool,
    task_paths: Sequence[str],
    data_root: str | None,
    as_json: bool,
) -> None:
    """Prints one row of a task as a prompt."""
    presentation = style.replace("-", "_") + ("_no_options" if no_options else "")
    if presentation not in PRESENTATIONS:
        near = did_you_mean(presentation, PRESENTATIONS)
        raise RecipeError(f"there is no presentation {presentation!r}.{near} They are {list(PRESENTATIONS)}.")
    task = load_catalog(task_paths)[name]
    rows = open_task(task, split, find_data_root(data_root))
    if index >= len(rows):
        raise RecipeError(f"task {task.name!r} has {len(rows)} rows in {split!r}; there is no row {index}.")
    presenter = Presenter(rows, load_templates(task, task_paths), seed=0)
    if not presenter.supports(presentation):
        able = [known for known in PRESENTATIONS if presenter.supports(known)]
        raise RecipeError(f"task {task.name!r} has no wordings for {presentation!r}; it supports {able}.")
    example = presenter.example(index, 0, presentation, shots, template)
    _print_example(example, as_json)


def _print_example(example: Example, as_json: bool) -> None:
    inputs, targets = example.text()
    if as_json:
        names = ("task", "row", "epoch", "presentation", "role", "template", "options_style", "shots", "exemplar_rows")
        print(json.dumps({"inputs": inputs, "targets": targets, **{n: getattr(example, n) for n in names}}))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    shown = f"{example.presentation}, template {example.template}, options {example.options_style or 'off'}"
    console.print(Text(f"{example.task} row {example.row}: {shown}, {example.shots} shots", style="bold"))
    console.print(Text(inputs, style="cyan"))
    console.print(Text("-> " + targets, style="green"))


def mixture_command(file: Path, task_paths: Sequence[str], data_root: str | None, *, as_json: bool) -> None:
    """Prints the effective share of every task of a mixture; opens its sources, since shares depend on rows."""
    catalog = load_catalog(task_paths)
    mixture = load_mixture(file, catalog, PRESENTATIONS)
    stream = ExampleStream(mixture, seed=0, data_root=find_data_root(data_root), task_paths=tuple(task_paths))
    total = sum(entry.share for entry in stream.entries)
    records: list[dict[str, Any]] = [
        {
            "name": entry.task.name,
            "family": entry.task.family,
            "share": entry.share / total,
            "rows": len(entry.presenter.rows),
            "presentations": [n for n in entry.presentations if entry.presenter.supports(n)],
        }
        for entry in stream.entries
    ]
    if as_json:
        print(json.dumps({"tasks": records, "left_out": dict(mixture.left_out), "dropped": stream.dropped}))
        return
    for record in sorted(records, key=lambda r: (r["family"], -r["share"])):
        print(f"{record['name']:58s} {record['family']:10s} {record['share']:8.4%} {record['rows']:>9,} rows")
    print(f"{len(records)} tasks; {len(mixture.left_out)} left out, {len(stream.dropped)} without data")
