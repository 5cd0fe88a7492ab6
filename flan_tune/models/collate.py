"""Packs to tensors: ids, labels, loss weights and the mask spec of a batch.

numpy up to the last line, with no Python per token. What a back-end is given for the mask is made from the spec by
lowering.py; what a pack is, and what wrote it, is in packing/store.py.

Shapes: B rows, L positions (E of an encoder, D of its decoder), N target positions of the whole batch, S segments of
the whole batch, T their tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flan_tune.errors import RecipeError, StreamError
from flan_tune.models.attention import Ints, MaskSpec, check_attention
from flan_tune.models.lowering import Lowering, MaskPlan

NO_LABEL = -100
LOSS_NORMALIZATIONS = ("token", "example")


class PackLike(Protocol):
    """What collate needs of a pack; `packing.store.Pack` has it."""

    @property
    def input_ids(self) -> npt.NDArray[np.int32]: ...
    @property
    def segment_lengths(self) -> npt.NDArray[np.int32]: ...
    @property
    def prefix_lengths(self) -> npt.NDArray[np.int32]: ...


@dataclass(frozen=True)
class BarePack:
    """A pack without its provenance: for scoring and probing, which mask as training does."""

    input_ids: npt.NDArray[np.int32]
    segment_lengths: npt.NDArray[np.int32]
    prefix_lengths: npt.NDArray[np.int32]


@dataclass(frozen=True)
class DecoderShape:
    """What collate must know of an encoder-decoder beyond its encoder.

    max_target_length: decoder positions of a row. start_id: what each segment's decoder is given first.
    """

    max_target_length: int
    start_id: int


@dataclass(frozen=True)
class EncoderRows:
    """What the encoder of an encoder-decoder reads: input_ids int64 [B, E], padded with the pad id, and its spec, in
    which each segment is one bidirectional block. The decoder's segment of the same number attends to it."""

    input_ids: Tensor
    spec: MaskSpec

    def to(self, device: torch.device | str) -> EncoderRows:
        """The same rows on `device`."""
        return EncoderRows(self.input_ids.to(device, non_blocking=True), self.spec.to(device))


@dataclass(frozen=True)
class Batch:
    """One micro-batch. All tensors lie on one device.

    input_ids: int64 [B, L], padded with the pad id.
    spec: the mask and the positions, see attention.py.
    labels: int64 [B, L]; the token to be predicted AT each position, that is the next one; -100 = none.
    loss_weights: float32 [B, L]; what that prediction counts; 0 where there is no label.
    target_positions: int64 [N], ascending; indices into the flattened [B * L] where labels are. Made on the CPU, so
        that a device need not be asked how many there are. The segment of position p is `spec.segment_ids` there.
    plan: the part of the mask that is made on the CPU, for the back-ends that have one.
    encoder: what the encoder reads, for an encoder-decoder; the other fields are then its decoder's.
    """

    input_ids: Tensor
    spec: MaskSpec
    labels: Tensor
    loss_weights: Tensor
    target_positions: Tensor
    plan: MaskPlan | None = None
    encoder: EncoderRows | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        return Batch(
            self.input_ids.to(device, non_blocking=True),
            self.spec.to(device),
            self.labels.to(device, non_blocking=True),
            self.loss_weights.to(device, non_blocking=True),
            self.target_positions.to(device, non_blocking=True),
            None if self.plan is None else self.plan.to(device),
            None if self.encoder is None else self.encoder.to(device),
        )


@dataclass(frozen=True)
class _Layout:
    """Where each segment and token of a batch lies. Names end in S (one per segment) or T (one per token)."""

    size: tuple[int, int]  # B, L
    length_S: Ints
    prefix_S: Ints
    row_S: Ints
    number_S: Ints  # 1, 2, ... within the row
    segment_T: Ints  # which of the S segments
    index_T: Ints  # within the segment
    slot_T: Ints  # within the flattened [B * L]


def collate(
    packs: Sequence[PackLike],
    *,
    max_length: int,
    pad_id: int,
    attention: str,
    loss_normalization: str,
    lowering: Lowering | None = None,
    decoder: DecoderShape | None = None,
) -> Batch:
    """The batch of `packs`, one row each, padded to `max_length` positions.

    The label at position t is the token at t + 1 if that token lies in the same segment, at an index of at least
    max(prefix_length, 1) within it; the first token of a segment is predicted by nobody.

    attention: "prefix_lm" makes each segment's first `prefix_length` tokens one bidirectional block.
    loss_normalization: "token" weighs every label 1; "example" weighs it 1 / (labels of its segment).
    lowering: of the model the batch is for (`lowering_of`): its mask is then made here, beside the training, as far
        as it can be. Without it the mask is made in the forward pass.

    One pack, max_length 8, pad 0, segments [5 6 7 8] with prefix 2 and [9 4 3] with prefix 0:

        input_ids           5    6    7    8    9    4    3    0
        segment_ids         1    1    1    1    2    2    2    0
        prefix_block_ids    1    1   -1   -1   -1   -1   -1   -1     (causal: all -1)
        position_ids        0    1    2    3    0    1    2    0
        labels           -100    7    8 -100    4    3 -100 -100
        loss_weights        0  1/2  1/2    0  1/2  1/2    0    0     (token: 1 instead of 1/2)
        target_positions 1, 2, 4, 5

    decoder: given for an encoder-decoder. A segment's prefix is then what the encoder reads, in rows of `max_length`,
        always in both directions, whatever `attention` says. Its other tokens are what the decoder has to give, in rows
        of `max_target_length`: it reads `start_id` and all but the last of them, and every one is a target.

    One pack, max_length 6, max_target_length 5, start 0, segments [8 9 1 | 5 1] and [7 1 | 6 1]:

        encoder.input_ids           8    9    1    7    1    0
        encoder segment_ids         1    1    1    2    2    0
        encoder prefix_block_ids    1    1    1    2    2   -1
        encoder position_ids        0    1    2    0    1    0
        input_ids                   0    5    0    6    0
        segment_ids                 1    1    2    2    0
        position_ids                0    1    0    1    0
        labels                      5    1    6    1 -100
        loss_weights              1/2  1/2  1/2  1/2    0
        target_positions 0, 1, 2, 3

    Raises: StreamError if a pack contradicts itself or is too long; RecipeError for an unknown mode.
    """
    check_attention(attention)
    if loss_normalization not in LOSS_NORMALIZATIONS:
        raise RecipeError(
            f"loss_normalization is {loss_normalization!r}; it must be one of {list(LOSS_NORMALIZATIONS)}."
        )
    per_example = loss_normalization == "example"
    if decoder is not None:
        return _collate_sides(packs, max_length, pad_id, decoder, per_example=per_example)
    _check_packs(packs)
    _check_longest([len(pack.input_ids) for pack in packs], max_length, "tokens", "max_length")
    length_S, prefix_S, token_T = _joined(packs)
    layout = _lay_out(packs, length_S, prefix_S, max_length)
    labels, weights = _labels_and_weights(layout, token_T, per_example=per_example)
    spec = _mask_spec(layout, bidirectional=attention == "prefix_lm")
    batch = _batch(_scatter(layout, token_T, pad_id), spec, labels, weights)
    return batch if lowering is None else replace(batch, plan=lowering.plan(spec))


def _collate_sides(
    packs: Sequence[PackLike], max_length: int, pad_id: int, decoder: DecoderShape, *, per_example: bool
) -> Batch:
    """The batch of an encoder-decoder: every segment parted at its prefix, the two sides in rows of their own."""
    _check_packs(packs)
    _check_sides(packs, max_length, decoder.max_target_length)
    length_S, prefix_S, token_T = _joined(packs)
    target_S = length_S - prefix_S
    index_T = np.arange(len(token_T)) - np.repeat(_starts(length_S), length_S)
    is_input_T = index_T < np.repeat(prefix_S, length_S)
    inputs = _lay_out(packs, prefix_S, prefix_S, max_length)
    targets = _lay_out(packs, target_S, np.zeros_like(target_S), decoder.max_target_length)
    label_T = token_T[~is_input_T]
    given_T = np.where(targets.index_T == 0, decoder.start_id, np.roll(label_T, 1))
    weight_S = 1.0 / target_S if per_example else np.ones(len(target_S))
    encoder = EncoderRows(
        torch.from_numpy(_scatter(inputs, token_T[is_input_T], pad_id)), _mask_spec(inputs, bidirectional=True)
    )
    batch = _batch(
        _scatter(targets, given_T, pad_id),
        _mask_spec(targets, bidirectional=False),
        _scatter(targets, label_T, NO_LABEL),
        _scatter(targets, weight_S.astype(np.float32)[targets.segment_T], 0),
    )
    return replace(batch, encoder=encoder)


def _batch(input_ids: Ints, spec: MaskSpec, labels: Ints, weights: npt.NDArray[np.float32]) -> Batch:
    positions = np.flatnonzero(labels != NO_LABEL)
    return Batch(
        torch.from_numpy(input_ids),
        spec,
        torch.from_numpy(labels),
        torch.from_numpy(weights),
        torch.from_numpy(positions),
    )


def _joined(packs: Sequence[PackLike]) -> tuple[Ints, Ints, Ints]:
    """Lengths, prefixes and ids of all packs, one after the other."""
    names = ("segment_lengths", "prefix_lengths", "input_ids")
    length_S, prefix_S, token_T = (np.concatenate([getattr(pack, name) for pack in packs]) for name in names)
    return length_S.astype(np.int64), prefix_S.astype(np.int64), token_T.astype(np.int64)


def _lay_out(packs: Sequence[PackLike], length_S: Ints, prefix_S: Ints, width: int) -> _Layout:
    """Segments of these lengths, as many in each row as its pack has, in rows of `width` positions."""
    segments_B = np.array([len(pack.segment_lengths) for pack in packs], dtype=np.int64)
    row_S = np.repeat(np.arange(len(packs)), segments_B)
    segment_T = np.repeat(np.arange(len(length_S)), length_S)
    tokens_B = np.bincount(row_S, weights=length_S, minlength=len(packs)).astype(np.int64)
    row_T = row_S[segment_T]
    return _Layout(
        size=(len(packs), width),
        length_S=length_S,
        prefix_S=prefix_S,
        row_S=row_S,
        number_S=np.arange(len(length_S)) - _starts(segments_B)[row_S] + 1,
        segment_T=segment_T,
        index_T=np.arange(len(segment_T)) - _starts(length_S)[segment_T],
        slot_T=np.arange(len(segment_T)) - _starts(tokens_B)[row_T] + row_T * width,
    )


def _starts(count: Ints) -> Ints:
    """Where each run begins: counts 3, 2, 4 begin at 0, 3, 5."""
    return np.cumsum(count) - count


def _scatter(layout: _Layout, value_T: npt.NDArray[Any], fill: float) -> npt.NDArray[Any]:
    return _scatter_at(layout.slot_T, value_T, layout.size, fill)


def _scatter_at(slots: Ints, values: npt.NDArray[Any], size: tuple[int, int], fill: float) -> npt.NDArray[Any]:
    flat = np.full(size[0] * size[1], fill, dtype=values.dtype)
    flat[slots] = values
    return flat.reshape(size)


def _mask_spec(layout: _Layout, *, bidirectional: bool) -> MaskSpec:
    number_T = layout.number_S[layout.segment_T]
    in_prefix_T = (layout.index_T < layout.prefix_S[layout.segment_T]) & bidirectional
    return MaskSpec(
        segment_ids=torch.from_numpy(_scatter(layout, number_T, 0)),
        prefix_block_ids=torch.from_numpy(_scatter(layout, np.where(in_prefix_T, number_T, -1), -1)),
        position_ids=torch.from_numpy(_position_ids(layout)),
    )


def _position_ids(layout: _Layout) -> Ints:
    # Padding counts from 0 too, so that a model with learned positions has an entry for each.
    rows, width = layout.size
    padding_starts_B = np.bincount(layout.row_S, weights=layout.length_S, minlength=rows).astype(np.int64)
    positions: Ints = np.arange(width)[None, :] - padding_starts_B[:, None]
    positions.reshape(-1)[layout.slot_T] = layout.index_T
    return positions


def _labels_and_weights(layout: _Layout, token_T: Ints, *, per_example: bool) -> tuple[Ints, npt.NDArray[np.float32]]:
    first_target_S = np.maximum(layout.prefix_S, 1)
    is_target_T = layout.index_T >= first_target_S[layout.segment_T]
    # A target's index is at least 1, so its predecessor lies one slot before it, in the same segment and row.
    predicting_slots = layout.slot_T[is_target_T] - 1
    weight_S = 1.0 / (layout.length_S - first_target_S) if per_example else np.ones(len(layout.length_S))
    weight_T = weight_S.astype(np.float32)[layout.segment_T]
    labels = _scatter_at(predicting_slots, token_T[is_target_T], layout.size, NO_LABEL)
    return labels, _scatter_at(predicting_slots, weight_T[is_target_T], layout.size, 0)


def _check_sides(packs: Sequence[PackLike], max_length: int, max_target_length: int) -> None:
    inputs = [int(np.sum(pack.prefix_lengths)) for pack in packs]
    targets = [len(pack.input_ids) - tokens for pack, tokens in zip(packs, inputs, strict=True)]
    _check_longest(inputs, max_length, "tokens for the encoder", "max_length")
    _check_longest(targets, max_target_length, "tokens for the decoder", "max_target_length")
    for number, pack in enumerate(packs):
        empty = np.flatnonzero(np.asarray(pack.prefix_lengths) == 0)
        if len(empty):
            raise StreamError(
                f"pack {number} of the batch: segment {empty[0]} has no tokens for the encoder. Were the packs "
                "made for a decoder? Prepare them again."
            )


def _check_longest(tokens_B: Sequence[int], most: int, what: str, name: str) -> None:
    for number, tokens in enumerate(tokens_B):
        if tokens > most:
            raise StreamError(
                f"pack {number} of the batch has {tokens} {what}, {name} is {most}. Prepare the packs again."
            )


def _check_packs(packs: Sequence[PackLike]) -> None:
    if not packs:
        raise StreamError("a batch of no packs cannot be made. Give each process at least one pack per step.")
    for number, pack in enumerate(packs):
        lengths, prefixes = np.asarray(pack.segment_lengths), np.asarray(pack.prefix_lengths)
        tokens = len(pack.input_ids)
        if len(lengths) != len(prefixes) or int(lengths.sum()) != tokens:
            raise StreamError(
                f"pack {number} of the batch contradicts itself: {tokens} tokens, segment lengths {lengths.tolist()}, "
                f"prefix lengths {prefixes.tolist()}. Prepare the packs again."
            )
        bad = np.flatnonzero((prefixes < 0) | (lengths <= np.maximum(prefixes, 1)))
        if len(bad):
            raise StreamError(
                f"pack {number} of the batch: segment {bad[0]} has {lengths[bad[0]]} tokens, {prefixes[bad[0]]} of "
                "them prefix, so none is a target. Prepare the packs again."
            )
