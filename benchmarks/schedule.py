"""Draws per second of the schedule at 1,838 tasks, beside `datasets.interleave_datasets` at the same number."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np

from flan_tune.mixtures.schedule import BLOCK_DRAWS, Schedule

TASKS, ROUNDS, DRAWS, PEER_DRAWS = 1838, 5, 40 * BLOCK_DRAWS, 20_000


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main() -> None:
    from datasets import Dataset, interleave_datasets

    rng = np.random.default_rng(0)
    shares = (rng.random(TASKS) + 1e-3).tolist()
    schedule = Schedule([f"t{i}" for i in range(TASKS)], shares, rng.integers(50, 60_000, TASKS).tolist(), seed=0)
    rows = Dataset.from_dict({"row": list(range(100))})
    probabilities = (np.array(shares) / sum(shares)).tolist()

    def peer() -> int:
        mixed = interleave_datasets(
            [rows] * TASKS, probabilities=probabilities, seed=0, stopping_strategy="first_exhausted"
        )
        return len(mixed)

    ours, theirs, peer_draws = [], [], peer()
    for _ in range(ROUNDS):
        ours.append(DRAWS / seconds(lambda: schedule.draws(0, DRAWS)))
        theirs.append(peer_draws / seconds(peer))
    seek = statistics.median(seconds(lambda: schedule.draws(10**9, 1)) for _ in range(ROUNDS))
    a, b = statistics.median(ours), statistics.median(theirs)
    print(f"schedule              {a:12,.0f} draws/s at {TASKS} tasks; a seek to draw 10^9 takes {seek * 1e3:.1f} ms")
    print(f"interleave_datasets   {b:12,.0f} draws/s to build its index of {peer_draws:,} rows, in memory")
    print(f"ratio                 {a / b:12.1f}")


if __name__ == "__main__":
    main()
