"""The forwards of generation: prompts in one, then a token at a time with a cache, under the masks of training.

A decoder reads the prompt itself, padded on the left, and goes on in the same row; layers with a window keep it. An
encoder-decoder's encoder reads the prompt, and its decoder begins an empty row with its start token. Which token is
next is decided in generate.py.

Shapes: B rows, P prompt positions of the batch, K keys so far, D hidden.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from flan_tune.models.attention import MaskSpec
from flan_tune.models.collate import EncoderRows
from flan_tune.models.forward import activation_dtype, encoder_states, is_encoder_decoder
from flan_tune.models.load import decoder_start_id_of
from flan_tune.models.lowering import Mask, lower_allowed, lowering_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Reader(Protocol):
    """A model in the midst of a batch of prompts. hidden_BD: the last hidden states of what was read last."""

    hidden_BD: Tensor

    def read(self, token_B1: Tensor) -> None:
        """Reads one more token in each row."""


def reader_of(model: PreTrainedModel, prompts: list[list[int]], attention: str, pad_id: int) -> Reader:
    """A reader that has read `prompts`; of a prefix-LM in both directions."""
    if is_encoder_decoder(model):
        return _EncoderDecoderReader(model, prompts, pad_id)
    return _DecoderReader(model, prompts, attention, pad_id)


class _DecoderReader:
    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], attention: str, pad_id: int) -> None:
        from transformers import DynamicCache

        device = model.get_input_embeddings().weight.device
        input_ids, spec = left_padded(prompts, pad_id, attention)
        spec = spec.to(device)
        self.model, self.visible_BK = model, spec.segment_ids == 1
        # Without the config: with it, layers with a window drop old keys, and our mask has the width of all of them.
        self.cache = DynamicCache()
        mask = lowering_of(model).mask(spec, activation_dtype(model))
        self._forward(input_ids.to(device), mask, spec.position_ids)

    def read(self, token_B1: Tensor) -> None:
        self.visible_BK = torch.cat([self.visible_BK, self.visible_BK.new_ones(len(token_B1), 1)], dim=1)
        mask = _mask_of_last(self.model, self.visible_BK)
        self._forward(token_B1.to(self.visible_BK.device), mask, self.position_ids[:, -1:] + 1)

    def _forward(self, input_ids: Tensor, mask: Mask | dict[str, Mask], position_ids: Tensor) -> None:
        self.position_ids = position_ids
        output = self.model.get_decoder()(
            input_ids=input_ids,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.hidden_BD = output[0][:, -1]


class _EncoderDecoderReader:
    def __init__(self, model: PreTrainedModel, prompts: list[list[int]], pad_id: int) -> None:
        from transformers import DynamicCache, EncoderDecoderCache

        device = model.get_input_embeddings().weight.device
        input_ids, spec = left_padded(prompts, pad_id, "prefix_lm")
        rows = EncoderRows(input_ids, spec).to(device)
        self.model, self.states_BPD = model, encoder_states(model, rows)
        self.cross_mask = _mask_of_last(model, rows.spec.segment_ids == 1)
        self.cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        self.visible_BK = torch.ones(len(prompts), 0, dtype=torch.bool, device=device)
        self.read(torch.full((len(prompts), 1), decoder_start_id_of(model)))

    def read(self, token_B1: Tensor) -> None:
        self.visible_BK = torch.cat([self.visible_BK, self.visible_BK.new_ones(len(token_B1), 1)], dim=1)
        output = self.model.get_decoder()(
            input_ids=token_B1.to(self.visible_BK.device),
            attention_mask=_mask_of_last(self.model, self.visible_BK),
            encoder_hidden_states=self.states_BPD,
            encoder_attention_mask=self.cross_mask,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.hidden_BD = output[0][:, -1]


def _mask_of_last(model: PreTrainedModel, visible_BK: Tensor) -> Mask | dict[str, Mask]:
    """The mask of the last position as a query: all keys that are visible, and within the window where there is one."""
    lowering, dtype = lowering_of(model), activation_dtype(model)
    distance_K = torch.arange(visible_BK.shape[1], device=visible_BK.device).flip(0)
    masks: dict[int | None, Mask] = {}
    for window in dict(lowering.windows).values():
        within_BK = visible_BK if window is None else visible_BK & (distance_K < window)
        masks[window] = lower_allowed(within_BK[:, None], lowering.attn_implementation, dtype)
    return lowering.by_kind(masks)


def left_padded(prompts: list[list[int]], pad_id: int, attention: str) -> tuple[Tensor, MaskSpec]:
    """Ids [B, P] and spec of prompts that all end in the last column.

    Prompts [5 6 7] and [8], pad 0, prefix-LM: ids [5 6 7] and [0 0 8]; segments [1 1 1] and [0 0 1]; prefix blocks
    [1 1 1] and [-1 -1 1]; positions [0 1 2] and [0 0 0].
    """
    length_B = np.array([len(prompt) for prompt in prompts])
    width = int(length_B.max())
    position_BP = np.arange(width)[None, :] - (width - length_B)[:, None]
    is_prompt_BP = position_BP >= 0
    ids_BP = np.full(is_prompt_BP.shape, pad_id)
    ids_BP[is_prompt_BP] = np.concatenate(prompts)
    block_BP = np.where(is_prompt_BP & (attention == "prefix_lm"), 1, -1)
    arrays = (is_prompt_BP.astype(np.int64), block_BP, np.maximum(position_BP, 0))
    return torch.from_numpy(ids_BP), MaskSpec(*(torch.from_numpy(array) for array in arrays))
