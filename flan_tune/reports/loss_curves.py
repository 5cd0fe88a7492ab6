"""Loss of each training stage: every logged value thin, a running mean over it, and families apart if logged."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from flan_tune.reports.figures import (
    INK,
    NO_MATPLOTLIB,
    PALETTE,
    RULE,
    SOFT,
    matplotlib_is_there,
    new_figure,
    plain_label,
    to_svg,
)
from flan_tune.reports.inputs import Curves, ReportInputs, StageFiles, read_curves
from flan_tune.reports.page import Section, escape, figure, notice, number

_REACH = 50  # the running mean reaches one 50th of a stage to either side
_LINE = "#0072b2"
_LEGEND_ROWS = 12


def loss_section(inputs: ReportInputs) -> Section:
    """One figure per stage."""
    if not inputs.stages:
        body = notice("There are no training stages in this report.")
    else:
        body = "".join(_stage(stage, number) for number, stage in enumerate(inputs.stages))
    return Section("loss", "Loss", body)


def _stage(stage: StageFiles, position: int) -> str:
    curves = read_curves(stage.metrics_jsonl)
    parts = [f"<h3>{escape(stage.name)}</h3>", *(notice(fault) for fault in curves.faults)]
    if curves.steps and not matplotlib_is_there():
        parts.append(notice(NO_MATPLOTLIB))
    elif curves.steps:
        parts.append(figure(_draw(curves, f"loss{position}", stage.name), _caption(curves)))
    return "".join(parts)


def _caption(curves: Curves) -> str:
    smooth = _running_mean(curves.loss)
    families = " Right: running means of the families of tasks." if _has_families(curves) else ""
    return (
        f"Loss from {number(smooth[0], 3)} to {number(smooth[-1], 3)} (running mean) over {curves.steps[-1]:,} steps. "
        f"Thin: as logged; thick: running mean.{families}"
    )


def smoothed(values: Sequence[float], reach: int) -> list[float]:
    """Running mean over the `reach` points before and after each, fewer at the two ends: it does not lag behind.

    >>> smoothed([4.0, 2.0, 6.0], 1), smoothed([4.0, 2.0], 0)
    ([3.0, 4.0, 4.0], [4.0, 2.0])
    """
    sums = [0.0, *accumulate(values)]
    ends = [(max(0, i - reach), min(len(values), i + reach + 1)) for i in range(len(values))]
    return [(sums[end] - sums[start]) / (end - start) for start, end in ends]


def _running_mean(values: Sequence[float]) -> list[float]:
    return smoothed(values, len(values) // _REACH)


def _has_families(curves: Curves) -> bool:
    """One family alone is the whole loss again."""
    return len(curves.families) > 1


def _draw(curves: Curves, name: str, stage: str) -> str:
    drawing, axes = new_figure(10, 3.3, columns=2 if _has_families(curves) else 1)
    whole = axes[0]
    whole.plot(curves.steps, curves.loss, color=_LINE, linewidth=0.8, alpha=0.35)
    whole.plot(curves.steps, _running_mean(curves.loss), color=_LINE, linewidth=2)
    whole.set_ylabel("loss", color=SOFT, fontsize=10)
    if _has_families(curves):
        _draw_families(axes[1], curves)
    for axis in axes:
        axis.grid(axis="y", color=RULE, linewidth=0.8)
        axis.set_xlabel("step", color=SOFT, fontsize=10)
        axis.margins(x=0.01)
    return to_svg(drawing, name, f"Loss of stage {stage} over steps")


def _draw_families(axis: Any, curves: Curves) -> None:
    colors = [*PALETTE[1:], *PALETTE[:1]]
    for i, (family, (steps, losses)) in enumerate(sorted(curves.families.items())):
        dashes = ("-", "--", ":")[i // len(colors) % 3]
        smooth = _running_mean(losses)
        axis.plot(
            steps, smooth, color=colors[i % len(colors)], linestyle=dashes, linewidth=1.6, label=plain_label(family)
        )
    columns = 1 + (len(curves.families) - 1) // _LEGEND_ROWS
    axis.legend(
        loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=9.5, labelcolor=INK, ncols=columns
    )
