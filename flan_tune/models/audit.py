"""A lowered mask turned back into who sees whom: what a back-end was told, whatever form it was told in.

The brute force it is compared with knows a pack's lengths only, not the spec nor any lowering.

Shapes: B rows, L positions (E of an encoder, D of its decoder).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from flan_tune.models.collate import PackLike
from flan_tune.models.kernels import VarlenMask
from flan_tune.models.lowering import BLOCK, Mask


def visible_BLL(mask: Mask) -> Tensor:
    """Bool [B, L, L] on the CPU: which pairs of query and key a mask made by `Lowering.mask` lets meet. Of one made by
    `Lowering.cross_mask` [B, D, E]."""
    if isinstance(mask, VarlenMask):
        return _of_varlen(mask.to("cpu"))
    if isinstance(mask, BlockMask):
        return _of_blocks(mask)
    visible = mask if mask.dtype == torch.bool else mask == 0
    return visible[:, 0].cpu()


def _of_varlen(mask: VarlenMask) -> Tensor:
    """The pairs of both calls, sequence by sequence."""
    tokens = mask.size[0] * mask.size[1]
    every = torch.arange(tokens)
    visible = torch.zeros(tokens, tokens, dtype=torch.bool)
    targets = every if mask.target_index is None else mask.target_index
    _mark(visible, targets, every, mask.cu_target, mask.cu_segment, mask.window, is_causal=True)
    if mask.prefix_index is not None:
        assert mask.cu_prefix is not None
        prefixes = mask.prefix_index
        _mark(visible, prefixes, prefixes, mask.cu_prefix, mask.cu_prefix, mask.window, is_causal=False)
    by_row = visible.view(*mask.size, *mask.size)
    rows = torch.stack([by_row[row, :, row] for row in range(mask.size[0])])
    if int(rows.sum()) != int(visible.sum()):
        raise ValueError("the varlen calls let tokens of different rows meet.")
    return rows


def _mark(
    visible: Tensor,
    query: Tensor,
    key: Tensor,
    cu_query: Tensor,
    cu_key: Tensor,
    window: int | None,
    *,
    is_causal: bool,
) -> None:
    """Marks what one varlen call computes; a query's place among the keys counts from the end."""
    bounds = zip(cu_query[:-1].tolist(), cu_query[1:].tolist(), cu_key[:-1].tolist(), cu_key[1:].tolist(), strict=True)
    for q0, q1, k0, k1 in bounds:
        place = torch.arange(q1 - q0) + (k1 - k0) - (q1 - q0)
        distance = torch.arange(k1 - k0)[None, :] - place[:, None]
        seen = distance <= 0 if is_causal else torch.ones_like(distance, dtype=torch.bool)
        if window is not None:
            seen &= distance.abs() < window
        visible[query[q0:q1, None], key[None, k0:k1]] = seen


def _of_blocks(mask: BlockMask) -> Tensor:
    """Blocks that are wholly allowed, and of those allowed partly what the mask function lets through."""
    rows, _, width, _ = mask.shape
    part = _block_pairs(mask.kv_num_blocks, mask.kv_indices, width)
    whole = _block_pairs(mask.full_kv_num_blocks, mask.full_kv_indices, width)
    device = mask.kv_indices.device
    row = torch.arange(rows, device=device)[:, None, None]
    query, key = torch.arange(width, device=device)[None, :, None], torch.arange(width, device=device)[None, None, :]
    let_through = mask.mask_mod(row, torch.zeros((), dtype=torch.long, device=device), query, key).cpu()
    return whole | (part & let_through)


def _block_pairs(number_B1N: Tensor, index_B1NN: Tensor, width: int) -> Tensor:
    rows, _, blocks, _ = index_B1NN.shape
    is_used = torch.arange(blocks) < number_B1N.cpu()[..., None]
    pairs = torch.zeros(rows, blocks, blocks, dtype=torch.bool)
    pairs.scatter_(2, index_B1NN[:, 0].cpu().long(), is_used[:, 0])
    whole = pairs.repeat_interleave(BLOCK, 1).repeat_interleave(BLOCK, 2)
    return whole[:, :width, :width]


def expected_LL(pack: PackLike, max_length: int, attention: str, window: int | None) -> Tensor:
    """Bool [L, L] of one row, segment by segment, from the lengths of its pack alone."""
    expected = np.zeros((max_length, max_length), dtype=bool)
    start = 0
    segments = zip(pack.segment_lengths.tolist(), pack.prefix_lengths.tolist(), strict=True)
    for length, prefix in [*segments, (max_length - len(pack.input_ids), 0)]:
        seen = np.tri(length, dtype=bool)
        if attention == "prefix_lm":
            seen[:prefix, :prefix] = True
        if window is not None:
            place = np.arange(length)
            seen &= np.abs(place[:, None] - place[None, :]) < window
        expected[start : start + length, start : start + length] = seen
        start += length
    return torch.from_numpy(expected)


def expected_sides(pack: PackLike, max_length: int, max_target_length: int) -> dict[str, Tensor]:
    """The three masks of an encoder-decoder's row, from the lengths of its pack alone: bool [E, E], [D, D] and [D, E].

    Padding is a segment of its own; the decoder's sees the encoder's, or everything if the encoder has none.
    """
    encoder, decoder, cross = (
        np.zeros(size, dtype=bool)
        for size in ((max_length,) * 2, (max_target_length,) * 2, (max_target_length, max_length))
    )
    e = d = 0
    for length, prefix in zip(pack.segment_lengths.tolist(), pack.prefix_lengths.tolist(), strict=True):
        targets = length - prefix
        encoder[e : e + prefix, e : e + prefix] = True
        decoder[d : d + targets, d : d + targets] = np.tri(targets, dtype=bool)
        cross[d : d + targets, e : e + prefix] = True
        e, d = e + prefix, d + targets
    encoder[e:, e:] = np.tri(max_length - e, dtype=bool)
    decoder[d:, d:] = np.tri(max_target_length - d, dtype=bool)
    cross[d:, e if e < max_length else 0 :] = True
    return {
        "encoder": torch.from_numpy(encoder),
        "decoder": torch.from_numpy(decoder),
        "cross": torch.from_numpy(cross),
    }
