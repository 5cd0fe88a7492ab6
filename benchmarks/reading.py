"""Tokens read per second: packs from the store through collate, masks and labels included; and how long training waits.

Packs of 2,048 tokens with segments of about 150, in two shards. One process reads steps of 16 packs in random order and
makes what training is given; beside it the plain way, which looks at one token after the other. Then a small model is
trained on the CPU, its batches read one step ahead as training does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from flan_tune.models.load import create_model
from flan_tune.models.loss import TargetLoss
from flan_tune.models.lowering import Lowering
from flan_tune.packing.bins import pack_bins
from flan_tune.packing.store import (
    Pack,
    PackReader,
    count_targets,
    join_content_hashes,
    open_packs,
    write_index,
    write_shard,
    write_vouched,
)
from flan_tune.training.batches import BatchReader, prefetched
from flan_tune.training.engine import BatchShape

LENGTH, SEGMENTS, SHARDS, VOCABULARY, ROUNDS, STEPS = 2048, 7_000, 2, 4096, 5, 12
MODEL = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 344,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def packs_of(shard: int) -> list[Pack]:
    rng = np.random.default_rng(shard)
    lengths = np.clip(rng.lognormal(4.7, 0.8, SEGMENTS).astype(np.int64), 8, LENGTH)
    bins = pack_bins(lengths, LENGTH)
    return [pack_of(lengths[bins[number]].astype(np.int32), rng) for number in range(len(bins))]


def pack_of(lengths: np.ndarray, rng: np.random.Generator) -> Pack:
    number = len(lengths)
    prefixes = (lengths * 0.6).astype(np.int32)
    return Pack(
        input_ids=rng.integers(1, VOCABULARY, int(lengths.sum()), dtype=np.int32),
        segment_lengths=lengths,
        prefix_lengths=prefixes,
        task=rng.integers(0, 1838, number, dtype=np.int32),
        kind=["supervised"] * number,
        row=rng.integers(0, 10**6, number),
        epoch=np.zeros(number, dtype=np.int32),
        template=["entailment/core/answer/3"] * number,
        presentation=["zero_shot"] * number,
        shots=np.zeros(number, dtype=np.int8),
        cut=np.zeros(number, dtype=np.int32),
        target_tokens=count_targets(lengths, prefixes),
    )


def written(folder: Path) -> PackReader:
    summaries = [write_shard(folder, number, packs_of(number), {}) for number in range(SHARDS)]
    manifest = {
        "windows": summaries,
        "index": write_index(folder, SHARDS, summaries),
        "content_hash": join_content_hashes(summaries),
        "max_length": LENGTH,
    }
    write_vouched(folder / "manifest.json", manifest)
    return open_packs(folder)


def plainly(pack: Pack) -> tuple[list[int], list[int], list[int]]:
    """(labels, positions, segment numbers) of one row, token after token."""
    labels, positions, numbers = [-100] * LENGTH, [0] * LENGTH, [0] * LENGTH
    place = 0
    for number, (length, prefix) in enumerate(zip(pack.segment_lengths, pack.prefix_lengths, strict=True), start=1):
        for index in range(int(length)):
            positions[place], numbers[place] = index, number
            if index >= max(int(prefix), 1):
                labels[place - 1] = int(pack.input_ids[place])
            place += 1
    return labels, positions, numbers


def tokens_per_second(work: Callable[[], int]) -> float:
    rates = []
    for _ in range(ROUNDS):
        started = time.process_time()
        tokens = work()
        rates.append(tokens / (time.process_time() - started))
    return statistics.median(rates)


def waited(reader: BatchReader) -> float:
    """The share of the time that training waits for its batches."""
    model = create_model(MODEL, VOCABULARY, seed=0, attn_implementation="sdpa")
    loss = TargetLoss(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    started, waits = time.perf_counter(), 0.0
    for step, wait in prefetched(reader.read, 0, STEPS):
        waits += wait
        for micro in step.micro_batches:
            loss(micro.batch).loss_sum.backward()
        optimizer.step()
        optimizer.zero_grad()
    return waits / (time.perf_counter() - started)


def main() -> None:
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        packs = written(Path(name))

        def reader_of(lowering: Lowering | None, rows: int = 4) -> BatchReader:
            shape = BatchShape(micro_batch_packs=rows, accumulation=16 // rows)
            families = np.zeros(1838, dtype=np.int64)
            return BatchReader(packs, shape, 0, 1, 0, "prefix_lm", "token", families, lowering)

        steps = packs.num_packs // 16
        order = np.random.default_rng(0).permutation(steps).tolist()
        plain = tokens_per_second(
            lambda: sum(len(packs.pack(n).input_ids) for n in range(32) if plainly(packs.pack(n)))
        )
        print(f"{'token after token':32s} {plain / 1e6:8.2f}M tokens/s")
        for label, lowering in (
            ("segment numbers and labels", None),
            ("with bounds of varlen kernels", Lowering("varlen")),
            ("with tables of flex_attention", Lowering("flex_attention")),
        ):
            reader = reader_of(lowering)
            rate = tokens_per_second(lambda: sum(reader.read(step).work.all_tokens for step in order))  # noqa: B023
            print(f"{label:32s} {rate / 1e6:8.2f}M tokens/s, ratio {rate / plain:,.0f}")
        share = waited(reader_of(Lowering("sdpa"), rows=1))
        print(f"training on the CPU waits for its batches {share:.2%} of the time")


if __name__ == "__main__":
    main()
