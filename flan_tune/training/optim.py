"""Optimizers by their Hugging Face names, and the learning rate as a pure function of the step.

There is no scheduler object with a state of its own: the loop asks `learning_rate` for every step, so that a
resumed run, a longer run and a plot all read the same curve.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from flan_tune.errors import RecipeError, did_you_mean

OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor")
SCHEDULES = ("constant", "linear", "cosine")


def learning_rate(
    step: int, *, peak: float, schedule: str, warmup_steps: int, max_steps: int, final_ratio: float = 0.0
) -> float:
    """The learning rate of update `step`, counted from 0.

    peak: the rate at the end of the warm-up. final_ratio: in [0, 1], the rate reached at `max_steps`, as a share
        of the peak; `constant` does not use it.
    Where we differ from transformers: the first update has peak / warmup_steps and not 0, so that no data is
    spent on an update of nothing.

    >>> [learning_rate(s, peak=1.0, schedule="linear", warmup_steps=2, max_steps=6) for s in range(6)]
    [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min((step - warmup_steps) / max(max_steps - warmup_steps, 1), 1.0)
    if schedule == "constant":
        return peak
    if schedule == "linear":
        return peak * (1.0 - (1.0 - final_ratio) * progress)
    if schedule == "cosine":
        return peak * (final_ratio + (1.0 - final_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress)))
    raise RecipeError(
        f"lr_scheduler_type {schedule!r} is not one of {', '.join(SCHEDULES)}.{did_you_mean(schedule, SCHEDULES)}"
    )


def create_optimizer(
    model: nn.Module,
    *,
    optim: str,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    epsilon: float = 1e-8,
    is_partitioned: bool = False,
) -> torch.optim.Optimizer:
    """The optimizer `optim` over the trainable parameters of `model`.

    Weight decay leaves out biases and norms, as usual: every parameter with fewer than two dimensions.
    is_partitioned: whether the engine hands the optimizer flat parts of the parameters (ZeRO). AdamW does not
        notice. Adafactor cannot factor what is flat: it then keeps a full second moment (as much memory as Adam's)
        and is not quite the same optimizer (loss 5.559825 against 5.560615 after 5 steps of a tiny model).
    Source: Adafactor as the papers set it, with an outer learning rate (arXiv:2210.11416, appendix E).
    """
    groups = _decay_groups(model, weight_decay)
    if optim == "adafactor":
        return _create_adafactor(groups, learning_rate, is_partitioned)
    if optim in ("adamw_torch", "adamw_torch_fused"):
        fused = optim == "adamw_torch_fused" or torch.cuda.is_available()
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, eps=epsilon, fused=fused or None)
    raise RecipeError(f"optim {optim!r} is not one of {', '.join(OPTIMIZERS)}.{did_you_mean(optim, OPTIMIZERS)}")


def _create_adafactor(
    groups: list[dict[str, Any]], learning_rate: float, is_partitioned: bool
) -> torch.optim.Optimizer:
    from transformers.optimization import Adafactor

    if is_partitioned:
        warnings.warn(
            "optim 'adafactor' under ZeRO works on flat partitions: its second moment is not factored, so it saves "
            "no memory over AdamW and differs slightly from Adafactor in one process. Use adamw_torch, or no ZeRO.",
            stacklevel=2,
        )
    optimizer: torch.optim.Optimizer = Adafactor(
        groups, lr=learning_rate, scale_parameter=False, relative_step=False, warmup_init=False
    )
    return optimizer


def _decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    trainable = [p for p in model.parameters() if p.requires_grad]
    decayed = [p for p in trainable if _num_dimensions(p) >= 2]
    plain = [p for p in trainable if _num_dimensions(p) < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _num_dimensions(parameter: nn.Parameter) -> int:
    """Dimensions of the whole parameter: a part of one under ZeRO-3 is always flat and remembers its shape."""
    return len(getattr(parameter, "ds_shape", parameter.shape))


def set_learning_rate(groups: Iterable[dict[str, Any]], value: float) -> None:
    """Gives every parameter group the learning rate `value`."""
    for group in groups:
        group["lr"] = value
