"""The laws of a run: the same losses however it is divided, interrupted, killed or resumed.

One process runs here; kills, DDP and ZeRO-3 start training_worker.py as a user's launcher would.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_worker import TinyPacks, tiny_run

from flan_tune.errors import CheckpointError, FlanTuneError, RecipeError, StreamError
from flan_tune.training.engine import open_engine
from flan_tune.training.tracking import read_metrics, read_status

ROOT = Path(__file__).parent.parent
WORKER = str(Path(__file__).with_name("training_worker.py"))
ZERO3 = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "recipes/accelerate/zero3_cpu.yaml"), WORKER]
TIMES = ("seconds", "seconds_per_step", "tokens_per_second", "target_tokens_per_second", "loader_wait_share")

# Dropout on; lines and checkpoints that do not fall together, so that half-summed lines are resumed as well.
INTERRUPTED = {"dropout": 0.1, "logging_steps": 2, "save_steps": 3, "lr_scheduler_type": "linear"}


def lines(output_dir: Path) -> list[str]:
    """The metrics without what depends on the clock, as text: equal text is equal bits."""
    kept = [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(output_dir / "metrics.jsonl")]
    return [json.dumps({k: v for k, v in line.items() if k != "hooks"}) for line in kept]


def losses(output_dir: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(output_dir / "metrics.jsonl")]


def weights(output_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(output_dir / "model" / "model.safetensors")


def assert_same_weights(one: Path, other: Path, tolerance: float = 0.0) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.allclose(value, second[name], rtol=0, atol=tolerance), name


def start(arguments: list[str], output_dir: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments, str(output_dir), *(f"{name}={value}" for name, value in options.items())]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)


def torchrun() -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port), WORKER]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of one process, one pack at a time."""
    output_dir = tmp_path_factory.mktemp("whole")
    result = tiny_run(output_dir)
    assert (result.state, result.step, result.exit_code) == ("done", 6, 0)
    return output_dir


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an interrupted run must not differ from."""
    output_dir = tmp_path_factory.mktemp("undisturbed")
    tiny_run(output_dir, **INTERRUPTED)
    return output_dir


def test_a_run_learns_and_leaves_everything_behind(tmp_path: Path) -> None:
    tiny_run(tmp_path, max_steps=30, learning_rate=0.02, num_packs=200, weight_decay=0.1, save_total_limit=1)
    found = read_metrics(tmp_path / "metrics.jsonl")
    assert [line["step"] for line in found] == list(range(1, 31))
    assert min(line["loss"] for line in found[-5:]) < found[0]["loss"]
    assert set(found[0]["loss_by_family"]) <= {"muffin", "niv2", "cot"}
    assert all(0 < line["fill"] <= 1 and line["grad_norm"] > 0 for line in found)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-30"]
    assert (read_status(tmp_path) or {})["state"] == "done"
    assert (tmp_path / "recipe.resolved.yaml").read_text() == "name: tiny\n"


def test_the_loss_of_a_line_is_that_of_its_families_together(whole: Path) -> None:
    for line in read_metrics(whole / "metrics.jsonl"):
        families = line["loss_by_family"].values()
        assert min(families) <= line["loss"] <= max(families)


@pytest.mark.parametrize("per_device", [2, 4])
def test_accumulation_changes_nothing(per_device: int, whole: Path, tmp_path: Path) -> None:
    tiny_run(tmp_path, per_device_train_batch_size=per_device)
    assert losses(tmp_path) == pytest.approx(losses(whole), abs=1e-5)
    assert_same_weights(tmp_path, whole, 1e-4)


def test_the_same_holds_per_example_and_for_prefixes(tmp_path: Path) -> None:
    options = {"loss_normalization": "example", "attention": "prefix_lm", "max_steps": 3}
    for per_device in (1, 4):
        tiny_run(tmp_path / str(per_device), per_device_train_batch_size=per_device, **options)
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "4"), abs=1e-5)
    assert_same_weights(tmp_path / "1", tmp_path / "4", 1e-4)


def test_recomputing_activations_changes_nothing(whole: Path, tmp_path: Path) -> None:
    tiny_run(tmp_path, gradient_checkpointing=True)
    assert losses(tmp_path) == pytest.approx(losses(whole), abs=1e-6)


def test_asked_to_stop_it_saves_and_a_second_start_finishes(undisturbed: Path, tmp_path: Path) -> None:
    result = tiny_run(tmp_path, signal_at_step=4, **INTERRUPTED)
    assert (result.state, result.step, result.exit_code) == ("requeue", 4, 75)
    assert (read_status(tmp_path) or {})["state"] == "requeue"
    assert not (tmp_path / "model").exists()
    assert tiny_run(tmp_path, **INTERRUPTED).state == "done"
    assert lines(tmp_path) == lines(undisturbed)
    assert_same_weights(tmp_path, undisturbed)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "resumed_from"), [({"kill_after_step": 5}, 3), ({"kill_in_save": 6}, 3)], ids=["step", "save"]
)
def test_killed_it_goes_on_bit_by_bit(
    options: dict[str, Any],
    resumed_from: int,
    undisturbed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    killed = start([WORKER], tmp_path, **options, **INTERRUPTED)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.name for path in (tmp_path / "checkpoints").glob("*.tmp")] == (
        ["step-6.tmp"] if "kill_in_save" in options else []
    )
    capsys.readouterr()
    tiny_run(tmp_path, **INTERRUPTED)
    assert f"resumed from {tmp_path / 'checkpoints'}/step-{resumed_from}" in capsys.readouterr().out
    assert lines(tmp_path) == lines(undisturbed)
    assert_same_weights(tmp_path, undisturbed)
    assert not list((tmp_path / "checkpoints").glob("*.tmp"))


def test_a_corrupted_checkpoint_is_passed_over(
    undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_run(tmp_path, signal_at_step=4, **INTERRUPTED)
    path = tmp_path / "checkpoints" / "step-4" / "engine" / "state.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    capsys.readouterr()
    tiny_run(tmp_path, **INTERRUPTED)
    output = capsys.readouterr().out
    assert f"not used: {path}: the file's SHA-256 is not the one that was written" in output
    assert "resumed from" in output
    assert "3 steps done, next pack 12" in output
    assert lines(tmp_path) == lines(undisturbed)
    assert_same_weights(tmp_path, undisturbed)


def test_an_encoder_decoder_trains_alike_however_it_is_divided(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"encoder_decoder": True, "max_steps": 3, "loss_normalization": "example", "z_loss": 1e-3}
    for per_device in (1, 4):
        tiny_run(tmp_path / str(per_device), per_device_train_batch_size=per_device, **options)
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "4"), abs=1e-5)
    assert_same_weights(tmp_path / "1", tmp_path / "4", 1e-4)
    assert "= 184 positions (24 + 22 per pack)" in capsys.readouterr().out
    packs, found = TinyPacks(4, encoder_decoder=True), read_metrics(tmp_path / "1" / "metrics.jsonl")
    assert found[0]["fill"] == sum(len(packs.pack(n).input_ids) for n in range(4)) / 184


def test_an_encoder_decoder_goes_on_bit_by_bit(tmp_path: Path) -> None:
    options = {"encoder_decoder": True, "gradient_checkpointing": True, **INTERRUPTED}
    tiny_run(tmp_path / "whole", **options)
    assert tiny_run(tmp_path / "stopped", signal_at_step=4, **options).state == "requeue"
    assert tiny_run(tmp_path / "stopped", **options).state == "done"
    assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")
    assert_same_weights(tmp_path / "stopped", tmp_path / "whole")


def packs_of_the_other_layout(output_dir: Path) -> None:
    tiny_run(output_dir, packs=TinyPacks(24, encoder_decoder=True))


def too_few_packs(output_dir: Path) -> None:
    tiny_run(output_dir, num_packs=23)


def no_division(output_dir: Path) -> None:
    tiny_run(output_dir, per_device_train_batch_size=3)


def unknown_choice(output_dir: Path) -> None:
    tiny_run(output_dir, optim="adam_torch", lr_scheduler_type="cosin", logging_steps=0)


@pytest.mark.parametrize(
    ("run", "kind", "says"),
    [
        (too_few_packs, StreamError, "needs 24 packs .* the store has 23. Set max_steps to 5 or less"),
        (
            packs_of_the_other_layout,
            RecipeError,
            r"made for encoder-decoders, the model \(llama\) is a decoder. Leave data.max_target_length out",
        ),
        (no_division, StreamError, "1 processes x per_device_train_batch_size 3 = 3 packs at once"),
        (unknown_choice, RecipeError, "(?s)Did you mean 'cosine'.*Did you mean 'adamw_torch'.*logging_steps is 0"),
    ],
)
def test_wrong_input_is_refused(
    run: Callable[[Path], None], kind: type[FlanTuneError], says: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=says):
        run(tmp_path)
    status = read_status(tmp_path)
    assert status is None or status["state"] == "wrong_input"


def test_a_finished_run_is_not_shortened(whole: Path) -> None:
    with pytest.raises(CheckpointError, match="has 6 steps done, max_steps is 5"):
        tiny_run(whole, max_steps=5)


def test_processes_that_do_not_find_each_other_are_refused(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RecipeError, match="the launcher started 2 processes, Accelerate sees 1"):
        open_engine(bf16=False)


def test_a_run_that_diverges_stops(tmp_path: Path) -> None:
    with pytest.raises(FlanTuneError, match=r"5 steps in a row .* at step 6 .packs 20 to 23"):
        tiny_run(tmp_path, max_steps=8, learning_rate=1e30, max_grad_norm=0.0, lr_scheduler_type="constant")
    status = read_status(tmp_path)
    assert status is not None
    assert status["state"] == "failed"


@pytest.mark.slow
@pytest.mark.parametrize("encoder_decoder", [0, pytest.param(1, marks=pytest.mark.long)])
def test_two_processes_are_one_and_skip_together(encoder_decoder: int, tmp_path: Path) -> None:
    """DDP, and a loss that is infinite on rank 0 alone in the last step: both ranks skip it."""
    options = {"lr_scheduler_type": "constant", "encoder_decoder": encoder_decoder}
    tiny_run(tmp_path / "one", max_steps=5, **options)
    two = start(torchrun(), tmp_path / "two", infinite_loss_at=5, **options)
    assert two.returncode == 0, two.stderr
    assert "step 6: the loss or the gradient is not finite; the step is skipped (packs 20 to 23)" in two.stdout
    assert losses(tmp_path / "two") == [*(pytest.approx(loss, abs=1e-5) for loss in losses(tmp_path / "one")), None]
    assert_same_weights(tmp_path / "one", tmp_path / "two", 1e-4)
    tiny_run(tmp_path / "two", max_steps=7, **options)  # one process goes on where two stopped
    assert len(losses(tmp_path / "two")) == 7


@pytest.mark.slow
def test_zero3_on_two_processes_is_one_process(whole: Path, tmp_path: Path) -> None:
    """By the shipped config: two CPU processes, micro-steps, uneven targets on the ranks."""
    done = start(ZERO3, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 packs = 2 processes x 1 packs at once x 2 micro-steps" in done.stdout
    assert losses(tmp_path) == pytest.approx(losses(whole), abs=1e-5)
    assert_same_weights(tmp_path, whole, 1e-4)
    with pytest.raises(CheckpointError, match="'deepspeed', this run uses 'single'"):
        tiny_run(tmp_path)


@pytest.mark.long
def test_zero3_of_an_encoder_decoder_is_one_process(tmp_path: Path) -> None:
    tiny_run(tmp_path / "one", encoder_decoder=True, max_steps=4)
    done = start(ZERO3, tmp_path / "two", encoder_decoder=1, max_steps=4)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    assert_same_weights(tmp_path / "two", tmp_path / "one", 1e-4)


@pytest.mark.long
@pytest.mark.parametrize("encoder_decoder", [0, 1])
def test_zero3_stopped_goes_on_bit_by_bit(encoder_decoder: int, tmp_path: Path) -> None:
    """With dropout, and a skipped step before the stop."""
    options = {**INTERRUPTED, "encoder_decoder": encoder_decoder}
    start(ZERO3, tmp_path / "whole", infinite_loss_at=1, **options)
    stopped = start(ZERO3, tmp_path / "stopped", infinite_loss_at=1, signal_at_step=4, **options)
    assert (read_status(tmp_path / "stopped") or {})["state"] == "requeue", stopped.stderr
    resumed = start(ZERO3, tmp_path / "stopped", **options)
    assert resumed.returncode == 0, resumed.stderr
    assert lines(tmp_path / "stopped") == lines(tmp_path / "whole")
    assert_same_weights(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.long
@pytest.mark.parametrize("options", [{"bf16": True, "gradient_checkpointing": True}, {"optim": "adafactor"}])
def test_zero3_runs_with(options: dict[str, Any], whole: Path, tmp_path: Path) -> None:
    done = start(ZERO3, tmp_path, **options)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path)[:2] == pytest.approx(losses(whole)[:2], abs=2e-2)
