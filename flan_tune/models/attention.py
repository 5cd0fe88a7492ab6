"""Who may attend to whom in a packed row, and how each attention back-end of transformers is told so.

One `MaskSpec` says it; `lower` turns it into the tensor a back-end takes as `attention_mask`. Here are the dense
lowerings ("sdpa", "eager"). Making the spec from packs is in collate.py, running a model with it in forward.py.

Traps this file keeps away, all silent in transformers 5.23:
- a bool mask given to "eager" is added to the scores as 0 and 1, and hides nothing;
- a 2-D mask, or a cache, switches the isolation of packed segments off: masks made here are always 4-D;
- flash_attention_2 drops every mask that is more than padding.

Shapes: B rows, L positions, Q query positions, K key positions.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from flan_tune.errors import RecipeError, did_you_mean

ATTENTIONS = ("causal", "prefix_lm")
ATTN_IMPLEMENTATIONS = ("sdpa", "eager")

# Families whose attention cannot be given a mask of ours; everything else is decided by the leak probe (probe.py).
_REFUSED_MODEL_TYPES = {
    "bloom": "it derives its ALiBi positions from a 2-D mask, which cannot tell packed segments apart",
}


@dataclass(frozen=True)
class MaskSpec:
    """Who sees whom, and which position each token has. All fields are LongTensors [B, L].

    segment_ids: 0 = padding, which is a segment of its own; 1, 2, ... = the segments of the row, in order.
    prefix_block_ids: -1 = causal; otherwise the id of the bidirectional block, unique per segment within the row.
    position_ids: 0, 1, 2, ... from the start of each segment.
    """

    segment_ids: Tensor
    prefix_block_ids: Tensor
    position_ids: Tensor

    def to(self, device: torch.device | str) -> MaskSpec:
        """The same spec on `device`."""
        return MaskSpec(*(getattr(self, f.name).to(device, non_blocking=True) for f in fields(self)))


def check_attention(attention: str) -> None:
    """Raises RecipeError unless `attention` is "causal" or "prefix_lm"."""
    if attention not in ATTENTIONS:
        raise RecipeError(
            f"attention is {attention!r}; it must be one of {list(ATTENTIONS)}.{did_you_mean(attention, ATTENTIONS)}"
        )


def allowed_BLL(spec: MaskSpec) -> Tensor:
    """Bool [B, L, L]: `allowed[b, q, k]` says whether query q may attend to key k.

    allowed(q, k) = segment(q) == segment(k) and (q >= k or block(q) == block(k) >= 0). Every position sees itself,
    padding included, so no softmax runs over nothing.

    One row, segments of 3 (prefix 2) and 1 tokens, prefix-LM: segment_ids [1 1 1 2], prefix_block_ids [1 1 -1 -1]:

        1 1 0 0        the prefix sees itself in both directions
        1 1 0 0
        1 1 1 0        the target sees the prefix and itself
        0 0 0 1        the other segment sees only itself
    """
    segment, block = spec.segment_ids, spec.prefix_block_ids
    position = torch.arange(segment.shape[1], device=segment.device)
    same_segment = segment[:, :, None] == segment[:, None, :]
    not_later = position[:, None] >= position[None, :]
    same_block = (block[:, :, None] == block[:, None, :]) & (block[:, :, None] >= 0)
    return same_segment & (not_later | same_block)


def lower(spec: MaskSpec, attn_implementation: str, dtype: torch.dtype) -> Tensor:
    """The spec as `attention_mask` for a Hugging Face model: bool [B, 1, L, L] for "sdpa" (True = may attend),
    additive float of `dtype` for "eager" (0 = may attend, else the smallest number of `dtype`).

    dtype: that of the model's activations; only "eager" uses it.
    Costs B*L^2 bytes for "sdpa" (67 MB for a row of 8,192), and `dtype`'s width as often for "eager".
    Raises: RecipeError for a back-end that is not there.
    """
    return lower_allowed(allowed_BLL(spec), attn_implementation, dtype)


def lower_allowed(allowed_BQK: Tensor, attn_implementation: str, dtype: torch.dtype) -> Tensor:
    """`lower` for a bool tensor [B, Q, K] that is not square: decoding with a cache has one query and many keys."""
    check_attn_implementation(attn_implementation)
    if allowed_BQK.dtype != torch.bool or allowed_BQK.dim() != 3:
        raise ValueError(f"a bool tensor [B, Q, K] is wanted, not {allowed_BQK.dtype} {tuple(allowed_BQK.shape)}")
    allowed_B1QK = allowed_BQK[:, None]
    if attn_implementation == "sdpa":
        return allowed_B1QK
    if not dtype.is_floating_point:
        raise ValueError(f"eager attention adds its mask to the scores: a float dtype is wanted, not {dtype}")
    mask_B1QK = torch.zeros(allowed_B1QK.shape, dtype=dtype, device=allowed_BQK.device)
    return mask_B1QK.masked_fill_(~allowed_B1QK, torch.finfo(dtype).min)


def check_attn_implementation(attn_implementation: str) -> None:
    """Raises RecipeError unless our masks can be given to this back-end."""
    if attn_implementation in ATTN_IMPLEMENTATIONS:
        return
    reason = ""
    if attn_implementation.startswith("flash_attention"):
        reason = (
            " transformers gives flash attention a padding mask at most: packed segments would see each other and "
            "prefixes would stay causal, silently."
        )
    raise RecipeError(
        f"attn_implementation is {attn_implementation!r}; there are {list(ATTN_IMPLEMENTATIONS)} (or 'auto')."
        f"{reason}{did_you_mean(attn_implementation, ATTN_IMPLEMENTATIONS)}"
    )


def resolve_attn_implementation(requested: str, model_type: str) -> str:
    """The back-end to build a model with: `requested`, or for "auto" the first of sdpa, eager its family has.

    >>> resolve_attn_implementation("auto", "llama")
    'sdpa'
    >>> resolve_attn_implementation("auto", "gemma2")  # soft-capped scores: the class forbids sdpa
    'eager'

    Raises: RecipeError for a family that cannot be given a mask, or that has no `requested` back-end.
    """
    if model_type in _REFUSED_MODEL_TYPES:
        raise RecipeError(f"model type {model_type!r} cannot be trained packed: {_REFUSED_MODEL_TYPES[model_type]}.")
    has_sdpa = _supports_sdpa(model_type)
    if requested == "auto":
        return "sdpa" if has_sdpa else "eager"
    check_attn_implementation(requested)
    if requested == "sdpa" and not has_sdpa:
        raise RecipeError(f"attn_implementation is 'sdpa', which model type {model_type!r} forbids. Use 'eager'.")
    return requested


def _supports_sdpa(model_type: str) -> bool:
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

    # Code loaded from the hub is in neither mapping: assume sdpa, transformers refuses it otherwise.
    if model_type not in CONFIG_MAPPING or CONFIG_MAPPING[model_type] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return True
    return bool(getattr(MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model_type]], "_supports_sdpa", True))


def shortest_window(config: Any) -> int | None:
    """Length in tokens of the shortest attention window that some layer of the model uses, or None.

    `config` is a Hugging Face config. A window that is given but switched off (`use_sliding_window: false`, or no
    layer of that kind in `layer_types`) does not count.
    """
    text = config.get_text_config()
    layer_types = getattr(text, "layer_types", None)
    windows = []
    for name, kind in (("sliding_window", "sliding_attention"), ("attention_chunk_size", "chunked_attention")):
        length = getattr(text, name, None)
        if length is not None and (layer_types is None or kind in layer_types):
            windows.append(int(length))
    return min(windows) if windows and getattr(text, "use_sliding_window", True) else None


def check_window(config: Any, max_length: int) -> None:
    """Raises RecipeError if rows of `max_length` tokens are longer than a window the model attends within.

    One 4-D mask is given to all layers and overrides their windows: the model would be trained to look farther than
    it does when it is used.
    """
    window = shortest_window(config)
    if window is not None and window < max_length:
        raise RecipeError(
            f"model type {config.model_type!r} attends within a window of {window} tokens, rows have {max_length}: "
            "our mask reaches every layer and switches the window off, so the model would see farther here than "
            f"elsewhere. Keep rows (max_length) to {window} tokens, or choose a model without a window."
        )
