"""Random compositions: a whole number split into a given number of positive parts, all splits equally likely.

This is the random heart of span corruption, many rows at once in numpy. What the parts mean (lengths of noise
spans, lengths of the gaps between them) is in denoise.py.

Shape suffixes: R rows, D draws (all rows one after the other), P places (likewise).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flan_tune import rng

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def random_compositions(total_R: I64, parts_R: I64, key_R: rng.U64) -> I64:
    """The parts of every row, one row after the other: int64 [sum(parts_R)], each part at least 1.

    Row r splits `total_R[r]` into `parts_R[r]` parts (1 <= parts <= total) by `key_R[r]` alone, so a row is the
    same whatever stands beside it. Splitting 4 into 2 gives [1, 3], [2, 2] or [3, 1], each with probability 1/3.

    >>> random_compositions(np.array([4, 5]), np.array([2, 5]), rng.keys(rng.key("doc"), [0, 1]))
    array([1, 3, 1, 1, 1, 1, 1])
    """
    # A split of n into k parts is a choice of k - 1 of the n - 1 inner ends; the end at place n - 1 is always there.
    is_end_P = _random_subsets(total_R, parts_R - 1, key_R)
    is_end_P[np.cumsum(total_R) - 1] = True
    return np.diff(np.flatnonzero(is_end_P), prepend=-1)


def _random_subsets(total_R: I64, count_R: I64, key_R: rng.U64) -> Bools:
    """True at `count_R` of the first `total_R - 1` places of each row, all choices equally likely.

    The chosen ones are the first `count` different values of the row's endless stream of draws. That takes
    about 1.4 draws a place chosen, where shuffling would take one for every token: five times faster at the
    usual rates. The number drawn at once is a matter of speed alone; the choice does not depend on it.
    """
    size_R = total_R - 1
    # Leaving out is as good as choosing, and at most half of the places keeps repeated values rare.
    few_R = np.minimum(count_R, size_R - count_R)
    is_chosen_P = np.zeros(int(total_R.sum()), dtype=bool)
    start_R = np.cumsum(total_R) - total_R
    todo, num_draws_R = np.flatnonzero(few_R), few_R * 3 // 2 + 8
    while todo.size:
        done = _mark_first_distinct(is_chosen_P, start_R[todo], size_R[todo], few_R[todo], num_draws_R[todo], key_R[todo])
        todo, num_draws_R = todo[~done], num_draws_R * 2
    is_left_out_R = count_R > few_R
    if is_left_out_R.any():
        is_chosen_P ^= np.repeat(is_left_out_R, total_R)
        is_chosen_P[start_R + size_R] = False
    return is_chosen_P


def _mark_first_distinct(
    is_chosen_P: Bools, start_R: I64, size_R: I64, few_R: I64, num_draws_R: I64, key_R: rng.U64
) -> Bools:
    """Marks the first `few_R` different draws of each row; False for a row whose draws were too few (unmarked)."""
    last_R = np.cumsum(num_draws_R) - 1
    draw_D = np.arange(last_R[-1] + 1)
    counter_D = draw_D - np.repeat(last_R + 1 - num_draws_R, num_draws_R)
    place_D = rng.below(np.repeat(size_R, num_draws_R), np.repeat(key_R, num_draws_R), counter_D)
    place_D += np.repeat(start_R, num_draws_R)

    first_draw_P = np.empty(len(is_chosen_P), dtype=np.int64)  # read only where it is written
    first_draw_P[place_D[::-1]] = draw_D[::-1]  # of equal places the last write stays: the earliest draw
    is_new_D = first_draw_P[place_D] == draw_D

    num_new_D = np.cumsum(is_new_D)
    before_R = np.concatenate(([0], num_new_D[last_R[:-1]]))
    is_done_R: Bools = num_new_D[last_R] - before_R >= few_R
    limit_R = np.where(is_done_R, before_R + few_R, 0)
    is_chosen_P[place_D[is_new_D & (num_new_D <= np.repeat(limit_R, num_draws_R))]] = True
    return is_done_R
