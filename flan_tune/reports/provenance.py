"""How it was made: the recipe of each stage, its data, the time it took, and the versions it ran with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flan_tune.reports.inputs import ReportInputs, StageFiles, read_json
from flan_tune.reports.page import Column, Section, details, duration, escape, notice, number, table

# manifest key -> (what it is called here, how it is shown)
_TOTALS = {
    "num_packs": ("packs", "count"),
    "packs": ("packs", "count"),
    "max_length": ("tokens per pack, at most", "count"),
    "num_segments": ("segments", "count"),
    "segments": ("segments", "count"),
    "tokens": ("tokens", "count"),
    "target_tokens": ("target tokens", "count"),
    "fill": ("fill (share of each pack that is not padding)", "share"),
    "target_share": ("target share (of tokens that carry loss)", "share"),
}
_PER_TASK = ("per_task", "task_totals", "tasks")


def provenance_section(inputs: ReportInputs) -> Section:
    """Recipes and data of each stage, time spent, versions."""
    stages = "".join(_stage(stage) for stage in inputs.stages) or notice("There are no training stages in this report.")
    return Section("made", "How it was made", stages + f'<div class="columns">{_time(inputs)}{_versions(inputs)}</div>')


def _stage(stage: StageFiles) -> str:
    parts = [f"<h3>{escape(stage.name)}</h3>", _status(stage), _data(stage)]
    if stage.recipe_text:
        parts.append(details("Recipe", f"<pre>{escape(stage.recipe_text.strip())}</pre>"))
    else:
        parts.append(notice("The recipe of this stage was not given."))
    return "".join(parts)


def _status(stage: StageFiles) -> str:
    status, why = read_json(stage.status_json)
    if status is None:
        return "" if stage.status_json is None else notice(f"The status file {why}.")
    if status.get("state") == "done":
        return ""
    return notice(f"This stage did not end well: {status.get('state')}. {status.get('message', '')}")


def _data(stage: StageFiles) -> str:
    manifest, why = read_json(stage.manifest_json)
    if manifest is None:
        return notice(f"The manifest of its data {why}.")
    rows = [[escape(title), _shown(manifest[key], how)] for key, (title, how) in _TOTALS.items() if key in manifest]
    totals = table([Column("Data", numeric=False), Column("")], rows) if rows else notice("The manifest has no totals.")
    return totals + _per_task(manifest) + _drops(manifest)


def _shown(value: Any, how: str) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return escape(value)
    return f"{number(100 * value)} %" if how == "share" else number(value, 0)


def _per_task(manifest: Mapping[str, Any]) -> str:
    found = next((manifest[key] for key in _PER_TASK if isinstance(manifest.get(key), dict)), None)
    if not found:
        return ""
    measures = list(dict.fromkeys(key for task in found.values() if isinstance(task, dict) for key in task))
    columns = [Column("Task", numeric=False), *(Column(measure.replace("_", " ")) for measure in measures or ["rows"])]
    rows = [[f"<code>{escape(name)}</code>", *_task_cells(task, measures)] for name, task in found.items()]
    return details(f"Data of each of the {len(found)} tasks", table(columns, rows))


def _task_cells(task: Any, measures: list[str]) -> list[str]:
    if not isinstance(task, dict):
        return [_measure(task), *[""] * (len(measures) - 1)]
    return [_measure(task.get(measure)) for measure in measures]


def _measure(value: Any) -> str:
    if isinstance(value, float):
        return number(value, 3)
    return number(value, 0) if isinstance(value, int) else escape("–" if value is None else value)


def _drops(manifest: Mapping[str, Any]) -> str:
    drops = manifest.get("drops")
    if not isinstance(drops, dict) or not drops:
        return ""
    rows = [[escape(reason), _measure(count)] for reason, count in drops.items() if isinstance(count, int)]
    return table([Column("Rows dropped, by reason", numeric=False), Column("")], rows) if rows else ""


def _time(inputs: ReportInputs) -> str:
    if not inputs.timings:
        return f"<div><h3>Time</h3>{notice('Times were not given.')}</div>"
    rows = [[escape(what), duration(seconds)] for what, seconds in inputs.timings.items()]
    rows.append(["all together", duration(sum(inputs.timings.values()))])
    return f"<div><h3>Time</h3>{table([Column('', numeric=False), Column('')], rows, [None, len(rows) - 1])}</div>"


def _versions(inputs: ReportInputs) -> str:
    if not inputs.versions:
        return f"<div><h3>Versions</h3>{notice('Versions were not given.')}</div>"
    rows = [[escape(package), f"<code>{escape(version)}</code>"] for package, version in inputs.versions.items()]
    return f"<div><h3>Versions</h3>{table([Column('', numeric=False), Column('', numeric=False)], rows)}</div>"
