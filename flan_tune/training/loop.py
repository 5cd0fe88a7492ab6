"""The training loop, read from top to bottom: prepare, resume, steps, export.

What it stands on: run.py begins and saves a run, engine.py runs the model, batches.py reads packs, checkpoint.py makes
saving safe, tally.py adds up, tracking.py writes down, settings.py is what goes in and comes out. It knows packs, not
tasks; what is measured besides the loss comes in as hooks.

The loss of a step is sum / N over all its packs, N known from the manifest; each rank backpropagates its
sum * world_size / N, because engines average over ranks. So accumulation, ranks and packing change nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from flan_tune import rng
from flan_tune.errors import FlanTuneError
from flan_tune.training.batches import Packs, StepBatches, prefetched
from flan_tune.training.engine import StepOutcome, open_engine
from flan_tune.training.flops import FlopCost, flop_cost
from flan_tune.training.optim import learning_rate
from flan_tune.training.run import CHECKPOINTS_FOLDER, Run, positions_of_pack, prepare, resume, save
from flan_tune.training.settings import BuildModel, ExportModel, Hook, TrainResult, TrainSettings
from flan_tune.training.stop_signals import StopSignals
from flan_tune.training.tally import StepSums
from flan_tune.training.tracking import MODEL_FOLDER, Journal, check_report_to, recorded_failure, write_status

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
        run = prepare(settings, packs, build_model, engine, pad_id)
        resume(run)
        with Journal(
            settings.output_dir,
            is_main=engine.group.is_main,
            resumed_step=run.step,
            max_steps=settings.max_steps,
            report_to=settings.report_to,
            resolved_recipe=resolved_recipe,
        ) as journal:
            signal_name = _steps(run, hooks, journal, stop)
        result = _finish(run, export, signal_name)
        engine.close()  # not after an error: it may be this rank's alone, and closing would wait for the others
        return result


def _steps(run: Run, hooks: Sequence[Hook], journal: Journal, stop: StopSignals) -> str | None:
    """Trains up to max_steps; returns early with the name of the signal that asked for it, after saving."""
    settings, group = run.settings, run.engine.group
    cost = flop_cost(run.module.model, group.device)
    run.module.train()
    for batches, waited in prefetched(run.reader.read, run.step, settings.max_steps):
        outcome = _one_step(run, batches, waited, cost)
        line = {"step": run.step} | _run_hooks(run, [hook for hook in hooks if run.step % hook.every_steps == 0])
        if run.step % settings.logging_steps == 0 or run.step == settings.max_steps:
            line |= _line(run, outcome, cost)
        if len(line) > 1:
            journal.write(line)
        # All ranks must leave together, and a signal may reach one of them only, or each at another step.
        signal_name = next((name for name in group.gather_if_any(stop.received) if name), None)
        is_save_due = settings.save_steps > 0 and run.step % settings.save_steps == 0
        if is_save_due or signal_name or run.step == settings.max_steps:
            save(run)
        if signal_name and run.step < settings.max_steps:
            return str(signal_name)
    return None


def _one_step(run: Run, batches: StepBatches, waited: float, cost: FlopCost | None) -> StepOutcome:
    """One update on one step's packs: forward and backward of every micro-batch, then the optimiser."""
    begin = time.perf_counter()
    settings, engine, size = run.settings, run.engine, run.settings.global_batch_size
    numbers = slice(batches.step * size, (batches.step + 1) * size)
    targets = int(run.target_tokens[numbers].sum(dtype=np.int64))
    per_example = settings.loss_normalization == "example"
    denominator = int(run.num_segments[numbers].sum(dtype=np.int64)) if per_example else targets

    sums = StepSums(len(run.tally.families), engine.group.device)
    for number, micro_batch in enumerate(batches.micro_batches, start=1):
        is_last = number == len(batches.micro_batches)
        # Keyed, so that dropout needs no state in checkpoints and a pack meets the same mask on any number of ranks.
        torch.manual_seed(rng.key(settings.seed, "dropout", micro_batch.first_pack) >> 1)
        with engine.micro_step(is_last):
            output = engine.forward(micro_batch.batch.to(engine.group.device))
            families = micro_batch.family_of_target.to(engine.group.device)
            sums.add(output.loss_sum - output.z_loss_sum, output.token_losses_N, families)
            loss = output.loss_sum * (engine.group.world_size / denominator)
            engine.backward(_poisoned(loss, sums.loss) if is_last else loss)

    outcome = engine.step(_learning_rate(settings, batches.step))
    seconds = time.perf_counter() - begin + waited
    flops = 0.0 if cost is None else cost.of(batches.work)
    run.tally.count(int(batches.work.all_tokens), flops, targets, seconds, waited)
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


def _guard(run: Run, outcome: StepOutcome, numbers: range) -> None:
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


def _line(run: Run, outcome: StepOutcome, cost: FlopCost | None) -> dict[str, Any]:
    positions = run.settings.global_batch_size * sum(positions_of_pack(run.packs))
    return {
        **run.tally.line(positions, None if cost is None else cost.peak_per_second),
        "learning_rate": _learning_rate(run.settings, run.step - 1),
        "grad_norm": outcome.grad_norm if math.isfinite(outcome.grad_norm) else None,
        "skipped_steps": len(run.skipped_packs) // run.settings.global_batch_size,
    }


def _run_hooks(run: Run, due: Sequence[Hook]) -> dict[str, Any]:
    """{"hooks": names to values}, or nothing if no hook had anything to say."""
    values: dict[str, float] = {}
    if due:
        run.module.eval()
        with torch.no_grad(), run.engine.autocast():
            for hook in due:
                values.update(hook(run.module.model, run.step))
        run.module.train()
    return {"hooks": values} if values else {}


def _finish(run: Run, export: ExportModel, signal_name: str | None) -> TrainResult:
    """Exports the model if the run is complete, and says how it ended."""
    if signal_name is not None:
        message = f"{signal_name}: saved at step {run.step} of {run.settings.max_steps}; start the same command again"
        result = TrainResult("requeue", run.step, message)
    else:
        directory = run.settings.output_dir / MODEL_FOLDER
        state_dict = run.engine.state_dict(run.module.model)
        if run.engine.group.is_main:
            export(state_dict, run.module.model, directory)
        run.engine.group.barrier()
        result = TrainResult("done", run.step, f"{run.step} steps; the model is in {directory}", directory)
    if run.engine.group.is_main:
        write_status(run.settings.output_dir, result.state, result.step, result.message)
    run.say(result.message)
    return result
