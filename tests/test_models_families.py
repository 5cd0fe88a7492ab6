"""Families x back-ends: packed logits and gradients are those of the segments alone, and windows are the family's own.

A few pairs here, the whole matrix in `make test-long`: eager and sdpa with gradients, varlen with gradients by its CPU
reference, FlexAttention forward only (it has no backward on CPUs).
"""

from __future__ import annotations

from itertools import product

import pytest
import torch
from test_models_attention import SMALL, VOCAB, attentions, batch_of, compiles
from transformers import CONFIG_MAPPING

from flan_tune.errors import RecipeError
from flan_tune.models.backends import Machine, refusal
from flan_tune.models.collate import Batch
from flan_tune.models.forward import (
    checkpoint_activations,
    choose_positions,
    compile_layers,
    full_logits,
    hidden_states,
)
from flan_tune.models.generate import generate, score
from flan_tune.models.load import create_model
from flan_tune.models.loss import TargetLoss
from flan_tune.models.lowering import ATTN_IMPLEMENTATIONS
from flan_tune.models.probe import leak_probe, plain_row_difference, settle_attn_implementation

# A wide initialisation, so that attention matters; windows of 4, so that segments are longer.
WIDE = SMALL | {"initializer_range": 0.2}
SHARED = WIDE | {"num_key_value_heads": 2}
SLIDING = {"sliding_window": 4}
FAMILIES = {
    "llama": SHARED,
    "mistral": SHARED | SLIDING,
    "qwen2": SHARED | SLIDING | {"use_sliding_window": True, "max_window_layers": 1},
    "qwen3": SHARED | {"head_dim": 8},
    "gemma2": SHARED | SLIDING | {"head_dim": 8, "query_pre_attn_scalar": 8, "attn_logit_softcapping": 2.0},
    "gemma3_text": SHARED
    | SLIDING
    | {"head_dim": 8, "query_pre_attn_scalar": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "gpt_neox": WIDE,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2, "attn_pdrop": 0.0}
    | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "bos_token_id": None, "eos_token_id": None},
}
REFUSED = {("gemma2", "sdpa"), ("gpt2", "flex_attention")}
EVERY_PAIR = [pair for pair in product(FAMILIES, ATTN_IMPLEMENTATIONS) if pair not in REFUSED]
ALWAYS = {("llama", "varlen"), ("mistral", "sdpa"), ("gemma3_text", "varlen"), ("gpt2", "eager")}
SEGMENTS = [(list(range(7, 19)), 7), ([20, 21], 0), ([30, 31, 32, 33, 34], 4), ([40, 41, 42], 1)]
WIDTH = 24

pairs = pytest.mark.parametrize(
    ("family", "backend"),
    [pytest.param(*pair, marks=[] if pair in ALWAYS else pytest.mark.long) for pair in EVERY_PAIR],
)
pytestmark = [compiles, pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")]


def family_model(family: str, backend: str, **options):
    torch._dynamo.reset()  # what other models have compiled counts against a limit
    config = FAMILIES[family] | {"model_type": family}
    return create_model(config, VOCAB, seed=1, attn_implementation=backend, **options)


def gradients(model, loss: torch.Tensor) -> list[torch.Tensor]:
    return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)


def weighted(logits: torch.Tensor) -> torch.Tensor:
    """A number that every logit moves otherwise."""
    return (logits.double() * torch.linspace(-1, 1, logits.numel(), dtype=torch.float64).view_as(logits)).sum()


@pairs
@attentions
def test_packed_is_alone(family: str, backend: str, attention: str):
    """Logits and gradients of a packed row, and of its segments each in a row of its own."""
    trains = backend != "flex_attention"
    model = family_model(family, backend, dtype=torch.float64 if trains else torch.float32).eval()
    exact = {"rtol": 1e-6, "atol": 1e-8} if trains else {"rtol": 1e-4, "atol": 1e-5}
    batch = batch_of(SEGMENTS, attention, WIDTH)
    alone, start = [], 0
    with torch.set_grad_enabled(trains):
        packed = full_logits(model, batch)[0]
        for ids, prefix in SEGMENTS:
            one = batch_of([(ids, prefix)], attention, WIDTH)
            alone.append(full_logits(model, one)[0, : len(ids)])
            torch.testing.assert_close(packed[start : start + len(ids)], alone[-1], **exact)
            start += len(ids)
    if trains:
        together, apart = gradients(model, weighted(packed[:start])), gradients(model, weighted(torch.cat(alone)))
        for one, other in zip(together, apart, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pairs
def test_a_plain_row_is_the_models_own(family: str, backend: str):
    """Scale, soft caps and windows: a causal row without any mask of ours, by the family's own code."""
    model = family_model(family, backend).eval()
    assert plain_row_difference(model, VOCAB, WIDTH) < 1e-5
    if FAMILIES[family].get("sliding_window"):  # and the window matters
        wide = create_model(FAMILIES[family] | {"model_type": family, "sliding_window": 100}, VOCAB, seed=1).eval()
        batch = batch_of([(list(range(5, 25)), 0)], "causal", WIDTH)
        with torch.no_grad():
            near, far = (full_logits(m, batch) for m in (model, wide))
        assert (near - far).abs().max() > 1e-2


@pairs
@attentions
def test_the_leak_probe_passes(family: str, backend: str, attention: str):
    assert leak_probe(family_model(family, backend).train(), attention, backend, VOCAB) == []


@pairs
@attentions
def test_generation_and_scores_are_those_of_the_full_forward(family: str, backend: str, attention: str):
    """A bidirectional prefix read from a left-padded batch, then decoding with a cache, windows kept."""
    model = family_model(family, backend).eval()
    prompts = [list(range(5, 14)), [14], [20, 21, 22], [31, 32, 33, 34, 35]]
    generated = generate(model, prompts, attention=attention, eos_id=-1, pad_id=0, max_new_tokens=8)
    scores = score(model, prompts, generated, attention=attention)
    for prompt, tokens, (likelihood, is_greedy) in zip(prompts, generated, scores, strict=True):
        batch = batch_of([([*prompt, *tokens], len(prompt))], attention, WIDTH)
        with torch.no_grad():
            hidden = choose_positions(hidden_states(model, batch), batch.target_positions)
            logits = model.get_output_embeddings()(hidden)
        assert logits.argmax(-1).tolist() == tokens
        assert is_greedy
        labels = batch.labels.flatten()[batch.target_positions]
        if family not in ("gemma2",):  # which caps its logits
            expected = logits.log_softmax(-1).gather(-1, labels[:, None]).sum()
            assert likelihood == pytest.approx(float(expected), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("family", "backend"), sorted(REFUSED))
def test_other_pairs_are_refused(family: str, backend: str):
    with pytest.raises(RecipeError, match="its class forbids it"):
        family_model(family, backend)


def test_the_matrix_is_what_the_classes_allow():
    machine = Machine("cpu", torch.float32)
    for family, backend in product(FAMILIES, ATTN_IMPLEMENTATIONS):
        config = CONFIG_MAPPING[family](**FAMILIES[family])
        assert (refusal(backend, config, machine) is not None) == ((family, backend) in REFUSED), (family, backend)


def different_packs() -> list[Batch]:
    """Packs that differ in the number of segments, their lengths and prefixes, and in padding."""
    made = []
    for lengths in ([(12, 7), (2, 0), (5, 4)], [(20, 19)], [(3, 1)] * 8, [(2, 0), (22, 1)], [(6, 2), (6, 3), (7, 0)]):
        segments, token = [], 3
        for length, prefix in lengths:
            segments.append((list(range(token, token + length)), prefix))
            token += length
        made.append(batch_of(segments, "prefix_lm", WIDTH))
    return made


@pytest.mark.parametrize(
    ("family", "backend"),
    [
        ("llama", "sdpa"),
        ("llama", "varlen"),
        pytest.param("gemma3_text", "varlen", marks=pytest.mark.long),
        pytest.param("mistral", "flex_attention", marks=pytest.mark.long),
        pytest.param("gemma2", "flex_attention", marks=pytest.mark.long),
        pytest.param("gpt2", "eager", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.long)])
@pytest.mark.parametrize("compiler", ["aot_eager", pytest.param("inductor", marks=pytest.mark.long)])
def test_compiled_layers_compile_once_for_all_packs(family: str, backend: str, checkpointing: bool, compiler: str):
    trains = backend != "flex_attention"
    plain, compiled = family_model(family, backend).train(), family_model(family, backend).train()
    if checkpointing:
        checkpoint_activations(compiled)
    compile_layers(compiled, compiler)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    first, *others = different_packs()

    def run(model, batch: Batch) -> list[torch.Tensor]:
        with torch.set_grad_enabled(trains):
            hidden = hidden_states(model, batch)
            return [hidden, *(gradients(model, weighted(hidden)) if trains else [])]

    run(compiled, first)
    if trains:
        run(compiled, first)
    torch._dynamo.utils.counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in [first, *others]:
            for one, other in zip(run(compiled, batch), run(plain, batch), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_flex_attention_by_itself_compiles_once_for_all_packs(family: str):
    model = family_model(family, "flex_attention").eval()
    first, *others = different_packs()
    with torch.no_grad():
        hidden_states(model, first)
        with torch._dynamo.config.patch(error_on_recompile=True):
            for batch in others:
                hidden_states(model, batch)


def test_the_probe_does_not_touch_what_is_compiled():
    model = family_model("llama", "sdpa")
    compile_layers(model)
    assert leak_probe(model, "prefix_lm", "sdpa", VOCAB) == []
    assert not torch._dynamo.utils.counters["stats"]
    assert all(layer._compiled_call_impl is not None for layer in model.model.layers)


@pytest.mark.parametrize("backend", ["varlen", "sdpa"])
def test_gradient_checkpointing_changes_nothing(backend: str):
    found = []
    for checkpointing in (False, True):
        model = family_model("gemma3_text", backend).train()
        if checkpointing:
            checkpoint_activations(model)
        found.append(gradients(model, TargetLoss(model)(different_packs()[0]).loss_sum))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_flex_attention_does_not_train_on_cpus():
    with pytest.raises(RecipeError, match="no backward pass on a CPU"):
        TargetLoss(family_model("llama", "flex_attention"))(different_packs()[0])


def test_auto_steps_down_to_what_is_exact():
    """A class that offers a back-end need not hand our mask on to it: the probe decides."""
    model = family_model("llama", "varlen")
    assert settle_attn_implementation(model, "prefix_lm", VOCAB) == ("varlen", [])

    doge = {"model_type": "doge", "keep_window_size": 64} | SHARED  # adds a mask of its own to the one it is given
    model = create_model(doge, VOCAB, seed=1, attn_implementation="varlen")
    name, notes = settle_attn_implementation(model, "prefix_lm", VOCAB)
    assert name == "sdpa"
    assert notes[0].startswith("varlen: the model does not take a packed batch: RecipeError: DogeAttention was called")


OTHERS = {
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi3": {"pad_token_id": 0},
    "olmo2": {},
    "granite": {},
    "smollm3": {"pad_token_id": 0},
    "stablelm": {},
    "falcon": {"num_kv_heads": 4},
    "cohere2": {"sliding_window": 4},
    "mixtral": {"num_local_experts": 2},
    "gpt_oss": {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1, "max_position_embeddings": 131072},
}
ARE_REFUSED = {
    "rwkv": ({"attention_hidden_size": 32}, "segments of a pack see each other"),
    "jamba": ({"num_experts": 2, "use_mamba_kernels": False}, "segments of a pack see each other"),
    "mamba": ({}, "does not take a packed batch"),
}


def small(model_type: str, changes: dict) -> dict:
    known = CONFIG_MAPPING[model_type]().to_dict().keys() | CONFIG_MAPPING[model_type].attribute_map.keys()
    values = {"attention_dropout": 0.0, "max_position_embeddings": 64, "pad_token_id": 0} | SHARED | changes
    return {"model_type": model_type} | {k: v for k, v in values.items() if k in known}


@pytest.mark.long
@pytest.mark.parametrize("model_type", sorted(OTHERS))
def test_a_family_that_is_not_listed_runs_if_the_probe_passes(model_type: str):
    for backend in ("eager", "auto"):
        model = create_model(small(model_type, OTHERS[model_type]), VOCAB, seed=1, attn_implementation=backend)
        name, notes = settle_attn_implementation(model, "prefix_lm", VOCAB)
        assert name in ("sdpa", "eager"), notes


@pytest.mark.parametrize(
    "model_type", [pytest.param(n, marks=pytest.mark.long) for n in ARE_REFUSED if n != "rwkv"] + ["rwkv"]
)
def test_a_family_that_is_not_exact_is_refused_with_the_reason(model_type: str):
    changes, reason = ARE_REFUSED[model_type]
    model = create_model(small(model_type, changes), VOCAB, seed=1)
    with pytest.raises(RecipeError, match=reason):
        settle_attn_implementation(model, "causal", VOCAB)
