"""Collate against a plain, slow version of itself, and the worked example of its docstring."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_tune.errors import RecipeError, StreamError
from flan_tune.models.attention import allowed_BLL
from flan_tune.models.collate import NO_LABEL, BarePack, Batch, DecoderShape, collate
from flan_tune.packing.store import count_targets

MAX_LENGTH = 20


def pack_of(*segments: tuple[list[int], int]) -> BarePack:
    ids = [token for tokens, _ in segments for token in tokens]
    lengths = [len(tokens) for tokens, _ in segments]
    prefixes = [prefix for _, prefix in segments]
    return BarePack(*(np.array(values, dtype=np.int32) for values in (ids, lengths, prefixes)))


@st.composite
def packs(draw: st.DrawFn, least_prefix: int = 0) -> BarePack:
    segments, room = [], MAX_LENGTH
    while room >= 2 and (not segments or draw(st.booleans())):
        length = draw(st.integers(2, min(room, 9)))
        ids = draw(st.lists(st.integers(1, 99), min_size=length, max_size=length))
        segments.append((ids, draw(st.integers(least_prefix, length - 1))))
        room -= length
    return pack_of(*segments)


def segments_of(pack: BarePack) -> list[tuple[list[int], int]]:
    ends = np.cumsum(pack.segment_lengths)
    return [
        (pack.input_ids[end - length : end].tolist(), int(prefix))
        for end, length, prefix in zip(ends, pack.segment_lengths, pack.prefix_lengths, strict=True)
    ]


def slow_row(pack: BarePack, attention: str, normalization: str) -> dict[str, list]:
    """Token by token, as the docstring of collate says it."""
    columns: dict[str, list] = {name: [] for name in ("ids", "segment", "block", "position", "labels", "weights")}
    for number, (ids, prefix) in enumerate(segments_of(pack), start=1):
        targets = len(ids) - max(prefix, 1)
        for index, token in enumerate(ids):
            columns["ids"].append(token)
            columns["segment"].append(number)
            columns["block"].append(number if attention == "prefix_lm" and index < prefix else -1)
            columns["position"].append(index)
            predicts = index + 1 < len(ids) and index + 1 >= max(prefix, 1)
            columns["labels"].append(ids[index + 1] if predicts else NO_LABEL)
            columns["weights"].append((1 / targets if normalization == "example" else 1.0) if predicts else 0.0)
    padding = MAX_LENGTH - len(columns["ids"])
    for name, fill in (("ids", 0), ("segment", 0), ("block", -1), ("labels", NO_LABEL), ("weights", 0.0)):
        columns[name] += [fill] * padding
    columns["position"] += list(range(padding))
    return columns


def columns_of(batch: Batch, row: int) -> dict[str, list]:
    return {
        "ids": batch.input_ids[row].tolist(),
        "segment": batch.spec.segment_ids[row].tolist(),
        "block": batch.spec.prefix_block_ids[row].tolist(),
        "position": batch.spec.position_ids[row].tolist(),
        "labels": batch.labels[row].tolist(),
        "weights": batch.loss_weights[row].tolist(),
    }


def test_worked_example_of_the_docstring():
    pack = pack_of(([5, 6, 7, 8], 2), ([9, 4, 3], 0))
    batch = collate([pack], max_length=8, pad_id=0, attention="prefix_lm", loss_normalization="example")
    no = NO_LABEL
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 4, 3, 0]]
    assert batch.spec.segment_ids.tolist() == [[1, 1, 1, 1, 2, 2, 2, 0]]
    assert batch.spec.prefix_block_ids.tolist() == [[1, 1, -1, -1, -1, -1, -1, -1]]
    assert batch.spec.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2, 0]]
    assert batch.labels.tolist() == [[no, 7, 8, no, 4, 3, no, no]]
    assert batch.loss_weights.tolist() == [[0, 0.5, 0.5, 0, 0.5, 0.5, 0, 0]]
    assert batch.target_positions.tolist() == [1, 2, 4, 5]


@settings(max_examples=120, deadline=None)
@given(
    rows=st.lists(packs(), min_size=1, max_size=4),
    attention=st.sampled_from(["causal", "prefix_lm"]),
    normalization=st.sampled_from(["token", "example"]),
)
def test_equals_the_slow_version(rows: list[BarePack], attention: str, normalization: str):
    batch = collate(rows, max_length=MAX_LENGTH, pad_id=0, attention=attention, loss_normalization=normalization)
    for number, pack in enumerate(rows):
        expected, found = slow_row(pack, attention, normalization), columns_of(batch, number)
        assert found.pop("weights") == pytest.approx(expected.pop("weights"))
        assert found == expected
    flat = [p for p, label in enumerate(batch.labels.flatten().tolist()) if label != NO_LABEL]
    assert batch.target_positions.tolist() == flat


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(packs(), min_size=1, max_size=2), attention=st.sampled_from(["causal", "prefix_lm"]))
def test_mask_equals_the_formula(rows: list[BarePack], attention: str):
    batch = collate(rows, max_length=MAX_LENGTH, pad_id=0, attention=attention, loss_normalization="token")
    allowed = allowed_BLL(batch.spec)
    for number, pack in enumerate(rows):
        where = [(s, i, p) for s, (ids, p) in enumerate(segments_of(pack), start=1) for i in range(len(ids))]
        where += [(0, i, 0) for i in range(MAX_LENGTH - len(where))]
        for q, (q_segment, q_index, prefix) in enumerate(where):
            for k, (k_segment, k_index, _) in enumerate(where):
                both_in_prefix = attention == "prefix_lm" and q_index < prefix and k_index < prefix
                expected = q_segment == k_segment and (k <= q or both_in_prefix)
                assert bool(allowed[number, q, k]) == expected


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(packs(), min_size=1, max_size=4))
def test_example_weights_give_each_segment_one(rows: list[BarePack]):
    batch = collate(rows, max_length=MAX_LENGTH, pad_id=0, attention="causal", loss_normalization="example")
    assert float(batch.loss_weights.sum()) == pytest.approx(sum(len(p.segment_lengths) for p in rows), rel=1e-5)


def test_dtypes():
    batch = collate([pack_of(([1, 2], 1))], max_length=4, pad_id=0, attention="causal", loss_normalization="token")
    assert batch.loss_weights.dtype == torch.float32
    for tensor in (batch.input_ids, batch.labels, batch.target_positions, batch.spec.position_ids):
        assert tensor.dtype == torch.int64


@pytest.mark.parametrize(
    ("pack", "message"),
    [
        (pack_of(([1] * 9, 1)), "9 tokens, max_length is 8"),
        (pack_of(([1, 2, 3], 3)), "none is a target"),
        (pack_of(([1], 0)), "none is a target"),
        (BarePack(np.arange(4), np.array([3]), np.array([1])), "contradicts itself"),
        (BarePack(np.arange(4), np.array([2, 2]), np.array([1])), "contradicts itself"),
    ],
)
def test_a_pack_that_cannot_be_is_refused(pack: BarePack, message: str):
    with pytest.raises(StreamError, match=message):
        collate([pack], max_length=8, pad_id=0, attention="causal", loss_normalization="token")


def test_unknown_modes_are_refused():
    pack = pack_of(([1, 2], 1))
    with pytest.raises(RecipeError, match="Did you mean 'prefix_lm'"):
        collate([pack], max_length=4, pad_id=0, attention="prefixlm", loss_normalization="token")
    with pytest.raises(RecipeError, match="loss_normalization is 'mean'"):
        collate([pack], max_length=4, pad_id=0, attention="causal", loss_normalization="mean")
    with pytest.raises(StreamError, match="no packs"):
        collate([], max_length=4, pad_id=0, attention="causal", loss_normalization="token")


def sides_of(rows: list[BarePack], normalization: str = "token", **shape: int) -> Batch:
    shape = {"max_length": MAX_LENGTH, "max_target_length": MAX_LENGTH, "start_id": 99} | shape
    decoder = DecoderShape(shape["max_target_length"], shape["start_id"])
    how = {"pad_id": 0, "attention": "causal", "loss_normalization": normalization}
    return collate(rows, max_length=shape["max_length"], decoder=decoder, **how)


def test_worked_example_of_an_encoder_decoder():
    pack = pack_of(([8, 9, 1, 5, 1], 3), ([7, 1, 6, 1], 2))
    batch = sides_of([pack], "example", max_length=6, max_target_length=5, start_id=0)
    assert batch.encoder is not None
    assert batch.encoder.input_ids.tolist() == [[8, 9, 1, 7, 1, 0]]
    assert batch.encoder.spec.segment_ids.tolist() == [[1, 1, 1, 2, 2, 0]]
    assert batch.encoder.spec.prefix_block_ids.tolist() == [[1, 1, 1, 2, 2, -1]]
    assert batch.encoder.spec.position_ids.tolist() == [[0, 1, 2, 0, 1, 0]]
    assert batch.input_ids.tolist() == [[0, 5, 0, 6, 0]]
    assert batch.spec.segment_ids.tolist() == [[1, 1, 2, 2, 0]]
    assert batch.spec.prefix_block_ids.tolist() == [[-1] * 5]
    assert batch.spec.position_ids.tolist() == [[0, 1, 0, 1, 0]]
    assert batch.labels.tolist() == [[5, 1, 6, 1, NO_LABEL]]
    assert batch.loss_weights.tolist() == [[0.5, 0.5, 0.5, 0.5, 0]]
    assert batch.target_positions.tolist() == [0, 1, 2, 3]


def slow_sides(pack: BarePack, normalization: str) -> tuple[dict[str, list], dict[str, list]]:
    """Encoder and decoder columns, token by token."""
    encoder: dict[str, list] = {name: [] for name in ("ids", "segment", "block", "position")}
    decoder: dict[str, list] = {name: [] for name in (*encoder, "labels", "weights")}
    for number, (ids, prefix) in enumerate(segments_of(pack), start=1):
        for index, token in enumerate(ids[:prefix]):
            for name, value in zip(encoder, (token, number, number, index), strict=True):
                encoder[name].append(value)
        given = 99
        for index, token in enumerate(ids[prefix:]):
            weight = 1 / (len(ids) - prefix) if normalization == "example" else 1.0
            for name, value in zip(decoder, (given, number, -1, index, token, weight), strict=True):
                decoder[name].append(value)
            given = token
    fills = {"ids": 0, "segment": 0, "block": -1, "labels": NO_LABEL, "weights": 0.0}
    for side in (encoder, decoder):
        padding = MAX_LENGTH - len(side["ids"])
        for name in side:
            side[name] += list(range(padding)) if name == "position" else [fills[name]] * padding
    return encoder, decoder


@settings(max_examples=120, deadline=None)
@given(
    rows=st.lists(packs(least_prefix=1), min_size=1, max_size=4), normalization=st.sampled_from(["token", "example"])
)
def test_sides_equal_the_slow_version(rows: list[BarePack], normalization: str):
    batch = sides_of(rows, normalization)
    assert batch.encoder is not None
    for number, pack in enumerate(rows):
        encoder, decoder = slow_sides(pack, normalization)
        found = columns_of(batch, number)
        assert found.pop("weights") == pytest.approx(decoder.pop("weights"))
        assert found == decoder
        whole = replace(batch, input_ids=batch.encoder.input_ids, spec=batch.encoder.spec)
        found = columns_of(whole, number)
        assert {name: found[name] for name in encoder} == encoder
    assert len(batch.target_positions) == sum(count_targets(p.segment_lengths, p.prefix_lengths) for p in rows)


def test_sides_move_together():
    batch = sides_of([pack_of(([8, 9, 1], 2))]).to("meta")
    assert batch.encoder is not None
    assert {batch.input_ids.device.type, batch.encoder.input_ids.device.type} == {"meta"}
    assert batch.encoder.spec.segment_ids.device.type == "meta"


@pytest.mark.parametrize(
    ("pack", "message"),
    [
        (pack_of(([1] * 9, 7)), "7 tokens for the encoder, max_length is 6"),
        (pack_of(([1] * 9, 3)), "6 tokens for the decoder, max_target_length is 5"),
        (pack_of(([1, 2, 3], 1), ([1, 2, 3], 0)), "segment 1 has no tokens for the encoder"),
        (pack_of(([1, 2, 3], 3)), "none is a target"),
    ],
)
def test_sides_that_cannot_be_are_refused(pack: BarePack, message: str):
    with pytest.raises(StreamError, match=message):
        sides_of([pack], max_length=6, max_target_length=5)
