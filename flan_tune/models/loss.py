"""The training loss: weighted cross-entropy, summed over the target positions of a batch.

A sum, not a mean: what it is divided by belongs to the whole optimiser step and is known from the manifest, so the
training loop divides. Which positions are targets, and their weights, is decided in collate.py.

Shapes: B rows, L positions, N target positions, D hidden, V vocabulary, C positions of a chunk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flan_tune.models.attention import check_window
from flan_tune.models.collate import Batch
from flan_tune.models.forward import choose_positions, head_logits, hidden_states

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CHUNK_POSITIONS = 4096


class TargetLossOutput(NamedTuple):
    """A plain tuple underneath, so that DeepSpeed and DDP find the tensors in it.

    loss_sum: float32 scalar, weighted, with gradient.
    token_losses_N: float32 [N], not weighted, without gradient: for the loss per task family.
    positions_N: int64 [N], where they are in the flattened [B * L].
    """

    loss_sum: Tensor
    token_losses_N: Tensor
    positions_N: Tensor


class TargetLoss(nn.Module):
    """A Hugging Face causal model together with its loss; this module is what an engine wraps and trains.

    The model is the attribute `model`, so names in this module's state dict begin with "model.".
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> TargetLossOutput:
        """Cross-entropy in nats of each label, weighted by `batch.loss_weights` and summed.

        Only hidden states of target positions go through the head, which is called once. A batch without targets
        gives 0, and that 0 still depends on every parameter: all ranks run the same backward, none is waited for.

        Raises: RecipeError if the rows are longer than a window the model attends within.
        """
        check_window(self.model.config, batch.input_ids.shape[1])
        positions_N = batch.target_positions
        hidden_BLD = hidden_states(self.model, batch.input_ids, batch.spec)
        logits_NV = head_logits(self.model, choose_positions(hidden_BLD, positions_N))
        losses_N = cross_entropy(logits_NV, batch.labels.flatten()[positions_N])
        weights_N = batch.loss_weights.flatten()[positions_N]
        return TargetLossOutput((losses_N * weights_N).sum(), losses_N.detach(), positions_N)


def cross_entropy(logits_NV: Tensor, labels_N: Tensor, chunk: int = CHUNK_POSITIONS) -> Tensor:
    """Cross-entropy of each row, float32 [N], in nats; computed in float32 whatever the dtype of the logits.

    Beyond `chunk` rows it goes chunk by chunk, and each is computed again in the backward pass, so that float32
    copies of all logits never exist at once (32k targets of a 128k vocabulary: 16 GiB each).
    """
    if len(labels_N) <= chunk:
        return _cross_entropy(logits_NV, labels_N)
    # split, not slices: the gradient of a slice is a whole [N, V] of zeros around it, once per chunk.
    pieces = zip(logits_NV.split(chunk), labels_N.split(chunk), strict=True)
    return torch.cat([checkpoint(_cross_entropy, *piece, use_reentrant=False) for piece in pieces])


def _cross_entropy(logits_CV: Tensor, labels_C: Tensor) -> Tensor:
    return F.cross_entropy(logits_CV.float(), labels_C, reduction="none")
