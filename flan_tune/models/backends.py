"""Which attention back-end a model may use on this machine, and which is best: attn_implementation `auto`.

Decided from the family's class and config, before any weight is made. Whether the choice is exact for the very model
is then shown by the leak probe (probe.py); a family nobody has listed anywhere is decided by it alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from flan_tune.errors import RecipeError
from flan_tune.models.attention import layer_windows
from flan_tune.models.kernels import has_varlen
from flan_tune.models.lowering import ATTN_IMPLEMENTATIONS, check_attn_implementation

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Families whose attention cannot be given a mask of ours.
_REFUSED_MODEL_TYPES = {
    "bloom": "it derives its ALiBi positions from a 2-D mask, which cannot tell packed segments apart",
}

# What families call the dropout of attention weights.
_DROPOUT_KEYS = ("attention_dropout", "attn_pdrop", "attn_dropout", "attention_probs_dropout_prob")


@dataclass(frozen=True)
class Machine:
    """Where a model will run. dtype: of the computation (autocast's, where it is on). capability: of a CUDA device."""

    device_type: str
    dtype: torch.dtype
    capability: tuple[int, int] = (0, 0)

    @classmethod
    def here(cls, dtype: torch.dtype) -> Machine:
        """This machine: its GPU if there is one."""
        if not torch.cuda.is_available():
            return cls("cpu", dtype)
        return cls("cuda", dtype, torch.cuda.get_device_capability())


def resolve_attn_implementation(requested: str, config: PreTrainedConfig, machine: Machine) -> str:
    """The back-end to build a model with: `requested`, or for "auto" the first of varlen, flex_attention, sdpa, eager
    that the family has and that is fast here. On a CPU those are sdpa and eager only: varlen is a plain reference
    there, and FlexAttention cannot train.

    Raises: RecipeError for a family that cannot be given a mask, or that has no `requested` back-end; with the reason.
    """
    reason = _REFUSED_MODEL_TYPES.get(config.model_type) or _no_encoder_decoder(config)
    if reason:
        raise RecipeError(f"model type {config.model_type!r} cannot be trained packed: {reason}.")
    if requested == "auto":
        fast = ATTN_IMPLEMENTATIONS if machine.device_type == "cuda" else ATTN_IMPLEMENTATIONS[2:]
        return next(name for name in fast if refusal(name, config, machine) is None)
    check_attn_implementation(requested)
    reason = refusal(requested, config, machine)
    if reason is not None:
        able = [name for name in ATTN_IMPLEMENTATIONS if refusal(name, config, machine) is None]
        raise RecipeError(
            f"attn_implementation is {requested!r}, which model type {config.model_type!r} cannot use: {reason}. "
            f"Use {' or '.join(map(repr, able))}."
        )
    return requested


def refusal(attn_implementation: str, config: PreTrainedConfig, machine: Machine) -> str | None:
    """Why a back-end cannot be used, or None if it can."""
    family = _class_of(config)
    text = config.get_text_config()
    if attn_implementation == "eager":
        return None
    if attn_implementation == "sdpa":
        # Code from the hub is in no mapping: transformers itself refuses what its class has not.
        return None if getattr(family, "_supports_sdpa", True) else "its class forbids it"
    if config.is_encoder_decoder:
        return "it is for decoders, and has no mask between an encoder and its decoder"
    if family is None or not family._can_set_attn_implementation():
        return "its attention is its own, not one that transformers' AttentionInterface could exchange"
    dropout = next((key for key in _DROPOUT_KEYS if getattr(text, key, 0.0)), None)
    if dropout is not None:
        return f"{dropout} is {getattr(text, dropout)}, and its kernels have no dropout; set it to 0"
    if attn_implementation == "flex_attention":
        return _no_flex(family, text, machine)
    return _no_varlen(text, machine)


def _no_flex(family: Any, text: Any, machine: Machine) -> str | None:
    if not getattr(family, "_supports_flex_attn", False):
        return "its class forbids it"
    head = head_size(text)
    if machine.device_type == "cuda" and head is not None and head < 16:
        return f"its kernels need heads of at least 16, the model's have {head}"
    return None


def _no_varlen(text: Any, machine: Machine) -> str | None:
    if machine.device_type != "cuda":
        return None  # the reference computes anything
    head = head_size(text)
    if not has_varlen():
        return f"torch {torch.__version__} has no varlen kernel with windows; 2.13 has"
    if machine.capability < (8, 0):
        return f"its kernels need compute capability 8.0, this GPU has {machine.capability[0]}.{machine.capability[1]}"
    if machine.dtype not in (torch.bfloat16, torch.float16):
        return f"its kernels compute in bfloat16 or float16, not {machine.dtype}; set training.bf16"
    if getattr(text, "attn_logit_softcapping", None):
        return "its scores are soft-capped, and torch's varlen kernel has no soft cap"
    if head is not None and (head > 256 or head % 8):
        return f"its kernels need heads of a multiple of 8 up to 256, the model's have {head}"
    return None


def head_size(text: Any) -> int | None:
    """Width of an attention head, or None if the config does not say it. `text`: the config's text part."""
    heads, hidden = getattr(text, "num_attention_heads", None), getattr(text, "hidden_size", None)
    given = getattr(text, "head_dim", None)
    if given:
        return int(given)
    return hidden // heads if heads and hidden else None


def _no_encoder_decoder(config: PreTrainedConfig) -> str | None:
    if not config.is_encoder_decoder:
        return None
    if set(layer_windows(config).values()) != {None} or getattr(config, "encoder_attention_type", "full") != "full":
        return "windows are kept in decoders only, and it is an encoder-decoder with windows"
    return None


def _class_of(config: PreTrainedConfig) -> Any:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

    mapping = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING if config.is_encoder_decoder else MODEL_FOR_CAUSAL_LM_MAPPING
    return mapping.get(type(config), None) if type(config) in mapping else None
