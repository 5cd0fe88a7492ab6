"""What a run writes down, also after it was interrupted."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from flan_tune.errors import CheckpointError, RecipeError, StreamError
from flan_tune.training.stop_signals import StopSignals
from flan_tune.training.tracking import (
    Journal,
    MetricsFile,
    check_report_to,
    progress_line,
    read_metrics,
    read_status,
    recorded_failure,
    write_status,
)

LINE = {
    "step": 2,
    "loss": 1.5,
    "tokens_per_second": 1e4,
    "target_tokens_per_second": 900.0,
    "fill": 0.99,
    "loader_wait_share": 0.0,
    "seconds_per_step": 2.0,
}


def test_lines_after_the_resumed_step_and_half_lines_go(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "loss": 0.1}\n{"step": 3}\n{"step": 4, "lo')
    metrics = MetricsFile(tmp_path, resumed_step=2)
    metrics.write({"step": 3, "loss": 0.5})
    assert read_metrics(path) == [{"step": 1}, {"step": 2, "loss": 0.1}, {"step": 3, "loss": 0.5}]


def test_a_new_run_begins_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    MetricsFile(tmp_path, resumed_step=0)
    assert read_metrics(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (RecipeError("x.yaml:3: no."), "wrong_input"),
        (StreamError("too few packs."), "wrong_input"),
        (CheckpointError("the disk is full."), "failed"),
        (ZeroDivisionError("division by zero"), "failed"),
    ],
)
def test_an_error_leaves_a_status(error: Exception, state: str, tmp_path: Path) -> None:
    write_status(tmp_path, "running", 7, "")
    with pytest.raises(type(error)), recorded_failure(tmp_path):
        raise error
    status = read_status(tmp_path)
    assert status is not None
    assert (status["state"], status["step"]) == (state, 7)
    assert str(error) in status["message"]


def test_the_progress_line() -> None:
    expected = "step 2/10 | loss 1.5000 | 10,000 tokens/s | 900 target tokens/s | fill 99.0 % | loader wait 0.0 %"
    assert progress_line(LINE, 10) == expected + " | ETA 0:00:16"
    assert "MFU 45.1 % | fill" in progress_line(LINE | {"mfu": 0.451}, 10)
    assert progress_line({"step": 5, "hooks": {"mmlu": 0.25}}, 10) == "step 5/10 | mmlu 0.2500"


def test_the_journal_writes_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Journal(
        tmp_path, is_main=True, resumed_step=0, max_steps=10, report_to=(), resolved_recipe="a: 1\n"
    ) as journal:
        journal.write(LINE)
    assert (tmp_path / "recipe.resolved.yaml").read_text() == "a: 1\n"
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == LINE
    assert capsys.readouterr().out.startswith("step 2/10 | loss 1.5000")
    assert (read_status(tmp_path) or {})["message"] == "2 of 10 steps done"


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with Journal(tmp_path, is_main=False, resumed_step=0, max_steps=10, report_to=(), resolved_recipe="") as journal:
        journal.write(LINE)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"'tensorbord' .* Did you mean 'tensorboard'"):
        check_report_to(("tensorbord",))


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_note_and_the_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with StopSignals() as stop:
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # the launcher passes Ctrl-C on at once: still the same wish
        assert stop.received == number.name
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_later_ends_the_process() -> None:
    with StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        stop._first_time -= 10
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
