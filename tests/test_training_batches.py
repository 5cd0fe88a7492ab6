"""Which packs make a step, whatever the number of ranks, and what a rank reads of them."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from training_worker import FAMILIES, TinyPacks

from flan_tune.errors import StreamError
from flan_tune.models.collate import DecoderShape
from flan_tune.training.batches import BatchReader, StepBatches, derive_shape, pack_numbers, prefetched
from flan_tune.training.engine import BatchShape
from flan_tune.training.flops import Work


def test_the_examples_in_the_docstrings() -> None:
    assert derive_shape(16, per_device=2, world_size=4) == BatchShape(micro_batch_packs=2, accumulation=2)
    shape = BatchShape(micro_batch_packs=2, accumulation=2)
    numbers = [list(pack_numbers(3, j, r, shape, 2)) for j in (0, 1) for r in (0, 1)]
    assert numbers == [[24, 25], [26, 27], [28, 29], [30, 31]]


@given(st.integers(1, 4), st.integers(1, 8), st.integers(1, 5), st.integers(0, 1000))
def test_a_step_reads_its_packs_each_once(per_device: int, world_size: int, accumulation: int, step: int) -> None:
    size = per_device * world_size * accumulation
    shape = derive_shape(size, per_device, world_size)
    read = [
        number
        for micro_step in range(shape.accumulation)
        for rank in range(world_size)
        for number in pack_numbers(step, micro_step, rank, shape, world_size)
    ]
    assert sorted(read) == list(range(step * size, (step + 1) * size))


@pytest.mark.parametrize(("size", "per_device", "world_size", "near"), [(10, 2, 4, 8), (2, 2, 4, 8), (13, 3, 2, 12)])
def test_a_batch_that_does_not_divide_is_refused_with_the_numbers(
    size: int, per_device: int, world_size: int, near: int
) -> None:
    with pytest.raises(StreamError) as caught:
        derive_shape(size, per_device, world_size)
    message = str(caught.value)
    assert f"global_batch_size is {size} packs" in message
    assert f"{world_size} processes x per_device_train_batch_size {per_device}" in message
    assert f"Use global_batch_size {near}" in message


def reader(per_device: int, accumulation: int, attention: str = "causal", encoder_decoder: bool = False) -> BatchReader:
    packs = TinyPacks(16, encoder_decoder)
    families = [FAMILIES.index(task["family"]) for task in packs.manifest["tasks"]]
    decoder = DecoderShape(packs.manifest["max_target_length"], start_id=0) if encoder_decoder else None
    return BatchReader(
        packs,
        BatchShape(per_device, accumulation),
        0,
        1,
        0,
        attention,
        "token",
        np.array(families, dtype=np.int64),
        decoder=decoder,
    )


@pytest.mark.parametrize("encoder_decoder", [False, True])
@pytest.mark.parametrize("per_device", [1, 2, 4])
def test_every_target_carries_the_family_of_its_segment(per_device: int, encoder_decoder: bool) -> None:
    batches = reader(per_device, 4 // per_device, encoder_decoder=encoder_decoder).read(2)
    packs = TinyPacks(16, encoder_decoder)
    expected = []
    for pack in (packs.pack(number) for number in range(8, 12)):
        targets = pack.segment_lengths - np.maximum(pack.prefix_lengths, 1)
        expected += [int(t) % 3 for t, n in zip(pack.task, targets, strict=True) for _ in range(n)]
    found = [int(f) for micro_batch in batches.micro_batches for f in micro_batch.family_of_target]
    assert found == expected
    assert batches.work.all_tokens == sum(len(packs.pack(number).input_ids) for number in range(8, 12))


@pytest.mark.parametrize("encoder_decoder", [False, True])
def test_the_denominators_count_what_has_a_label(encoder_decoder: bool) -> None:
    """The loss is divided by counts of the manifest; its sum runs over the labels of the batches."""
    reads = reader(2, 2, encoder_decoder=encoder_decoder)
    for step in range(4):
        batches = reads.read(step)
        labels = sum(len(micro_batch.batch.target_positions) for micro_batch in batches.micro_batches)
        assert labels == reads.packs.target_tokens[4 * step : 4 * step + 4].sum() == batches.work.targets


def test_attention_pairs_count_the_prefix_twice() -> None:
    pack = TinyPacks(1).pack(0)
    squares, prefixes = (pack.segment_lengths.astype(float) ** 2).sum(), (pack.prefix_lengths.astype(float) ** 2).sum()
    assert reader(1, 1).read(0).work.pairs == squares / 2
    assert reader(1, 1, "prefix_lm").read(0).work.pairs == (squares + prefixes) / 2


def test_work_of_an_encoder_decoder_is_told_by_side() -> None:
    """By the masks themselves, but for the half of a square that is a token with itself."""
    reads = reader(1, 1, encoder_decoder=True)
    batches = reads.read(0)
    batch = batches.micro_batches[0].batch
    assert batch.encoder is not None
    decoder_D, encoder_E = batch.spec.segment_ids[0], batch.encoder.spec.segment_ids[0]
    real_D, real_E = decoder_D[decoder_D > 0], encoder_E[encoder_E > 0]
    within = (real_D[:, None] == real_D).tril().sum() - len(real_D) / 2
    across = (real_D[:, None] == real_E).sum()
    itself = (real_E[:, None] == real_E).sum()
    assert batches.work == Work(len(real_D), len(real_D), within + across, len(real_E), itself)


def test_prefetching_keeps_the_order_and_measures_the_wait() -> None:
    def read(step: int) -> StepBatches:
        time.sleep(0.02)
        return StepBatches(step, (), Work())

    found = list(prefetched(read, 3, 7))
    assert [batches.step for batches, _ in found] == [3, 4, 5, 6]
    assert all(0 <= waited < 1 for _, waited in found)
    assert found[0][1] > 0.01
    assert list(prefetched(read, 3, 3)) == []


def test_an_error_while_reading_reaches_the_loop() -> None:
    def read(step: int) -> StepBatches:
        raise StreamError(f"step {step}: the shard is missing.")

    with pytest.raises(StreamError, match="step 0: the shard is missing"):
        next(prefetched(read, 0, 2))
