"""Best-fit-decreasing bin packing of the segments of one window.

    lengths 7 5 4 3 1, capacity 10:   7+3 | 5+4+1      fill 1.0

Longest first, each segment goes to the fullest bin it fits into. The order of bins that comes out is long-first,
so callers must permute it: unpermuted it makes waves in the loss.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def pack_bins(lengths: npt.ArrayLike, capacity: int, max_items: int = 256) -> list[list[int]]:
    """Bins of indices into `lengths`; every index once, no bin longer than `capacity` or with over `max_items`.

    Bins with the same space left are a stack under that number; a bit set over the numbers finds the best fit.
    Raises: ValueError if a length is not in [1, capacity].

    >>> pack_bins([7, 5, 4, 3, 1], 10)
    [[0, 3], [1, 2, 4]]
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if len(sizes) and not (sizes.min() >= 1 and sizes.max() <= capacity):
        raise ValueError(f"lengths must lie in [1, {capacity}], found {sizes.min()} to {sizes.max()}")
    bins: list[list[int]] = []
    by_space: list[list[int]] = [[] for _ in range(capacity + 1)]
    spaces = 0  # bit s is set when a bin with s tokens left is open
    for index in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[index])
        fitting = spaces >> size
        if fitting:
            space = size + (fitting & -fitting).bit_length() - 1
            number = by_space[space].pop()
            if not by_space[space]:
                spaces ^= 1 << space
        else:
            space, number = capacity, len(bins)
            bins.append([])
        bins[number].append(index)
        left = space - size
        if left and len(bins[number]) < max_items:
            by_space[left].append(number)
            spaces |= 1 << left
    return bins
