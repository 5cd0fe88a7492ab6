"""The training loss: weighted cross-entropy, summed over the target positions of a batch.

A sum, not a mean: what it is divided by belongs to the whole optimiser step and is known from the manifest, so the
training loop divides. Which positions are targets, and their weights, is decided in collate.py.

The head is the largest matrix of a small model, and its logits the largest tensor of a batch: 32k targets of a 128k
vocabulary are 8 GiB in bfloat16 and 16 GiB in float32, and cross-entropy wants several of them. Here logits exist for
one chunk of targets at a time, and their gradient is taken at once, so nothing of that size is kept.

Shapes: B rows, L positions, N target positions, D hidden, V vocabulary, C positions of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flan_tune.errors import RecipeError
from flan_tune.models.attention import check_length
from flan_tune.models.collate import Batch
from flan_tune.models.forward import attn_implementation_of, choose_positions, hidden_states
from flan_tune.models.logits import Finish, finish_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CHUNK_ELEMENTS = 2**28  # of float32 logits: 1 GiB


class TargetLossOutput(NamedTuple):
    """A plain tuple underneath, so that DeepSpeed and DDP find the tensors in it.

    loss_sum: float32 scalar, weighted, with gradient; z-loss included.
    token_losses_N: float32 [N], cross-entropy alone, not weighted, without gradient: for the loss per task family.
    positions_N: int64 [N], where they are in the flattened [B * L].
    z_loss_sum: float32 scalar, the part of loss_sum that is z-loss, without gradient.
    """

    loss_sum: Tensor
    token_losses_N: Tensor
    positions_N: Tensor
    z_loss_sum: Tensor


class TargetLoss(nn.Module):
    """A Hugging Face causal model or encoder-decoder with its loss; this module is what an engine wraps and trains.

    The model is the attribute `model`, so names in this module's state dict begin with "model.".
    z_loss: adds z_loss * log(Z)^2 for each target, Z being the sum its softmax divides by; keeps logits from drifting.
        0 = none; PaLM used 1e-4 (Chowdhery et al. 2022, section 5).
    """

    def __init__(self, model: PreTrainedModel, z_loss: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.z_loss = z_loss

    def forward(self, batch: Batch) -> TargetLossOutput:
        """Cross-entropy in nats of each label, weighted by `batch.loss_weights` and summed.

        Only hidden states of target positions go through the head, which is called once. A batch without targets
        gives 0, and that 0 still depends on every parameter: all ranks run the same backward, none is waited for.

        Raises: RecipeError if the model would attend otherwise in rows of this length, or its back-end cannot train.
        """
        _check_can_train(self.model, batch)
        positions_N = batch.target_positions
        hidden_BLD = hidden_states(self.model, batch)
        hidden_ND = choose_positions(hidden_BLD, positions_N)
        labels_N, weights_N = batch.labels.flatten()[positions_N], batch.loss_weights.flatten()[positions_N]
        losses = head_loss(self.model, hidden_ND, labels_N, weights_N, self.z_loss)
        return TargetLossOutput(losses.total, losses.token_losses_N, positions_N, losses.z_loss)


def _check_can_train(model: PreTrainedModel, batch: Batch) -> None:
    check_length(model.config, batch.input_ids.shape[1])
    is_flex = attn_implementation_of(model) == "flex_attention"
    if is_flex and torch.is_grad_enabled() and batch.input_ids.device.type == "cpu":
        raise RecipeError(
            "attn_implementation is 'flex_attention', which has no backward pass on a CPU (torch 2.13). "
            "Use 'sdpa' or 'eager' there."
        )


class HeadLosses(NamedTuple):
    """Of a batch's targets. `total` has the gradient, the others do not."""

    total: Tensor
    token_losses_N: Tensor
    z_loss: Tensor


def head_loss(
    model: PreTrainedModel,
    hidden_ND: Tensor,
    labels_N: Tensor,
    weights_N: Tensor,
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> HeadLosses:
    """The head and the loss on its logits in one, chunk by chunk; from the logits on in float32 or better.

    chunk: targets at once; by default as many as have 2**28 logits.

    The head is called as a module, once, with a forward of ours inside: under ZeRO-3 that is what gathers its weight,
    and backward finds the gradient already made.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise RecipeError(
            f"the head of model type {model.config.model_type!r} is a {type(head).__name__}; a linear layer is wanted."
        )
    chunk = chunk or max(128, _CHUNK_ELEMENTS // head.weight.shape[0])
    settings = (finish_of(model.config), z_loss, chunk)
    is_training = torch.is_grad_enabled()

    def forward(hidden: Tensor) -> HeadLosses:
        dtype = _compute_dtype(hidden, head.weight)
        with torch.autocast(hidden.device.type, enabled=False):
            results = _ChunkedHeadLoss.apply(
                hidden, head.weight, head.bias, labels_N, weights_N, dtype, *settings, is_training
            )
        return HeadLosses(*results)

    with _forward_replaced(head, forward):
        losses: HeadLosses = head(hidden_ND)
    return losses


@contextmanager
def _forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Another forward inside; the module's hooks run as for its own."""
    own = module.__dict__.get("forward")
    module.forward = forward  # type: ignore[method-assign]
    try:
        yield
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own  # type: ignore[method-assign]


def _compute_dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


class _ChunkedHeadLoss(torch.autograd.Function):
    """(total, cross-entropies, z-loss) of hidden states [N, D] under a linear head.

    The loss is one number, so its gradient is known up to a factor when it is computed: the forward pass takes it
    chunk by chunk and backward multiplies. Gradients of the weight add up in float32 over the chunks.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        labels_N: Tensor,
        weights_N: Tensor,
        dtype: torch.dtype,
        finish: Finish,
        z_loss: float,
        chunk: int,
        is_training: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        wanted = tuple(needed and is_training for needed in ctx.needs_input_grad[:3])
        sums = _Gradients(hidden_ND, weight_VD, bias_V, wanted)
        wide = torch.promote_types(dtype, torch.float32)
        head_VD = weight_VD.to(dtype)
        head_V = None if bias_V is None else bias_V.to(dtype)
        token_losses_N = torch.empty(len(labels_N), dtype=torch.float32, device=hidden_ND.device)
        log_sums_N = torch.empty_like(token_losses_N)
        for start in range(0, len(labels_N), chunk):
            part = slice(start, start + chunk)
            hidden_CD = hidden_ND[part].to(dtype)
            logits_CV = finish.apply(F.linear(hidden_CD, head_VD, head_V).to(wide))
            label_C1 = labels_N[part, None]
            log_sum_C = logits_CV.logsumexp(-1)
            log_sums_N[part] = log_sum_C
            token_losses_N[part] = log_sum_C - logits_CV.gather(-1, label_C1)[:, 0]
            if not any(wanted):
                continue
            # d/dlogits of weight * (log_sum - logit[label] + z_loss * log_sum^2)
            gradient_CV = (logits_CV - log_sum_C[:, None]).exp_()
            gradient_CV *= (1.0 + 2.0 * z_loss * log_sum_C)[:, None]
            gradient_CV.scatter_add_(-1, label_C1, torch.full_like(log_sum_C, -1.0)[:, None])
            gradient_CV *= weights_N[part, None]
            sums.add(part, finish.backward(gradient_CV, logits_CV).to(dtype), hidden_CD, head_VD)
        ctx.save_for_backward(*sums.results())
        z_loss_sum = z_loss * (weights_N * log_sums_N**2).sum()
        total = (weights_N * token_losses_N).sum() + z_loss_sum
        ctx.mark_non_differentiable(token_losses_N, z_loss_sum)
        return total, token_losses_N, z_loss_sum

    @staticmethod
    def backward(ctx: Any, factor: Tensor, *unused: Tensor) -> tuple[Tensor | None, ...]:
        del unused
        # In place: they are large, and nothing goes backward twice (torch raises if it does).
        gradients = [None if saved is None else saved.mul_(factor) for saved in ctx.saved_tensors]
        return (*gradients, *[None] * 7)


class _Gradients:
    """The gradients of hidden states, weight and bias, as they add up; None for what needs none."""

    def __init__(self, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, wanted: tuple[bool, ...]) -> None:
        self.dtypes = [hidden_ND.dtype, weight_VD.dtype, weight_VD.dtype if bias_V is None else bias_V.dtype]
        self.hidden_ND = torch.empty_like(hidden_ND) if wanted[0] else None
        float_ = torch.promote_types(weight_VD.dtype, torch.float32)
        self.weight_VD = torch.zeros_like(weight_VD, dtype=float_) if wanted[1] else None
        self.bias_V = torch.zeros_like(bias_V, dtype=float_) if bias_V is not None and wanted[2] else None

    def add(self, part: slice, gradient_CV: Tensor, hidden_CD: Tensor, head_VD: Tensor) -> None:
        if self.hidden_ND is not None:
            self.hidden_ND[part] = gradient_CV @ head_VD
        if self.weight_VD is not None:
            self.weight_VD += gradient_CV.T @ hidden_CD
        if self.bias_V is not None:
            self.bias_V += gradient_CV.sum(0)

    def results(self) -> list[Tensor | None]:
        found = zip((self.hidden_ND, self.weight_VD, self.bias_V), self.dtypes, strict=True)
        return [None if value is None else value.to(dtype) for value, dtype in found]
