"""From a `MaskSpec` to what a back-end takes as `attention_mask`. Four lowerings of one meaning:

    varlen           segment bounds for two kernel calls     VarlenMask       nothing of the size L x L exists
    flex_attention   tables of 128 x 128 blocks              BlockMask        8 small tables, 2 numbers a query
    sdpa             who sees whom                           bool [B,1,L,L]   L^2 bytes a row: 67 MB at 8,192
    eager            the same, added to the scores           float [B,1,L,L]  the dtype's width as often

The first two are made from segment bounds on the CPU, where packs are collated (`Lowering.plan`), with no Python per
token; the others on the device, where they are used. Models whose layers differ in their window get one mask for each
kind of layer.

Traps kept away here, all silent in transformers 5.23:
- a bool mask given to "eager" is added to the scores as 0 and 1, and hides nothing;
- a 2-D mask, or a cache, switches the isolation of packed segments off: masks made here always have rank 4;
- one mask for all layers switches the windows of sliding layers off;
- flash_attention_2 drops every mask that is more than padding;
- an encoder-decoder given one mask uses it between its two sides too: its sides are run apart, with three masks.

Shapes: B rows, L positions, Q query positions, K key positions, N blocks of a row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from flan_tune.errors import RecipeError, did_you_mean
from flan_tune.models.attention import (
    Ints,
    MaskSpec,
    SegmentBounds,
    allowed_BLL,
    cross_allowed_BQK,
    key_ranges,
    layer_windows,
    segment_bounds,
)
from flan_tune.models.kernels import VarlenMask, our_name

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTN_IMPLEMENTATIONS = ("varlen", "flex_attention", "sdpa", "eager")
DENSE = ("sdpa", "eager")  # the ones that are given a tensor, and can decode with a cache
BLOCK = 128  # FlexAttention's own

Mask = Tensor | BlockMask
"""What a layer takes."""


@dataclass(frozen=True)
class FlexTables:
    """A BlockMask as tensors, so that it can be made on the CPU and moved.

    first_BL, stop_BL: int32, the keys a query may attend to.
    blocks: the tables of `BlockMask`, in the order of its arguments: (number, indices) of the partly and the wholly
        allowed blocks, by query block and then by key block. int32 [B, 1, N] and [B, 1, N, N].
    """

    first_BL: Tensor
    stop_BL: Tensor
    blocks: tuple[Tensor, ...]

    def to(self, device: torch.device | str) -> FlexTables:
        """The same tables on `device`."""
        first, stop, *blocks = (x.to(device, non_blocking=True) for x in (self.first_BL, self.stop_BL, *self.blocks))
        return FlexTables(first, stop, tuple(blocks))

    def block_mask(self) -> BlockMask:
        """The BlockMask. Packs of one shape differ in what tensors hold, so compiled code stays valid."""
        first_BL, stop_BL = self.first_BL, self.stop_BL

        def in_range(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return (key >= first_BL[row, query]) & (key < stop_BL[row, query])

        length = first_BL.shape[1]
        return BlockMask((length, length), *self.blocks, (BLOCK, BLOCK), in_range)


@dataclass(frozen=True)
class MaskPlan:
    """What is made of a spec on the CPU, one entry per window among the layers."""

    by_window: dict[int | None, VarlenMask | FlexTables]

    def to(self, device: torch.device | str) -> MaskPlan:
        """The same plan on `device`."""
        return MaskPlan({window: part.to(device) for window, part in self.by_window.items()})


@dataclass(frozen=True)
class Lowering:
    """How one model is told its masks: its back-end, and the window of each kind of its layers."""

    attn_implementation: str
    windows: tuple[tuple[str, int | None], ...] = (("full_attention", None),)

    def __post_init__(self) -> None:
        check_attn_implementation(self.attn_implementation)

    def plan(self, spec: MaskSpec) -> MaskPlan | None:
        """The part that is made on the CPU, for varlen and flex_attention; None for the others.

        8k tokens: about 1 ms for varlen and 1.5 ms for flex_attention on a CPU core (benchmarks/attention.py).
        """
        if self.attn_implementation in DENSE:
            return None
        make = _varlen_mask if self.attn_implementation == "varlen" else _flex_tables
        bounds = segment_bounds(spec)
        return MaskPlan({window: make(bounds, window) for window in self._distinct_windows()})

    def mask(self, spec: MaskSpec, dtype: torch.dtype, plan: MaskPlan | None = None) -> Mask | dict[str, Mask]:
        """What the model takes as `attention_mask`: one mask, or one per kind of layer if their windows differ.

        dtype: that of the activations; only "eager" uses it. plan: made here if it was not made before.
        """
        if self.attn_implementation in DENSE:
            masks = {
                w: lower_allowed(allowed_BLL(spec, w), self.attn_implementation, dtype)
                for w in self._distinct_windows()
            }
            return self.by_kind(masks)
        plan = plan or _planned(self, spec)
        return self.by_kind({w: _on_device(part) for w, part in plan.by_window.items()})

    def cross_mask(self, query: MaskSpec, key: MaskSpec, dtype: torch.dtype) -> Tensor:
        """What a decoder's layers take as the mask on their encoder; for the dense back-ends only."""
        return lower_allowed(cross_allowed_BQK(query, key), self.attn_implementation, dtype)

    def by_kind(self, masks: dict[int | None, Mask]) -> Mask | dict[str, Mask]:
        """Masks per window, as the model takes them."""
        if len(masks) == 1:
            return next(iter(masks.values()))
        return {kind: masks[window] for kind, window in self.windows}

    def _distinct_windows(self) -> list[int | None]:
        return list(dict.fromkeys(window for _, window in self.windows))


def lowering_of(model: PreTrainedModel, attn_implementation: str | None = None) -> Lowering:
    """The lowering for a model, by the back-end it was built with or another one."""
    implementation = attn_implementation or our_name(str(model.config._attn_implementation))
    return Lowering(implementation, tuple(layer_windows(model.config).items()))


def _planned(lowering: Lowering, spec: MaskSpec) -> MaskPlan:
    plan = lowering.plan(spec)  # waits for the device if the spec lies on one: collate makes plans beforehand
    assert plan is not None
    return plan.to(spec.segment_ids.device)


def _on_device(part: VarlenMask | FlexTables) -> BlockMask:
    return part.block_mask() if isinstance(part, FlexTables) else part


def lower(spec: MaskSpec, attn_implementation: str, dtype: torch.dtype) -> Mask:
    """`Lowering.mask` for a model without windows."""
    mask = Lowering(attn_implementation).mask(spec, dtype)
    assert not isinstance(mask, dict)
    return mask


def lower_allowed(allowed_BQK: Tensor, attn_implementation: str, dtype: torch.dtype) -> Tensor:
    """A bool tensor of who sees whom for a dense back-end: bool [B, 1, Q, K] for "sdpa" (True = may attend), additive
    float of `dtype` for "eager" (0 = may attend, else the smallest number of `dtype`). It need not be square: decoding
    with a cache has one query and many keys.

    Raises: RecipeError for a back-end that takes no tensor.
    """
    check_attn_implementation(attn_implementation)
    if attn_implementation not in DENSE:
        raise RecipeError(
            f"attn_implementation {attn_implementation!r} takes segment bounds; one of {DENSE} is wanted."
        )
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
            "prefixes would stay causal, silently. 'varlen' uses the same kernels with segment bounds."
        )
    raise RecipeError(
        f"attn_implementation is {attn_implementation!r}; there are {list(ATTN_IMPLEMENTATIONS)} (or 'auto')."
        f"{reason}{did_you_mean(attn_implementation, ATTN_IMPLEMENTATIONS)}"
    )


def _varlen_mask(bounds: SegmentBounds, window: int | None) -> VarlenMask:
    """The two calls of a batch. A batch without prefixes needs the second one only, on all tokens as they lie."""
    tokens = bounds.rows * bounds.width
    size, longest = (bounds.rows, bounds.width), int(bounds.length_S.max())
    cu_segment = _offsets(bounds.length_S)
    has_prefix_S = bounds.prefix_S > 0
    if not has_prefix_S.any():
        return VarlenMask(size, None, None, 0, None, cu_segment, longest, cu_segment, longest, None, window)
    index_T = np.arange(tokens) - np.repeat(bounds.start_S, bounds.length_S)
    in_prefix_T = index_T < np.repeat(bounds.prefix_S, bounds.length_S)
    prefix_index, target_index = np.flatnonzero(in_prefix_T), np.flatnonzero(~in_prefix_T)
    order_T = np.empty(tokens, dtype=np.int64)
    order_T[prefix_index] = np.arange(len(prefix_index))
    order_T[target_index] = np.arange(len(prefix_index), tokens)
    target_S = bounds.length_S - bounds.prefix_S
    prefix_S = bounds.prefix_S[has_prefix_S]
    return VarlenMask(
        size,
        torch.from_numpy(prefix_index),
        _offsets(prefix_S),
        int(prefix_S.max()),
        torch.from_numpy(target_index),
        _offsets(target_S),
        max(int(target_S.max()), 1),
        cu_segment,
        longest,
        torch.from_numpy(order_T),
        window,
    )


def _offsets(length_S: Ints) -> Tensor:
    return torch.from_numpy(np.concatenate([[0], np.cumsum(length_S)]).astype(np.int32))


def _flex_tables(bounds: SegmentBounds, window: int | None) -> FlexTables:
    """Which blocks are allowed partly and which wholly, from the key ranges of each query.

    The ranges of neighbouring queries touch or overlap, since each holds the query itself: together, those of a query
    block are one run of keys, from the smallest first to the largest stop.
    """
    first_BL, stop_BL = key_ranges(bounds, window)
    edge_N = np.arange(-(-bounds.width // BLOCK)) * BLOCK
    least_first, most_first = _extremes(first_BL, len(edge_N), fill_least=bounds.width, fill_most=bounds.width)
    least_stop, most_stop = _extremes(stop_BL, len(edge_N), fill_least=0, fill_most=0)
    some_BNN = (least_first[:, :, None] < edge_N + BLOCK) & (most_stop[:, :, None] > edge_N)
    whole_BNN = (most_first[:, :, None] <= edge_N) & (least_stop[:, :, None] >= edge_N + BLOCK)
    part_BNN = some_BNN & ~whole_BNN
    tables = [_table(x) for x in (part_BNN, whole_BNN, part_BNN.swapaxes(1, 2), whole_BNN.swapaxes(1, 2))]
    return FlexTables(
        torch.from_numpy(first_BL.astype(np.int32)),
        torch.from_numpy(stop_BL.astype(np.int32)),
        tuple(tensor for table in tables for tensor in table),
    )


def _extremes(value_BL: Ints, blocks: int, *, fill_least: int, fill_most: int) -> tuple[Ints, Ints]:
    """(least, most) of each block of queries, [B, N]. Queries beyond the row, in its last block, have the fills."""
    rows, length = value_BL.shape
    beyond = ((0, 0), (0, blocks * BLOCK - length))
    least = np.pad(value_BL, beyond, constant_values=fill_least).reshape(rows, blocks, BLOCK).min(-1)
    most = np.pad(value_BL, beyond, constant_values=fill_most).reshape(rows, blocks, BLOCK).max(-1)
    return least, most


def _table(is_in_BNN: npt.NDArray[Any]) -> tuple[Tensor, Tensor]:
    """(number, indices) of the blocks that are in, for each block of the second axis; the others follow, in order."""
    number_BN = is_in_BNN.sum(-1, dtype=np.int32)
    index_BNN = np.argsort(~is_in_BNN, axis=-1, kind="stable").astype(np.int32)
    return torch.from_numpy(number_BN[:, None]), torch.from_numpy(np.ascontiguousarray(index_BNN[:, None]))
