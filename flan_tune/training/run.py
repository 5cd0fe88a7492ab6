"""One training run: what its steps share, how it begins, where it goes on from, how it is saved.

    prepare   divide the batch, check the packs, build the model, hand it to the engine, probe it for leaks
    resume    the newest checkpoint that verifies
    save      a checkpoint of where the run is

The steps themselves, and the end, are in loop.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from flan_tune.errors import CheckpointError, RecipeError, StreamError
from flan_tune.models.collate import DecoderShape
from flan_tune.models.forward import (
    attn_implementation_of,
    checkpoint_activations,
    compile_layers,
    is_encoder_decoder,
)
from flan_tune.models.load import decoder_start_id_of
from flan_tune.models.loss import TargetLoss
from flan_tune.models.lowering import lowering_of
from flan_tune.models.probe import leak_probe, settle_attn_implementation
from flan_tune.training import checkpoint
from flan_tune.training.batches import BatchReader, Packs, derive_shape
from flan_tune.training.engine import BatchShape, Engine
from flan_tune.training.flops import num_elements
from flan_tune.training.optim import create_optimizer
from flan_tune.training.settings import BuildModel, TrainSettings
from flan_tune.training.tally import Tally

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHECKPOINTS_FOLDER = "checkpoints"


@dataclass
class Run:
    """What the functions below share. `step` counts updates done.

    target_tokens, num_segments: int32, of every pack; loss denominators are made of one or the other.
    """

    settings: TrainSettings
    packs: Packs
    engine: Engine
    shape: BatchShape
    module: TargetLoss
    reader: BatchReader
    tally: Tally
    target_tokens: npt.NDArray[np.int32]
    num_segments: npt.NDArray[np.int32]
    step: int = 0
    saved_step: int = -1
    skipped_packs: list[int] = field(default_factory=list)
    skips_in_a_row: int = 0

    def say(self, text: str) -> None:
        """Prints a line, on rank 0."""
        if self.engine.group.is_main:
            print(text, flush=True)


def prepare(settings: TrainSettings, packs: Packs, build_model: BuildModel, engine: Engine, pad_id: int) -> Run:
    """A run at step 0, checked as far as can be. Collective.

    Raises: StreamError if the batch does not divide or the packs do not suffice, before the model is built; RecipeError
        if the packs are not of the model's layout, or it sees across segments.
    """
    group = engine.group
    shape = derive_shape(settings.global_batch_size, settings.per_device_train_batch_size, group.world_size)
    check_packs(settings, packs)
    families, family_of_task = _families(packs)
    model = build_model(engine)
    reader = BatchReader(
        packs,
        shape,
        group.rank,
        group.world_size,
        pad_id,
        settings.attention,
        settings.loss_normalization,
        family_of_task,
        decoder=_decoder_shape(model, packs),
    )
    if settings.gradient_checkpointing:
        checkpoint_activations(model)
    module = TargetLoss(model, settings.z_loss)
    engine.prepare(module, lambda m, is_flat: _optimizer(settings, m, is_flat), shape, settings.max_grad_norm)
    tally = Tally(families, group)
    run = Run(settings, packs, engine, shape, module, reader, tally, packs.target_tokens, packs.num_segments)
    run.say(batch_arithmetic(settings, packs, shape, group.world_size))
    _probe(run)
    run.reader = replace(reader, lowering=lowering_of(model))  # the probe may have settled on another back-end
    if settings.torch_compile:
        compile_layers(model)
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


def _decoder_shape(model: PreTrainedModel, packs: Packs) -> DecoderShape | None:
    """What collate must know of an encoder-decoder; None for a decoder."""
    max_target_length = packs.manifest.get("max_target_length")
    has_encoder = is_encoder_decoder(model)
    if has_encoder != (max_target_length is not None):
        made_for, is_a = ("decoders", "an encoder-decoder") if has_encoder else ("encoder-decoders", "a decoder")
        fix = "Give data.max_target_length" if has_encoder else "Leave data.max_target_length out"
        raise RecipeError(
            f"the packs are made for {made_for}, the model ({model.config.model_type}) is {is_a}. {fix} in the recipe "
            "and prepare the packs again."
        )
    return DecoderShape(int(max_target_length), decoder_start_id_of(model)) if has_encoder else None


def _families(packs: Packs) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
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


def positions_of_pack(packs: Packs) -> list[int]:
    """Positions of a row, padding included: [max_length], and of an encoder-decoder [encoder's, decoder's]."""
    lengths = (packs.manifest["max_length"], packs.manifest.get("max_target_length"))
    return [int(length) for length in lengths if length is not None]


def batch_arithmetic(settings: TrainSettings, packs: Packs, shape: BatchShape, world_size: int) -> str:
    """One sentence with units: how a step is made of packs, and how many packs the run takes."""
    lengths, size = positions_of_pack(packs), settings.global_batch_size
    sides = " + ".join(f"{length:,}" for length in lengths)
    return (
        f"a step = {size} packs = {world_size} processes x {shape.micro_batch_packs} packs at once x "
        f"{shape.accumulation} micro-steps = {size * sum(lengths):,} positions ({sides} per pack); "
        f"{settings.max_steps} steps = {settings.max_steps * size} of {packs.num_packs} packs"
    )


def _probe(run: Run) -> None:
    model = run.module.model
    implementation, size = attn_implementation_of(model), int(model.config.get_text_config().vocab_size)
    with run.engine.autocast():
        if run.settings.attn_implementation == "auto":
            implementation, notes = settle_attn_implementation(model, run.settings.attention, size)
            for note in notes:
                run.say(f"not used: {note}")
            faults = []
        else:
            faults = leak_probe(model, run.settings.attention, implementation, size)
    if faults:
        raise RecipeError(
            *(f"leak probe: {fault}" for fault in faults),
            f"model type {model.config.model_type!r} cannot be trained on packs with {implementation!r}. Try another "
            "attn_implementation (sdpa, eager), or another model.",
        )
    run.say(f"leak probe: segments of a pack do not see each other (attention by {implementation})")


def resume(run: Run) -> None:
    """Goes on from the newest checkpoint that verifies, if there is one, and says so."""
    root = run.settings.output_dir / CHECKPOINTS_FOLDER
    found, faults = checkpoint.newest_that_verifies(root, run.engine.group)
    for fault in faults:
        run.say(f"not used: {fault}")
    if found is not None:
        checkpoint.check_fits(found, _stamp(run), run.engine.can_change_world_size)
        if found.stamp.step > run.settings.max_steps:
            raise CheckpointError(
                f"{found.directory}: has {found.stamp.step} steps done, max_steps is {run.settings.max_steps}. "
                "Raise max_steps, or use another output_dir."
            )
        run.engine.load(found.engine_folder)
        state = found.trainer_state()
        run.tally.restore(state["tally"])
        run.step = run.saved_step = found.stamp.step
        run.skipped_packs, run.skips_in_a_row = state["skipped_packs"], state["skips_in_a_row"]
        run.say(f"resumed from {found.directory}: {run.step} steps done, next pack {found.stamp.next_pack}")


def _stamp(run: Run) -> checkpoint.Stamp:
    group, size = run.engine.group, run.settings.global_batch_size
    fingerprint = str(run.packs.manifest["fingerprint"])
    return checkpoint.Stamp(run.step, run.step * size, fingerprint, group.world_size, run.engine.kind, size)


def save(run: Run) -> None:
    """Saves a checkpoint, unless this step has one."""
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
