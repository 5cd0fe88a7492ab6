"""Which packs a rank reads for a step, and reading them one step ahead.

Step s consumes packs [s * G, (s + 1) * G) whatever the number of ranks; what a pack becomes is collate's affair
(models/collate.py). One thread reads and collates the next step while this one trains: packs are tokenised already,
so there is little to do, and the loop measures what it had to wait.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from flan_tune.errors import StreamError
from flan_tune.models.collate import Batch, DecoderShape, collate
from flan_tune.models.lowering import Lowering
from flan_tune.packing.store import Pack
from flan_tune.training.engine import BatchShape
from flan_tune.training.flops import Work


class Packs(Protocol):
    """What training needs of a pack store; `packing.store.PackReader` has it."""

    num_packs: int
    manifest: dict[str, Any]

    @property
    def target_tokens(self) -> npt.NDArray[np.int32]: ...
    @property
    def num_segments(self) -> npt.NDArray[np.int32]: ...
    def pack(self, number: int) -> Pack: ...


@dataclass(frozen=True)
class MicroBatch:
    """One forward's worth on one rank. `family_of_target`: the family's number, int64 [N], in the batch's order."""

    first_pack: int
    batch: Batch
    family_of_target: torch.Tensor


@dataclass(frozen=True)
class StepBatches:
    """This rank's part of a step, and what it is to compute."""

    step: int
    micro_batches: tuple[MicroBatch, ...]
    work: Work


def derive_shape(global_batch_size: int, per_device: int, world_size: int) -> BatchShape:
    """The micro-steps that make `global_batch_size` packs out of `world_size` ranks with `per_device` packs each.

    >>> derive_shape(16, per_device=2, world_size=4)
    BatchShape(micro_batch_packs=2, accumulation=2)

    Raises: StreamError if it does not divide, with a number that would.
    """
    at_once = per_device * world_size
    if global_batch_size < at_once or global_batch_size % at_once:
        near = max(round(global_batch_size / at_once), 1) * at_once
        raise StreamError(
            f"global_batch_size is {global_batch_size} packs, but {world_size} processes x "
            f"per_device_train_batch_size {per_device} = {at_once} packs at once, which does not divide it. "
            f"Use global_batch_size {near}, another per_device_train_batch_size, or another number of processes."
        )
    return BatchShape(per_device, global_batch_size // at_once)


def pack_numbers(step: int, micro_step: int, rank: int, shape: BatchShape, world_size: int) -> range:
    """The packs that `rank` reads in one micro-step: neighbours go to neighbouring ranks.

    Together, the micro-steps and ranks of a step read packs [step * G, (step + 1) * G), each once:

    >>> shape = BatchShape(micro_batch_packs=2, accumulation=2)   # 2 ranks, G = 8, step 3 reads 24 to 31
    >>> [list(pack_numbers(3, j, r, shape, 2)) for j in (0, 1) for r in (0, 1)]
    [[24, 25], [26, 27], [28, 29], [30, 31]]
    """
    slot = (step * shape.accumulation + micro_step) * world_size + rank
    return range(slot * shape.micro_batch_packs, (slot + 1) * shape.micro_batch_packs)


@dataclass(frozen=True)
class BatchReader:
    """Makes the batches of any step for one rank. `family_of_task[i]` is the family's number of task i.

    decoder: of an encoder-decoder; None for a decoder. It has to be what the packs were made for.
    """

    packs: Packs
    shape: BatchShape
    rank: int
    world_size: int
    pad_id: int
    attention: str
    loss_normalization: str
    family_of_task: npt.NDArray[np.int64]
    lowering: Lowering | None = None
    decoder: DecoderShape | None = None

    def read(self, step: int) -> StepBatches:
        """The batches of `step`."""
        read = [
            [self.packs.pack(n) for n in pack_numbers(step, j, self.rank, self.shape, self.world_size)]
            for j in range(self.shape.accumulation)
        ]
        first = [pack_numbers(step, j, self.rank, self.shape, self.world_size)[0] for j in range(len(read))]
        every = [pack for packs in read for pack in packs]
        return StepBatches(
            step,
            tuple(self._collate(number, packs) for number, packs in zip(first, read, strict=True)),
            sum((self._work(pack) for pack in every), start=Work()),
        )

    def _work(self, pack: Pack) -> Work:
        lengths, prefixes = pack.segment_lengths.astype(np.float64), pack.prefix_lengths.astype(np.float64)
        if self.decoder is None:
            # Half of each segment's square, and under prefix_lm the other half of its prefix's.
            pairs = lengths**2 / 2 + (prefixes**2 / 2 if self.attention == "prefix_lm" else 0.0)
            return Work(len(pack.input_ids), pack.target_tokens, float(pairs.sum()))
        targets = lengths - prefixes
        pairs = targets**2 / 2 + targets * prefixes  # among themselves, and with the encoder's
        return Work(
            int(targets.sum()), pack.target_tokens, float(pairs.sum()), int(prefixes.sum()), float((prefixes**2).sum())
        )

    def _collate(self, first_pack: int, packs: Sequence[Pack]) -> MicroBatch:
        batch = collate(
            packs,
            max_length=int(self.packs.manifest["max_length"]),
            pad_id=self.pad_id,
            attention=self.attention,
            loss_normalization=self.loss_normalization,
            lowering=self.lowering,
            decoder=self.decoder,
        )
        return MicroBatch(first_pack, batch, self._families(packs, batch))

    def _families(self, packs: Sequence[Pack], batch: Batch) -> torch.Tensor:
        position_N = batch.target_positions.numpy()
        row_N = position_N // batch.input_ids.shape[1]
        number_N = batch.spec.segment_ids.numpy().reshape(-1)[position_N]  # 1, 2, ... within the row
        first_B = np.cumsum([0, *(len(pack.task) for pack in packs)])[:-1]
        task_S = np.concatenate([np.asarray(pack.task) for pack in packs])
        return torch.from_numpy(self.family_of_task[task_S[first_B[row_N] + number_N - 1]])


def prefetched(read: Callable[[int], StepBatches], start: int, stop: int) -> Iterator[tuple[StepBatches, float]]:
    """The batches of steps start..stop-1, and the seconds waited for each, read one step ahead in one thread."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches") as pool:
        coming = pool.submit(read, start) if start < stop else None
        for step in range(start, stop):
            assert coming is not None
            before = time.perf_counter()
            batches = coming.result()
            waited = time.perf_counter() - before
            coming = pool.submit(read, step + 1) if step + 1 < stop else None
            yield batches, waited
