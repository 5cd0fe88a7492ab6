"""A model on this machine, as `flan-tune verify` questions it: each question is answered by (passed, what was found).

Which questions there are, and in which order, is in checks/verify.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flan_tune.errors import RecipeError
from flan_tune.models.attention import layer_windows
from flan_tune.models.audit import expected_LL, expected_sides, visible_BLL
from flan_tune.models.backends import Machine, refusal
from flan_tune.models.collate import Batch, DecoderShape, PackLike, collate
from flan_tune.models.forward import attn_implementation_of, is_encoder_decoder
from flan_tune.models.load import create_model, decoder_start_id_of, load_model
from flan_tune.models.loss import TargetLoss
from flan_tune.models.lowering import ATTN_IMPLEMENTATIONS, Mask, lower, lowering_of
from flan_tune.models.parity import Parity, accumulation_parity, packed_against_alone
from flan_tune.models.probe import leak_probe, plain_row_difference, settle_attn_implementation, tolerance_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Answer = tuple[bool, str]


class Subject:
    """A model in the dtype it trains in, on the GPU if there is one.

    model: either a Hugging Face config for a new one, or the folder or hub id of one to load.
    bf16: compute in bfloat16 by autocast, as training without DeepSpeed does.
    max_target_length: the decoder's positions in a row of an encoder-decoder; `max_length` is then its encoder's.

    Raises: RecipeError if the model cannot be made, or `max_target_length` is missing, or given to a model without an
    encoder.
    """

    def __init__(
        self,
        model: Mapping[str, Any] | str,
        *,
        revision: str | None,
        vocab_size: int,
        seed: int,
        attention: str,
        attn_implementation: str,
        dropout: float | None = None,
        bf16: bool,
        z_loss: float,
        max_length: int,
        pad_id: int,
        max_target_length: int | None = None,
    ) -> None:
        self.attention, self.max_length, self.pad_id = attention, max_length, pad_id
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = torch.bfloat16 if bf16 else torch.float32
        self.is_auto = attn_implementation == "auto"
        common: dict[str, Any] = {
            "vocab_size": vocab_size,
            "seed": seed,
            "attn_implementation": attn_implementation,
            "compute_dtype": self.dtype,
            "dropout": dropout,  # which back-ends there are depends on it
        }
        if isinstance(model, str):
            built = load_model(model, revision=revision, **common)
        else:
            built = create_model(model, **common)
        self.decoder = _decoder_shape(built, max_target_length)
        self.model = built.to(self.device)
        self.loss = TargetLoss(self.model, z_loss)

    def computing(self) -> AbstractContextManager[Any]:
        """The context of a forward, as training has it."""
        return torch.autocast(self.device, torch.bfloat16, enabled=self.dtype == torch.bfloat16)

    @property
    def implementation(self) -> str:
        """The back-end in use."""
        return attn_implementation_of(self.model)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def _trains(self) -> bool:
        return not (self.device == "cpu" and self.implementation == "flex_attention")

    def back_end(self) -> Answer:
        """Which attention runs, and why no better one."""
        notes = []
        if self.is_auto:
            with self.computing():
                _, notes = settle_attn_implementation(self.model, self.attention, self.vocab_size)
        machine = Machine.here(self.dtype)
        refused = {name: refusal(name, self.model.config, machine) for name in ATTN_IMPLEMENTATIONS}
        notes += [f"{name}: {reason}" for name, reason in refused.items() if reason is not None]
        what = f"{self.implementation}, {self.attention}, {str(self.dtype).removeprefix('torch.')} on {self.device}"
        return True, "; ".join([what, *notes])

    def leak_probe(self) -> Answer:
        """Whether segments see each other."""
        with self.computing():
            faults = leak_probe(self.model, self.attention, self.implementation, self.vocab_size)
        sound = "segments of a pack do not see each other"
        if self.decoder is not None:
            sound += ", decoders see their own inputs"
        if self.attention == "prefix_lm":
            sound += ", prefixes see themselves in both directions"
        return not faults, " ".join(faults) or sound

    def plain_row(self) -> Answer:
        """Whether a causal row is what the model's own code makes of it, beyond its shortest window."""
        windows = [window for window in layer_windows(self.model.config).values() if window is not None]
        room = self.max_length if self.decoder is None else min(self.max_length, self.decoder.max_target_length)
        length = min(room, 32 + min(windows, default=0))
        with self.computing():
            difference = plain_row_difference(self.model, self.vocab_size, length)
            tolerance = tolerance_of(self.model)
        beyond = f", beyond the window of {min(windows)}" if windows and length > min(windows) else ""
        return difference <= tolerance, (
            f"{length} tokens{beyond}: logits differ from the model's own by {difference:.1e} of their spread, "
            f"{tolerance:.0e} may be rounding"
        )

    def packed_against_alone(self, packs: Sequence[PackLike]) -> Answer:
        """Whether packs train as their segments alone."""
        with self.computing():
            return _told(packed_against_alone(self.loss, packs, self.batch, self._trains))

    def accumulation(self, packs: Sequence[PackLike]) -> Answer:
        """Whether a step is the same however it is divided."""
        if len(packs) == 1:
            return True, "there is one pack only: nothing to compare"
        with self.computing():
            passed, text = _told(accumulation_parity(self.loss, packs, self.batch, self._trains))
        return passed, f"{len(packs)} packs a step: {text}"

    def batch(self, packs: Sequence[PackLike]) -> Batch:
        """A batch as training makes it, on the device."""
        return collate(
            packs,
            max_length=self.max_length,
            pad_id=self.pad_id,
            attention=self.attention,
            loss_normalization="token",
            lowering=lowering_of(self.model),
            decoder=self.decoder,
        ).to(self.device)

    def masks(self, pack: PackLike) -> dict[str, Tensor]:
        """Who sees whom by what the back-end is given for `pack`, bool [queries, keys], by what the mask is for: the
        layers with one window each, or the "encoder", the "decoder" and the one on the other ("cross")."""
        batch, lowering = self.batch([pack]), lowering_of(self.model)
        named: dict[str, Mask]
        if batch.encoder is not None:
            named = {
                "encoder": lower(batch.encoder.spec, self.implementation, self.dtype),
                "decoder": lower(batch.spec, self.implementation, self.dtype),
                "cross": lowering.cross_mask(batch.spec, batch.encoder.spec, self.dtype),
            }
        else:
            mask = lowering.mask(batch.spec, self.dtype, batch.plan)
            kinds = mask if isinstance(mask, dict) else dict.fromkeys(dict(lowering.windows), mask)
            named = {_layers_with(window): kinds[kind] for kind, window in lowering.windows}
        return {name: visible_BLL(one)[0] for name, one in named.items()}

    def _expected(self, pack: PackLike) -> dict[str, Tensor]:
        if self.decoder is not None:
            return expected_sides(pack, self.max_length, self.decoder.max_target_length)
        windows = layer_windows(self.model.config).values()
        return {_layers_with(window): expected_LL(pack, self.max_length, self.attention, window) for window in windows}

    def mask_audit(self, pack: PackLike) -> Answer:
        """Whether the masks of a pack are what its lengths say, pair by pair."""
        faults, told = [], []
        expected = self._expected(pack)
        for name, visible in self.masks(pack).items():
            wrong = int((visible != expected[name]).sum())
            told.append(f"{name}: {int(visible.sum()):,} pairs")
            if wrong:
                faults.append(f"{name}: {wrong:,} pairs of query and key are not as the pack says")
        return not faults, "; ".join(faults or told)


def _decoder_shape(model: PreTrainedModel, max_target_length: int | None) -> DecoderShape | None:
    if is_encoder_decoder(model) == (max_target_length is None):
        what = "needs" if max_target_length is None else "has no decoder of its own for"
        raise RecipeError(f"model type {model.config.model_type!r} {what} data.max_target_length.")
    return None if max_target_length is None else DecoderShape(max_target_length, decoder_start_id_of(model))


def _layers_with(window: int | None) -> str:
    return "layers without a window" if window is None else f"layers with a window of {window}"


def _told(parity: Parity) -> Answer:
    gradient = (
        "no gradients: the back-end has no backward pass here"
        if parity.gradient is None
        else f"gradients by {parity.gradient:.1e} of their norm"
    )
    return parity.holds, (
        f"{parity.targets:,} targets: losses differ by {parity.loss:.1e} of their spread, {gradient}; "
        f"{parity.tolerance:.0e} may be rounding"
    )
