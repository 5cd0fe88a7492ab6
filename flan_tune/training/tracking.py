"""What a run tells the world: metrics.jsonl, TensorBoard or W&B, the progress line, status.json, the recipe.

Only rank 0 speaks. What the numbers mean is decided in loop.py and tally.py; here they are only written down.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from flan_tune.errors import FlanTuneError, RecipeError, StreamError, did_you_mean
from flan_tune.packing.store import read_json, write_json

METRICS_FILE = "metrics.jsonl"
STATUS_FILE = "status.json"
RECIPE_FILE = "recipe.resolved.yaml"
MODEL_FOLDER = "model"  # the export
STATES = ("running", "done", "wrong_input", "requeue", "failed")
TRACKERS = ("tensorboard", "wandb")


def write_status(output_dir: Path, state: str, step: int, message: str) -> None:
    """Writes `status.json` whole or not at all: what job scripts read instead of the launcher's exit code.

    state: running | done | wrong_input (the message says what to correct) | requeue (start the same command again)
        | failed. step: updates done.
    """
    if state not in STATES:
        raise ValueError(f"state {state!r} is not one of {STATES}")
    output_dir.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(output_dir / STATUS_FILE, {"state": state, "step": step, "message": message, "time": now})


def read_status(output_dir: Path) -> dict[str, Any] | None:
    """The status of a run, or None if none was written."""
    return read_json(output_dir / STATUS_FILE) or None


@contextmanager
def recorded_failure(output_dir: Path) -> Iterator[None]:
    """Leaves a status behind when the body raises: wrong_input for recipe and stream errors, else failed.

    Every rank does: an error may be one rank's alone, and the file is always whole.
    """
    try:
        yield
    except (RecipeError, StreamError) as error:
        _record(output_dir, "wrong_input", error)
        raise
    except Exception as error:
        _record(output_dir, "failed", error)
        raise


def _record(output_dir: Path, state: str, error: Exception) -> None:
    text = str(error) if isinstance(error, FlanTuneError) else f"{type(error).__name__}: {error}"
    step = (read_status(output_dir) or {}).get("step", 0)
    try:
        write_status(output_dir, state, step, text)
    except OSError as second:  # a full disk: the error itself matters more than the note about it
        print(f"{output_dir / STATUS_FILE} could not be written: {second}", file=sys.stderr)


class MetricsFile:
    """`metrics.jsonl`: one JSON object per line, each step once, also when a run resumed from before its last line."""

    def __init__(self, output_dir: Path, resumed_step: int) -> None:
        self.path = output_dir / METRICS_FILE
        output_dir.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            _keep_lines_up_to(self.path, resumed_step)

    def write(self, values: dict[str, Any]) -> None:
        """Adds one line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, allow_nan=False) + "\n")


def _keep_lines_up_to(path: Path, step: int) -> None:
    kept = [json.dumps(line) + "\n" for line in read_metrics(path) if line["step"] <= step]
    staging = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    staging.write_text("".join(kept), encoding="utf-8")
    os.replace(staging, path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file. A last line that a killed process left half-written is not one."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


class Trackers:
    """TensorBoard and W&B through Accelerate's trackers; nothing if `report_to` is empty."""

    def __init__(self, report_to: Sequence[str], output_dir: Path, resumed_step: int) -> None:
        check_report_to(report_to)
        self._trackers = [_open_tracker(name, output_dir, resumed_step) for name in report_to]

    def write(self, values: dict[str, Any]) -> None:
        """Sends one line of metrics; nested values become `outer/inner`."""
        numbers = {name: value for name, value in _flat(values) if name != "step"}
        for tracker in self._trackers:
            tracker.log(numbers, step=values["step"])

    def close(self) -> None:
        """Sends what is left."""
        for tracker in self._trackers:
            tracker.finish()


def check_report_to(report_to: Sequence[str]) -> None:
    """Raises RecipeError for a tracker that is not there."""
    unknown = [name for name in report_to if name not in TRACKERS]
    if unknown:
        raise RecipeError(
            *(f"report_to: {n!r} is not one of {', '.join(TRACKERS)}.{did_you_mean(n, TRACKERS)}" for n in unknown)
        )


def _open_tracker(name: str, output_dir: Path, resumed_step: int) -> Any:
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    if name == "tensorboard":
        # purge_step hides what an interrupted run wrote beyond its last checkpoint.
        tracker = TensorBoardTracker("tensorboard", output_dir, purge_step=resumed_step + 1)
    else:
        tracker = WandBTracker("flan_tune", name=output_dir.name, dir=str(output_dir), resume="allow")
    tracker.start()
    return tracker


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


class Progress:
    """The line that shows how far the run is: rewritten in place on a terminal, one plain line each time elsewhere."""

    def __init__(self, max_steps: int) -> None:
        self.max_steps = max_steps
        self._status: Any = None
        if sys.stdout.isatty():
            from rich.console import Console

            self._status = Console().status("starting")
            self._status.start()

    def update(self, values: dict[str, Any]) -> None:
        """Shows a line of metrics."""
        line = progress_line(values, self.max_steps)
        if self._status is None:
            print(line, flush=True)
        else:
            self._status.update(line.replace("[", r"\["))

    def close(self) -> None:
        """Gives the terminal back."""
        if self._status is not None:
            self._status.stop()


def progress_line(values: dict[str, Any], max_steps: int) -> str:
    """One line of metrics for people.

    >>> progress_line({"step": 2, "loss": 1.5, "tokens_per_second": 1e4, "target_tokens_per_second": 900.0,
    ...                "fill": 0.99, "loader_wait_share": 0.0, "seconds_per_step": 2.0}, 10)
    'step 2/10 | loss 1.5000 | 10,000 tokens/s | 900 target tokens/s | fill 99.0 % | loader wait 0.0 % | ETA 0:00:16'
    """
    step, parts = values["step"], [f"step {values['step']}/{max_steps}"]
    if "loss" in values:
        left = timedelta(seconds=round((max_steps - step) * values["seconds_per_step"]))
        parts += [f"loss {values['loss']:.4f}"] if values["loss"] is not None else ["loss - (all steps skipped)"]
        parts += [f"{values['tokens_per_second']:,.0f} tokens/s"]
        parts += [f"{values['target_tokens_per_second']:,.0f} target tokens/s"]
        parts += [f"MFU {values['mfu']:.1%}".replace("%", " %")] if "mfu" in values else []
        parts += [f"fill {values['fill'] * 100:.1f} %", f"loader wait {values['loader_wait_share'] * 100:.1f} %"]
        parts += [f"ETA {left}"]
    parts += [f"{name} {value:.4f}" for name, value in values.get("hooks", {}).items()]
    return " | ".join(parts)


class Journal:
    """Everything rank 0 writes down while steps go by; on other ranks it does nothing.

    resumed_step: updates done before; later lines of an earlier attempt are removed.
    """

    def __init__(
        self,
        output_dir: Path,
        *,
        is_main: bool,
        resumed_step: int,
        max_steps: int,
        report_to: Sequence[str],
        resolved_recipe: str,
    ) -> None:
        self._is_main = is_main
        self._output_dir = output_dir
        self._max_steps = max_steps
        if is_main:
            self._metrics = MetricsFile(output_dir, resumed_step)
            (output_dir / RECIPE_FILE).write_text(resolved_recipe, encoding="utf-8")
            self._trackers = Trackers(report_to, output_dir, resumed_step)
            self._progress = Progress(max_steps)
            self._write_running(resumed_step)

    def write(self, line: dict[str, Any]) -> None:
        """Writes one line of metrics everywhere."""
        if self._is_main:
            self._metrics.write(line)
            self._trackers.write(line)
            self._progress.update(line)
            self._write_running(line["step"])

    def _write_running(self, step: int) -> None:
        write_status(self._output_dir, "running", step, f"{step} of {self._max_steps} steps done")

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._is_main:
            self._progress.close()
            self._trackers.close()
