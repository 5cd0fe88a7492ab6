"""What a report is made of, and the reading of files that may be missing, cut short or of another version.

A reader never raises for what it finds on disk: it returns what could be read and what has to be said about it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SEEN, HELD_OUT = "seen", "held_out"  # the groups of results.json
GROUP_TITLES = {SEEN: "Tasks seen in training (new questions)", HELD_OUT: "Tasks held out"}


@dataclass(frozen=True)
class StageFiles:
    """What one training stage left behind; None for what it did not.

    metrics_jsonl: one object per logged step, with `step`, `loss` and, if there are families of tasks,
        `loss_by_family` {family: loss}. A loss of null (all its packs were skipped) is left out.
    manifest_json: the manifest of its packs. status_json: {"state", "message"}.
    """

    name: str
    metrics_jsonl: Path | None = None
    recipe_text: str | None = None
    manifest_json: Path | None = None
    status_json: Path | None = None


@dataclass(frozen=True)
class ReportInputs:
    """Everything a report shows. All but the title may be empty.

    results: {"models": {name: {"seen", "held_out", "tasks": {...}}}}, in percent; the first model is the base.
    samples: model -> lines of its samples.jsonl, with task, id, prompt, output, target, correct.
    timings: what was done -> seconds. versions: package -> version.
    """

    title: str
    results: Mapping[str, Any] = field(default_factory=dict)
    stages: Sequence[StageFiles] = ()
    samples: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    timings: Mapping[str, float] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def models(self) -> dict[str, Mapping[str, Any]]:
        """Model name -> its results, the base first."""
        models = self.results.get("models") or {}
        return dict(models)


@dataclass
class Curves:
    """Loss over steps of one stage. `faults` are sentences about what could not be read."""

    steps: list[int] = field(default_factory=list)
    loss: list[float] = field(default_factory=list)
    families: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def read_json(path: Path | None) -> tuple[dict[str, Any] | None, str | None]:
    """(the object in `path`, None), or (None, why there is none)."""
    if path is None:
        return None, "was not given"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, f"is missing ({path.name})"
    except (OSError, ValueError) as error:
        return None, f"cannot be read ({path.name}: {error})"
    return (data, None) if isinstance(data, dict) else (None, f"does not hold an object ({path.name})")


def read_curves(path: Path | None) -> Curves:
    """The loss curves in a metrics file. A step logged twice (after a resume) counts as logged the last time."""
    curves = Curves()
    if path is None or not path.exists():
        curves.faults.append("There is no metrics file for this stage.")
        return curves
    rows, unread = _read_lines(path)
    if unread:
        curves.faults.append(f"{unread} of {unread + len(rows)} lines of {path.name} could not be read.")
    by_step = {int(row["step"]): row for row in rows if _is_number(row.get("step")) and _is_number(row.get("loss"))}
    for step in sorted(by_step):
        curves.steps.append(step)
        curves.loss.append(float(by_step[step]["loss"]))
        for family, loss in _family_losses(by_step[step]).items():
            steps, losses = curves.families.setdefault(family, ([], []))
            steps.append(step)
            losses.append(loss)
    if not curves.steps:
        curves.faults.append(f"{path.name} holds no line with a step and a finite loss.")
    return curves


def _read_lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    rows: list[dict[str, Any]] = []
    unread = 0
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            unread += 1
    return rows, unread


def _family_losses(row: Mapping[str, Any]) -> dict[str, float]:
    families = row.get("loss_by_family")
    found = families if isinstance(families, dict) else {}
    return {str(name): float(loss) for name, loss in found.items() if _is_number(loss)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
