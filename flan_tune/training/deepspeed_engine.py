"""DeepSpeed ZeRO 1, 2 and 3 behind the engine's face. Nothing else in the room imports DeepSpeed.

How a step's scale gets through (deepspeed 0.19.8, runtime/engine.py, `backward` and `_backward_prologue_per_tensor`):
`backward(loss, scale_wrt_gas=False)` leaves the loss as it is, and marks its graph so that the hooks for a plain
`loss.backward()` do not divide by the number of micro-steps either. ZeRO averages over ranks. So a rank's
loss_sum * world_size / N_global gives the gradient of sum / N_global.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flan_tune.errors import RecipeError
from flan_tune.training.engine import BatchShape, CreateOptimizer, Engine, StepOutcome, keeping_hyperparameters
from flan_tune.training.optim import set_learning_rate
from flan_tune.training.process_group import ProcessGroup

_TAG = "deepspeed"

# Used where the Accelerate config does not say otherwise. Elements, not bytes.
# Larger prefetch and persistence than DeepSpeed's 5e7 and 1e5: fewer, larger messages between nodes.
_ZERO_DEFAULTS: dict[str, Any] = {"overlap_comm": True, "contiguous_gradients": True, "reduce_bucket_size": 200_000_000}
_ZERO3_DEFAULTS: dict[str, Any] = {
    "stage3_prefetch_bucket_size": 200_000_000,
    "stage3_param_persistence_threshold": 1_000_000,
}


class DeepSpeedEngine(Engine):
    """ZeRO by `accelerate launch`. Its checkpoints fit only the number of ranks that wrote them."""

    kind = "deepspeed"
    can_change_world_size = False

    def __init__(self, accelerator: Any, group: ProcessGroup) -> None:
        self._accelerator = accelerator
        self.group = group
        self._config: dict[str, Any] = accelerator.state.deepspeed_plugin.deepspeed_config
        self.stage = int(self._config["zero_optimization"]["stage"])
        _check_config(self._config, self.stage)
        # deepspeed 0.19.8 calls collectives by names that torch 2.13 calls old; one line per call and rank otherwise.
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)

    def building(self) -> AbstractContextManager[None]:
        # Nothing to enter: transformers itself enters zero.Init for what it builds while a ZeRO-3 Accelerator is alive.
        return nullcontext()

    @property
    def weight_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self._config.get("bf16", {}).get("enabled") is True else torch.float32

    def gathering(self, parameters: Iterable[nn.Parameter]) -> AbstractContextManager[None]:
        partitioned = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
        if not partitioned:
            return nullcontext()
        import deepspeed

        context: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(partitioned, modifier_rank=0)
        return context

    def prepare(
        self, module: nn.Module, create_optimizer: CreateOptimizer, shape: BatchShape, max_grad_norm: float
    ) -> None:
        self.module = module
        self._set_config(shape, max_grad_norm)
        # Accelerate hands its own count to DeepSpeed and warns when the two differ.
        self._accelerator.gradient_accumulation_steps = shape.accumulation
        self._optimizer = create_optimizer(module, True)
        self._engine, _ = self._accelerator.prepare(module, self._optimizer)

    def _set_config(self, shape: BatchShape, max_grad_norm: float) -> None:
        """Writes what the recipe decides over the launcher's config: the batch is never read from there."""
        self._config.update(
            train_micro_batch_size_per_gpu=shape.micro_batch_packs,
            gradient_accumulation_steps=shape.accumulation,
            train_batch_size=shape.micro_batch_packs * shape.accumulation * self.group.world_size,
            gradient_clipping=max_grad_norm,
            zero_allow_untested_optimizer=True,
        )
        if self._config.get("bf16", {}).get("enabled"):
            # bf16 has 8 bits of mantissa: a sum over many micro-steps would lose the small gradients.
            self._config.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
        zero = self._config["zero_optimization"]
        defaults = _ZERO_DEFAULTS | (_ZERO3_DEFAULTS if self.stage == 3 else {})
        for name, value in defaults.items():
            if zero.get(name, "auto") == "auto":
                zero[name] = value

    def forward(self, batch: Any) -> Any:
        return self._engine(batch)

    def micro_step(self, is_last: bool) -> AbstractContextManager[None]:
        self._engine.set_gradient_accumulation_boundary(is_last)
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        self._engine.backward(loss, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> StepOutcome:
        set_learning_rate(self._optimizer.param_groups, learning_rate)
        self._engine.step()
        norm = self._engine.get_global_grad_norm()
        return StepOutcome(float("nan") if norm is None else float(norm), not self._engine.optimizer.overflow)

    def state_dict(self, model: nn.Module) -> dict[str, torch.Tensor]:
        state: dict[str, torch.Tensor] = {}
        first_name: dict[int, str] = {}  # tied weights stay one tensor, so that they are written once
        for name, value in model.state_dict(keep_vars=True).items():
            first = first_name.setdefault(id(value), name)
            with self._reading(value):
                if self.group.is_main:
                    state[name] = state[first] if first != name else value.detach().cpu().clone()
        return state

    def _reading(self, value: torch.Tensor) -> AbstractContextManager[None]:
        if not hasattr(value, "ds_id"):
            return nullcontext()
        import deepspeed

        context: AbstractContextManager[None] = deepspeed.zero.GatheredParameters([value])
        return context

    def save(self, directory: Path) -> None:
        self._engine.save_checkpoint(str(directory), tag=_TAG, save_latest=False)

    def load(self, directory: Path) -> None:
        with keeping_hyperparameters(self._optimizer):
            self._engine.load_checkpoint(str(directory), tag=_TAG)


def _check_config(config: dict[str, Any], stage: int) -> None:
    faults = []
    if stage not in (1, 2, 3):
        faults.append(
            f"the DeepSpeed config asks for ZeRO stage {stage}, which does not skip steps with non-finite gradients. "
            "Use stage 1, 2 or 3, or start without DeepSpeed (DDP)."
        )
    faults += [
        f"the DeepSpeed config holds {name!r}. Delete it there: the recipe decides it."
        for name in ("optimizer", "scheduler")
        if name in config
    ]
    if config.get("fp16", {}).get("enabled") is True:
        faults.append("the DeepSpeed config enables fp16, which is not supported. Use bf16 in the recipe.")
    if faults:
        raise RecipeError(*faults)
