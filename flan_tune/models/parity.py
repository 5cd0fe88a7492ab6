"""Whether a model trains on packs as it would on their segments alone, and whatever way a step is cut into batches.

For `flan-tune verify`: the real model, back-end and packs, in one process. Dropout is off throughout. Gradients are
compared in the embeddings and the first layer only (of the encoder and of the decoder, where there are both): whatever
goes wrong in any layer's backward pass arrives there, and two copies of all gradients need not fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from flan_tune.models.collate import BarePack, Batch, PackLike
from flan_tune.models.forward import activation_dtype, layers_of
from flan_tune.models.loss import TargetLoss

MakeBatch = Callable[[Sequence[PackLike]], Batch]
"""Packs to a batch on the model's device, as training does it."""

# Shares of the losses' spread and of the gradient's norm that rounding may explain.
_BY_ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-5}  # losses are float32 in either case
_BY_ROUNDING_HALF_PRECISION = 0.1


@dataclass(frozen=True)
class Parity:
    """How far two computations of the same thing lie apart.

    loss: mean difference of the losses of a target, as a share of their standard deviation. gradient: norm of the
    difference over the norm; None = not computed, because the back-end has no backward pass here. tolerance: what
    rounding may explain, of either. targets: how many were compared.
    """

    loss: float
    gradient: float | None
    targets: int
    tolerance: float

    @property
    def holds(self) -> bool:
        """Whether rounding explains both."""
        return self.worst <= self.tolerance

    @property
    def worst(self) -> float:
        """The larger of the two."""
        return max(self.loss, self.gradient or 0.0)


def packed_against_alone(loss: TargetLoss, packs: Sequence[PackLike], make_batch: MakeBatch, trains: bool) -> Parity:
    """Losses and gradients of packs, and of their segments, each in a row of its own."""
    with _steady(loss):
        packed = _run(loss, [make_batch([pack]) for pack in packs], trains)
        alone = _run(loss, (make_batch([one]) for pack in packs for one in segments_of(pack)), trains)
        return _parity(loss, packed, alone)


def segments_of(pack: PackLike) -> Iterator[BarePack]:
    """Each segment of a pack as a pack of its own."""
    start = 0
    for length, prefix in zip(pack.segment_lengths.tolist(), pack.prefix_lengths.tolist(), strict=True):
        ids = np.asarray(pack.input_ids)[start : start + length]
        yield BarePack(ids, np.array([length], dtype=np.int32), np.array([prefix], dtype=np.int32))
        start += length


def accumulation_parity(loss: TargetLoss, packs: Sequence[PackLike], make_batch: MakeBatch, trains: bool) -> Parity:
    """The worst of all ways to make one step of `packs`: (processes, micro-steps, packs at once) with that product.

    A process's loss is scaled by processes / targets of the step, and gradients are averaged over processes, as the
    training loop does it.
    """
    count = len(packs)
    ways = [(w, at_once) for w in _divisors(count) for at_once in _divisors(count // w)]
    with _steady(loss):
        runs = [_step(loss, packs, make_batch, trains, *way) for way in ways]
        worst = [_parity(loss, runs[0], other) for other in runs[1:]]
    return max(worst, key=lambda parity: parity.worst)


def _divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


@dataclass
class _Run:
    """token_losses in the order of the batches; gradients of the parameters compared."""

    token_losses: Tensor
    gradients: list[Tensor] | None


def _run(loss: TargetLoss, batches: Iterator[Batch] | list[Batch], trains: bool, scale: float = 1.0) -> _Run:
    parameters = _compared(loss)
    losses, sums = [], [torch.zeros_like(p, dtype=torch.float32) for p in parameters] if trains else None
    for batch in batches:
        with torch.set_grad_enabled(trains):
            output = loss(batch)
        losses.append(output.token_losses_N.float())
        if sums is not None:
            found = torch.autograd.grad(output.loss_sum * scale, parameters, materialize_grads=True, allow_unused=True)
            for total, gradient in zip(sums, found, strict=True):
                total += gradient
    return _Run(torch.cat(losses), sums)


def _step(
    loss: TargetLoss, packs: Sequence[PackLike], make_batch: MakeBatch, trains: bool, processes: int, at_once: int
) -> _Run:
    share = [range(rank * at_once, len(packs), processes * at_once) for rank in range(processes)]
    scale = processes / _targets_of(packs)
    ranks = [
        _run(loss, (make_batch(packs[start : start + at_once]) for start in starts), trains, scale) for starts in share
    ]
    # Losses in the order of packs, whichever process had them.
    places = [start for starts in share for start in starts]
    lengths = [_targets_of(packs[start : start + at_once]) for start in places]
    parts = torch.cat([run.token_losses for run in ranks]).split(lengths)
    in_order = torch.cat([part for _, part in sorted(zip(places, parts, strict=True), key=lambda pair: pair[0])])
    if not trains:
        return _Run(in_order, None)
    gradients = zip(*(run.gradients or [] for run in ranks), strict=True)
    return _Run(in_order, [sum(parts) / processes for parts in gradients])  # type: ignore[misc]


def _targets_of(packs: Sequence[PackLike]) -> int:
    return sum(int((pack.segment_lengths - np.maximum(pack.prefix_lengths, 1)).sum()) for pack in packs)


def _compared(loss: TargetLoss) -> list[nn.Parameter]:
    first = [layer for layers in layers_of(loss.model) for layer in layers[:1]]
    modules = (loss.model.get_input_embeddings(), *first)
    found = [p for module in modules for p in module.parameters() if p.requires_grad]
    return list({id(p): p for p in found}.values())


def _parity(loss: TargetLoss, one: _Run, other: _Run) -> Parity:
    tolerance = _BY_ROUNDING.get(activation_dtype(loss.model), _BY_ROUNDING_HALF_PRECISION)
    spread = max(float(one.token_losses.std(correction=0)), 1e-6)
    difference = float((one.token_losses - other.token_losses).abs().mean()) / spread
    gradient = None
    if one.gradients is not None and other.gradients is not None:
        squares = [float((a - b).square().sum()) for a, b in zip(one.gradients, other.gradients, strict=True)]
        whole = sum(float(a.square().sum()) for a in one.gradients)
        gradient = float(np.sqrt(sum(squares) / max(whole, 1e-30)))
    return Parity(difference, gradient, len(one.token_losses), tolerance)


@contextmanager
def _steady(loss: TargetLoss) -> Iterator[None]:
    """No dropout; the model is left as it was."""
    was_training = loss.training
    loss.eval()
    try:
        yield
    finally:
        loss.train(was_training)
