"""T5 and mT5: packed is what transformers' own forward gives each segment alone, and loading keeps what was trained.

Decoding, exports and `flan-tune verify` are in test_models_encoder_decoder_uses.py.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from functools import lru_cache
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_models_attention import VOCAB, compiles, pack_of
from transformers import CONFIG_MAPPING

from flan_tune.errors import RecipeError, StreamError
from flan_tune.models import lowering
from flan_tune.models.attention import MaskSpec
from flan_tune.models.backends import Machine, resolve_attn_implementation
from flan_tune.models.collate import Batch, DecoderShape, collate
from flan_tune.models.forward import (
    attending_by,
    checkpoint_activations,
    compile_layers,
    full_logits,
    hidden_states,
    layers_of,
)
from flan_tune.models.load import create_model, decoder_start_id_of, extend_vocabulary, load_model
from flan_tune.models.loss import TargetLoss
from flan_tune.models.probe import leak_probe, plain_row_difference, settle_attn_implementation

SMALL = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "dropout_rate": 0.0}
FAMILIES = {
    "t5": SMALL | {"model_type": "t5"},  # tied, and scaled
    "t5_v1_1": SMALL | {"model_type": "t5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "mt5": SMALL | {"model_type": "mt5"},
    "umt5": SMALL | {"model_type": "umt5"},
}
UNTIED = {"t5_v1_1", "mt5"}  # their checkpoints have a head of their own
BACKENDS = ("sdpa", "eager")
ALWAYS = {("t5", "sdpa"), ("mt5", "eager")}
SEGMENTS = [
    ([7, 8, 9, 10, 11, 12, 13, 1, 20, 21, 22, 1], 8),
    ([1, 23, 24, 1], 1),
    ([30, 31, 1, 32, 1], 3),
    ([40, 41, 42, 43, 44, 1, 1], 6),
]
START = 0

pairs = pytest.mark.parametrize(
    ("family", "backend"),
    [pytest.param(*p, marks=[] if p in ALWAYS else pytest.mark.long) for p in product(FAMILIES, BACKENDS)],
)
pytestmark = [compiles, pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")]


def model_of(family: str, backend: str = "sdpa", **options):
    """A model whose positions matter, with a head of its own where checkpoints have one."""
    torch._dynamo.reset()  # what other models have compiled counts against a limit
    model = create_model(FAMILIES[family], VOCAB, seed=1, attn_implementation=backend, **options)
    generator = torch.Generator().manual_seed(2)
    if family in UNTIED:
        with_own_head(model, generator)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "relative_attention_bias" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model.eval()


def with_own_head(model, generator: torch.Generator) -> None:
    """As transformers leaves a model when it loads a head that differs from the embedding."""
    model.lm_head.weight = torch.nn.Parameter(
        torch.randn(model.lm_head.weight.shape, generator=generator).to(model.dtype)
    )
    del model.all_tied_weights_keys["lm_head.weight"]


def sides_of(*packs: list[tuple[list[int], int]], normalization: str = "token", width: int = 24) -> Batch:
    made = [pack_of(segments) for segments in packs or (SEGMENTS,)]
    how = {"pad_id": 0, "attention": "causal", "loss_normalization": normalization}
    return collate(made, max_length=width, decoder=DecoderShape(16, START), **how)


def own_logits(model, ids: list[int], prefix: int) -> torch.Tensor:
    """Logits of one segment by the model's own forward, which shifts the targets itself."""
    inputs, targets = torch.tensor([ids[:prefix]]), torch.tensor([ids[prefix:]])
    start = torch.tensor([[decoder_start_id_of(model)]])
    given = torch.cat([start, targets[:, :-1]], dim=1)
    return model(input_ids=inputs, decoder_input_ids=given, use_cache=False).logits[0]


def gradients(model, loss: torch.Tensor) -> list[torch.Tensor]:
    return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True)


@pairs
def test_packed_is_the_models_own_forward(family: str, backend: str):
    """Logits, losses and the gradients of all parameters."""
    model, batch = model_of(family, backend, dtype=torch.float64), sides_of()
    packed = full_logits(model, batch)[0]
    assert packed.isfinite().all()
    start, alone, labels = 0, [], []
    for ids, prefix in SEGMENTS:
        own = own_logits(model, ids, prefix)
        # The family's norms compute in float32.
        torch.testing.assert_close(packed[start : start + len(own)], own, rtol=1e-5, atol=1e-5)
        alone.append(own)
        labels += ids[prefix:]
        start += len(own)
    expected = F.cross_entropy(torch.cat(alone), torch.tensor(labels), reduction="sum")
    output = TargetLoss(model)(batch)
    assert output.positions_N.tolist() == list(range(len(labels)))
    torch.testing.assert_close(output.loss_sum.double(), expected, rtol=1e-5, atol=1e-4)
    found = zip(gradients(model, output.loss_sum), gradients(model, expected), strict=True)
    for (name, _), (one, other) in zip(model.named_parameters(), found, strict=True):
        assert other.abs().max() > 0, name
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@lru_cache
def a_model():
    return model_of("t5")


segment_lists = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 6)), min_size=1, max_size=4)


@settings(max_examples=15, deadline=None)
@given(rows=st.lists(segment_lists, min_size=1, max_size=3), fits=st.booleans())
def test_losses_of_any_packs_are_the_models_own(rows: list[list[tuple[int, int]]], fits: bool):
    """Rows with and without padding on either side, segments of one token, batches of uneven rows."""
    model, generator = a_model(), np.random.default_rng(len(rows))
    packs = [[(generator.integers(2, VOCAB, e + d).tolist(), e) for e, d in row] for row in rows]
    widths = [max(sum(pair[side] for pair in row) for row in rows) + 3 * (not fits) for side in (0, 1)]
    how = {"pad_id": 0, "attention": "causal", "loss_normalization": "token"}
    batch = collate([pack_of(p) for p in packs], max_length=widths[0], decoder=DecoderShape(widths[1], START), **how)
    with torch.no_grad():
        found = TargetLoss(model)(batch).token_losses_N
        expected = [
            F.cross_entropy(own_logits(model, ids, prefix), torch.tensor(ids[prefix:]), reduction="none")
            for pack in packs
            for ids, prefix in pack
        ]
    torch.testing.assert_close(found, torch.cat(expected), rtol=1e-4, atol=1e-4)


@pairs
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.long)])
def test_the_leak_probe_passes(family: str, backend: str, dtype: torch.dtype):
    model = model_of(family, backend, dtype=dtype).train()
    assert leak_probe(model, "causal", backend, VOCAB) == []
    assert model.training
    assert settle_attn_implementation(model, "causal", VOCAB) == (backend, [])


def test_the_leak_probe_passes_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert leak_probe(model_of("t5"), "causal", "sdpa", VOCAB) == []


def one_segment(spec: MaskSpec) -> MaskSpec:
    return replace(spec, segment_ids=torch.ones_like(spec.segment_ids))


def exchanged(spec: MaskSpec) -> MaskSpec:
    """The first two segments under each other's number."""
    ids = spec.segment_ids
    return replace(spec, segment_ids=torch.where(ids == 1, 2, torch.where(ids == 2, 1, ids)))


BREAKS = {
    "one segment for the encoder": (one_segment, lambda s: s, "encoder's tokens of one moves"),
    "one segment for the decoder": (lambda s: s, one_segment, "decoder's tokens of one moves"),
    "a decoder that sees the future": (
        lambda s: s,
        lambda s: replace(s, prefix_block_ids=s.segment_ids),
        "targets see the future",
    ),
    "another segment's inputs": (exchanged, lambda s: s, "a decoder does not see its inputs"),
    "a causal encoder": (lambda s: replace(s, prefix_block_ids=torch.full_like(s.segment_ids, -1)), lambda s: s, ""),
}


@pytest.mark.parametrize("name", sorted(BREAKS))
def test_breaks_are_caught(name: str):
    of_encoder, of_decoder, message = BREAKS[name]
    model = model_of("t5")

    def broken(batch: Batch) -> Batch:
        assert batch.encoder is not None
        encoder = replace(batch.encoder, spec=of_encoder(batch.encoder.spec))
        return replace(batch, encoder=encoder, spec=of_decoder(batch.spec))

    if message:
        faults = leak_probe(model, "causal", "sdpa", VOCAB, logits=lambda batch: full_logits(model, broken(batch)))
        assert any(message in fault for fault in faults), faults
        return
    with torch.no_grad():  # which only the model's own forward can tell
        assert (full_logits(model, broken(sides_of())) - full_logits(model, sides_of())).abs().max() > 1e-2


def test_a_mask_lost_on_the_way_is_caught(monkeypatch: pytest.MonkeyPatch):
    """A causal encoder in every forward of ours: a plain row shows it."""
    model, allowed = model_of("t5"), lowering.allowed_BLL
    monkeypatch.setattr(lowering, "allowed_BLL", lambda spec, window: allowed(spec, window).tril())
    assert plain_row_difference(model, VOCAB, 20) > 1e-2
    assert any("other logits than the model's own" in f for f in leak_probe(model, "causal", "sdpa", VOCAB))


BART = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4}
BART |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}


@pytest.mark.parametrize("model_type", ["bart", pytest.param("pegasus", marks=pytest.mark.long)])
def test_positions_counted_along_the_row_are_refused(model_type: str):
    model = create_model(BART | {"model_type": model_type}, VOCAB, seed=1)
    with pytest.raises(RecipeError, match=r"other logits than alone.*Does the model take position_ids"):
        settle_attn_implementation(model, "causal", VOCAB)


@pytest.mark.parametrize(
    ("model_type", "requested", "message"),
    [
        ("t5", "varlen", "it is for decoders.*Use 'sdpa' or 'eager'"),
        ("mt5", "flex_attention", "it is for decoders.*Use 'sdpa' or 'eager'"),
        ("longt5", "auto", "an encoder-decoder with windows"),
        ("t5gemma", "auto", "an encoder-decoder with windows"),
        ("switch_transformers", "sdpa", "its class forbids it. Use 'eager'"),
    ],
)
def test_other_back_ends_and_windows_are_refused(model_type: str, requested: str, message: str):
    machine = Machine("cuda", torch.bfloat16, (9, 0))
    with pytest.raises(RecipeError, match=message):
        resolve_attn_implementation(requested, CONFIG_MAPPING[model_type](), machine)
    assert resolve_attn_implementation("auto", CONFIG_MAPPING["t5"](), machine) == "sdpa"


def test_another_back_end_reaches_both_sides():
    model, batch = model_of("t5"), sides_of()
    with torch.no_grad(), attending_by(model, "eager"):
        assert model.encoder.config._attn_implementation == model.decoder.config._attn_implementation == "eager"
        changed = full_logits(model, batch)
        with pytest.raises(StreamError, match="no rows for the encoder of model type 't5'"):
            hidden_states(model, replace(batch, encoder=None))
    assert model.encoder.config._attn_implementation == model.decoder.config._attn_implementation == "sdpa"
    with torch.no_grad():
        torch.testing.assert_close(changed, full_logits(model, batch), rtol=1e-4, atol=1e-4)


def test_layers_are_those_of_both_sides():
    encoder, decoder = layers_of(create_model(FAMILIES["mt5"] | {"num_decoder_layers": 3}, VOCAB, seed=1))
    assert [len(encoder), len(decoder)] == [2, 3]
    assert {type(layer).__name__ for layer in [*encoder, *decoder]} == {"MT5Block"}


@pytest.mark.parametrize("backend", ["sdpa", pytest.param("eager", marks=pytest.mark.long)])
def test_gradient_checkpointing_changes_nothing(backend: str):
    found = []
    for checkpointing in (False, True):
        model = model_of("mt5", backend).train()
        if checkpointing:
            checkpoint_activations(model)
            for module in [*model.encoder.block, *model.decoder.block]:
                assert module.gradient_checkpointing
        found.append(gradients(model, TargetLoss(model)(sides_of()).loss_sum))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("compiler", "checkpointing"),
    [
        ("eager", False),
        pytest.param("aot_eager", False, marks=pytest.mark.long),
        pytest.param("inductor", True, marks=pytest.mark.long),
    ],
)
def test_compiled_layers_compile_once_for_all_packs(compiler: str, checkpointing: bool):
    plain, compiled = model_of("t5").train(), model_of("t5").train()
    if checkpointing:
        checkpoint_activations(compiled)
    compile_layers(compiled, compiler)
    packs = [sides_of(), sides_of(SEGMENTS[1:2]), sides_of(SEGMENTS[2:] * 2)]

    def run(model, batch: Batch) -> list[torch.Tensor]:
        loss = TargetLoss(model)(batch).loss_sum
        return [loss, *gradients(model, loss)]

    run(compiled, packs[0])
    run(compiled, packs[0])
    with torch._dynamo.config.patch(error_on_recompile=True):
        for batch in packs:
            for one, other in zip(run(compiled, batch), run(plain, batch), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("family", ["t5", "t5_v1_1"])
def test_loss_in_chunks_with_z_loss(family: str, monkeypatch: pytest.MonkeyPatch):
    """The scale of T5's head lies in the chunked loss too, gradients included."""
    monkeypatch.setattr("flan_tune.models.loss._CHUNK_ELEMENTS", 0)
    model = model_of(family, dtype=torch.float64)
    batch = sides_of(*[SEGMENTS] * 15, normalization="example")  # 150 targets: two chunks
    logits = full_logits(model, batch).flatten(0, 1)
    every = F.cross_entropy(logits, batch.labels.flatten(), reduction="none") + 0.1 * logits.logsumexp(-1) ** 2
    expected = (every * batch.loss_weights.flatten())[batch.target_positions].sum()
    output = TargetLoss(model, z_loss=0.1)(batch)
    torch.testing.assert_close(output.loss_sum.double(), expected, rtol=1e-5, atol=1e-4)
    for one, other in zip(gradients(model, output.loss_sum), gradients(model, expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_dropout_is_the_configs():
    """Off at 0, on in training at more, and never in what is compared."""
    batch = sides_of()
    for rate in (0.0, 0.5):
        model = create_model(FAMILIES["t5"] | {"dropout_rate": rate}, VOCAB, seed=1).train()
        with torch.no_grad():
            one, other = TargetLoss(model)(batch), TargetLoss(model)(batch)
        assert (one.loss_sum == other.loss_sum) == (rate == 0)
        assert leak_probe(model, "causal", "sdpa", VOCAB) == []


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_seed_makes_the_model_and_nothing_else_does(family: str):
    one = create_model(FAMILIES[family], VOCAB, seed=4)
    torch.manual_seed(3)
    other, third = (create_model(FAMILIES[family], VOCAB, seed=seed) for seed in (4, 5))
    assert one.shared.weight is one.encoder.embed_tokens.weight is one.decoder.embed_tokens.weight
    for (name, a), (_, b), (_, c) in zip(*(m.named_parameters() for m in (one, other, third)), strict=True):
        assert torch.equal(a, b), name
        assert not torch.equal(a, c) or "layer_norm" in name, name


@pytest.mark.parametrize("family", ["t5", "mt5"])
def test_a_larger_vocabulary_keeps_the_head(family: str, tmp_path: Path):
    """T5 configs always say that the head is tied; a trained one must not be replaced by the embedding."""
    saved = model_of(family)
    saved.save_pretrained(tmp_path)
    model = load_model(str(tmp_path), vocab_size=VOCAB + 9, seed=3)
    assert (model.lm_head.weight is model.shared.weight) == (family == "t5")
    assert model.encoder.embed_tokens.weight is model.decoder.embed_tokens.weight is model.shared.weight
    assert model.config.tie_word_embeddings
    for name, tensor in saved.state_dict().items():
        found = model.state_dict()[name]
        assert torch.equal(found[: len(tensor)] if found.shape != tensor.shape else found, tensor), name
    for matrix in (model.shared.weight, model.lm_head.weight):
        assert matrix.shape[0] == VOCAB + 9
        assert matrix[VOCAB:].std().item() == pytest.approx(matrix[:VOCAB].std().item(), rel=0.3)
    batch = sides_of([([VOCAB + 8, 1, VOCAB + 7, 1], 2)])
    assert TargetLoss(model)(batch).loss_sum.isfinite()
    before = model.lm_head.weight.detach().clone()
    extend_vocabulary(model, VOCAB + 12, seed=3)
    assert torch.equal(model.lm_head.weight[: VOCAB + 9], before)


def test_a_head_is_compared_with_the_embedding_as_a_whole(tmp_path: Path):
    """Of sharded parameters nothing is left to compare; test_models_zero.py has the real thing."""
    model_of("mt5").save_pretrained(tmp_path)
    compared: list[set[tuple[int, ...]]] = []

    def gathering(parameters: list[torch.nn.Parameter]) -> contextlib.AbstractContextManager[None]:
        compared.append({tuple(parameter.shape) for parameter in parameters})
        return contextlib.nullcontext()

    load_model(str(tmp_path), vocab_size=VOCAB, seed=3, gathering=gathering)
    assert compared == [{(VOCAB, 32)}]


def test_what_a_decoder_begins_with():
    model = model_of("t5")
    assert getattr(model.config, "decoder_start_token_id", None) is None
    assert decoder_start_id_of(model) == model.config.pad_token_id == 0
    assert decoder_start_id_of(create_model(FAMILIES["t5"] | {"decoder_start_token_id": 7}, VOCAB, seed=0)) == 7
    model.config.pad_token_id = None
    with pytest.raises(RecipeError, match="neither decoder_start_token_id nor pad_token_id"):
        decoder_start_id_of(model)
