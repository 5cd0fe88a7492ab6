"""How sure a score is: standard errors, Wilson intervals, paired differences.

Items are taken as independent draws from their task. What the papers' tables lack and why small differences there
are not resolved: Miller 2024, "Adding Error Bars to Evals" (arXiv:2411.00640).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from flan_tune import rng
from flan_tune.errors import ScoreError

BOOTSTRAP_DRAWS = 10_000
_Z_95 = 1.959964  # two-sided 95 % of the normal distribution
_CELLS_AT_ONCE = 2_000_000  # of the draws x items table, to bound memory at about 50 MB


@dataclass(frozen=True)
class PairedDifference:
    """Mean of a minus mean of b on the same items, with a 95 % interval. `p_value` is two-sided, in (0, 1]."""

    difference: float
    low: float
    high: float
    p_value: float
    n: int


def standard_error(correct: Sequence[float]) -> float | None:
    """Standard error of the share of right answers, sqrt(p (1 - p) / (n - 1)); None for fewer than two items.

    It is 0 when all answers agree, which says little for small n: use `wilson_interval` there.

    >>> round(standard_error([1, 0, 1, 1, 0]), 4)
    0.2449
    """
    n = len(correct)
    if n < 2:
        return None
    share = sum(correct) / n
    return math.sqrt(share * (1 - share) / (n - 1))


def error_of_mean(errors: Sequence[float | None]) -> float | None:
    """Standard error of the unweighted mean of independent scores; None if one of them has none.

    >>> error_of_mean([3.0, 4.0])
    2.5
    """
    if not errors or any(error is None for error in errors):
        return None
    return math.sqrt(sum(error**2 for error in errors if error is not None)) / len(errors)


def wilson_interval(right: int, n: int, z: float = _Z_95) -> tuple[float, float]:
    """Interval for a share, both ends in [0, 1]: honest for small n and for 0 or n right answers.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".

    >>> tuple(round(end, 3) for end in wilson_interval(0, 20))
    (0.0, 0.161)
    """
    if n < 1 or not 0 <= right <= n:
        raise ScoreError(f"{right} right answers of {n} is not a share.")
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if right == 0 else max(0.0, centre - half)
    return low, 1.0 if right == n else min(1.0, centre + half)


def paired_difference(a: Sequence[float], b: Sequence[float], *, seed: int = 0) -> PairedDifference:
    """Difference of two models on the same items, in the same order, by the bootstrap over items (10,000 draws).

    `a` and `b` hold a score per item (0 or 1). The interval is the 2.5 and 97.5 percentile of resampled means;
    the p-value is twice the smaller share of resampled means on one side of 0, ties counted to both.
    Raises: ScoreError if the lists differ in length or are empty.
    """
    if len(a) != len(b) or len(a) == 0:
        raise ScoreError(f"paired scores need the same items: there are {len(a)} and {len(b)} scores.")
    difference = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    means = _bootstrap_means(difference, seed)
    low, high = np.quantile(means, [0.025, 0.975])
    smaller = min(int((means <= 0).sum()), int((means >= 0).sum()))
    p_value = min(1.0, 2 * (smaller + 1) / (BOOTSTRAP_DRAWS + 1))
    return PairedDifference(float(difference.mean()), float(low), float(high), p_value, len(a))


def _bootstrap_means(values: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.float64]:
    """Means of 10,000 resamples of `values`, with replacement: draw d takes item below(n, (key, d * n + i))."""
    n = len(values)
    base = rng.key(seed, "paired bootstrap", n)
    rows_at_once = max(1, _CELLS_AT_ONCE // n)
    means = []
    for start in range(0, BOOTSTRAP_DRAWS, rows_at_once):
        draws = np.arange(start, min(start + rows_at_once, BOOTSTRAP_DRAWS))
        counters = draws[:, None] * n + np.arange(n)[None, :]
        means.append(values[rng.below(n, base, counters)].mean(axis=1))
    return np.concatenate(means)
