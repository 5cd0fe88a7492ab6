"""How it was made: the recipe of each stage, its data, the time it took, and the versions it ran with."""

from __future__ import annotations

from collections import Counter
from typing import Any

from flan_tune.reports.inputs import ReportInputs, StageFiles, read_json
from flan_tune.reports.page import Column, Section, details, duration, escape, notice, number, table

# key of a pack manifest -> (what it is called here, whether it is a share)
_TOTALS = {
    "packs": ("packs", False),
    "max_length": ("tokens per pack, at most", False),
    "fill": ("fill (share of a pack that is not padding)", True),
    "examples": ("examples", False),
    "segments": ("segments", False),
    "tokens": ("tokens", False),
    "target_tokens": ("target tokens", False),
    "target_share": ("target share (of tokens that carry loss)", True),
    "shots_dropped": ("exemplars left out to fit", False),
    "truncated_examples": ("examples with truncated inputs", False),
}
_COUNTS = {"segments_by_kind": "Segments, by kind", "presentations": "Examples, by presentation"}
_TASK_SHARES = ("wanted_share", "share")


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
    rows = [
        [escape(title), _measure(manifest[key], is_share)]
        for key, (title, is_share) in _TOTALS.items()
        if manifest.get(key) is not None
    ]
    totals = table([Column("Data", numeric=False), Column("")], rows) if rows else notice("The manifest has no totals.")
    counts = "".join(_counts(title, manifest.get(key)) for key, title in _COUNTS.items())
    counts += _counts("Rows replaced, by reason", _drops(manifest.get("replaced")))
    counts += _counts("Rows dropped, by reason", _drops(manifest.get("drops")))
    return f'{totals}<div class="columns">{counts}</div>{_per_task(manifest.get("tasks"))}'


def _measure(value: Any, is_share: bool = False) -> str:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return escape("–" if value is None else value)
    if is_share:
        return f"{number(100 * value)} %"
    return number(value, 0 if isinstance(value, int) else 2)


def _counts(title: str, counts: Any) -> str:
    if not isinstance(counts, dict) or not counts:
        return ""
    rows = [[escape(name), _measure(count)] for name, count in counts.items()]
    return f"<div>{table([Column(title, numeric=False), Column('')], rows)}</div>"


def _drops(drops: Any) -> dict[str, int]:
    """Counts by reason over all tasks, from {task: {reason: count}}."""
    total: Counter[str] = Counter()
    for by_reason in drops.values() if isinstance(drops, dict) else ():
        if isinstance(by_reason, dict):
            total.update({str(reason): count for reason, count in by_reason.items() if isinstance(count, int)})
    return dict(total)


def _per_task(tasks: Any) -> str:
    """The records of the tasks, one row each, with the measures that are plain numbers."""
    records = [task for task in tasks if isinstance(task, dict)] if isinstance(tasks, list) else []
    if not records:
        return ""
    measures = [key for key, value in records[0].items() if isinstance(value, int | float)]
    columns = [Column("Task", numeric=False), *(Column(measure.replace("_", " ")) for measure in measures)]
    rows = [
        [f"<code>{escape(task.get('name', ''))}</code>", *(_measure(task.get(m), m in _TASK_SHARES) for m in measures)]
        for task in records
    ]
    return details(f"Data of each of the {len(records)} tasks", table(columns, rows))


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
