"""What families do to the head's output before the softmax, and its derivative.

Their own forwards do it; ours takes hidden states and calls the head itself, so it is done here too. The leak probe
compares with the model's own forward and refuses a family that does more than this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Finish:
    """Logits are cap * tanh(scale * x / cap), or scale * x without a cap, of the head's output x."""

    scale: float = 1.0
    cap: float | None = None

    def apply(self, x: Tensor) -> Tensor:
        """The logits."""
        scaled = x if self.scale == 1.0 else x * self.scale
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap

    def backward(self, gradient: Tensor, logits: Tensor) -> Tensor:
        """The gradient of x, from that of the logits and the logits themselves."""
        if self.cap is not None:
            gradient = gradient * (1.0 - (logits / self.cap) ** 2)
        return gradient if self.scale == 1.0 else gradient * self.scale


def finish_of(config: Any) -> Finish:
    """The finish of a Hugging Face config's family. Source: transformers 5.23, the classes of each family.

    T5 scales the last hidden states instead; its head is linear and without a bias, so that is the same.
    """
    text = config.get_text_config()
    if getattr(text, "final_logit_softcapping", None):  # gemma2 and its relatives
        return Finish(cap=float(text.final_logit_softcapping))
    if text.model_type.startswith("granite"):
        return Finish(scale=1.0 / text.logits_scaling)
    if text.model_type.startswith("cohere"):
        return Finish(scale=float(text.logit_scale))
    if text.model_type in ("umt5", "switch_transformers") and text.tie_word_embeddings:
        return Finish(scale=text.d_model**-0.5)
    if getattr(text, "scale_decoder_outputs", False):  # t5, not its version 1.1
        return Finish(scale=text.d_model**-0.5)
    return Finish()
