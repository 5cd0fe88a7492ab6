"""The leak probe: does this very model, on this back-end and in this dtype, see what our mask says and no more?

Run before step 0. It perturbs tokens and watches which logits move; that is the only check that holds for families,
back-ends and library versions nobody has tried. Every process must run it with the same arguments: it makes the same
forwards everywhere, so it works under ZeRO-3.

Shapes: B rows, L positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from flan_tune import rng
from flan_tune.errors import RecipeError
from flan_tune.models.attention import check_attention
from flan_tune.models.backends import Machine, refusal
from flan_tune.models.collate import BarePack, Batch, DecoderShape, collate
from flan_tune.models.forward import (
    activation_dtype,
    attending_by,
    attn_implementation_of,
    encoder_states,
    evaluating,
    full_logits,
    is_encoder_decoder,
    set_attn_implementation,
)
from flan_tune.models.load import decoder_start_id_of
from flan_tune.models.lowering import ATTN_IMPLEMENTATIONS, lowering_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Logits = Callable[[Batch], Tensor]

_LENGTHS = (9, 7, 6)  # three segments, and two positions of padding after them
_PREFIXES = (5, 0, 3)
_ENCODER_LENGTHS = (5, 2, 3)  # of the same three, for an encoder-decoder; more padding on both sides
_LENGTH = sum(_LENGTHS) + 2

# How far logits may differ, as a share of their standard deviation. A perturbed row has the same shape as the one it
# is compared with, so what is masked changes nothing at all; a segment alone takes other kernels and rounds otherwise.
_UNCHANGED = 1e-5
_SAME_ALONE = {torch.float32: 1e-3, torch.float64: 1e-6}
_SAME_ALONE_HALF_PRECISION = 0.1

# What families raise that know nothing of our masks or positions.
_NOT_TAKEN = (TypeError, ValueError, LookupError, AttributeError, RuntimeError, RecipeError)


def leak_probe(
    model: PreTrainedModel,
    attention: str,
    attn_implementation: str,
    vocab_size: int,
    logits: Logits | None = None,
) -> list[str]:
    """Faults found, each a sentence; an empty list if the model may be trained on packs.

    - a token changes logits of its own segment only;
    - a later token changes earlier logits only within a prefix, and does so there exactly if `attention` is
      "prefix_lm";
    - a segment in a pack has the logits it has alone;
    - the head as training calls it gives what the model's own forward gives;
    - a plain causal row has the logits that the model's own eager forward gives, without any mask of ours;
    - the model takes such a batch at all.

    Of an encoder-decoder: a token of either side changes logits of its own segment only, one of the encoder does so
    there, and no target changes logits before it; the other points as above.

    logits: how logits [B, L, V] of a batch are computed; by default as in training. For trying the probe itself.
    Costs nine forwards of one row of 24 tokens, or ten.
    """
    check_attention(attention)
    own = logits or (lambda batch: full_logits(model, batch, attn_implementation))
    with evaluating(model):
        try:
            kind = _EncoderDecoderProbe if is_encoder_decoder(model) else _DecoderProbe
            probe = kind(model, attention, vocab_size, own)
        except _NOT_TAKEN as error:
            if isinstance(error, RuntimeError) and type(error) not in (RuntimeError, NotImplementedError):
                raise  # out of memory, a lost process
            return [f"the model does not take a packed batch: {_first_line(error)}"]
        # All of them, whatever the first ones say: processes must not part ways here.
        found = [*probe.of_masks(), probe.packed_against_alone()]
        if logits is None:
            found += [probe.head_against_forward(attn_implementation), probe.plain_row(attn_implementation)]
    return [fault for faults in found for fault in faults]


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"


def settle_attn_implementation(model: PreTrainedModel, attention: str, vocab_size: int) -> tuple[str, list[str]]:
    """The best back-end that the leak probe has no fault with, from the one the model was built with downwards; the
    model is left with it. And why others were not taken, a line each.

    For attn_implementation `auto` and families that are not known: a class may offer a back-end that drops our mask.
    Raises: RecipeError with the faults of every back-end tried, if none is exact.
    """
    machine = Machine.here(activation_dtype(model))
    first = attn_implementation_of(model)
    rest = ATTN_IMPLEMENTATIONS[ATTN_IMPLEMENTATIONS.index(first) + 1 :] if model._can_set_attn_implementation() else ()
    notes: list[str] = []
    for name in (first, *rest):
        if name != first and refusal(name, model.config, machine) is not None:
            continue
        set_attn_implementation(model, name)
        faults = leak_probe(model, attention, name, vocab_size)
        if not faults:
            return name, notes
        notes += [f"{name}: {fault}" for fault in faults]
    raise RecipeError(
        *(f"leak probe: {note}" for note in notes),
        f"model type {model.config.model_type!r} cannot be trained on packs.",
    )


def plain_row_difference(model: PreTrainedModel, vocab_size: int, length: int) -> float:
    """How far logits of one causal row of `length` tokens, as training computes them, lie from those of the model's own
    forward, eager and without any mask of ours; as a share of their standard deviation. An encoder-decoder has a row of
    that length on either side.

    It shows what packed against alone cannot: a scale, a soft cap or a window that a back-end does not apply.
    """
    prefix = length if is_encoder_decoder(model) else 0
    ids = rng.below(vocab_size, rng.key(0, "plain row"), np.arange(prefix + length))
    batch = _batch_of(model, "causal", ids, (prefix + length,), (prefix,), length)
    with evaluating(model):
        ours_LV = full_logits(model, batch)[0].float()
        reference = "eager" if model._can_set_attn_implementation() else attn_implementation_of(model)
        with attending_by(model, reference):
            own_LV = model(**_plain_inputs(batch), use_cache=False).logits[0].float()
    return float((ours_LV - own_LV).abs().mean() / own_LV.std())


def _plain_inputs(batch: Batch) -> dict[str, Tensor]:
    if batch.encoder is None:
        return {"input_ids": batch.input_ids}
    return {"input_ids": batch.encoder.input_ids, "decoder_input_ids": batch.input_ids}


def tolerance_of(model: PreTrainedModel) -> float:
    """How far logits may lie from each other by rounding alone, as a share of their standard deviation."""
    return _SAME_ALONE.get(activation_dtype(model), _SAME_ALONE_HALF_PRECISION)


def _batch_of(
    model: PreTrainedModel,
    attention: str,
    ids: np.ndarray,
    lengths: tuple[int, ...],
    prefixes: tuple[int, ...],
    width: int,
) -> Batch:
    pack = BarePack(ids, np.array(lengths), np.array(prefixes))
    decoder = DecoderShape(width, decoder_start_id_of(model)) if is_encoder_decoder(model) else None
    batch = collate(
        [pack], max_length=width, pad_id=0, attention=attention, loss_normalization="token", decoder=decoder
    )
    return batch.to(model.get_input_embeddings().weight.device)


class _Probe:
    """What is asked of both kinds of models. Positions are those of logits: of an encoder-decoder, its decoder's."""

    prefixes = _PREFIXES

    def __init__(self, model: PreTrainedModel, attention: str, vocab_size: int, logits: Logits) -> None:
        self.model, self.attention, self.vocab_size, self.logits = model, attention, vocab_size, logits
        self.ids = rng.below(vocab_size, rng.key(0, "leak probe"), np.arange(sum(_LENGTHS)))
        self.base_LV = self._run(self.ids, _LENGTHS, self.prefixes)
        self.scale = float(self.base_LV.std())

    def _run(self, ids: np.ndarray, lengths: tuple[int, ...], prefixes: tuple[int, ...]) -> Tensor:
        batch = _batch_of(self.model, self.attention, ids, lengths, prefixes, _LENGTH)
        return self.logits(batch)[0].float()

    def _moved(self, start: int, stop: int) -> np.ndarray:
        """Bool [L]: where logits move when tokens start..stop-1 become others."""
        ids = self.ids.copy()
        ids[start:stop] = (ids[start:stop] + 1 + self.vocab_size // 2) % self.vocab_size
        change_LV = (self._run(ids, _LENGTHS, self.prefixes) - self.base_LV).abs()
        moved: np.ndarray = (change_LV.amax(-1) > _UNCHANGED * self.scale).cpu().numpy()
        return moved

    def of_masks(self) -> list[list[str]]:
        """Faults, question by question."""
        raise NotImplementedError

    def _rows(self, segment: int) -> slice:
        """Where the logits of a segment are; its own alone in a row are at the beginning."""
        return slice(sum(_LENGTHS[:segment]), sum(_LENGTHS[: segment + 1]))

    def packed_against_alone(self) -> list[str]:
        start, rows = sum(_LENGTHS[:2]), self._rows(2)
        # In a row of the same length: FlexAttention compiles for each length anew.
        alone_LV = self._run(self.ids[start:], _LENGTHS[2:], self.prefixes[2:])[: rows.stop - rows.start]
        difference = float((self.base_LV[rows] - alone_LV).abs().mean()) / self.scale
        if difference <= self._tolerance():
            return []
        return [
            f"a segment in a pack has other logits than alone: they differ by {difference:.2g} of their standard "
            f"deviation, {self._tolerance():.2g} may be rounding. Does the model take position_ids?"
        ]

    def head_against_forward(self, attn_implementation: str) -> list[str]:
        batch = _batch_of(self.model, self.attention, self.ids, _LENGTHS, self.prefixes, _LENGTH)
        output = self.model(**self._inputs(batch, attn_implementation), use_cache=False)
        difference = float((output.logits[0].float() - self.base_LV).abs().mean()) / self.scale
        if difference <= self._tolerance():
            return []
        return [
            f"model type {self.model.config.model_type!r} does more to its logits than its head: training would see "
            f"others than the model gives, by {difference:.2g} of their standard deviation."
        ]

    def _inputs(self, batch: Batch, attn_implementation: str) -> dict[str, Any]:
        """What the model's own forward is given for a packed row."""
        mask = lowering_of(self.model, attn_implementation).mask(batch.spec, activation_dtype(self.model))
        return {"input_ids": batch.input_ids, "attention_mask": mask, "position_ids": batch.spec.position_ids}

    def plain_row(self, attn_implementation: str) -> list[str]:
        difference = plain_row_difference(self.model, self.vocab_size, _LENGTH)
        if difference <= self._tolerance():
            return []
        return [
            f"{attn_implementation!r} gives a plain causal row other logits than the model's own eager forward, by "
            f"{difference:.2g} of their standard deviation: it computes another attention than the model's."
        ]

    def _tolerance(self) -> float:
        return tolerance_of(self.model)


class _DecoderProbe(_Probe):
    def of_masks(self) -> list[list[str]]:
        return [self.other_segments(), self.within_prefix(), self.future_of_targets()]

    def other_segments(self) -> list[str]:
        moved = self._moved(_LENGTHS[0], _LENGTHS[0] + _LENGTHS[1])  # the middle one, which has one on either side
        moved[_LENGTHS[0] : _LENGTHS[0] + _LENGTHS[1]] = False
        if not moved.any():
            return []
        return [
            f"segments of a pack see each other: changing one moves logits at {int(moved.sum())} positions outside."
        ]

    def within_prefix(self) -> list[str]:
        last = _PREFIXES[0] - 1
        seen = bool(self._moved(last, last + 1)[:last].any())
        if seen == (self.attention == "prefix_lm"):
            return []
        is_so = "see" if seen else "do not see"
        return [f"attention is {self.attention!r}, but the first tokens of a prefix {is_so} its last one."]

    def future_of_targets(self) -> list[str]:
        faults = []
        for name, token in (("a segment with a prefix", _LENGTHS[0] - 2), ("one without", sum(_LENGTHS[:2]) - 2)):
            if self._moved(token, token + 1)[:token].any():
                faults.append(f"targets see the future: in {name}, changing a target moves logits before it.")
        return faults


class _EncoderDecoderProbe(_Probe):
    prefixes = _ENCODER_LENGTHS

    def of_masks(self) -> list[list[str]]:
        return [self.other_segments(), self.own_inputs(), self.future_of_targets()]

    def _rows(self, segment: int) -> slice:
        ends = np.cumsum(np.subtract(_LENGTHS, self.prefixes))
        return slice(int(ends[segment - 1]) if segment else 0, int(ends[segment]))

    def other_segments(self) -> list[str]:
        faults, start, between = [], _LENGTHS[0], _LENGTHS[0] + self.prefixes[1]
        for side, first, last in (("encoder", start, between), ("decoder", between, start + _LENGTHS[1])):
            moved = self._moved(first, last)
            moved[self._rows(1)] = False
            if moved.any():
                faults.append(
                    f"segments of a pack see each other: changing the {side}'s tokens of one moves logits at "
                    f"{int(moved.sum())} positions outside."
                )
        return faults

    def own_inputs(self) -> list[str]:
        if self._moved(0, 1)[self._rows(0)].any():
            return []
        return ["a decoder does not see its inputs: changing a token of the encoder moves no logits of its segment."]

    def future_of_targets(self) -> list[str]:
        faults = []
        for number in (0, 2):
            index = _LENGTHS[number] - self.prefixes[number] - 2  # the last target is never given to the decoder
            token, rows = sum(_LENGTHS[:number]) + self.prefixes[number] + index, self._rows(number)
            if self._moved(token, token + 1)[rows.start : rows.start + index + 1].any():
                faults.append(f"targets see the future: in segment {number}, changing one moves logits before it.")
        return faults

    def _inputs(self, batch: Batch, attn_implementation: str) -> dict[str, Any]:
        from transformers.modeling_outputs import BaseModelOutput

        assert batch.encoder is not None
        states_BED = encoder_states(self.model, batch.encoder, attn_implementation)
        lowering, dtype = lowering_of(self.model, attn_implementation), activation_dtype(self.model)
        return {
            "encoder_outputs": BaseModelOutput(last_hidden_state=states_BED),
            "attention_mask": lowering.cross_mask(batch.spec, batch.encoder.spec, dtype),
            "decoder_input_ids": batch.input_ids,
            "decoder_attention_mask": lowering.mask(batch.spec, dtype),
        }
