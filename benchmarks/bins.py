"""Segments packed per second and fill, beside the plain best-fit-decreasing loop on the same lengths."""

from __future__ import annotations

import statistics
import time

import numpy as np

from flan_tune.packing.bins import pack_bins

CAPACITY, WINDOW, ROUNDS = 2048, 10_000, 5


def plain_bins(lengths: list[int], capacity: int) -> list[list[int]]:
    """Best-fit-decreasing as one would write it: every open bin is looked at for every segment."""
    bins: list[list[int]] = []
    spaces: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        fitting = [(space, number) for number, space in enumerate(spaces) if space >= lengths[index]]
        if fitting:
            _, number = min(fitting)
            bins[number].append(index)
            spaces[number] -= lengths[index]
        else:
            bins.append([index])
            spaces.append(capacity - lengths[index])
    return bins


def main() -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.9, 0.8, WINDOW).astype(int), 8, CAPACITY)
    ours, plain = [], []
    for _ in range(ROUNDS):
        started = time.perf_counter()
        bins = pack_bins(lengths, CAPACITY)
        middle = time.perf_counter()
        reference = plain_bins(lengths.tolist(), CAPACITY)
        ours.append(WINDOW / (middle - started))
        plain.append(WINDOW / (time.perf_counter() - middle))
    a, b = statistics.median(ours), statistics.median(plain)
    fill = [float(lengths.sum()) / (len(one) * CAPACITY) for one in (bins, reference)]
    print(f"pack_bins   {a:12,.0f} segments/s, fill {fill[0]:.4f}  (log-normal lengths, mean {lengths.mean():.0f})")
    print(f"plain loop  {b:12,.0f} segments/s, fill {fill[1]:.4f}")
    print(f"ratio       {a / b:12.1f}")


if __name__ == "__main__":
    main()
