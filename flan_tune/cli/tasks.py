"""`tasks list`, `tasks show`, `mixture show`: looking at the registry."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flan_tune.errors import RecipeError, RowError, did_you_mean
from flan_tune.mixtures.mixture import load_mixture
from flan_tune.packing.stream import Entry, ExampleStream
from flan_tune.prompts.present import PRESENTATIONS, Example, Presenter
from flan_tune.prompts.template import load_templates
from flan_tune.sources.rows import describe_status, find_data_root, open_task
from flan_tune.tasks.catalog import load_catalog
from flan_tune.tasks.task import Task

_LISTED = 10


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
    if shots is not None and not PRESENTATIONS[presentation].few_shot:
        raise RecipeError(f"{style!r} shows no exemplars; for --shots choose --style few-shot or cot-few-shot.")
    ids = [known.id for known in presenter.templates.by_role.get(PRESENTATIONS[presentation].role, ())]
    if template and template not in ids:
        raise RecipeError(f"there is no template {template!r} for this.{did_you_mean(template, ids)} They are {ids}.")
    try:
        example = presenter.example(index, 0, presentation, shots, template)
    except RowError as error:
        raise RecipeError(f"row {index} cannot be shown by {presentation!r}: {error}. Try another --index.") from None
    _print_example(example, as_json)


def _print_example(example: Example, as_json: bool) -> None:
    inputs, targets = example.text()
    if as_json:
        names = ("task", "row", "epoch", "presentation", "role", "template", "options_style", "shots", "exemplar_rows")
        record = {"inputs": inputs, "targets": targets, **{n: getattr(example, n) for n in names}}
        print(json.dumps(record, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    shown = f"{example.presentation}, template {example.template or 'none'}, options {example.options_style or 'off'}"
    rows = f" (rows {', '.join(map(str, example.exemplar_rows))})" if example.shots else ""
    console.print(Text(f"{example.task} row {example.row}: {shown}, {example.shots} shots{rows}", style="bold"))
    if inputs:
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
            "presentations": _shown(entry),
        }
        for entry in stream.entries
    ]
    if as_json:
        left_out = dict(mixture.left_out)
        print(json.dumps({"tasks": records, "left_out": left_out, "dropped": stream.dropped}, ensure_ascii=False))
        return
    for record in sorted(records, key=lambda r: (r["family"], -r["share"])):
        print(f"{record['name']:58s} {record['family']:10s} {record['share']:8.4%} {record['rows']:>9,} rows")
    print(f"{len(records)} tasks; shares are of examples, before any is dropped for its length")
    _print_presentations(records)
    _print_absent("left out", mixture.left_out)
    _print_absent("no data", stream.dropped)


def _shown(entry: Entry) -> dict[str, float]:
    """The presentations a task gets, with their effective shares."""
    able = {name: share for name, share in entry.presentations.items() if share > 0 and entry.presenter.supports(name)}
    return {name: share / sum(able.values()) for name, share in able.items()}


def _print_presentations(records: Sequence[dict[str, Any]]) -> None:
    """A line for each different set of presentations, with how many tasks are shown so."""
    counts = Counter(tuple(record["presentations"].items()) for record in records)
    for shares, count in counts.most_common():
        print(f"shown as  {', '.join(f'{name} {share:.1%}' for name, share in shares)} ({count} tasks)")


def _print_absent(title: str, reasons: Mapping[str, str]) -> None:
    for name, reason in list(reasons.items())[:_LISTED]:
        print(f"{title:9s} {name}: {reason}")
    if len(reasons) > _LISTED:
        print(f"{title:9s} and {len(reasons) - _LISTED} more; --json lists all")
