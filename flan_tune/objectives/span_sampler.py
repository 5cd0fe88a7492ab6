"""Where hidden spans fall: random compositions, and the two samplers made of them.

A composition is a whole number split into a given number of positive parts, all splits equally likely. The lengths
of the spans are one composition, the gaps between them another. Many rows are drawn at once, in numpy, and each by
its own key. How many tokens and spans a text has is decided in denoise.py.

Shape suffixes: R rows, S spans (all rows one after the other), D draws, P places, T tokens (likewise).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from flan_tune import rng

I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Sampler = Literal["t5", "uniform"]

_NOISE, _CLEAN = 0, 1  # the two draws under one example key


def draw_spans(noise_R: I64, clean_R: I64, num_spans_R: I64, key_R: rng.U64, sampler: Sampler) -> Bools:
    """The masks of all rows one after the other: bool [sum(noise + clean)], True = noise.

    "t5": clean, noise, clean, noise, ...: every row begins clean and ends with noise.
    "uniform": a row may also begin with noise and end clean; spans never touch.
    Every row needs 1 <= spans <= min(noise, clean).
    """
    if not len(num_spans_R):
        return np.zeros(0, dtype=bool)
    return (_t5_masks if sampler == "t5" else _uniform_masks)(noise_R, clean_R, num_spans_R, key_R)


def _t5_masks(noise_R: I64, clean_R: I64, num_spans_R: I64, key_R: rng.U64) -> Bools:
    noise_S, clean_S = _span_and_gap_lengths(noise_R, num_spans_R, clean_R, num_spans_R, key_R)
    return _alternating(clean_S, noise_S)


def _uniform_masks(noise_R: I64, clean_R: I64, num_spans_R: I64, key_R: rng.U64) -> Bools:
    # spans + 1 gaps, the two outer ones may be empty: positive gaps over two tokens more, then one off each outer one.
    num_gaps_R = num_spans_R + 1
    noise_S, gap_S = _span_and_gap_lengths(noise_R, num_spans_R, clean_R + 2, num_gaps_R, key_R)
    last_R = np.cumsum(num_gaps_R) - 1
    first_R = last_R - num_spans_R
    gap_S[first_R] -= 1
    gap_S[last_R] -= 1
    # The gap after a row's last span and the one before the next row's first are one run of clean tokens.
    gap_S[first_R[1:]] += gap_S[last_R[:-1]]
    tail = np.zeros(gap_S[last_R[-1]], dtype=bool)
    return np.concatenate((_alternating(np.delete(gap_S, last_R), noise_S), tail))


def _span_and_gap_lengths(
    noise_R: I64, num_spans_R: I64, clean_R: I64, num_gaps_R: I64, key_R: rng.U64
) -> tuple[I64, I64]:
    """Both compositions of all rows in one go, each under its own key."""
    parts = random_compositions(
        np.concatenate((noise_R, clean_R)),
        np.concatenate((num_spans_R, num_gaps_R)),
        np.concatenate((rng.keys(key_R, _NOISE), rng.keys(key_R, _CLEAN))),
    )
    num_spans = int(num_spans_R.sum())
    return parts[:num_spans], parts[num_spans:]


def _alternating(clean_S: I64, noise_S: I64) -> Bools:
    """clean[0] times False, noise[0] times True, clean[1] times False, ..."""
    runs = np.stack((clean_S, noise_S), axis=1).ravel()
    return np.repeat(np.tile(np.array([False, True]), len(clean_S)), runs)


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
    about 1.5 draws for a place chosen, where shuffling takes one for every token. How many are drawn at once is
    a matter of speed alone; the choice does not depend on it.
    """
    size_R = total_R - 1
    # Leaving out is as good as choosing, and at most half of the places keeps repeated values rare.
    few_R = np.minimum(count_R, size_R - count_R)
    is_chosen_P = np.zeros(int(total_R.sum()), dtype=bool)
    start_R = np.cumsum(total_R) - total_R
    todo, num_draws_R = np.flatnonzero(few_R), few_R * 3 // 2 + 8
    while todo.size:
        done = _mark_first_distinct(
            is_chosen_P, start_R[todo], size_R[todo], few_R[todo], num_draws_R[todo], key_R[todo]
        )
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

    # Of the new draws, which are numbered over all rows, each row keeps its own first `few`.
    new_N = np.flatnonzero(is_new_D)
    upto_R = np.searchsorted(new_N, last_R, side="right")
    before_R = np.concatenate(([0], upto_R[:-1]))
    is_done_R: Bools = upto_R - before_R >= few_R
    kept_R = np.where(is_done_R, few_R, 0)
    kept_K = np.arange(kept_R.sum()) + np.repeat(before_R - (np.cumsum(kept_R) - kept_R), kept_R)
    is_chosen_P[place_D[new_N[kept_K]]] = True
    return is_done_R
