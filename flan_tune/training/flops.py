"""What a batch costs to train: its work, in tokens and pairs of them, times what a model spends on each.

For MFU: true work only. Padding, recomputed activations and pairs that a mask hides are not counted.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# Dense bf16 peaks in FLOP/s, without sparsity. Source: NVIDIA data sheets of each product.
_PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "B200": 2250e12,
}

# Of a decoder's layers, what is computed for every token of the encoder. Source: transformers 5.23, models/t5.
_CROSS_KEYS_AND_VALUES = ("EncDecAttention.k.", "EncDecAttention.v.")


@dataclass(frozen=True)
class Work:
    """What there is to compute. Of an encoder-decoder the first three are its decoder's.

    tokens: without padding. targets: of them, those that have a label. pairs: (query, key) pairs of attention that may
    meet, those with the encoder's tokens among them. encoder_tokens, encoder_pairs: the same of its encoder, else 0.
    """

    tokens: float = 0
    targets: float = 0
    pairs: float = 0.0
    encoder_tokens: float = 0
    encoder_pairs: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.tokens + other.tokens,
            self.targets + other.targets,
            self.pairs + other.pairs,
            self.encoder_tokens + other.encoder_tokens,
            self.encoder_pairs + other.encoder_pairs,
        )

    @property
    def all_tokens(self) -> float:
        """Tokens of both sides."""
        return self.tokens + self.encoder_tokens


@dataclass(frozen=True)
class FlopCost:
    """What a token costs to train, forward and backward; recomputation is not work done, so it is not counted.

    body: parameters each token passes, embeddings and head aside. head: parameters that only targets pass.
    attention: FLOPs of one (query, key) pair over all layers. peak_per_second: of one device; None = unknown.
    encoder_body, encoder_attention: the same for the encoder's tokens, where there is one; the decoder's keys and
        values of them belong to `encoder_body`.
    """

    body: int
    head: int
    attention: float
    peak_per_second: float | None
    encoder_body: int = 0
    encoder_attention: float = 0.0

    def of(self, work: Work) -> float:
        """FLOPs of a batch: 6 per parameter and token (2 forward, 4 backward), and those of attention."""
        passed = self.body * work.tokens + self.head * work.targets + self.encoder_body * work.encoder_tokens
        return 6.0 * passed + self.attention * work.pairs + self.encoder_attention * work.encoder_pairs


def flop_cost(model: nn.Module, device: torch.device) -> FlopCost | None:
    """The cost of a Hugging Face model, or None if its config does not say how wide its attention is."""
    config: Any = model.config if model.config.is_encoder_decoder else model.config.get_text_config()
    width = _attention_width(config)
    if width is None:
        return None
    # A pair costs 2 x width for its score and 2 x width for its value, in the forward pass; three times that in all.
    of_a_layer = 12.0 * width
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    outside = {id(embedding), id(head)}
    whole = sum(num_elements(p) for p in model.parameters() if id(p) not in outside)
    layers = config.num_hidden_layers
    if not config.is_encoder_decoder:
        return FlopCost(whole, num_elements(head), of_a_layer * layers, _peak(device))
    encoder = _encoder_elements(model, outside)
    return FlopCost(
        whole - encoder,
        num_elements(head),
        of_a_layer * config.num_decoder_layers,
        _peak(device),
        encoder,
        of_a_layer * layers,
    )


def _encoder_elements(model: Any, outside: set[int]) -> int:
    """Parameters that the encoder's tokens pass; embeddings, whose ids are in `outside`, are looked up, not passed."""
    cross = [p for name, p in model.get_decoder().named_parameters() if any(n in name for n in _CROSS_KEYS_AND_VALUES)]
    parameters = [*model.get_encoder().parameters(), *cross]
    return sum(num_elements(p) for p in parameters if id(p) not in outside)


def _attention_width(config: Any) -> int | None:
    heads, hidden = getattr(config, "num_attention_heads", None), getattr(config, "hidden_size", None)
    if not heads or not hidden or not getattr(config, "num_hidden_layers", None):
        return None
    return int(heads * (getattr(config, "head_dim", None) or hidden // heads))


def num_elements(parameter: nn.Parameter) -> int:
    """Elements of the whole parameter, also where this rank holds a part of it (ZeRO-3)."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _peak(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    # "H100 PCIe" stands before "H100": the first name that fits is the one.
    return next((peak for model, peak in _PEAK_FLOPS.items() if all(word in name for word in model.split())), None)
