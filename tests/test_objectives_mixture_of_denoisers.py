"""UL2 and UL2R: nothing lost, nothing too long, every cut what its denoiser alone would make of it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flan_tune import rng
from flan_tune.errors import RecipeError
from flan_tune.objectives.denoise import (
    corrupt,
    prefix_split_keyed,
    random_spans_mask_keyed,
    raw_length,
    restore,
)
from flan_tune.objectives.mixture_of_denoisers import PRESETS, Denoiser, MixtureOfDenoisers, check_budget
from flan_tune.objectives.segment import Segment

BOS, EOS = 1, 2
MODES = {"[NLU]": 100_003, "[NLG]": 100_004, "[S2S]": 100_005}
SENTINELS = list(range(101_000, 100_000 + 300, -1))
pieces = st.integers(0, 12) | st.integers(0, 900)
keys = st.integers(0, 2**64 - 1)


def mixture(preset="ul2r", max_length=64, bos_id=BOS, mode_ids=MODES, **other) -> MixtureOfDenoisers:
    return MixtureOfDenoisers(*PRESETS[preset], max_length, SENTINELS, mode_ids, bos_id, EOS, **other)


def text(length: int) -> np.ndarray:
    return np.arange(10, 10 + length, dtype=np.int32)


settings_of_a_mixture = st.fixed_dictionaries(
    {
        "preset": st.sampled_from(["ul2", "ul2r"]),
        "max_length": st.sampled_from([8, 9, 20, 64, 301]),
        "bos_id": st.sampled_from([None, BOS]),
        "mode_ids": st.sampled_from([{}, MODES]),
        "sampler": st.sampled_from(["t5", "uniform"]),
        "rate_unit": st.sampled_from(["per_example", "per_token"]),
        "layout": st.sampled_from(["decoder_only", "encoder_decoder"]),
        "shortest": st.sampled_from([None, 8, 15, 64]),
    }
).map(lambda choices: with_budgets(**choices))


def with_budgets(layout: str, shortest: int | None, **choices: Any) -> dict[str, Any]:
    """Presets never have longer targets than inputs, so the same budget serves both sides."""
    most = choices["max_length"]
    cut_lengths = None if shortest is None else (min(shortest, most), most)
    return {**choices, "max_target_length": most if layout == "encoder_decoder" else None, "cut_lengths": cut_lengths}


def parts(segment: Segment, choices: Mapping[str, Any]) -> tuple[list[int], list[int], list[int]]:
    """(what stands before the inputs, inputs, targets), after looking where EOS stands."""
    given, asked = segment.encoder_ids.tolist(), segment.decoder_ids.tolist()
    assert asked.pop() == EOS
    if choices["max_target_length"] is not None:
        assert given.pop() == EOS
    assert EOS not in [*given, *asked]
    start = (choices["bos_id"] is not None) + bool(choices["mode_ids"])
    return given[:start], given[start:], asked


@given(settings_of_a_mixture, pieces, keys)
def test_every_token_is_in_one_segment_or_skipped(choices, length, key) -> None:
    denoising = mixture(**choices)
    segments, skipped = denoising.segments(text(length), key)
    by_name = {denoiser.name: denoiser for denoiser in denoising.denoisers}
    restored: list[int] = []
    for number, segment in enumerate(segments):
        assert segment.input_ids.dtype == np.int32
        assert segment.cut == number
        given_length, asked_length = len(segment.encoder_ids), len(segment.decoder_ids)
        if choices["max_target_length"] is None:
            assert given_length + asked_length <= choices["max_length"]
        else:
            assert given_length <= choices["max_length"]
            assert asked_length <= choices["max_target_length"]
        head, inputs, targets = parts(segment, choices)
        assert head == [BOS] * bool(choices["bos_id"]) + (
            [MODES[by_name[segment.kind].mode]] if choices["mode_ids"] else []
        )
        assert not {*inputs, *targets} & {BOS, *MODES.values()}
        assert segment.num_targets == asked_length if given_length else asked_length - 1
        if by_name[segment.kind].kind == "prefix":
            assert inputs
            assert targets
            assert not {*inputs, *targets} & {*SENTINELS}
            restored += [*inputs, *targets]
        else:
            assert {*inputs} & {*SENTINELS}
            assert {*targets} - {*SENTINELS}, "a target besides the sentinels"
            restored += restore(inputs, targets, SENTINELS).tolist()
    assert skipped in (0, 1)
    assert restored == text(length)[: length - skipped].tolist()


@given(settings_of_a_mixture, st.integers(0, 900), keys)
def test_a_full_cut_leaves_no_room_for_another_token(choices, length, key) -> None:
    denoising = mixture(**choices)
    is_decoder_only = choices["max_target_length"] is None
    least = (choices["cut_lengths"] or [choices["max_length"]])[0]
    for segment in denoising.segments(text(length), key)[0][:-1]:
        # One token more may bring a span more: two sentinels, or one on each side. T5 shortens at rate 0.5 by one.
        if is_decoder_only:
            assert least - 2 <= len(segment.input_ids) <= choices["max_length"]
        elif segment.kind == "S":
            eos = 1  # the targets' EOS beyond the inputs' budget
            assert least + eos <= len(segment.input_ids) <= choices["max_length"] + eos
        else:
            assert least - 2 <= len(segment.encoder_ids) <= choices["max_length"]


@given(settings_of_a_mixture, st.integers(0, 900), keys)
def test_each_cut_is_what_the_single_functions_make_of_it(choices, length, key) -> None:
    denoising, rates = mixture(**choices), PRESETS[choices["preset"]].rates
    is_decoder_only = choices["max_target_length"] is None
    layout = "decoder_only" if is_decoder_only else "encoder_decoder"

    @cache
    def raw_tokens(max_length: int) -> list[int]:
        budget = max_length - (choices["bos_id"] is not None)
        budget += (not choices["mode_ids"]) if is_decoder_only else -bool(choices["mode_ids"])
        return [
            budget - (2 if is_decoder_only else 1)
            if denoiser.mean_span is None
            else raw_length(budget, denoiser.mean_span, denoiser.rate, layout).raw
            for denoiser in denoising.denoisers
        ]

    least, most = choices["cut_lengths"] or [choices["max_length"]] * 2
    start = 0
    for number, segment in enumerate(denoising.segments(text(length), key)[0]):
        length_draw = rng.Draws(rng.key(key, "length", number)).uniform()
        raws = raw_tokens(least + int(length_draw * (most - least + 1)))
        weights = np.array(rates)
        if choices["rate_unit"] == "per_token":
            weights /= np.minimum(raws, length - start)
        draw = rng.Draws(rng.key(key, "denoiser", number)).uniform() * np.cumsum(weights)[-1]
        index = int((np.cumsum(weights) <= draw).sum())
        denoiser, mask_key = denoising.denoisers[index], rng.key(key, "mask", number)
        assert segment.kind == denoiser.name
        tokens = text(length)[start : start + raws[index]]
        if denoiser.mean_span is None:
            split = prefix_split_keyed(len(tokens), denoiser.rate, mask_key)
            inputs, targets = tokens[:split], tokens[split:]
        else:
            mask = random_spans_mask_keyed(len(tokens), denoiser.rate, denoiser.mean_span, mask_key, choices["sampler"])
            inputs, targets = corrupt(tokens, mask, SENTINELS)
        start += len(tokens)
        assert parts(segment, choices)[1:] == (inputs.tolist(), targets.tolist())


@given(settings_of_a_mixture, st.lists(st.tuples(pieces, keys), max_size=5))
def test_a_batch_is_each_piece_alone(choices, rows) -> None:
    denoising = mixture(**choices)
    results = denoising.segments_batch([text(length) for length, _ in rows], [key for _, key in rows])
    assert len(results) == len(rows)
    for (length, key), (segments, skipped) in zip(rows, results, strict=True):
        alone, alone_skipped = denoising.segments(text(length), key)
        assert skipped == alone_skipped
        assert [(s.input_ids.tolist(), s.prefix_length, s.kind, s.cut) for s in segments] == [
            (s.input_ids.tolist(), s.prefix_length, s.kind, s.cut) for s in alone
        ]


def test_the_worked_example() -> None:
    one = Denoiser("X", 1.5, 0.5, "[NLG]")
    denoising = MixtureOfDenoisers([one], [1.0], 13, [99, 98], {"[NLG]": 90}, 1, 2)
    segments, skipped = denoising.segments(np.arange(10, 21), 0)
    assert [(s.input_ids.tolist(), s.prefix_length, s.cut) for s in segments] == [
        ([1, 90, 10, 11, 99, 13, 98, 99, 12, 98, 14, 15, 2], 7, 0),
        ([1, 90, 16, 17, 18, 99, 99, 19, 20, 2], 6, 1),
    ]
    assert skipped == 0


@pytest.mark.parametrize(("length", "segments", "skipped"), [(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 0)])
def test_the_shortest_pieces(length, segments, skipped) -> None:
    for key in range(50):
        made, left = mixture("ul2").segments(text(length), key)
        assert (len(made), left) == (segments, skipped)


def test_a_short_piece_has_the_spans_of_its_own_length() -> None:
    only_r = MixtureOfDenoisers([PRESETS["ul2r"].denoisers[1]], [1], 2048, SENTINELS, MODES, BOS, EOS)
    (segment,), _ = only_r.segments(text(100), 0)
    assert np.isin(segment.input_ids, SENTINELS).sum() == 2 * 5  # 15 hidden tokens, 5 spans


def test_rates_are_per_example() -> None:
    denoisers, rates = PRESETS["ul2r"]
    denoising = MixtureOfDenoisers(
        [*denoisers, Denoiser("never", 3.0, 0.15, "")],
        [*(3 * rate for rate in rates), 0.0],
        16,
        SENTINELS,
        {},
        None,
        EOS,
    )
    number = 20_000
    kinds = [denoising.segments(text(8), key)[0][0].kind for key in range(2000)]
    kinds += [segment.kind for segment in denoising.segments(text(14 * number), 77)[0]]
    found = {name: kinds.count(name) for name in set(kinds)}
    assert set(found) == {denoiser.name for denoiser in denoisers}, "a rate of 0 is never drawn"
    for denoiser, rate in zip(denoisers, rates, strict=True):
        assert abs(found[denoiser.name] / len(kinds) - rate) < 4 * (rate * (1 - rate) / len(kinds)) ** 0.5


@pytest.mark.parametrize("cut_lengths", [None, (8, 128)])
@pytest.mark.parametrize("max_target_length", [None, 128])
@pytest.mark.parametrize("lengths", [[400_000], [150] * 600, [40, 90, 127, 2, 300, 1] * 150], ids=str)
def test_rates_per_token_are_shares_of_the_text_whatever_its_lengths(lengths, max_target_length, cut_lengths) -> None:
    """Short texts cut every denoiser alike, long ones each to its own length; the shares are those asked for."""
    lengths = lengths[:600]
    denoisers = [Denoiser("S", None, 0.5, "", "prefix"), Denoiser("R", 3.0, 0.15, ""), Denoiser("X", 3.0, 0.5, "")]
    share_D = np.array([0.2, 0.3, 0.5])

    def tokens_by_denoiser(rate_unit: Any) -> np.ndarray:
        """float [cuts, denoisers]: the tokens of text in a cut, in the column of its denoiser."""
        denoising = MixtureOfDenoisers(
            denoisers,
            [2, 3, 5],
            128,
            SENTINELS,
            {},
            None,
            EOS,
            rate_unit=rate_unit,
            max_target_length=max_target_length,
            cut_lengths=cut_lengths,
        )
        made = denoising.segments_batch([text(length) for length in lengths], range(len(lengths)))
        rows = []
        for segment in (segment for segments, _ in made for segment in segments):
            num_text = int((~np.isin(segment.input_ids, [EOS, *SENTINELS])).sum())
            rows.append([num_text * (segment.kind == denoiser.name) for denoiser in denoisers])
        return np.array(rows, dtype=float)

    found = tokens_by_denoiser("per_token")
    # Each cut adds tokens - share x all tokens of its own; the sum has mean 0.
    surplus = found - share_D * found.sum(1, keepdims=True)
    assert (np.abs(surplus.sum(0)) < 4 * np.sqrt((surplus**2).sum(0))).all()
    if len(lengths) == 1:  # the same test tells per example from per token
        other = tokens_by_denoiser("per_example")
        surplus = other - share_D * other.sum(1, keepdims=True)
        assert (np.abs(surplus.sum(0)) > 4 * np.sqrt((surplus**2).sum(0))).any()


def test_cut_lengths_are_drawn_evenly_and_no_segment_is_longer() -> None:
    """Of prefix cuts the length is the budget itself, so the counts are those of the draws."""
    only_s = [Denoiser("S", None, 0.5, "", "prefix")]
    denoising = MixtureOfDenoisers(only_s, [1.0], 64, SENTINELS, {}, BOS, EOS, cut_lengths=(10, 19))
    segments, skipped = denoising.segments(text(120_000), 0)
    counts = np.bincount([len(one.input_ids) for one in segments[:-1]], minlength=20)
    assert counts[:10].sum() == 0
    expected = counts.sum() / 10
    assert (np.abs(counts[10:] - expected) < 4.5 * np.sqrt(expected)).all()
    assert sum(len(one.input_ids) - 2 for one in segments) + skipped == 120_000


@pytest.mark.parametrize(
    ("cut_lengths", "fault"),
    [
        ((0, 64), r"cut_lengths is \[0, 64\]; from the least to the most, at most max_length 64"),
        ((20, 10), r"cut_lengths is \[20, 10\]"),
        ((20, 65), r"cut_lengths is \[20, 65\]"),
        ((4, 64), "denoiser 'S', cut_lengths from 4: a budget of 3 tokens cannot hold"),
    ],
)
def test_cut_lengths_that_cannot_be_are_faults(cut_lengths, fault) -> None:
    with pytest.raises(RecipeError, match=fault):
        mixture(cut_lengths=cut_lengths)


def test_presets_are_the_papers() -> None:
    table_1 = {(d.mean_span, d.rate, d.mode) for d in PRESETS["ul2"].denoisers}
    assert table_1 == {
        (3.0, 0.15, "[NLU]"),
        (8.0, 0.15, "[NLU]"),
        (None, 0.25, "[S2S]"),
        (3.0, 0.5, "[NLG]"),
        (8.0, 0.5, "[NLG]"),
        (64.0, 0.15, "[NLG]"),
        (64.0, 0.5, "[NLG]"),
    }
    for preset in PRESETS.values():
        assert len(preset.rates) == len(preset.denoisers)
        assert sum(preset.rates) == pytest.approx(1)
    by_mode = {"[S2S]": 0.0, "[NLU]": 0.0, "[NLG]": 0.0}
    for denoiser, rate in zip(*PRESETS["ul2r"], strict=True):
        by_mode[denoiser.mode] += rate
    assert by_mode == {"[S2S]": 0.5, "[NLU]": 0.25, "[NLG]": 0.25}


# ---- what is refused before any data is read ----


def faults(preset="ul2r", max_length=2048, num_sentinels=300, mode_names=tuple(MODES), has_bos=True) -> list[str]:
    return check_budget(
        *PRESETS[preset], max_length, num_sentinels=num_sentinels, mode_names=mode_names, has_bos=has_bos
    )


@pytest.mark.parametrize("has_bos", [False, True])
@pytest.mark.parametrize("mode_names", [(), tuple(MODES)])
def test_a_pool_too_small_names_the_numbers_and_a_length_that_fits(has_bos, mode_names) -> None:
    budget = 2048 - has_bos + (not mode_names)
    needed = raw_length(budget, 3.0, 0.5, "decoder_only").spans
    (fault,) = faults(num_sentinels=100, has_bos=has_bos, mode_names=mode_names)
    assert f"'X2' (mean span 3.0, rate 0.5) needs {needed} sentinels at max_length 2048, the pool has 100" in fault
    fitting = int(fault.split("lower max_length to ")[1].split(",")[0])
    assert faults(num_sentinels=100, has_bos=has_bos, mode_names=mode_names, max_length=fitting) == []
    assert faults(num_sentinels=100, has_bos=has_bos, mode_names=mode_names, max_length=fitting + 1) != []
    assert faults(num_sentinels=needed, has_bos=has_bos, mode_names=mode_names) == []


def test_an_empty_pool_serves_prefixes_alone() -> None:
    assert len(faults(num_sentinels=0)) == 3
    assert "lower max_length" not in faults(num_sentinels=0)[0]
    s = PRESETS["ul2r"].denoisers[:1]
    assert check_budget(s, [1.0], 64, num_sentinels=0, mode_names=[], has_bos=True) == []
    segments, _ = MixtureOfDenoisers(s, [1.0], 64, [], {}, BOS, EOS).segments(text(100), 0)
    assert [len(segment.input_ids) for segment in segments] == [64, 40]


def test_a_length_too_small_is_a_fault_of_each_denoiser() -> None:
    assert len(faults(max_length=4)) == 4
    assert all("at max_length 4: a budget of 3 tokens" in fault for fault in faults(max_length=4))
    assert faults(max_length=7) == []


@pytest.mark.parametrize(
    ("preset", "name", "raw", "targets"),
    [
        ("ul2", "R1", 567, 114),
        ("ul2", "R2", 587, 100),
        ("ul2", "S", 510, 257),
        ("ul2", "X1", 765, 510),
        ("ul2", "X2", 906, 511),
        ("ul2", "X3", 599, 92),
        ("ul2", "X4", 1004, 511),
    ],
)
def test_lengths_of_an_encoder_of_512_with_a_mode_token(preset, name, raw, targets) -> None:
    """One token less than T5's numbers at 512, where it keeps a place for the mode token (reserved_for_packing=1)."""
    denoiser = next(one for one in PRESETS[preset].denoisers if one.name == name)
    length = denoiser.lengths(511, "encoder_decoder")
    assert (length.raw, length.target) == (raw, targets)


def test_both_budgets_of_an_encoder_decoder_are_checked() -> None:
    def found(max_target_length: int, max_length: int = 512) -> list[str]:
        return check_budget(
            *PRESETS["ul2"],
            max_length,
            num_sentinels=128,
            mode_names=[*MODES],
            has_bos=False,
            max_target_length=max_target_length,
        )

    assert found(512) == []
    (fault,) = [fault for fault in found(300) if "'X1'" in fault]
    assert fault == (
        "denoiser 'X1' has up to 510 targets at max_length 512, max_target_length is 300. "
        "Raise it to 510, lower max_length to 301, or lower its rate."
    )
    assert not [fault for fault in found(300, 301) if "'X1'" in fault]
    assert [fault for fault in found(300, 302) if "'X1'" in fault]
    assert any("'S'" in fault and "has up to 257 targets" in fault for fault in found(256))
    assert not any("'S'" in fault for fault in found(257))
    with pytest.raises(RecipeError, match="has up to 510 targets"):
        mixture("ul2", 512, None, max_target_length=300)
    # UL2's own 512 / 512 needs more sentinels than T5's 100.
    too_few = check_budget(*PRESETS["ul2"], 512, num_sentinels=100, mode_names=[], has_bos=False, max_target_length=512)
    assert [fault.split(" needs ")[1].split(" at ")[0] for fault in too_few] == ["128 sentinels"]


def test_the_worked_example_of_an_encoder_decoder() -> None:
    one = Denoiser("X", 1.5, 0.5, "[NLG]")
    denoising = MixtureOfDenoisers([one], [1.0], 8, [99, 98], {"[NLG]": 90}, None, 2, max_target_length=8)
    (segment, _), _ = denoising.segments(np.arange(10, 21), 0)
    assert (segment.encoder_ids.tolist(), segment.decoder_ids.tolist()) == (
        [90, 10, 11, 99, 13, 98, 2],
        [99, 12, 98, 14, 15, 2],
    )
    assert (segment.layout, segment.num_targets) == ("encoder_decoder", 6)


@pytest.mark.parametrize(
    ("max_target_length", "rate"), [(None, 1e-12), (None, 0.5), (None, 1 - 1e-7), (99, 1e-12), (99, 0.5), (99, 0.85)]
)
@pytest.mark.parametrize("mean_span", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("sampler", ["t5", "uniform"])
def test_degenerate_denoisers_and_texts_give_examples_with_targets(rate, mean_span, sampler, max_target_length) -> None:
    one = Denoiser("D", mean_span, rate, "")
    denoising = MixtureOfDenoisers(
        [one], [1], 9, [99, 98, 97, 96, 95, 94], {}, None, EOS, sampler, max_target_length=max_target_length
    )
    for length in (0, 1, 2, 3, 40):
        same = np.full(length, 7)
        segments, skipped = denoising.segments(same, 5)
        restored = []
        for segment in segments:
            assert segment.num_targets >= 3, "a sentinel, a token and EOS"
            inputs = segment.encoder_ids[:-1] if max_target_length else segment.encoder_ids
            restored += restore(inputs, segment.decoder_ids[:-1], [99, 98, 97, 96, 95, 94]).tolist()
        assert restored == [7] * (length - skipped)


def test_tokens_that_are_sentinels_too_are_counted_and_kept() -> None:
    """Reused sub-words stand in texts as well; `restore` cannot tell them apart, so they are counted."""
    denoising = mixture()
    plain, some = text(50), text(50)
    some[[3, 4, 30]] = [SENTINELS[0], SENTINELS[200], SENTINELS[0]]
    assert denoising.collisions([]) == 0
    assert denoising.collisions([plain, text(0)]) == 0
    assert denoising.collisions([plain, some, some]) == 6
    kept = [token for segment in denoising.segments(some, 3)[0] for token in segment.input_ids.tolist()]
    assert kept.count(SENTINELS[200]) >= 1


def test_missing_mode_tokens_and_bad_rates_are_faults() -> None:
    assert (
        "wants the mode token '[S2S]', the tokenizer has '[NLU]', '[NLG]'" in faults(mode_names=["[NLU]", "[NLG]"])[0]
    )
    denoisers = PRESETS["ul2r"].denoisers
    for rates in ([1, 1, 1], [1, 1, 1, -1], [0, 0, 0, 0], [1, 1, 1, float("nan")]):
        found = check_budget(denoisers, rates, 64, num_sentinels=300, mode_names=[], has_bos=True)
        assert any("rates" in fault for fault in found)
    same = [denoisers[0], denoisers[0]]
    assert "same name" in check_budget(same, [1, 1], 64, num_sentinels=0, mode_names=[], has_bos=False)[0]


def test_the_mixture_itself_raises_all_faults_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        MixtureOfDenoisers(*PRESETS["ul2r"], 2048, [5, 6, 6], {"[S2S]": 2}, BOS, EOS, rate_unit="per_word")  # type: ignore[arg-type]
    text_of_all = str(caught.value)
    assert "rates are 'per_word'; choose one of per_example, per_token" in text_of_all
    assert "needs 255 sentinels at max_length 2048, the pool has 3" in text_of_all
    assert "wants the mode token '[NLG]'" in text_of_all
    assert "share the ids 2, 6" in text_of_all


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ((3.0, 0.0, "", "span"), "rate is 0.0"),
        ((3.0, 1.0, "", "span"), "rate is 1.0"),
        ((None, 0.6, "", "prefix"), "rate is 0.6"),
        ((None, 0.15, "", "span"), "a span denoiser needs one"),
        ((3.0, 0.25, "", "prefix"), "a prefix denoiser has none"),
        ((0.0, 0.25, "", "span"), "must be above 0"),
        ((3.0, float("nan"), "", "span"), "rate is nan"),
        ((3.0, 0.25, "", "suffix"), "kind is 'suffix'"),
    ],
)
def test_a_denoiser_out_of_range_is_refused(arguments, fault) -> None:
    with pytest.raises(RecipeError, match=fault):
        Denoiser("D", *arguments)
