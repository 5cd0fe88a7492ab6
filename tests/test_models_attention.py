"""Masks on real (tiny) models: a packed segment is what it is alone, and the known traps stay shut."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flan_tune.errors import RecipeError
from flan_tune.models.attention import (
    MaskSpec,
    allowed_BLL,
    check_window,
    lower,
    resolve_attn_implementation,
    shortest_window,
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
SEGMENTS = [([7, 8, 9, 10, 11, 12], 3), ([20, 21], 0), ([30, 31, 32, 33, 34], 4), ([40, 41, 42], 1)]

families = pytest.mark.parametrize("family", sorted(CONFIGS))
backends = pytest.mark.parametrize("backend", ["sdpa", "eager"])
attentions = pytest.mark.parametrize("attention", ["causal", "prefix_lm"])


def model_of(family: str, backend: str = "sdpa"):
    return create_model(CONFIGS[family], VOCAB, seed=1, attn_implementation=backend).eval()


def batch_of(segments: list[tuple[list[int], int]], attention: str, max_length: int = 24) -> Batch:
    arrays = ([t for ids, _ in segments for t in ids], [len(ids) for ids, _ in segments], [p for _, p in segments])
    pack = BarePack(*(np.array(values, dtype=np.int32) for values in arrays))
    return collate([pack], max_length=max_length, pad_id=0, attention=attention, loss_normalization="token")


def test_worked_example_of_the_docstring():
    spec = MaskSpec(torch.tensor([[1, 1, 1, 2]]), torch.tensor([[1, 1, -1, -1]]), torch.tensor([[0, 1, 2, 0]]))
    assert allowed_BLL(spec).int().tolist() == [[[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]]]


def test_lowering_per_backend():
    spec = batch_of(SEGMENTS, "prefix_lm").spec
    boolean = lower(spec, "sdpa", torch.float32)
    assert boolean.shape == (1, 1, 24, 24)
    assert boolean.dtype == torch.bool
    for dtype in (torch.float32, torch.bfloat16):
        additive = lower(spec, "eager", dtype)
        assert additive.dtype == dtype
        assert torch.equal(additive == 0, boolean)
        assert torch.equal(additive == torch.finfo(dtype).min, ~boolean)
    with pytest.raises(ValueError, match="float dtype is wanted"):
        lower(spec, "eager", torch.bool)


@families
@backends
@attentions
def test_packed_equals_alone(family: str, backend: str, attention: str):
    model = model_of(family, backend)
    batch = batch_of(SEGMENTS, attention)
    with torch.no_grad():
        packed = full_logits(model, batch.input_ids, batch.spec)[0]
        start = 0
        for ids, prefix in SEGMENTS:
            alone = batch_of([(ids, prefix)], attention, max_length=len(ids))
            expected = full_logits(model, alone.input_ids, alone.spec)[0]
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
        right = hidden_states(model, batch.input_ids, batch.spec)
        wrong = hidden_states(model, batch.input_ids, batch.spec, attn_implementation="sdpa")
    assert (right - wrong).abs().max() > 1e-2
    assert leak_probe(model, "causal", "sdpa", VOCAB)  # a bool mask reaches the eager model here
    assert not leak_probe(model, "causal", "eager", VOCAB)


@pytest.mark.parametrize(("name", "reason"), [("flash_attention_2", "silently"), ("flex", ""), ("spda", "mean 'sdpa'")])
def test_unknown_backends_are_refused(name: str, reason: str):
    with pytest.raises(RecipeError, match=f"there are .*sdpa.*{reason}"):
        lower(batch_of(SEGMENTS, "causal").spec, name, torch.float32)


def test_resolve_attn_implementation():
    assert resolve_attn_implementation("auto", "llama") == "sdpa"
    assert resolve_attn_implementation("eager", "llama") == "eager"
    assert resolve_attn_implementation("auto", "gemma2") == "eager"
    with pytest.raises(RecipeError, match="forbids"):
        resolve_attn_implementation("sdpa", "gemma2")
    with pytest.raises(RecipeError, match="ALiBi"):
        resolve_attn_implementation("auto", "bloom")
    with pytest.raises(RecipeError, match="flash"):
        resolve_attn_implementation("flash_attention_2", "llama")


def test_windows():
    windowed = create_model(CONFIGS["llama"] | {"model_type": "mistral", "sliding_window": 8}, VOCAB, seed=0).config
    assert shortest_window(windowed) == 8
    check_window(windowed, 8)
    with pytest.raises(RecipeError, match="window of 8 tokens, rows have 9"):
        check_window(windowed, 9)
    switched_off = create_model(CONFIGS["qwen2"] | {"sliding_window": 8}, VOCAB, seed=0).config
    check_window(switched_off, 4096)
    some_layers = create_model(
        CONFIGS["qwen2"] | {"sliding_window": 8, "use_sliding_window": True, "max_window_layers": 1}, VOCAB, seed=0
    ).config
    assert shortest_window(some_layers) == 8
    check_window(model_of("llama").config, 10**6)
