"""UL2 and UL2R: nothing lost, nothing too long, every cut what its denoiser alone would make of it."""

from __future__ import annotations

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
    }
)


@given(settings_of_a_mixture, pieces, keys)
def test_every_token_is_in_one_segment_or_skipped(choices, length, key) -> None:
    denoising = mixture(**choices)
    segments, skipped = denoising.segments(text(length), key)
    by_name = {denoiser.name: denoiser for denoiser in denoising.denoisers}
    restored: list[int] = []
    for number, segment in enumerate(segments):
        row, prefix_length = segment.input_ids, segment.prefix_length
        assert row.dtype == np.int32
        assert len(row) <= choices["max_length"]
        assert segment.cut == number
        assert row[-1] == EOS
        assert (row == EOS).sum() == 1
        head = [BOS] if choices["bos_id"] else []
        head += [MODES[by_name[segment.kind].mode]] if choices["mode_ids"] else []
        assert row[: len(head)].tolist() == head
        inputs, targets = row[len(head) : prefix_length], row[prefix_length:-1]
        assert not np.isin(np.concatenate((inputs, targets)), [BOS, EOS, *MODES.values()]).any()
        assert segment.num_targets == len(targets) + (1 if prefix_length else 0)
        if by_name[segment.kind].kind == "prefix":
            assert len(inputs) >= 1
            assert len(targets) >= 1
            assert not np.isin(row, SENTINELS).any()
            restored += [*inputs.tolist(), *targets.tolist()]
        else:
            assert np.isin(inputs, SENTINELS).any()
            assert (~np.isin(targets, SENTINELS)).any(), "a target besides the sentinels"
            restored += restore(inputs, targets, SENTINELS).tolist()
    assert skipped in (0, 1)
    assert restored == text(length)[: length - skipped].tolist()


@given(settings_of_a_mixture, st.integers(0, 900), keys)
def test_a_full_cut_leaves_no_room_for_another_token(choices, length, key) -> None:
    denoising = mixture(**choices)
    for segment in denoising.segments(text(length), key)[0][:-1]:
        # One token more may bring a span more, which is two sentinels.
        assert len(segment.input_ids) >= choices["max_length"] - 2


@given(settings_of_a_mixture, st.integers(0, 900), keys)
def test_each_cut_is_what_the_single_functions_make_of_it(choices, length, key) -> None:
    denoising, rates = mixture(**choices), PRESETS[choices["preset"]].rates
    budget = choices["max_length"] - (choices["bos_id"] is not None) + (not choices["mode_ids"])
    start = 0
    for number, segment in enumerate(denoising.segments(text(length), key)[0]):
        draw = rng.Draws(rng.key(key, "denoiser", number)).uniform() * sum(rates)
        index = int((np.cumsum(rates) <= draw).sum())
        denoiser, mask_key = denoising.denoisers[index], rng.key(key, "mask", number)
        assert segment.kind == denoiser.name
        if denoiser.kind == "prefix":
            tokens = text(length)[start : start + budget - 2]
            split = prefix_split_keyed(len(tokens), denoiser.rate, mask_key)
            inputs, targets = tokens[:split], tokens[split:]
        else:
            assert denoiser.mean_span is not None
            raw = raw_length(budget, denoiser.mean_span, denoiser.rate, "decoder_only").raw
            tokens = text(length)[start : start + raw]
            mask = random_spans_mask_keyed(len(tokens), denoiser.rate, denoiser.mean_span, mask_key, choices["sampler"])
            inputs, targets = corrupt(tokens, mask, SENTINELS)
        start += len(tokens)
        assert segment.input_ids[segment.prefix_length : -1].tolist() == targets.tolist()
        first = segment.prefix_length - len(inputs)
        assert segment.input_ids[first : segment.prefix_length].tolist() == inputs.tolist()


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
        ([1, 90, 10, 99, 12, 13, 98, 99, 11, 98, 14, 15, 2], 7, 0),
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
        MixtureOfDenoisers(*PRESETS["ul2r"], 2048, [5, 6, 6], {"[S2S]": 2}, BOS, EOS)
    text_of_all = str(caught.value)
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
