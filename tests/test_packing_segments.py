"""From examples to segments: separators, what happens to what is too long, and that targets are never cut."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from small_packs import make_tokenizer

from flan_tune.objectives.mixture_of_denoisers import PRESETS, MixtureOfDenoisers
from flan_tune.objectives.segment import Layout
from flan_tune.objectives.supervised import supervised
from flan_tune.packing.segments import Causal, Denoising, Encoded, Encoder, SegmentCounts, Supervised
from flan_tune.prompts.present import Example
from flan_tune.prompts.styles import ExemplarStyle
from flan_tune.prompts.template import STATEMENT
from flan_tune.tokens.tokenizer import Tokenizer

STYLE = ExemplarStyle("Q: ", "\nA:", "\n\n")
words = st.text("ab 1\n", min_size=1, max_size=30)
pairs = st.tuples(words, words)


@lru_cache
def tokenizer() -> Tokenizer:
    with TemporaryDirectory() as folder:
        return make_tokenizer(Path(folder))


def prompt(inputs: str, targets: str, exemplars: tuple[tuple[str, str], ...] = ()) -> Example:
    rows = tuple(range(1, len(exemplars) + 1))
    return Example(
        inputs, targets, "t", 0, 0, "few_shot", "answer", "w", exemplars=exemplars, exemplar_rows=rows, style=STYLE
    )


def document(text: str, others: tuple[str, ...] = ()) -> Example:
    exemplars = tuple(("", other) for other in others)
    rows = tuple(range(1, len(others) + 1))
    return Example("", text, "t", 0, 0, STATEMENT, STATEMENT, "w", exemplars=exemplars, exemplar_rows=rows)


def encoder(max_length: int, separator: str = "\n", too_long: str = "truncate_input", **changes: Any) -> Encoder:
    return Encoder(tokenizer(), max_length=max_length, separator=separator, too_long=too_long, **changes)


def ids(text: str) -> list[int]:
    return list(tokenizer().encode_batch([text])[0])


def room(max_length: int) -> int:
    return max_length - 2  # BOS and EOS


# The separator


@pytest.mark.parametrize("separator", ["\n", "", " -> "])
def test_a_text_separator_is_part_of_the_inputs(separator: str) -> None:
    (one,) = encoder(200, separator).encode([prompt("1 + 1?", "2")], SegmentCounts())
    assert one.inputs.tolist() == ids("1 + 1?" + separator)
    assert one.targets.tolist() == ids("2")


def test_the_word_eos_puts_the_end_of_sequence_token_between() -> None:
    (one,) = encoder(200, "eos").encode([prompt("1 + 1?", "2")], SegmentCounts())
    assert one.inputs.tolist() == [*ids("1 + 1?"), tokenizer().eos_id]


@pytest.mark.parametrize("separator", ["\n", "eos"])
def test_plain_text_has_no_inputs_and_so_no_separator(separator: str) -> None:
    (one,) = encoder(200, separator).encode([document("A text.")], SegmentCounts())
    assert one.inputs.tolist() == []
    assert one.targets.tolist() == ids("A text.")


# Too long


@given(words, words, st.lists(pairs, max_size=12), st.integers(12, 300))
def test_exemplars_go_first_then_the_left_of_the_inputs_and_never_a_target(
    inputs: str, targets: str, shots: list[tuple[str, str]], max_length: int
) -> None:
    example, counts = prompt(inputs, targets, tuple(shots)), SegmentCounts()
    found = encoder(max_length).encode([example], counts)
    whole = [ids(example.with_shots(n).text()[0] + "\n") for n in range(len(shots) + 1)]
    target = ids(targets)
    fitting = [n for n, shown in enumerate(whole) if len(shown) + len(target) <= room(max_length)]
    if not found:
        assert len(target) >= room(max_length), "only a target that leaves no room for inputs is dropped"
        assert counts.drops == {"t": {"target too long": 1}}
        return
    (one,) = found
    assert one.targets.tolist() == target
    assert len(one.inputs) + len(target) <= room(max_length)
    kept = fitting[-1] if fitting else 0
    assert one.example.shots == kept
    assert counts.shots_dropped == len(shots) - kept
    assert one.inputs.tolist() == whole[kept][len(whole[kept]) - len(one.inputs) :]
    cut = len(whole[kept]) - len(one.inputs)
    assert cut == (0 if fitting else len(whole[0]) + len(target) - room(max_length))
    assert (counts.truncated_examples, counts.truncated_tokens) == (int(cut > 0), cut)


def test_the_recipe_may_drop_what_does_not_fit_instead() -> None:
    long = "a b " * 60
    counts = SegmentCounts()
    examples = [prompt(long, "2", (("x", "y"),)), prompt("short", "3")]
    found = encoder(60, too_long="drop").encode(examples, counts)
    assert [one.example.targets for one in found] == ["3"]
    assert counts.drops == {"t": {"too long": 1}}
    assert counts.truncated_examples == 0
    assert counts.shots_dropped == 1


def test_an_example_without_its_exemplars_is_kept_where_it_fits() -> None:
    counts = SegmentCounts()
    examples = [prompt("1?", "2", (("a b " * 60, "y"), ("1", "2")))]
    (one,) = encoder(60, too_long="drop").encode(examples, counts)
    assert one.example.shots == 0
    assert counts.drops == {}


@given(words, words, st.lists(pairs, max_size=4), st.integers(8, 90), st.integers(3, 40), st.booleans())
def test_an_encoder_decoder_fits_inputs_and_targets_apart(
    inputs: str, targets: str, shots: list[tuple[str, str]], max_length: int, most: int, has_mode: bool
) -> None:
    assume(ids(targets))
    example, counts = prompt(inputs, targets, tuple(shots)), SegmentCounts()
    made = encoder(max_length, "", cuts="nothing", has_mode_token=has_mode, max_target_length=most)
    found = made.encode([example], counts)
    if len(ids(targets)) + 1 > most:
        assert not found
        assert counts.drops == {"t": {"target too long": 1}}
        return
    (one,) = found
    mode_id = 7 if has_mode else None
    ((segment,),) = Supervised(tokenizer(), mode_id, "encoder_decoder").segments(found, SegmentCounts())
    assert len(segment.encoder_ids) <= max_length
    assert segment.decoder_ids.tolist() == [*ids(targets), tokenizer().eos_id]
    assert segment.encoder_ids[-1] == tokenizer().eos_id
    given_ = segment.encoder_ids[1 + has_mode : -1].tolist()
    whole = [ids(example.with_shots(n).text()[0]) for n in range(len(shots) + 1)]
    space = max_length - 2 - has_mode
    fitting = [n for n, shown in enumerate(whole) if len(shown) <= space]
    assert one.example.shots == (fitting[-1] if fitting else 0)
    assert given_ == whole[one.example.shots][-space:]
    assert counts.truncated_tokens == len(whole[one.example.shots]) - len(given_)


def test_a_mode_token_takes_the_place_of_an_input() -> None:
    counts = SegmentCounts()
    encoded = encoder(60, has_mode_token=True).encode([prompt("a b " * 60, "2"), prompt("1?", "3")], counts)
    cut, whole = (group[0] for group in Supervised(tokenizer(), mode_id=7).segments(encoded, counts))
    assert len(cut.input_ids) == 60
    assert whole.input_ids[:2].tolist() == cut.input_ids[:2].tolist() == [tokenizer().bos_id, 7]
    assert whole.prefix_length == 2 + len(ids("1?\n"))
    assert counts.truncated_examples == 1


# Objectives


@given(words, words)
def test_supervised_and_causal_segments_hold_the_same_tokens(inputs: str, targets: str) -> None:
    encoded = encoder(200).encode([prompt(inputs, targets)], SegmentCounts())
    supervised = Supervised(tokenizer()).segments(encoded, SegmentCounts())[0][0]
    causal = Causal(tokenizer(), 200).segments(encoded, SegmentCounts())[0][0]
    assert supervised.input_ids.tolist() == causal.input_ids.tolist()
    assert supervised.prefix_length == 1 + len(encoded[0].inputs)
    assert causal.prefix_length == 0
    assert supervised.num_targets == len(encoded[0].targets) + 1


@given(st.text("ab ", min_size=1, max_size=200), st.integers(8, 40))
def test_causal_text_is_cut_and_nothing_is_lost(text: str, max_length: int) -> None:
    assume(ids(text))
    encoded = encoder(max_length).encode([document(text)], SegmentCounts())
    (cuts,) = Causal(tokenizer(), max_length).segments(encoded, SegmentCounts())
    assert all(len(cut.input_ids) <= max_length for cut in cuts)
    joined = np.concatenate([cut.input_ids[1:] for cut in cuts]).tolist()
    assert joined == [*ids(text), tokenizer().eos_id]
    assert [cut.cut for cut in cuts] == list(range(len(cuts)))


def test_supervised_text_that_does_not_fit_is_dropped_not_split() -> None:
    counts = SegmentCounts()
    examples = [document("a b " * 60), document("short"), document("short", ("a b " * 60, "x"))]
    encoded = encoder(60, cuts="nothing").encode(examples, counts)
    made = Supervised(tokenizer()).segments(encoded, counts)
    assert all(len(segment.input_ids) <= 60 for group in made for segment in group)
    assert counts.drops == {"t": {"target too long": 1}}
    assert [one.example.shots for one in encoded] == [0, 0], "a text of several statements loses the others first"


@given(
    st.lists(st.tuples(words | st.just(""), words | st.just("")), max_size=6), st.sampled_from([None, 7]), st.booleans()
)
def test_supervised_segments_made_together_are_those_made_one_by_one(
    given_pairs: list[tuple[str, str]], mode_id: int | None, is_apart: bool
) -> None:
    layout: Layout = "encoder_decoder" if is_apart else "decoder_only"
    counts = SegmentCounts()
    encoded = encoder(200).encode([prompt(*pair) for pair in given_pairs], counts)
    found = Supervised(tokenizer(), mode_id, layout).segments(encoded, counts)
    bos, eos = tokenizer().bos_id, tokenizer().eos_id
    for one, made in zip(encoded, found, strict=True):
        if not len(one.targets):
            assert made == []
            continue
        wanted = supervised(one.inputs, one.targets, bos_id=bos, eos_id=eos, mode_id=mode_id, layout=layout)
        assert [(s.input_ids.tolist(), s.prefix_length, s.kind, s.cut, s.layout) for s in made] == [
            (wanted.input_ids.tolist(), wanted.prefix_length, wanted.kind, wanted.cut, wanted.layout)
        ]
        assert made[0].input_ids.dtype == np.int32


@given(st.lists(st.lists(pairs, max_size=12), min_size=1, max_size=5), st.integers(12, 300))
def test_examples_shortened_together_are_those_shortened_one_by_one(
    shots: list[list[tuple[str, str]]], max_length: int
) -> None:
    examples = [prompt(f"{number} + 1?", "2", tuple(one)) for number, one in enumerate(shots)]
    counts, alone_counts = SegmentCounts(), SegmentCounts()
    together = encoder(max_length).encode(examples, counts)
    alone = [kept for example in examples for kept in encoder(max_length).encode([example], alone_counts)]
    assert counts == alone_counts
    assert [(e.example, e.inputs.tolist(), e.targets.tolist()) for e in together] == [
        (e.example, e.inputs.tolist(), e.targets.tolist()) for e in alone
    ]


def test_an_empty_target_is_counted_and_makes_no_segment() -> None:
    counts = SegmentCounts()
    encoded = encoder(60).encode([prompt("1?", ""), prompt("1?", "2")], counts)
    assert [len(group) for group in Supervised(tokenizer()).segments(encoded, counts)] == [0, 1]
    assert counts.drops == {"t": {"empty target": 1}}
    causal_counts = SegmentCounts()
    assert Causal(tokenizer(), 60).segments(encoder(60).encode([document("")], counts), causal_counts) == [[]]
    assert causal_counts.drops == {"t": {"empty text": 1}}


def test_denoising_is_keyed_by_the_example_not_by_its_place() -> None:
    objective, counts = denoising(64), SegmentCounts()
    encoded = encoder(64).encode([document("a b 1 " * 40), document("b a 2 " * 40)], counts)
    both = objective.segments(encoded, counts)
    alone = objective.segments(encoded[:1], SegmentCounts())
    assert [s.input_ids.tolist() for s in both[0]] == [s.input_ids.tolist() for s in alone[0]]
    assert len(both[0]) > 1
    assert all(len(segment.input_ids) <= 64 for group in both for segment in group)


def denoising(max_length: int, sentinels: str = "new", max_target_length: int | None = None) -> Denoising:
    special = tokenizer().with_special_tokens(sentinels=sentinels, num_sentinels=40, mode_tokens=True)
    mixture = MixtureOfDenoisers(
        *PRESETS["ul2r"],
        max_length,
        special.sentinel_ids,
        special.mode_ids,
        special.bos_id,
        special.eos_id,
        max_target_length=max_target_length,
    )
    return Denoising(mixture, seed=3)


@pytest.mark.parametrize("most", [None, 64])
@given(words, st.text("ab 1\n", min_size=1, max_size=200), st.lists(pairs, max_size=2))
def test_what_denoising_cuts_is_never_shortened(
    most: int | None, inputs: str, targets: str, shots: list[tuple[str, str]]
) -> None:
    """A prompt too long for a segment is text like any other: all of it is in the segments, or skipped and counted."""
    example, counts = prompt(inputs, targets, tuple(shots)), SegmentCounts()
    encoded = encoder(64, cuts="everything", max_target_length=most).encode([example], counts)
    (made,) = denoising(64, max_target_length=most).segments(encoded, counts)
    whole = Counter(ids(example.text()[0] + "\n") + ids(targets))
    special = {tokenizer().bos_id, tokenizer().eos_id, *range(tokenizer().vocab_size, tokenizer().vocab_size + 43)}
    found = Counter(id_ for segment in made for id_ in segment.input_ids.tolist() if id_ not in special)
    assert found <= whole
    assert found.total() + counts.skipped_tokens == whole.total()
    assert (counts.shots_dropped, counts.truncated_examples, counts.drops) == (0, 0, {})
    for segment in made:
        assert len(segment.encoder_ids if most else segment.input_ids) <= 64
        assert len(segment.decoder_ids) <= 64


@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_what_is_too_short_to_denoise_is_dropped_and_its_tokens_counted(lengths: list[int]) -> None:
    nothing, counts = np.zeros(0, dtype=np.int32), SegmentCounts()
    encoded = [Encoded(document(""), nothing, np.full(length, 9, dtype=np.int32)) for length in lengths]
    made = denoising(64).segments(encoded, counts)
    assert [bool(segments) for segments in made] == [length >= 2 for length in lengths]
    dropped = sum(length < 2 for length in lengths)
    assert counts.drops == ({encoded[0].example.task: {"too short": dropped}} if dropped else {})
    assert counts.skipped_tokens == sum(length == 1 for length in lengths)


def test_sentinels_that_stand_in_the_text_are_counted() -> None:
    text = "The small sum of 1 and 2 is 3. " * 9
    objective, counts = denoising(64, "reuse_last"), SegmentCounts()
    encoded = encoder(64).encode([document(text)], counts)
    objective.segments(encoded, counts)
    sentinels = set(objective.mixture.sentinel_ids.tolist())
    assert counts.sentinel_collisions == sum(id_ in sentinels for id_ in ids(text)) > 0
    new = SegmentCounts()
    denoising(64).segments(encoded, new)
    assert new.sentinel_collisions == 0
