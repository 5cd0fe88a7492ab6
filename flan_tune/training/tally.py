"""Sums since the last log line, and the line they become. MFU too, where the device's peak is known (flops.py).

Sums stay on the device and are added over ranks only when a line is written or a checkpoint is saved.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from flan_tune.training.process_group import ProcessGroup

_LOSS, _TOKENS, _FLOPS, _FAMILIES = 0, 1, 2, 3


class StepSums:
    """One rank's sums of one step, on the device: the loss, and per family the token losses and their number."""

    def __init__(self, num_families: int, device: torch.device) -> None:
        self.vector = torch.zeros(_FAMILIES + 2 * num_families, dtype=torch.float64, device=device)
        self._num_families = num_families

    @property
    def loss(self) -> torch.Tensor:
        """The weighted loss summed so far, float64."""
        return self.vector[_LOSS]

    def add(self, loss_sum: torch.Tensor, token_losses_N: torch.Tensor, family_N: torch.Tensor) -> None:
        """Adds one micro-step."""
        losses, targets = self.vector[_FAMILIES:].split(self._num_families)
        self.vector[_LOSS] += loss_sum.detach()
        losses.index_add_(0, family_N, token_losses_N.double())
        targets.index_add_(0, family_N, torch.ones_like(token_losses_N, dtype=torch.float64))


@dataclass
class Tally:
    """What happened since the last line. Its state goes into checkpoints, so a resumed run writes the same lines.

    The vector belongs to this rank; the plain numbers are the same on all ranks, but for the two of time.
    """

    families: tuple[str, ...]
    group: ProcessGroup
    steps: int = 0
    denominator: int = 0
    targets: int = 0
    seconds: float = 0.0
    waited_seconds: float = 0.0
    vector: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.vector = StepSums(len(self.families), self.group.device).vector

    def count(self, tokens: int, flops: float, targets: int, seconds: float, waited_seconds: float) -> None:
        """Counts a step that ran, applied or not: `tokens` and `flops` of this rank, `targets` of all."""
        self.steps += 1
        self.vector[_TOKENS] += tokens
        self.vector[_FLOPS] += flops
        self.targets += targets
        self.seconds += seconds
        self.waited_seconds += waited_seconds

    def learn(self, sums: StepSums, denominator: int) -> None:
        """Adds the losses of a step that was applied; `denominator` is what its loss was divided by."""
        self.vector += sums.vector
        self.denominator += denominator

    def state(self) -> dict[str, Any]:
        """The sums over all ranks, as plain values. Collective; afterwards rank 0 holds them all, so that this run
        and one that resumes from here go on adding in the same order."""
        total = self.group.sum(self.vector)
        self.vector = total if self.group.is_main else torch.zeros_like(total)
        names = ("steps", "denominator", "targets", "seconds", "waited_seconds")
        return {name: getattr(self, name) for name in names} | {"vector": total.tolist()}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from `state`."""
        for name, value in state.items():
            if name != "vector":
                setattr(self, name, value)
        if self.group.is_main:
            self.vector = torch.tensor(state["vector"], dtype=torch.float64, device=self.group.device)

    def line(self, positions: int, peak_per_second: float | None) -> dict[str, Any]:
        """The metrics since the last line, the same on all ranks; then everything begins at zero. Collective.

        positions: of one step, padding included. peak_per_second: FLOPs of one device, None = unknown.
        loss is the mean over all steps that were applied, in nats.
        """
        total = self.group.sum(self.vector).tolist()
        seconds = max(self.seconds, 1e-9)
        line: dict[str, Any] = {
            "loss": total[_LOSS] / self.denominator if self.denominator else None,
            "tokens_per_second": total[_TOKENS] / seconds,
            "target_tokens_per_second": self.targets / seconds,
            "fill": total[_TOKENS] / (positions * max(self.steps, 1)),
            "loader_wait_share": self.waited_seconds / seconds,
            "seconds": self.seconds,
            "seconds_per_step": self.seconds / max(self.steps, 1),
            "loss_by_family": self._loss_by_family(total[_FAMILIES:]),
        }
        if peak_per_second is not None and total[_FLOPS]:
            line["mfu"] = total[_FLOPS] / seconds / (peak_per_second * self.group.world_size)
        self.steps = self.denominator = self.targets = 0
        self.seconds = self.waited_seconds = 0.0
        self.vector = torch.zeros_like(self.vector)
        return line

    def _loss_by_family(self, sums: list[float]) -> dict[str, float]:
        losses, targets = sums[: len(self.families)], sums[len(self.families) :]
        return {n: loss / t for n, loss, t in zip(self.families, losses, targets, strict=True) if t}
