"""Infilling of one or more models as plain text, for the end of a run in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flan_tune.evaluation.infilling import EXACT, F1, NATS

_TITLES = {
    EXACT: "exact match, percent",
    F1: "token F1, percent",
    NATS: "nats per token of the span (less is better)",
}
_NOTE = "± standard error; * the form the model was trained to answer in"


def infilling_table(results: Mapping[str, Mapping[str, Any]], comparisons: Mapping[str, Mapping[str, Any]]) -> str:
    """Every metric of every model by form, number of blanks and span length; causal text; paired differences.

    results: model -> result of `measure_infilling`. comparisons: model -> what `compare_infilling` found against the
    first.
    """
    tasks = next(iter(results.values()))["tasks"]
    groups = {
        task["group"]: [name for name in tasks if tasks[name]["group"] == task["group"]] for task in tasks.values()
    }
    blocks = [
        _block(f"{group.removeprefix('infilling, ')}: {title}", metric, groups[group], results)
        for metric, title in _TITLES.items()
        for group in groups
    ]
    lines = [*blocks, _text_block(results), _NOTE]
    return "\n\n".join([*lines, *(_differences(name, found) for name, found in comparisons.items())])


def _block(title: str, metric: str, names: Sequence[str], results: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [[title, *(f"{name.rpartition('x')[2]} token{'' if name.endswith('x1') else 's'}" for name in names)]]
    for model, result in results.items():
        for form in result["tasks"][names[0]]["forms"]:
            rows.append([f"  {model}: {form}", *(_cell(result["tasks"][name], form, metric) for name in names)])
    return _align(rows)


def _cell(task: Mapping[str, Any], form: str, metric: str) -> str:
    found = task["forms"][form]
    return _measured(found[metric], found[f"{metric}_stderr"], metric) + ("*" if task["layout"] == form else " ")


def _measured(value: float, error: float | None, metric: str) -> str:
    places = 2 if metric == NATS else 1
    return f"{value:.{places}f}" if error is None else f"{value:.{places}f} ± {error:.{places}f}"


def _text_block(results: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [["the passages as plain causal text", "nats per token", "perplexity"]]
    for model, result in results.items():
        if not result["causal_text"]:
            rows.append([f"  {model}: an encoder-decoder gives no likelihood of a text alone", "-", "-"])
        for mode, found in result["causal_text"].items():
            nats = _measured(found[NATS], found[f"{NATS}_stderr"], NATS)
            rows.append([f"  {model}: {mode}", nats, f"{found['perplexity']:.1f}"])
    return _align(rows)


def _differences(model: str, found: Mapping[str, Any]) -> str:
    rows = [[f"{model} minus the first model, paired by passage", "difference", "95 % interval", "p"]]
    for group, forms in found["means"].items():
        for form, metrics in forms.items():
            for metric, paired in metrics.items():
                what = f"  {group.removeprefix('infilling, ')}, mean over lengths, against {form}: {metric}"
                rows.append([what, *_paired(paired)])
    rows += [[f"  causal text, {mode}: {NATS}", *_paired(paired)] for mode, paired in found["causal_text"].items()]
    return _align(rows)


def _paired(found: Mapping[str, Any]) -> list[str]:
    low, high = found["low"], found["high"]
    return [f"{found['difference']:+.3f}", f"{low:+.3f} .. {high:+.3f}", f"{found['p_value']:.4f}"]


def _align(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
