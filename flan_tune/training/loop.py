"""The training loop, read from top to bottom: prepare, probe, resume, steps, save, export.

What it stands on: engine.py runs the model, batches.py reads packs, checkpoint.py makes saving safe, tally.py adds
up, tracking.py writes down. It knows packs, not tasks; what is measured besides the loss comes in as hooks.

The loss of a step is sum / N over all its packs, N known from the manifest; each rank backpropagates its
sum * world_size / N, because engines average over ranks. So accumulation, ranks and packing change nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flan_tune import rng
from flan_tune.errors import FlanTuneError, RecipeError, StreamError
from flan_tune.models.forward import attn_implementation_of
from flan_tune.models.loss import TargetLoss
from flan_tune.models.probe import leak_probe
from flan_tune.training import checkpoint
from flan_tune.training.batches import BatchReader, Packs, StepBatches, derive_shape, prefetched
from flan_tune.training.engine import BatchShape, Engine, StepOutcome, open_engine
from flan_tune.training.optim import create_optimizer, learning_rate
from flan_tune.training.settings import BuildModel, ExportModel, Hook, TrainResult, TrainSettings
from flan_tune.training.stop_signals import StopSignals
from flan_tune.training.tally import StepSums, Tally, flop_cost, num_elements
from flan_tune.training.tracking import (
    MetricsFile,
    Progress,
    Trackers,
    check_report_to,
    recorded_failure,
    write_status,
)

CHECKPOINTS_FOLDER = "checkpoints"
MODEL_FOLDER = "model"
RECIPE_FILE = "recipe.resolved.yaml"

SKIPS_IN_A_ROW = 5  # one bad batch is skipped; this many say that the run itself has diverged


def train(
    settings: TrainSettings,
    packs: Packs,
    build_model: BuildModel,
    export: ExportModel,
    *,
    resolved_recipe: str,
    pad_id: int,
    hooks: Sequence[Hook] = (),
) -> TrainResult:
    """Trains on packs [0, max_steps * global_batch_size) and exports; goes on where an earlier run stopped.

    Collective: every process that the launcher started calls it with the same arguments. `status.json` in the output
    folder says how it ended, also when this raises.
    resolved_recipe: the recipe as it was understood, saved beside the metrics. pad_id: what rows are filled up with.
    Raises: RecipeError or StreamError for wrong input, before the model is built where possible; CheckpointError for
        a checkpoint that does not fit or cannot be written; FlanTuneError if the loss stays non-finite.
    """
    with recorded_failure(settings.output_dir), StopSignals() as stop:
        check_report_to(settings.report_to)
        engine = open_engine(bf16=settings.bf16)
        try:
            run = _prepare(settings, packs, build_model, engine, pad_id, stop)
            _resume(run, resolved_recipe)
            return _finish(run, export, _steps(run, hooks))
        finally:
            engine.close()


@dataclass
class _Run:
    """What the functions below share. `step` counts updates done."""

    settings: TrainSettings
    packs: Packs
    engine: Engine
    shape: BatchShape
    module: TargetLoss
    reader: BatchReader
    stop: StopSignals
    tally: Tally
    step: int = 0
    saved_step: int = -1
    skipped_packs: list[int] = field(default_factory=list)
    skips_in_a_row: int = 0

    def say(self, text: str) -> None:
        if self.engine.group.is_main:
            print(text, flush=True)


def _prepare(
    settings: TrainSettings, packs: Packs, build_model: BuildModel, engine: Engine, pad_id: int, stop: StopSignals
) -> _Run:
    group = engine.group
    shape = derive_shape(settings.global_batch_size, settings.per_device_train_batch_size, group.world_size)
    check_packs(settings, packs)
    families, family_of_task = _families(packs)
    reader = BatchReader(
        packs,
        shape,
        group.rank,
        group.world_size,
        pad_id,
        settings.attention,
        settings.loss_normalization,
        family_of_task,
    )
    model = build_model(engine)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    module = TargetLoss(model)
    engine.prepare(module, lambda m, is_flat: _optimizer(settings, m, is_flat), shape, settings.max_grad_norm)
    run = _Run(settings, packs, engine, shape, module, reader, stop, Tally(families, group))
    run.say(batch_arithmetic(settings, packs, shape, group.world_size))
    _probe(run)
    return run


def check_packs(settings: TrainSettings, packs: Packs) -> None:
    """Raises StreamError unless the packs suffice for the run: none is used twice, silently or otherwise."""
    needed = settings.max_steps * settings.global_batch_size
    if needed > packs.num_packs:
        raise StreamError(
            f"the run needs {needed} packs ({settings.max_steps} steps x global_batch_size "
            f"{settings.global_batch_size}), the store has {packs.num_packs}. Set max_steps to "
            f"{packs.num_packs // settings.global_batch_size} or less, or prepare more: set num_packs to {needed} and "
            "run `flan-tune prepare` again."
        )


def _families(packs: Packs) -> tuple[tuple[str, ...], np.ndarray]:
    of_task = [str(task["family"]) for task in packs.manifest["tasks"]]
    names = tuple(sorted(set(of_task)))
    return names, np.array([names.index(name) for name in of_task], dtype=np.int64)


def _optimizer(settings: TrainSettings, module: torch.nn.Module, is_partitioned: bool) -> torch.optim.Optimizer:
    return create_optimizer(
        module,
        optim=settings.optim,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        betas=(settings.adam_beta1, settings.adam_beta2),
        epsilon=settings.adam_epsilon,
        is_partitioned=is_partitioned,
    )


def batch_arithmetic(settings: TrainSettings, packs: Packs, shape: BatchShape, world_size: int) -> str:
    """One sentence with units: how a step is made of packs, and how many packs the run takes."""
    length, size = int(packs.manifest["max_length"]), settings.global_batch_size
    return (
        f"a step = {size} packs = {world_size} processes x {shape.micro_batch_packs} packs at once x "
        f"{shape.accumulation} micro-steps = {size * length:,} positions ({length:,} per pack); "
        f"{settings.max_steps} steps = {settings.max_steps * size} of {packs.num_packs} packs"
    )


def _probe(run: _Run) -> None:
    model = run.module.model
    implementation, size = attn_implementation_of(model), int(model.config.get_text_config().vocab_size)
    with run.engine.autocast():
        faults = leak_probe(model, run.settings.attention, implementation, size)
    if faults:
        raise RecipeError(
            *(f"leak probe: {fault}" for fault in faults),
            f"model type {model.config.model_type!r} cannot be trained on packs with {implementation!r}. Try another "
            "attn_implementation (sdpa, eager), or another model.",
        )
    run.say("leak probe: segments of a pack do not see each other")


def _resume(run: _Run, resolved_recipe: str) -> None:
    """Goes on from the newest checkpoint that verifies, if there is one, and says so."""
    root = run.settings.output_dir / CHECKPOINTS_FOLDER
    found, faults = checkpoint.newest_that_verifies(root, run.engine.group)
    for fault in faults:
        run.say(f"not used: {fault}")
    if found is not None:
        checkpoint.check_fits(found, _stamp(run), run.engine.can_change_world_size)
        run.engine.load(found.engine_folder)
        state = found.trainer_state()
        run.tally.restore(state["tally"])
        run.step = run.saved_step = found.stamp.step
        run.skipped_packs, run.skips_in_a_row = state["skipped_packs"], state["skips_in_a_row"]
        run.say(f"resumed from {found.directory}: {run.step} steps done, next pack {found.stamp.next_pack}")
    if run.engine.group.is_main:
        run.settings.output_dir.mkdir(parents=True, exist_ok=True)
        (run.settings.output_dir / RECIPE_FILE).write_text(resolved_recipe, encoding="utf-8")


def _steps(run: _Run, hooks: Sequence[Hook]) -> str | None:
    """Trains up to max_steps; returns early with the name of the signal that asked for it, after saving."""
    settings, group = run.settings, run.engine.group
    writer = _Writer(run) if group.is_main else None
    cost = flop_cost(run.module.model, group.device)
    run.module.train()
    try:
        for batches, waited in prefetched(run.reader.read, run.step, settings.max_steps):
            outcome = _one_step(run, batches, waited)
            due = [hook for hook in hooks if run.step % hook.every_steps == 0]
            is_logging = run.step % settings.logging_steps == 0 or run.step == settings.max_steps
            if is_logging or due:
                line = _line(run, outcome, cost) if is_logging else {"step": run.step}
                line |= {"hooks": _run_hooks(run, due)} if due else {}
                if writer is not None:
                    writer.write(line)
            signal_name = next((name for name in group.gather_if_any(run.stop.received) if name), None)
            is_save_due = settings.save_steps > 0 and run.step % settings.save_steps == 0
            if is_save_due or signal_name or run.step == settings.max_steps:
                _save(run)
            if signal_name and run.step < settings.max_steps:
                return signal_name
    finally:
        if writer is not None:
            writer.close()
    return None


def _one_step(run: _Run, batches: StepBatches, waited: float) -> StepOutcome:
    """One update on one step's packs: forward and backward of every micro-batch, then the optimiser."""
    begin = time.perf_counter()
    settings, engine, size = run.settings, run.engine, run.settings.global_batch_size
    numbers = slice(batches.step * size, (batches.step + 1) * size)
    targets = int(run.packs.target_tokens[numbers].sum(dtype=np.int64))
    per_example = settings.loss_normalization == "example"
    denominator = int(run.packs.num_segments[numbers].sum(dtype=np.int64)) if per_example else targets

    sums = StepSums(len(run.tally.families), engine.group.device)
    for number, micro_batch in enumerate(batches.micro_batches, start=1):
        is_last = number == len(batches.micro_batches)
        # Keyed, so that dropout needs no state in checkpoints and a pack meets the same mask on any number of ranks.
        torch.manual_seed(rng.key(settings.seed, "dropout", micro_batch.first_pack) >> 1)
        with engine.micro_step(is_last):
            output = engine.forward(micro_batch.batch.to(engine.group.device))
            sums.add(output.loss_sum, output.token_losses_N, micro_batch.family_of_target.to(engine.group.device))
            loss = output.loss_sum * (engine.group.world_size / denominator)
            engine.backward(_poisoned(loss, sums.loss) if is_last else loss)

    outcome = engine.step(_learning_rate(settings, batches.step))
    seconds = time.perf_counter() - begin + waited
    run.tally.count(batches.tokens, batches.pairs, targets, seconds, waited)
    if outcome.was_applied:
        run.tally.learn(sums, denominator)
    run.step += 1
    _guard(run, outcome, range(numbers.start, numbers.stop))
    return outcome


def _poisoned(loss: torch.Tensor, loss_so_far: torch.Tensor) -> torch.Tensor:
    """`loss` itself if this rank's losses of the step are finite, else nan.

    A nan here makes every gradient nan, the engine adds it to those of all ranks, and all of them skip the step: the
    guard costs no message and no wait of its own. (An infinite loss may well have finite gradients.)
    """
    return loss * (1.0 + 0.0 * loss_so_far).to(loss.dtype)


def _learning_rate(settings: TrainSettings, step: int) -> float:
    return learning_rate(
        step,
        peak=settings.learning_rate,
        schedule=settings.lr_scheduler_type,
        warmup_steps=settings.warmup_steps,
        max_steps=settings.max_steps,
        final_ratio=settings.lr_final_ratio,
    )


def _guard(run: _Run, outcome: StepOutcome, numbers: range) -> None:
    """Notes a skipped step with its packs; raises when too many follow each other."""
    if outcome.was_applied:
        run.skips_in_a_row = 0
        return
    run.skips_in_a_row += 1
    run.skipped_packs.extend(numbers)
    span = f"packs {numbers.start} to {numbers.stop - 1}"
    run.say(f"step {run.step}: the loss or the gradient is not finite; the step is skipped ({span})")
    if run.skips_in_a_row >= SKIPS_IN_A_ROW:
        raise FlanTuneError(
            f"{SKIPS_IN_A_ROW} steps in a row had a loss or gradient that is not finite, the last at step {run.step} "
            f"({span}). The run has diverged: lower learning_rate or raise warmup_steps, and start again from an "
            f"earlier checkpoint (delete later ones in {run.settings.output_dir / CHECKPOINTS_FOLDER}). "
            "`flan-tune inspect RECIPE --step N` shows what was in a step."
        )


def _line(run: _Run, outcome: StepOutcome, cost: Any) -> dict[str, Any]:
    positions = run.settings.global_batch_size * int(run.packs.manifest["max_length"])
    return {
        "step": run.step,
        **run.tally.line(positions, cost),
        "learning_rate": _learning_rate(run.settings, run.step - 1),
        "grad_norm": outcome.grad_norm if math.isfinite(outcome.grad_norm) else None,
        "skipped_steps": len(run.skipped_packs) // run.settings.global_batch_size,
    }


def _run_hooks(run: _Run, due: Iterable[Hook]) -> dict[str, float]:
    values: dict[str, float] = {}
    run.module.eval()
    with torch.no_grad(), run.engine.autocast():
        for hook in due:
            values.update(hook(run.module.model, run.step))
    run.module.train()
    return values


def _stamp(run: _Run) -> checkpoint.Stamp:
    group, size = run.engine.group, run.settings.global_batch_size
    fingerprint = str(run.packs.manifest["fingerprint"])
    return checkpoint.Stamp(run.step, run.step * size, fingerprint, group.world_size, run.engine.kind, size)


def _save(run: _Run) -> None:
    if run.saved_step == run.step:
        return
    state = {
        "tally": run.tally.state(),
        "skipped_packs": run.skipped_packs,
        "skips_in_a_row": run.skips_in_a_row,
    }
    parameters = sum(num_elements(p) for p in run.module.parameters())
    # float32 weights, and two moments of AdamW; Adafactor's are next to nothing, so it is not counted on.
    per_parameter = 4 if run.settings.optim == "adafactor" else 12
    checkpoint.save(
        run.settings.output_dir / CHECKPOINTS_FOLDER,
        _stamp(run),
        state,
        run.engine.save,
        run.engine.group,
        bytes_expected=parameters * per_parameter,
        keep=run.settings.save_total_limit,
    )
    run.saved_step = run.step


def _finish(run: _Run, export: ExportModel, signal_name: str | None) -> TrainResult:
    """Exports the model if the run is complete, and says how it ended."""
    if signal_name is not None:
        message = f"{signal_name}: saved at step {run.step} of {run.settings.max_steps}; start the same command again"
        result = TrainResult("requeue", run.step, message)
    else:
        directory = run.settings.output_dir / MODEL_FOLDER
        _save(run)
        state_dict = run.engine.state_dict(run.module.model)
        if run.engine.group.is_main:
            export(state_dict, run.module.model, directory)
        run.engine.group.barrier()
        result = TrainResult("done", run.step, f"{run.step} steps; the model is in {directory}", directory)
    if run.engine.group.is_main:
        write_status(run.settings.output_dir, result.state, result.step, result.message)
    run.say(result.message)
    return result


class _Writer:
    """Everything rank 0 writes down while steps go by."""

    def __init__(self, run: _Run) -> None:
        directory: Path = run.settings.output_dir
        self._directory = directory
        self._metrics = MetricsFile(directory, run.step)
        self._trackers = Trackers(run.settings.report_to, directory, run.step)
        self._progress = Progress(run.settings.max_steps)
        write_status(directory, "running", run.step, f"training, {run.step} of {run.settings.max_steps} steps done")

    def write(self, line: dict[str, Any]) -> None:
        self._metrics.write(line)
        self._trackers.write(line)
        self._progress.update(line)
        write_status(self._directory, "running", line["step"], "training")

    def close(self) -> None:
        self._progress.close()
        self._trackers.close()
