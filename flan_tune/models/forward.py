"""Running a Hugging Face causal model in two parts: the decoder's body, then the head on chosen positions only.

The model's own forward computes logits at every position; of a Flan row a tenth are targets. Both parts are called as
modules, so ZeRO-3 gathers and releases their parameters as in any forward. The loss on the logits is in loss.py.

Shapes: B rows, L positions, N chosen positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flan_tune.models.attention import MaskSpec, lower

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def attn_implementation_of(model: PreTrainedModel) -> str:
    """The attention back-end the model was built with."""
    return str(model.config._attn_implementation)


def activation_dtype(model: PreTrainedModel) -> torch.dtype:
    """The dtype of the model's activations: autocast's where it is on, else that of the first float parameter."""
    parameter = next(p for p in model.parameters() if p.is_floating_point())
    device_type = parameter.device.type
    if torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return parameter.dtype


def hidden_states(
    model: PreTrainedModel, input_ids: Tensor, spec: MaskSpec, attn_implementation: str | None = None
) -> Tensor:
    """Last hidden states [B, L, D] of `input_ids` [B, L] under `spec`.

    use_cache is off whatever the config says: a cache costs memory, and a model that finds one sees across segments.
    """
    implementation = attn_implementation or attn_implementation_of(model)
    mask = lower(spec, implementation, activation_dtype(model))
    output = model.get_decoder()(
        input_ids=input_ids, attention_mask=mask, position_ids=spec.position_ids, use_cache=False
    )
    return output[0]


def choose_positions(hidden_BLD: Tensor, positions_N: Tensor) -> Tensor:
    """Hidden states [N, D] at `positions_N`, which index the flattened [B * L]."""
    return hidden_BLD.flatten(0, 1).index_select(0, positions_N)


def head_logits(model: PreTrainedModel, hidden_ND: Tensor) -> Tensor:
    """Logits [N, V], in the model's dtype, of hidden states [N, D]; the head is called once.

    What some families do to the head's output is done here too, since their own forward, which does it, is not run.
    The leak probe compares with that forward and refuses a family that does more than this.
    """
    logits_NV = model.get_output_embeddings()(hidden_ND)
    return _finish(model.config.get_text_config())(logits_NV)


def _finish(config: Any) -> Callable[[Tensor], Tensor]:
    """How a family finishes its logits. Source: transformers 5.23, the causal classes of each family."""
    if getattr(config, "final_logit_softcapping", None):  # gemma2 and its relatives
        cap = config.final_logit_softcapping
        return lambda logits: torch.tanh(logits / cap) * cap
    if config.model_type.startswith("granite"):
        return lambda logits: logits / config.logits_scaling
    if config.model_type.startswith("cohere"):
        return lambda logits: logits * config.logit_scale
    return lambda logits: logits


def full_logits(
    model: PreTrainedModel, input_ids: Tensor, spec: MaskSpec, attn_implementation: str | None = None
) -> Tensor:
    """Logits [B, L, V] at every position: for probes and tests; training takes only those of the targets."""
    return head_logits(model, hidden_states(model, input_ids, spec, attn_implementation))


@contextmanager
def evaluating(model: PreTrainedModel) -> Iterator[None]:
    """No gradients, no dropout; the model is left in the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Has each layer's activations computed again in the backward pass instead of kept: less memory, a third more
    compute. transformers renamed the method; 5.23 warns at the old name."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
