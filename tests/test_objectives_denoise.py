"""Denoising: laws, T5 as an oracle in plain Python, and the examples of the docstrings."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_tune import rng
from flan_tune.errors import RecipeError, RowError
from flan_tune.objectives import span_sampler
from flan_tune.objectives.denoise import (
    corrupt,
    corrupt_batch,
    corrupt_spans,
    example_key,
    prefix_split,
    prefix_split_keyed,
    prefix_splits,
    random_spans_mask,
    random_spans_mask_keyed,
    random_spans_masks,
    raw_length,
    restore,
    uniform_spans_mask,
)
from flan_tune.objectives.span_sampler import random_compositions

SENTINELS = np.arange(200_000, 199_000, -1)  # descending as in T5, and above 65,535
rates = st.sampled_from([0.0, 1e-9, 0.15, 0.25, 0.3, 0.5, 0.7, 0.85, 0.999, 1.0]) | st.floats(0, 1)
mean_spans = st.sampled_from([1e-3, 0.5, 1.0, 1.5, 3.0, 8.0, 32.0, 64.0, 1e6, float("inf")])
lengths = st.integers(0, 12) | st.integers(0, 400)
samplers = st.sampled_from(["t5", "uniform"])
keys = st.integers(0, 2**64 - 1)


def counts_by_hand(length: int, rate: float, mean_span: float) -> tuple[int, int]:
    """Noise tokens and spans of a text, in plain Python (`round` is half to even on float64)."""
    if length < 2:
        return 0, 0
    noise = min(max(round(length * rate), 1), length - 1)
    spans = noise if mean_span < 1 else max(round(noise / mean_span), 1)
    return noise, min(spans, noise, length - noise)


def spans_of(mask: np.ndarray) -> list[list[int]]:
    """The places of each run of noise."""
    spans: list[list[int]] = []
    for place in np.flatnonzero(mask).tolist():
        if spans and spans[-1][-1] == place - 1:
            spans[-1].append(place)
        else:
            spans.append([place])
    return spans


def corrupt_by_hand(tokens: list[int], mask: list[bool], sentinels: list[int]) -> tuple[list[int], list[int]]:
    """The definition, token by token."""
    inputs, targets, number, in_span = [], [], 0, False
    for token, hidden in zip(tokens, mask, strict=True):
        if hidden and not in_span:
            inputs.append(sentinels[number])
            targets.append(sentinels[number])
            number += 1
        (targets if hidden else inputs).append(token)
        in_span = hidden
    return inputs, targets


# ---- settings ----


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_a_rate_that_is_none_is_refused(rate) -> None:
    with pytest.raises(RecipeError, match="corruption rate"):
        raw_length(64, 3.0, rate, "decoder_only")
    with pytest.raises(RecipeError, match="corruption rate"):
        random_spans_mask_keyed(10, rate, 3.0, 0)


@pytest.mark.parametrize("mean_span", [0.0, -1.0, float("nan")])
def test_a_mean_span_that_is_none_is_refused(mean_span) -> None:
    with pytest.raises(RecipeError, match="mean span"):
        random_spans_mask_keyed(10, 0.15, mean_span, 0)


def test_unknown_names_and_an_endless_length_are_refused() -> None:
    with pytest.raises(RecipeError, match="encoder_decoder, decoder_only"):
        raw_length(64, 3.0, 0.15, "decoder")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="t5, uniform"):
        random_spans_mask_keyed(10, 0.15, 3.0, 0, "t6")  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="nearly every token"):
        raw_length(64, 3.0, 1.0, "encoder_decoder")


# ---- masks ----


@given(lengths, rates, mean_spans, keys, samplers)
def test_a_mask_has_exactly_the_noise_and_the_spans_it_should(length, rate, mean_span, key, sampler) -> None:
    mask = random_spans_mask_keyed(length, rate, mean_span, key, sampler)
    assert mask.shape == (length,)
    assert mask.dtype == bool
    noise, spans = counts_by_hand(length, rate, mean_span)
    assert mask.sum() == noise
    assert len(spans_of(mask)) == spans, "spans are there, not empty and not merged"
    if sampler == "t5" and length >= 2:
        assert not mask[0]
        assert mask[-1]


@given(st.lists(st.tuples(lengths, rates, mean_spans, keys), max_size=8), samplers)
def test_the_batch_is_the_single_example_bit_for_bit(rows, sampler) -> None:
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
    masks = random_spans_masks(columns[0], columns[1], columns[2], np.array(columns[3], dtype=np.uint64), sampler)
    assert len(masks) == len(rows)
    for (length, rate, mean_span, key), mask in zip(rows, masks, strict=True):
        np.testing.assert_array_equal(mask, random_spans_mask_keyed(length, rate, mean_span, key, sampler))


def test_the_generator_gives_one_key_and_the_global_state_is_left_alone() -> None:
    state = np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    generator, other = np.random.default_rng(5), np.random.default_rng(5)
    mask = random_spans_mask(300, 0.15, 3.0, generator)
    np.testing.assert_array_equal(mask, random_spans_mask_keyed(300, 0.15, 3.0, example_key(other)))
    assert prefix_split(300, 0.25, generator) == prefix_split_keyed(300, 0.25, example_key(other))
    shifted = uniform_spans_mask(300, 0.15, 3.0, generator)
    np.testing.assert_array_equal(shifted, random_spans_mask_keyed(300, 0.15, 3.0, example_key(other), "uniform"))
    assert generator.bit_generator.state == other.bit_generator.state
    assert np.random.get_state()[1].tolist() == state  # type: ignore[index, union-attr]


def test_a_mask_is_pinned() -> None:
    mask = random_spans_mask_keyed(40, 0.3, 3.0, rng.key("golden", 1))
    assert "".join("FT"[hidden] for hidden in mask.tolist()) == "FFFFFTTTFFFFFTTTTFFFFFFFFFTTTTFFFFFFFFFT"
    mask = random_spans_mask_keyed(40, 0.3, 3.0, rng.key("golden", 1), "uniform")
    assert "".join("FT"[hidden] for hidden in mask.tolist()) == "FFFFTTTFFFFFFTTTTFFFFFFFFFTTTTFTFFFFFFFF"


def many_masks(number: int, length: int, rate: float, mean_span: float, sampler: str = "t5") -> np.ndarray:
    keys = rng.keys(rng.key("law", length), np.arange(number))
    return np.stack(random_spans_masks([length] * number, rate, mean_span, keys, sampler))  # type: ignore[arg-type]


def assert_equally_likely(masks: np.ndarray, expected: set[tuple[int, ...]]) -> None:
    """Chi-square against the uniform law over `expected`; the limit is five standard deviations of it."""
    found, counts = np.unique(masks.astype(int), axis=0, return_counts=True)
    assert {tuple(row) for row in found.tolist()} == expected
    mean, freedom = len(masks) / len(expected), len(expected) - 1
    assert ((counts - mean) ** 2 / mean).sum() < freedom + 5 * (2 * freedom) ** 0.5


def test_all_masks_of_the_small_case_are_equally_likely() -> None:
    masks = many_masks(20_000, 6, 0.5, 1.5)
    assert_equally_likely(masks, {(0, 1, 0, 0, 1, 1), (0, 0, 1, 0, 1, 1), (0, 1, 1, 0, 0, 1), (0, 0, 1, 1, 0, 1)})


def all_masks(length: int, noise: int, spans: int, ends_free: bool) -> set[tuple[int, ...]]:
    masks = set()
    for number in range(2**length):
        mask = tuple(number >> place & 1 for place in range(length))
        runs = sum(1 for a, b in pairwise((0, *mask)) if (a, b) == (0, 1))
        if sum(mask) == noise and runs == spans and (ends_free or (mask[0] == 0 and mask[-1] == 1)):
            masks.add(mask)
    return masks


@pytest.mark.parametrize(
    ("length", "rate", "mean_span", "noise", "spans"), [(9, 0.5, 2.0, 4, 2), (10, 0.4, 1.0, 4, 4), (9, 0.7, 3.0, 6, 2)]
)
@pytest.mark.parametrize("sampler", ["t5", "uniform"])
def test_all_masks_are_equally_likely(length, rate, mean_span, noise, spans, sampler) -> None:
    expected = all_masks(length, noise, spans, ends_free=sampler == "uniform")
    assert_equally_likely(many_masks(20_000, length, rate, mean_span, sampler), expected)


def mask_of_t5(length: int, rate: float, mean_span: float, draws: random.Random) -> list[bool]:
    """T5's sampler as published: shuffle the ends of both compositions, interleave."""

    def composition(total: int, parts: int) -> list[int]:
        is_end = [place < parts - 1 for place in range(total - 1)]
        draws.shuffle(is_end)
        result = [1]
        for ends in is_end:
            if ends:
                result.append(1)
            else:
                result[-1] += 1
        return result

    noise, spans = counts_by_hand(length, rate, mean_span)
    mask: list[bool] = []
    for clean_run, noise_run in zip(composition(length - noise, spans), composition(noise, spans), strict=True):
        mask += [False] * clean_run + [True] * noise_run
    return mask


def test_the_sampler_has_the_law_of_t5() -> None:
    number = 6000
    masks, draws = many_masks(number, 64, 0.15, 3.0), random.Random(0)
    theirs = np.array([mask_of_t5(64, 0.15, 3.0, draws) for _ in range(number)])
    error = (2 * 0.25 / number) ** 0.5
    assert np.abs(masks.mean(0) - theirs.mean(0)).max() < 5 * error
    assert np.abs((masks[:, 1:] & masks[:, :-1]).mean(0) - (theirs[:, 1:] & theirs[:, :-1]).mean(0)).max() < 5 * error
    # The bias of T5's law towards the end (its issue 905), as measured on its own code.
    assert masks.mean(0)[[0, 1, 2, -4, -3, -2, -1]] == pytest.approx([0, 0.036, 0.065, 0.44, 0.59, 0.78, 1], abs=0.03)


def test_the_uniform_sampler_favours_no_end() -> None:
    share = many_masks(6000, 64, 0.15, 3.0, "uniform").mean(0)
    assert np.abs(share - share[::-1]).max() < 5 * (2 * 0.25 / 6000) ** 0.5


def test_a_single_span_is_the_end_of_the_text() -> None:
    mask = random_spans_mask_keyed(600, 0.15, 64.0, 7)
    assert np.flatnonzero(mask).tolist() == list(range(510, 600))


# ---- compositions ----


def composition_by_hand(total: int, parts: int, key: int) -> list[int]:
    """The definition: the first few different draws are the ends chosen, or left out.

    64 bits are two draws, the low half first.
    """
    size, wanted = total - 1, parts - 1
    few = min(wanted, size - wanted)
    chosen: set[int] = set()
    num_draws = 0
    while len(chosen) < few:
        both_halves = int(rng.bits(key, num_draws // 2)[0])
        chosen.add((both_halves >> 32 * (num_draws % 2)) % 2**32 * size >> 32)
        num_draws += 1
    if wanted > few:
        chosen = set(range(size)) - chosen
    ends = [*sorted(chosen), total - 1]
    return [end - start for start, end in pairwise([-1, *ends])]


def test_compositions_are_the_first_different_draws_whatever_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = random.Random(3)
    totals = [draws.choice([1, 2, 3, 7, 60, 120]) for _ in range(300)] + [120] * 100
    parts = [draws.randint(1, total) for total in totals[:300]] + [61] * 100
    row_keys = rng.keys(rng.key("compositions"), np.arange(400))
    expected = []
    for total, number, key in zip(totals, parts, row_keys.tolist(), strict=True):
        composition = composition_by_hand(total, number, key)
        assert sum(composition) == total
        expected += composition
    assert random_compositions(np.array(totals), np.array(parts), row_keys).tolist() == expected
    # However many are drawn at once: here nearly every row needs further rounds.
    monkeypatch.setattr(span_sampler, "_likely_draws", lambda size_R, few_R: np.ones_like(few_R))
    assert random_compositions(np.array(totals), np.array(parts), row_keys).tolist() == expected


# ---- corruption ----


@given(st.lists(st.booleans(), max_size=60), st.sampled_from([np.int32, np.int64, np.uint16, np.uint32]))
def test_corruption_is_its_definition_and_is_undone_by_restore(mask, dtype) -> None:
    tokens = np.arange(60_000, 60_000 + len(mask)).astype(dtype)
    inputs, targets = corrupt(tokens, np.array(mask, dtype=bool), SENTINELS)
    assert (inputs.tolist(), targets.tolist()) == corrupt_by_hand(tokens.tolist(), mask, SENTINELS.tolist())
    assert inputs.dtype == targets.dtype
    assert restore(inputs, targets, SENTINELS).tolist() == tokens.tolist()


@given(lengths, rates, mean_spans, keys, samplers)
def test_denoise_then_restore_is_the_identity(length, rate, mean_span, key, sampler) -> None:
    tokens = np.full(length, 7, dtype=np.int32)  # all equal: nothing to tell them apart by
    mask = random_spans_mask_keyed(length, rate, mean_span, key, sampler)
    inputs, targets = corrupt(tokens, mask, SENTINELS)
    noise, spans = counts_by_hand(length, rate, mean_span)
    assert (len(inputs), len(targets)) == (length - noise + spans, noise + spans)
    np.testing.assert_array_equal(restore(inputs, targets, SENTINELS), tokens)
    assert inputs[np.isin(inputs, SENTINELS)].tolist() == SENTINELS[:spans].tolist()
    assert targets[np.isin(targets, SENTINELS)].tolist() == SENTINELS[:spans].tolist()


@given(st.integers(6, 700), st.sampled_from([1.0, 3.0, 8.0, 32.0]), st.floats(0.01, 0.9), keys)
def test_a_text_of_the_raw_length_fills_the_budget(budget, mean_span, rate, key) -> None:
    for layout in ("encoder_decoder", "decoder_only"):
        length = raw_length(budget, mean_span, rate, layout)  # type: ignore[arg-type]
        mask = random_spans_mask_keyed(length.raw, rate, mean_span, key)
        inputs, targets = corrupt(np.zeros(length.raw, dtype=np.int32), mask, np.arange(1, 4000))
        assert len(targets) + 1 == length.target
        filled = len(inputs) + 1 if layout == "encoder_decoder" else 1 + len(inputs) + len(targets) + 1
        assert filled <= budget
        assert filled >= budget - 2 or rate == 0.5


@given(st.lists(st.lists(st.booleans(), max_size=12), max_size=6))
def test_corrupting_a_batch_is_corrupting_each(masks) -> None:
    arrays = [np.array(mask, dtype=bool) for mask in masks]
    texts = [np.arange(len(mask), dtype=np.int32) + 100 * row for row, mask in enumerate(masks)]
    pairs = corrupt_batch(texts, arrays, SENTINELS)
    assert len(pairs) == len(masks)
    for text, mask, (inputs, targets) in zip(texts, arrays, pairs, strict=True):
        alone = corrupt(text, mask, SENTINELS)
        np.testing.assert_array_equal(inputs, alone[0])
        np.testing.assert_array_equal(targets, alone[1])


@given(st.lists(st.tuples(lengths, rates, mean_spans, keys), max_size=8), samplers)
def test_corrupting_without_masks_is_corrupting_with_them(rows, sampler) -> None:
    columns = [list(column) for column in zip(*rows, strict=True)] or [[], [], [], []]
    row_keys = np.array(columns[3], dtype=np.uint64)
    texts = [np.arange(length, dtype=np.uint16) for length in columns[0]]
    masks = random_spans_masks(columns[0], columns[1], columns[2], row_keys, sampler)
    expected = corrupt_batch(texts, masks, SENTINELS)
    found = corrupt_spans(texts, columns[1], columns[2], row_keys, SENTINELS, sampler)
    assert [(a.tolist(), b.tolist()) for a, b in found] == [(a.tolist(), b.tolist()) for a, b in expected]
    assert [(a.dtype, b.dtype) for a, b in found] == [(a.dtype, b.dtype) for a, b in expected]


def test_noise_first_keeps_the_sentinels_in_step() -> None:
    inputs, targets = corrupt(np.array([10, 11, 12, 13]), np.array([True, False, True, False]), [99, 98])
    assert (inputs.tolist(), targets.tolist()) == ([99, 11, 98, 13], [99, 10, 98, 12])


def test_the_worked_example_of_corruption() -> None:
    tokens, mask = np.array([10, 11, 12, 13, 14, 15]), np.array([False, True, True, False, False, True])
    inputs, targets = corrupt(tokens, mask, [99, 98])
    assert (inputs.tolist(), targets.tolist()) == ([10, 99, 13, 14, 98], [99, 11, 12, 98, 15])
    assert restore(inputs, targets, [99, 98]).tolist() == tokens.tolist()


@pytest.mark.parametrize("pool", [[], [99]])
def test_a_pool_too_small_is_an_error_with_the_numbers(pool) -> None:
    with pytest.raises(RecipeError, match=f"2 hidden spans, the pool has {len(pool)} sentinels"):
        corrupt(np.arange(4), np.array([True, False, True, False]), pool)
    no_noise = corrupt(np.arange(4), np.zeros(4, dtype=bool), pool)
    assert (no_noise[0].tolist(), no_noise[1].tolist()) == ([0, 1, 2, 3], [])


def test_a_mask_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="mask of its own length"):
        corrupt(np.arange(4), np.zeros(3, dtype=bool), [99])
    with pytest.raises(ValueError, match="2 lengths need as many keys, got 1"):
        random_spans_masks([4, 4], 0.15, 3.0, [1])


@pytest.mark.parametrize("length", [0, 1, 2, 3])
@pytest.mark.parametrize("rate", [0.0, 1e-300, 0.5, 1.0])
@pytest.mark.parametrize("mean_span", [1e-300, 1.0, 1e300])
def test_the_shortest_texts_need_one_sentinel_and_have_a_target_from_two_tokens_on(length, rate, mean_span) -> None:
    """Texts of 0 and 1 tokens have no example: nothing is hidden, and who cuts text skips and counts them."""
    tokens = [7] * length
    for mask in (
        random_spans_mask(length, rate, mean_span, np.random.default_rng(0)),
        uniform_spans_mask(length, rate, mean_span, np.random.default_rng(0)),
    ):
        inputs, targets = corrupt(tokens, mask, [99] if length >= 2 else [])  # type: ignore[arg-type]
        assert (len(targets) >= 2) == (length >= 2)
        assert (0 in mask) or not length, "something is given"
        assert restore(inputs, targets, [99]).tolist() == tokens


def test_restore_takes_lists_and_nothing_at_all() -> None:
    assert restore([], [], []).tolist() == []  # type: ignore[arg-type]
    restored = restore([99], [99, 5], [99])  # type: ignore[arg-type]
    assert restored.tolist() == [5]
    assert restored.dtype == np.int64


@pytest.mark.parametrize("targets", [[98, 11, 99, 12], [99, 11], [11, 99, 98], []])
def test_restore_refuses_sentinels_that_do_not_match(targets) -> None:
    with pytest.raises(RowError, match="sentinels do not match"):
        restore(np.array([10, 99, 13, 98]), np.array(targets, dtype=np.int64), [99, 98])


# ---- prefixes ----


@given(lengths, st.floats(0, 0.5), keys)
def test_a_prefix_leaves_a_target(length, rate, key) -> None:
    prefix = prefix_split_keyed(length, rate, key)
    most = max(length - 1, 0)
    assert min(most, max(1, round((1 - 2 * rate) * most))) <= prefix <= most


@pytest.mark.parametrize(("length", "expected"), [(0, {0}), (1, {0}), (2, {1}), (3, {1, 2})])
def test_prefixes_of_the_shortest_texts(length, expected) -> None:
    assert set(prefix_splits([length] * 64, 0.5, np.arange(64, dtype=np.uint64)).tolist()) == expected


@settings(deadline=None)
@given(st.lists(st.tuples(lengths, st.floats(0, 0.5), keys), min_size=1, max_size=6))
def test_prefixes_of_a_batch_are_those_of_each(rows) -> None:
    columns = [list(column) for column in zip(*rows, strict=True)]
    prefixes = prefix_splits(columns[0], columns[1], np.array(columns[2], dtype=np.uint64))
    assert prefixes.tolist() == [prefix_split_keyed(*row) for row in rows]


@pytest.mark.parametrize(("rate", "low", "share"), [(0.5, 1, 0.5), (0.25, 50, 0.255)])
def test_prefixes_are_uniform_and_their_mean_follows_the_rate(rate, low, share) -> None:
    number = 40_000
    prefixes = prefix_splits([100] * number, rate, rng.keys(rng.key("prefix"), np.arange(number)))
    found, counts = np.unique(prefixes, return_counts=True)
    assert found.tolist() == list(range(low, 100))
    mean, freedom = number / len(found), len(found) - 1
    assert ((counts - mean) ** 2 / mean).sum() < freedom + 5 * (2 * freedom) ** 0.5
    assert 1 - prefixes.mean() / 100 == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize("rate", [-0.1, 0.6, float("nan")])
def test_a_prefix_rate_above_a_half_is_refused(rate) -> None:
    with pytest.raises(RecipeError, match="prefix denoiser"):
        prefix_split_keyed(10, rate, 0)
