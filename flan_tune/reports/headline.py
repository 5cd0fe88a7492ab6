"""The headline: each model's mean over seen and over held-out tasks, and what it gained over the base."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flan_tune.reports.figures import color_of
from flan_tune.reports.inputs import GROUP_TITLES, HELD_OUT, SEEN, ReportInputs
from flan_tune.reports.page import Column, Section, escape, notice, number, paragraph, table


def headline_section(inputs: ReportInputs) -> Section:
    """Models x (seen, held out), the best in bold; then the other suites, if there are any."""
    return Section("results", "What the training bought", _body(inputs.models))


def lead(inputs: ReportInputs) -> str:
    """HTML of the sentence under the title: what was compared, and the result on held-out tasks."""
    models = inputs.models
    if not models:
        return '<p class="lead">There are no evaluation results in this run.</p>'
    tasks = next(iter(models.values())).get("tasks", {})
    questions = sum(task.get("n", 0) for task in tasks.values())
    models_said = f"{len(models)} model{'s' if len(models) > 1 else ''}"
    said = f"{models_said} on {len(tasks)} tasks, {questions:,} questions."
    return f'<p class="lead">{escape(said)} {_gain_sentence(models)}</p>'


def _gain_sentence(models: Mapping[str, Mapping[str, Any]]) -> str:
    scored = {name: result["held_out"] for name, result in models.items() if result.get("held_out") is not None}
    base = next(iter(models))
    if len(scored) < 2 or base not in scored:
        return ""
    best = max(scored, key=lambda name: scored[name])
    if best == base:
        return f"On held-out tasks no model is better than {escape(base)}."
    gain = number(scored[best] - scored[base], signed=True)
    return (
        f"On held-out tasks <strong>{escape(best)}</strong> reaches <strong>{number(scored[best])}</strong>, "
        f"{gain} over {escape(base)} (0 is guessing, 100 is perfect)."
    )


def _body(models: Mapping[str, Mapping[str, Any]]) -> str:
    if not models:
        return notice("There are no results: nothing was evaluated, or the results file was not given.")
    explained = (
        "Mean over tasks of accuracy above chance, 100 × (score − chance) / (100 − chance), so that 0 is guessing and "
        "100 is perfect, with its standard error. The best of a column is in bold; gain is over the first row."
    )
    parts = [paragraph(explained), f'<div class="headline">{_main_table(models)}</div>']
    others = _other_groups(models)
    if others:
        parts += ["<h3>Other suites</h3>", _group_table(models, others)]
    return "".join(parts + _said_about(models))


def _main_table(models: Mapping[str, Mapping[str, Any]]) -> str:
    titles = ["Seen tasks", "gain", "Held-out tasks", "gain"]
    base = next(iter(models.values()))
    rows = [
        [
            model_cell(name, i),
            _with_error(result, SEEN),
            _gain(result, base, SEEN),
            _with_error(result, HELD_OUT),
            _gain(result, base, HELD_OUT),
        ]
        for i, (name, result) in enumerate(models.items())
    ]
    best = [None, best_of(models, SEEN), None, best_of(models, HELD_OUT), None]
    return table([Column("Model", numeric=False), *map(Column, titles)], rows, best)


def model_cell(name: str, position: int) -> str:
    """A model's name behind its colour, as HTML."""
    return f'<span class="swatch" style="background:{color_of(position)}"></span>{escape(name)}'


def best_of(models: Mapping[str, Mapping[str, Any]], group: str) -> int | None:
    """Row of the model with the highest mean of a group; None if fewer than two have one."""
    scores = [result.get(group) for result in models.values()]
    known = [score for score in scores if score is not None]
    return scores.index(max(known)) if len(known) > 1 else None


def _with_error(result: Mapping[str, Any], group: str) -> str:
    error = result.get(f"{group}_stderr")
    said = "" if error is None else f"± {number(error)}"
    return f'{number(result.get(group))}<span class="error">{said}</span>'


def _gain(result: Mapping[str, Any], base: Mapping[str, Any], group: str) -> str:
    if result is base or result.get(group) is None or base.get(group) is None:
        return ""
    return number(result[group] - base[group], signed=True)


def _other_groups(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    groups = [group for result in models.values() for group in result.get("groups", {})]
    return [group for group in dict.fromkeys(groups) if group not in GROUP_TITLES]


def _group_table(models: Mapping[str, Mapping[str, Any]], groups: Sequence[str]) -> str:
    rows = []
    for i, (name, result) in enumerate(models.items()):
        means = [result.get("groups", {}).get(group, {}) for group in groups]
        rows.append([model_cell(name, i), *(_with_error(_as_result(mean), "mean") for mean in means)])
    return table([Column("Model", numeric=False), *map(Column, groups)], rows)


def _as_result(mean: Mapping[str, Any]) -> dict[str, Any]:
    return {"mean": mean.get("mean"), "mean_stderr": mean.get("stderr")}


def _said_about(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    said = []
    for name, result in models.items():
        absent = [GROUP_TITLES[group].lower() for group in (SEEN, HELD_OUT) if result.get(group) is None]
        if absent:
            said.append(notice(f"{name}: there is no score for {' and '.join(absent)}."))
        if result.get("truncated"):
            said.append(notice(f"{name}: {result['truncated']} prompts were too long and were cut on the left."))
    return said
