"""The leak probe: does this very model, on this back-end and in this dtype, see what our mask says and no more?

Run before step 0. It perturbs tokens and watches which logits move; that is the only check that holds for families,
back-ends and library versions nobody has tried. Every process must run it with the same arguments: it makes the same
forwards everywhere, so it works under ZeRO-3.

Shapes: B rows, L positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flan_tune import rng
from flan_tune.models.attention import check_attention, lower
from flan_tune.models.collate import BarePack, Batch, collate
from flan_tune.models.forward import activation_dtype, evaluating, full_logits

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Logits = Callable[[Batch], Tensor]

_LENGTHS = (9, 7, 6)  # three segments, and two positions of padding after them
_PREFIXES = (5, 0, 3)
_LENGTH = sum(_LENGTHS) + 2

# How far logits may differ, as a share of their standard deviation. A perturbed row has the same shape as the one it
# is compared with, so what is masked changes nothing at all; a segment alone takes other kernels and rounds otherwise.
_UNCHANGED = 1e-5
_SAME_ALONE = {torch.float32: 1e-3, torch.float64: 1e-6}
_SAME_ALONE_HALF_PRECISION = 0.1


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
    - the head as training calls it gives what the model's own forward gives.

    logits: how logits [B, L, V] of a batch are computed; by default as in training. For trying the probe itself.
    Costs seven forwards of one row of 24 tokens.
    """
    check_attention(attention)
    own = logits or (lambda batch: full_logits(model, batch.input_ids, batch.spec, attn_implementation))
    probe = _Probe(model, attention, vocab_size, own)
    with evaluating(model):
        # All of them, whatever the first ones say: processes must not part ways here.
        found = [
            probe.other_segments(),
            probe.within_prefix(),
            probe.future_of_targets(),
            probe.packed_against_alone(),
            probe.head_against_forward(None if logits else attn_implementation),
        ]
    return [fault for faults in found for fault in faults]


class _Probe:
    def __init__(self, model: PreTrainedModel, attention: str, vocab_size: int, logits: Logits) -> None:
        self.model, self.attention, self.vocab_size, self.logits = model, attention, vocab_size, logits
        self.device = model.get_input_embeddings().weight.device
        self.ids = rng.below(vocab_size, rng.key(0, "leak probe"), np.arange(sum(_LENGTHS)))
        with evaluating(model):
            self.base_LV = self._run(self.ids, _LENGTHS, _PREFIXES)
        self.scale = float(self.base_LV.std())

    def _batch(self, ids: np.ndarray, lengths: tuple[int, ...], prefixes: tuple[int, ...], width: int) -> Batch:
        pack = BarePack(ids, np.array(lengths), np.array(prefixes))
        batch = collate([pack], max_length=width, pad_id=0, attention=self.attention, loss_normalization="token")
        return batch.to(self.device)

    def _run(
        self, ids: np.ndarray, lengths: tuple[int, ...], prefixes: tuple[int, ...], width: int = _LENGTH
    ) -> Tensor:
        return self.logits(self._batch(ids, lengths, prefixes, width))[0].float()

    def _moved(self, start: int, stop: int) -> np.ndarray:
        """Bool [L]: where logits move when tokens start..stop-1 become others."""
        ids = self.ids.copy()
        ids[start:stop] = (ids[start:stop] + 1 + self.vocab_size // 2) % self.vocab_size
        change_LV = (self._run(ids, _LENGTHS, _PREFIXES) - self.base_LV).abs()
        moved: np.ndarray = (change_LV.amax(-1) > _UNCHANGED * self.scale).cpu().numpy()
        return moved

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

    def packed_against_alone(self) -> list[str]:
        start = sum(_LENGTHS[:2])
        alone_LV = self._run(self.ids[start:], _LENGTHS[2:], _PREFIXES[2:], width=_LENGTHS[2])
        difference = float((self.base_LV[start : start + _LENGTHS[2]] - alone_LV).abs().mean()) / self.scale
        if difference <= self._tolerance():
            return []
        return [
            f"a segment in a pack has other logits than alone: they differ by {difference:.2g} of their standard "
            f"deviation, {self._tolerance():.2g} may be rounding. Does the model take position_ids?"
        ]

    def head_against_forward(self, attn_implementation: str | None) -> list[str]:
        if attn_implementation is None:
            return []
        batch = self._batch(self.ids, _LENGTHS, _PREFIXES, _LENGTH)
        mask = lower(batch.spec, attn_implementation, activation_dtype(self.model))
        output = self.model(
            input_ids=batch.input_ids, attention_mask=mask, position_ids=batch.spec.position_ids, use_cache=False
        )
        difference = float((output.logits[0].float() - self.base_LV).abs().mean()) / self.scale
        if difference <= self._tolerance():
            return []
        return [
            f"model type {self.model.config.model_type!r} does more to its logits than its head: training would see "
            f"others than the model gives, by {difference:.2g} of their standard deviation."
        ]

    def _tolerance(self) -> float:
        return _SAME_ALONE.get(activation_dtype(self.model), _SAME_ALONE_HALF_PRECISION)
