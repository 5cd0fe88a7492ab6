"""The leak probe passes what is right and catches what is broken, each break by its own fault."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_models_attention import CONFIGS, VOCAB, attentions, backends, families, model_of

from flan_tune.models.attention import MaskSpec
from flan_tune.models.forward import full_logits
from flan_tune.models.load import create_model
from flan_tune.models.probe import leak_probe


@families
@backends
@attentions
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sound_models_pass(family: str, backend: str, attention: str, dtype: torch.dtype):
    model = create_model(CONFIGS[family], VOCAB, seed=3, attn_implementation=backend, dtype=dtype).train()
    assert leak_probe(model, attention, backend, VOCAB) == []
    assert model.training


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_usual_initialisation_is_enough(family: str):
    config = CONFIGS[family] | {"initializer_range": 0.02, "hidden_size": 64, "num_hidden_layers": 4}
    model = create_model(config, 512, seed=0)
    assert leak_probe(model, "prefix_lm", "sdpa", 512) == []


def broken(model, change):
    """Logits under a spec that is not the batch's."""
    return lambda batch: full_logits(model, replace(batch, spec=change(batch.spec)))


def one_segment(spec: MaskSpec) -> MaskSpec:
    return MaskSpec(torch.ones_like(spec.segment_ids), torch.full_like(spec.segment_ids, -1), spec.position_ids)


BREAKS = {
    "plain causal over the row": (one_segment, "segments of a pack see each other"),
    "no bidirectional prefix": (
        lambda s: MaskSpec(s.segment_ids, torch.full_like(s.segment_ids, -1), s.position_ids),
        "do not see its last one",
    ),
    "one block id for all prefixes, no segments": (
        lambda s: MaskSpec(torch.ones_like(s.segment_ids), s.prefix_block_ids.clamp(max=1), s.position_ids),
        "segments of a pack see each other",
    ),
    "everything bidirectional": (
        lambda s: MaskSpec(s.segment_ids, s.segment_ids, s.position_ids),
        "targets see the future",
    ),
    "positions run on": (
        lambda s: MaskSpec(s.segment_ids, s.prefix_block_ids, torch.arange(s.segment_ids.shape[1])[None]),
        "",  # rotary positions are relative: a shift of a whole segment changes nothing, and is no fault
    ),
    "positions of a segment stretched": (
        lambda s: MaskSpec(s.segment_ids, s.prefix_block_ids, s.position_ids * s.segment_ids),
        "other logits than alone",
    ),
}


@pytest.mark.parametrize("name", sorted(BREAKS))
def test_breaks_are_caught(name: str):
    change, message = BREAKS[name]
    model = model_of("llama")
    faults = leak_probe(model, "prefix_lm", "sdpa", VOCAB, logits=broken(model, change))
    assert any(message in fault for fault in faults) if message else faults == []


def test_prefixes_of_a_causal_model_must_be_causal():
    model = model_of("llama")
    both_ways = broken(model, lambda s: MaskSpec(s.segment_ids, s.segment_ids, s.position_ids))
    faults = leak_probe(model, "causal", "sdpa", VOCAB, logits=both_ways)
    assert any("the first tokens of a prefix see its last one" in fault for fault in faults)


@pytest.mark.parametrize(
    "config",
    [
        CONFIGS["llama"] | {"model_type": "gemma2", "head_dim": 8, "final_logit_softcapping": 1.5},
        CONFIGS["llama"] | {"model_type": "granite", "logits_scaling": 3.0},
        CONFIGS["llama"] | {"model_type": "cohere", "logit_scale": 0.25},
    ],
    ids=lambda config: config["model_type"],
)
def test_heads_that_finish_their_logits(config):
    model = create_model(config, VOCAB, seed=0, attn_implementation="auto")
    assert leak_probe(model, "causal", model.config._attn_implementation, VOCAB) == []


def test_a_head_we_do_not_know_is_refused():
    model = model_of("llama")
    model.config.model_type = "granite"  # whose logits would be divided, which this model's forward does not do
    model.config.logits_scaling = 3.0
    faults = leak_probe(model, "causal", "sdpa", VOCAB)
    assert any("does more to its logits than its head" in fault for fault in faults)
