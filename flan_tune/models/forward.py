"""Running a Hugging Face language model in parts: its encoder if it has one, the decoder's body, and then the head on
chosen positions only.

The model's own forward computes logits at every position; of a Flan row a tenth are targets. Both parts are called as
modules, so ZeRO-3 gathers and releases their parameters as in any forward. The loss on the logits is in loss.py.

Shapes: B rows, L positions, N chosen positions, D hidden, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from flan_tune.errors import StreamError
from flan_tune.models.attention import MaskSpec
from flan_tune.models.backends import Machine, refusal
from flan_tune.models.collate import Batch, EncoderRows
from flan_tune.models.kernels import our_name, register
from flan_tune.models.logits import finish_of
from flan_tune.models.lowering import DENSE, lowering_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def attn_implementation_of(model: PreTrainedModel) -> str:
    """The attention back-end the model was built with, by its name in recipes."""
    return our_name(str(model.config._attn_implementation))


def activation_dtype(model: PreTrainedModel) -> torch.dtype:
    """The dtype of the model's activations: autocast's where it is on, else that of the first float parameter."""
    parameter = next(p for p in model.parameters() if p.is_floating_point())
    device_type = parameter.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return parameter.dtype


def is_encoder_decoder(model: PreTrainedModel) -> bool:
    """Whether the model has an encoder, and its batches rows for it."""
    return bool(model.config.is_encoder_decoder)


def hidden_states(model: PreTrainedModel, batch: Batch, attn_implementation: str | None = None) -> Tensor:
    """Last hidden states [B, L, D] of a batch on the model's device; those of the decoder, where there is an encoder.

    use_cache is off whatever the config says: a cache costs memory, and a model that finds one sees across segments.
    Raises: StreamError if the batch has rows for an encoder and the model none, or the other way round.
    """
    if (batch.encoder is not None) != is_encoder_decoder(model):
        has = "no rows for the encoder" if batch.encoder is None else "rows for an encoder"
        raise StreamError(
            f"the batch has {has} of model type {model.config.model_type!r}. Prepare its packs for this model: with "
            "data.max_target_length for an encoder-decoder, without it for any other."
        )
    lowering, dtype = lowering_of(model, attn_implementation), activation_dtype(model)
    decoder, from_encoder = model.get_decoder(), {}
    if batch.encoder is not None:
        from_encoder = {
            "encoder_hidden_states": encoder_states(model, batch.encoder, attn_implementation),
            "encoder_attention_mask": lowering.cross_mask(batch.spec, batch.encoder.spec, dtype),
        }
    output = decoder(
        input_ids=batch.input_ids,
        attention_mask=lowering.mask(batch.spec, dtype, batch.plan),
        use_cache=False,
        **_positions(decoder, batch.spec, is_needed=batch.encoder is None),
        **from_encoder,
    )
    return output[0]


def encoder_states(model: PreTrainedModel, rows: EncoderRows, attn_implementation: str | None = None) -> Tensor:
    """Last hidden states [B, E, D] of an encoder-decoder's encoder."""
    encoder = model.get_encoder()
    output = encoder(
        input_ids=rows.input_ids,
        attention_mask=lowering_of(model, attn_implementation).mask(rows.spec, activation_dtype(model)),
        **_positions(encoder, rows.spec, is_needed=False),
    )
    return output[0]


def _positions(module: nn.Module, spec: MaskSpec, *, is_needed: bool) -> dict[str, Tensor]:
    """The positions, for a module that takes them. T5 has none: distances within the row are all it knows. A model that
    has and takes none (bart) is refused by the leak probe."""
    if is_needed or "position_ids" in inspect.signature(module.forward).parameters:
        return {"position_ids": spec.position_ids}
    return {}


def choose_positions(hidden_BLD: Tensor, positions_N: Tensor) -> Tensor:
    """Hidden states [N, D] at `positions_N`, which index the flattened [B * L]."""
    return hidden_BLD.flatten(0, 1).index_select(0, positions_N)


def head_logits(model: PreTrainedModel, hidden_ND: Tensor) -> Tensor:
    """Logits [N, V], in the model's dtype, of hidden states [N, D]; the head is called once."""
    return finish_of(model.config).apply(model.get_output_embeddings()(hidden_ND))


def full_logits(model: PreTrainedModel, batch: Batch, attn_implementation: str | None = None) -> Tensor:
    """Logits [B, L, V] at every position: for probes and tests; training takes only those of the targets."""
    return head_logits(model, hidden_states(model, batch, attn_implementation))


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """No gradients, no dropout, layers not compiled (each new length would compile them again); the model is left as
    it was."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), _uncompiled(model):
            yield
    finally:
        model.train(was_training)


@contextmanager
def attending_by(model: PreTrainedModel, attn_implementation: str) -> Iterator[None]:
    """Another attention back-end inside; families that let theirs be exchanged look it up in every forward."""
    before = str(model.config._attn_implementation)
    set_attn_implementation(model, attn_implementation)
    try:
        yield
    finally:
        set_attn_implementation(model, our_name(before))


def set_attn_implementation(model: PreTrainedModel, attn_implementation: str) -> None:
    """Has a model attend by another back-end from now on. T5 keeps a copy of its config on either side."""
    for part in (model, *(_sides(model) if is_encoder_decoder(model) else ())):
        part.config._attn_implementation = register(attn_implementation)


def dense_implementation(model: PreTrainedModel) -> str:
    """The back-end that can decode with a cache: the model's own, or sdpa, or eager where a family forbids that."""
    own = attn_implementation_of(model)
    if own in DENSE:
        return own
    machine = Machine.here(activation_dtype(model))
    return next(name for name in DENSE if refusal(name, model.config, machine) is None)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Has each layer's activations computed again in the backward pass instead of kept: less memory, a third more
    compute. transformers renamed the method; 5.23 warns at the old name."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def compile_layers(model: PreTrainedModel, backend: str = "inductor") -> None:
    """Has torch.compile work on each layer, in place; names and state dicts stay as they are.

    Layers of a kind share what is compiled. Rows of one length compile once: packs differ in what tensors hold, not in
    their shapes. Do it after `checkpoint_activations`.
    backend: of torch.compile; "aot_eager" compiles without making code, for tests.
    """
    for layer in chain.from_iterable(layers_of(model)):
        layer.compile(dynamic=False, backend=backend)


def layers_of(model: PreTrainedModel) -> list[list[nn.Module]]:
    """The layers of the encoder, if there is one, and those of the decoder."""
    return [_layers(side) for side in _sides(model)]


def _sides(model: PreTrainedModel) -> list[PreTrainedModel]:
    return [model.get_encoder(), model.get_decoder()] if is_encoder_decoder(model) else [model.get_decoder()]


def _layers(side: nn.Module) -> list[nn.Module]:
    """The longest list of modules that lies in no other such list, whatever the family calls it."""
    lists = {name: module for name, module in side.named_modules() if isinstance(module, nn.ModuleList)}
    outer = [module for name, module in lists.items() if not any(name.startswith(f"{other}.") for other in lists)]
    return list(max(outer, key=len, default=[]))


@contextmanager
def _uncompiled(model: PreTrainedModel) -> Iterator[None]:
    compiled: list[tuple[nn.Module, Any]] = []
    for layer in chain.from_iterable(layers_of(model)):
        compiled.append((layer, layer._compiled_call_impl))  # where nn.Module.compile puts it
        layer._compiled_call_impl = None
    try:
        yield
    finally:
        for layer, call in compiled:
            layer._compiled_call_impl = call
