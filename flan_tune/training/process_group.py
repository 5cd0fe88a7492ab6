"""The few words processes say to each other outside the engine: sums, flags, one rank's choice, barriers.

One process without torch.distributed answers for itself, so the rest of the room never asks how many there are.
Gradients and parameters travel inside the engine, not here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class ProcessGroup:
    """This process among all: `rank` in [0, world_size). Every method but the properties is collective."""

    rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone prints, logs and decides."""
        return self.rank == 0

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of `value` over all ranks, the same on each; `value` itself is left as it was."""
        total = value.clone()
        if self.world_size > 1:
            dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank."""
        if self.world_size == 1:
            return flag
        return bool(self.sum(torch.tensor([float(flag)], device=self.device)).item() > 0)

    def gather_if_any(self, value: Any) -> list[Any]:
        """Every rank's `value` if one of them is true in Python's sense, else []: cheap as long as none is."""
        return self.gather(value) if self.any(bool(value)) else []

    def broadcast(self, value: Any) -> Any:
        """Rank 0's `value` (a small object that pickles), on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's `value` (a small object that pickles), in order of rank, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Waits until every rank is here."""
        if self.world_size > 1:
            dist.barrier()
