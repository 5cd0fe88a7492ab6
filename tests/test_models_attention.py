"""What a mask means, as formulas; and on tiny models: a packed segment is what it is alone, on every dense back-end.

The other back-ends are in test_models_kernels.py, all families in test_models_families.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_tune.errors import RecipeError
from flan_tune.models.attention import (
    MaskSpec,
    allowed_BLL,
    check_length,
    cross_allowed_BQK,
    key_ranges,
    layer_windows,
    segment_bounds,
)
from flan_tune.models.collate import BarePack, Batch, collate
from flan_tune.models.forward import full_logits, hidden_states
from flan_tune.models.load import create_model
from flan_tune.models.probe import leak_probe

VOCAB = 61
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
# A wide initialisation, so that attention matters and a wrong mask shows.
CONFIGS = {
    "llama": SMALL | {"model_type": "llama", "num_key_value_heads": 2, "initializer_range": 0.2},
    "qwen2": SMALL | {"model_type": "qwen2", "num_key_value_heads": 2, "initializer_range": 0.2},
    "gpt_neox": SMALL | {"model_type": "gpt_neox", "initializer_range": 0.2},
}
MISTRAL = CONFIGS["llama"] | {"model_type": "mistral", "sliding_window": 4}
SEGMENTS = [([7, 8, 9, 10, 11, 12], 3), ([20, 21], 0), ([30, 31, 32, 33, 34], 4), ([40, 41, 42], 1)]

families = pytest.mark.parametrize("family", sorted(CONFIGS))
backends = pytest.mark.parametrize("backend", ["sdpa", "eager"])
# torch 2.13 warns of a name of its own while its compiler is imported.
compiles = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
attentions = pytest.mark.parametrize("attention", ["causal", "prefix_lm"])


def model_of(family: str, backend: str = "sdpa"):
    return create_model(CONFIGS[family], VOCAB, seed=1, attn_implementation=backend).eval()


def pack_of(segments: list[tuple[list[int], int]]) -> BarePack:
    arrays = ([t for ids, _ in segments for t in ids], [len(ids) for ids, _ in segments], [p for _, p in segments])
    return BarePack(*(np.array(values, dtype=np.int32) for values in arrays))


def batch_of(segments: list[tuple[list[int], int]], attention: str, max_length: int = 24) -> Batch:
    return collate(
        [pack_of(segments)], max_length=max_length, pad_id=0, attention=attention, loss_normalization="token"
    )


@st.composite
def specs(draw: st.DrawFn, width: int = 24) -> MaskSpec:
    """One to three rows of segments with prefixes of any length, and padding."""
    rows = draw(st.integers(1, 3))
    segment, block, position = (np.full((rows, width), fill) for fill in (0, -1, 0))
    for row in range(rows):
        start, number = 0, 1
        while start < width and draw(st.integers(0, 5)):
            length = draw(st.integers(1, width - start))
            prefix = draw(st.integers(0, length))
            segment[row, start : start + length] = number
            block[row, start : start + prefix] = number
            position[row, start : start + length] = np.arange(length)
            start, number = start + length, number + 1
        position[row, start:] = np.arange(width - start)
    return MaskSpec(*(torch.from_numpy(array) for array in (segment, block, position)))


windows = st.sampled_from([None, 1, 2, 3, 7, 100])


def test_worked_example_of_the_docstring():
    spec = MaskSpec(torch.tensor([[1, 1, 1, 2]]), torch.tensor([[1, 1, -1, -1]]), torch.tensor([[0, 1, 2, 0]]))
    assert allowed_BLL(spec).int().tolist() == [[[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]]]
    assert allowed_BLL(spec, window=2)[0, 2].tolist() == [False, True, True, False]
    first, stop = key_ranges(segment_bounds(spec))
    assert (first.tolist(), stop.tolist()) == ([[0, 0, 0, 3]], [[2, 2, 3, 4]])


@settings(max_examples=80, deadline=None)
@given(spec=specs(), window=windows)
def test_the_formula_by_brute_force(spec: MaskSpec, window: int | None):
    allowed = allowed_BLL(spec, window)
    segment, block = spec.segment_ids.tolist(), spec.prefix_block_ids.tolist()
    for b, row in enumerate(segment):
        for q in range(len(row)):
            for k in range(len(row)):
                in_one_prefix = block[b][q] == block[b][k] != -1
                near = window is None or abs(q - k) < window
                assert bool(allowed[b, q, k]) == (row[q] == row[k] and (k <= q or in_one_prefix) and near)


@settings(max_examples=80, deadline=None)
@given(spec=specs(), window=windows)
def test_what_a_query_sees_is_one_run_of_keys(spec: MaskSpec, window: int | None):
    first, stop = (torch.from_numpy(x)[:, :, None] for x in key_ranges(segment_bounds(spec), window))
    key = torch.arange(spec.segment_ids.shape[1])
    assert torch.equal((key >= first) & (key < stop), allowed_BLL(spec, window))


def test_blocks_that_bounds_cannot_say_are_refused():
    one = torch.ones(1, 4, dtype=torch.int64)
    for block in ([-1, 1, 1, -1], [1, -1, 1, -1], [1, 1, 2, 2]):
        with pytest.raises(ValueError, match="the beginning of its segment"):
            segment_bounds(MaskSpec(one, torch.tensor([block]), one))


def test_a_decoder_sees_the_encoder_segment_of_its_number():
    def spec(ids: list[int]) -> MaskSpec:
        return MaskSpec(*[torch.tensor([ids])] * 3)

    allowed = cross_allowed_BQK(spec([1, 2, 2, 0]), spec([1, 1, 2]))
    assert allowed.int().tolist() == [[[1, 1, 0], [0, 0, 1], [0, 0, 1], [1, 1, 1]]]
    encoder = spec([1, 1, 2])  # every token in the block of its segment
    assert allowed_BLL(encoder).int().tolist() == [[[1, 1, 0], [1, 1, 0], [0, 0, 1]]]


@families
@backends
@attentions
def test_packed_equals_alone(family: str, backend: str, attention: str):
    model = model_of(family, backend)
    batch = batch_of(SEGMENTS, attention)
    with torch.no_grad():
        packed = full_logits(model, batch)[0]
        start = 0
        for ids, prefix in SEGMENTS:
            alone = batch_of([(ids, prefix)], attention, max_length=len(ids))
            expected = full_logits(model, alone)[0]
            torch.testing.assert_close(packed[start : start + len(ids)], expected, rtol=1e-4, atol=1e-5)
            start += len(ids)
        own = model(input_ids=torch.tensor([SEGMENTS[0][0]]), use_cache=False).logits[0]
    if attention == "causal":  # and alone it is what the model itself computes
        torch.testing.assert_close(packed[:6], own, rtol=1e-4, atol=1e-5)
    else:
        assert (packed[:6] - own).abs().max() > 1e-3


@families
def test_a_bool_mask_given_to_eager_masks_nothing(family: str):
    """The trap in transformers that `lower` is there for; if this fails, transformers has mended it."""
    model = model_of(family, "eager")
    batch = batch_of(SEGMENTS, "causal")
    with torch.no_grad():
        right = hidden_states(model, batch)
        wrong = hidden_states(model, batch, attn_implementation="sdpa")
    assert (right - wrong).abs().max() > 1e-2
    assert leak_probe(model, "causal", "sdpa", VOCAB)  # a bool mask reaches the eager model here
    assert not leak_probe(model, "causal", "eager", VOCAB)


def config_of(**changes):
    return create_model(CONFIGS["llama"] | changes, VOCAB, seed=0).config


def test_windows_of_layers():
    every = {"full_attention": None}
    assert layer_windows(config_of()) == every
    assert layer_windows(config_of(model_type="mistral", sliding_window=8)) == {"sliding_attention": 8}
    assert layer_windows(config_of(model_type="mistral", sliding_window=None)) == every
    assert layer_windows(config_of(model_type="qwen2", sliding_window=8)) == every  # not switched on
    on = {"sliding_window": 8, "use_sliding_window": True}
    assert layer_windows(config_of(model_type="qwen2", max_window_layers=1, **on)) == every | {"sliding_attention": 8}
    assert layer_windows(config_of(model_type="qwen2", max_window_layers=0, **on)) == {"sliding_attention": 8}


def test_rows_in_which_a_model_attends_otherwise_are_refused():
    check_length(model_of("llama").config, 10**6)
    chunked = model_of("llama").config
    chunked.attention_chunk_size, chunked.layer_types = 8, ["chunked_attention", "full_attention"]
    check_length(chunked, 8)
    with pytest.raises(RecipeError, match="chunks of 8 tokens, rows have 9"):
        check_length(chunked, 9)
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    stretched = config_of(rope_parameters=rope, max_position_embeddings=16)
    check_length(stretched, 16)
    with pytest.raises(RecipeError, match=r"'dynamic' rotary frequencies.*longer than 16 tokens"):
        check_length(stretched, 17)
