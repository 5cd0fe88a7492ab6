"""Making and loading models: reproducible, no silent gaps, and old rows kept when the vocabulary grows."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_models_attention import CONFIGS, families

from flan_tune import rng
from flan_tune.errors import CheckpointError, RecipeError
from flan_tune.models.load import create_model, extend_vocabulary, load_model, normal_rows

OLD, NEW = 61, 70
TIED = CONFIGS["llama"] | {"tie_word_embeddings": True}


def same_weights(one, other) -> bool:
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@families
def test_a_seed_makes_the_model_and_nothing_else_does(family: str):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = create_model(CONFIGS[family], OLD, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(7)
    assert same_weights(create_model(CONFIGS[family], OLD, seed=4), first)
    assert not same_weights(create_model(CONFIGS[family], OLD, seed=5), first)


def test_the_back_end_is_not_saved_with_the_model(tmp_path):
    create_model(CONFIGS["llama"], OLD, seed=0, attn_implementation="varlen").save_pretrained(tmp_path)
    assert "flan_tune" not in (tmp_path / "config.json").read_text()
    assert load_model(str(tmp_path), vocab_size=OLD, seed=0).config._attn_implementation == "sdpa"


def test_settings_reach_the_model():
    model = create_model(CONFIGS["llama"], OLD, seed=0, attn_implementation="eager", dtype=torch.bfloat16)
    assert model.config._attn_implementation == "eager"
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    on_meta = create_model(CONFIGS["llama"], OLD, seed=0, building=lambda: torch.device("meta"))
    assert {p.device.type for p in on_meta.parameters()} == {"meta"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "lama"}, "'lama' is not one transformers knows. Did you mean 'llama'"),
        ({}, "model_type '' is not one"),
        ({"model_type": "llama", "hiden_size": 8}, "no config key 'hiden_size'. Did you mean 'hidden_size'"),
        ({"model_type": "llama", "vocab_size": 99}, "sets vocab_size 99, but the tokenizer has 61"),
        ({"model_type": "longt5"}, "cannot be trained packed: windows are kept in decoders only"),
        ({"model_type": "bloom"}, "cannot be trained packed"),
    ],
)
def test_configs_that_cannot_be_are_refused(config, message: str):
    with pytest.raises(RecipeError, match=message):
        create_model(config, OLD, seed=0)


def test_old_spellings_of_rope_are_read():
    model = create_model(CONFIGS["llama"] | {"rope_theta": 5e5}, OLD, seed=0)
    assert model.config.rope_parameters["rope_theta"] == 5e5


@pytest.mark.parametrize("config", [*CONFIGS.values(), TIED], ids=[*CONFIGS, "tied"])
def test_loading_keeps_old_rows_and_draws_new_ones_by_key(config, tmp_path):
    saved = create_model(config, OLD, seed=1)
    saved.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    model = load_model(str(tmp_path), vocab_size=NEW, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    np.random.seed(99)
    assert same_weights(load_model(str(tmp_path), vocab_size=NEW, seed=3), model)

    assert model.config.vocab_size == NEW
    old, new = saved.state_dict(), model.state_dict()
    for name, tensor in new.items():
        assert torch.equal(tensor[:OLD] if tensor.shape[0] == NEW else tensor, old[name])
    for matrix in (model.get_input_embeddings().weight, model.get_output_embeddings().weight):
        assert matrix.shape[0] == NEW
        assert matrix[OLD:].std().item() == pytest.approx(matrix[:OLD].std().item(), rel=0.3)
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert tied == config.get("tie_word_embeddings", False)
    model(input_ids=torch.tensor([[NEW - 1, 3]]), use_cache=False)


def test_a_row_does_not_depend_on_how_many_are_added():
    few, many, other = (create_model(CONFIGS["llama"], OLD, seed=1) for _ in range(3))
    extend_vocabulary(few, OLD + 2, seed=3)
    extend_vocabulary(many, NEW, seed=3)
    extend_vocabulary(other, NEW, seed=4)
    rows = [model.get_input_embeddings().weight.detach() for model in (few, many, other)]
    assert torch.equal(rows[0], rows[1][: OLD + 2])
    assert not torch.equal(rows[1][OLD:], rows[2][OLD:])
    assert torch.equal(rows[1][:OLD], rows[2][:OLD])
    head = many.get_output_embeddings().weight
    assert not torch.allclose(head[OLD:], rows[1][OLD:])


def test_a_new_bias_is_the_mean_of_the_old_ones():
    config = {"model_type": "phi", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = create_model(config | {"intermediate_size": 48}, OLD, seed=0)
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.arange(OLD))
    extend_vocabulary(model, NEW, seed=0)
    assert torch.equal(model.lm_head.bias, torch.cat([torch.arange(OLD), torch.full((NEW - OLD,), 30)]).float())


def test_normal_rows_are_normal_and_keyed_one_by_one():
    base = rng.key(0, "embedding")
    rows = normal_rows(base, 10, 60, 400)
    assert np.array_equal(normal_rows(base, 37, 38, 400)[0], rows[27])
    assert abs(rows.mean()) < 5 / np.sqrt(rows.size)
    assert rows.std() == pytest.approx(1, abs=0.03)
    assert np.mean(np.abs(rows) < 1) == pytest.approx(0.6827, abs=0.02)


def test_a_checkpoint_with_more_rows_keeps_them(tmp_path):
    saved = create_model(CONFIGS["llama"], OLD, seed=1)
    saved.save_pretrained(tmp_path)
    assert same_weights(load_model(str(tmp_path), vocab_size=50, seed=3), saved)


def test_gathering_is_given_every_row_matrix_once():
    model, seen = create_model(TIED, OLD, seed=1), []

    def gathering(parameters):
        seen.extend(parameters)
        return contextlib.nullcontext()

    extend_vocabulary(model, NEW, seed=3, gathering=gathering)
    assert len(seen) == 1
    assert seen[0] is model.get_input_embeddings().weight


def test_weights_that_do_not_fill_the_model_are_refused(tmp_path):
    create_model(CONFIGS["llama"], OLD, seed=1).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"1 missing_keys, first \['model.layers.1.mlp.up_proj.weight'\]"):
        load_model(str(tmp_path), vocab_size=OLD, seed=0)


def test_no_model_there(tmp_path):
    with pytest.raises(RecipeError, match="no language model can be loaded"):
        load_model(str(tmp_path / "nothing"), vocab_size=OLD, seed=0)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(RecipeError, match="no language model can be loaded"):
        load_model(str(tmp_path), vocab_size=OLD, seed=0)


@pytest.mark.parametrize(
    ("family", "names"), [("gpt2", ("attn_pdrop", "resid_pdrop", "embd_pdrop")), ("t5", ("dropout_rate",))]
)
def test_a_recipes_dropout_is_that_of_every_layer(tmp_path: Path, family: str, names: tuple[str, ...]) -> None:
    sizes = {
        "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
        "t5": {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1},
    }
    config = {"model_type": family, **sizes[family]}
    create_model(config, OLD, seed=0).save_pretrained(tmp_path)
    for model in (
        create_model(config, OLD, seed=0, dropout=0.25),
        load_model(str(tmp_path), vocab_size=OLD, seed=0, dropout=0.25),
    ):
        assert {getattr(model.config, name) for name in names} == {0.25}
        rates = [module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)]
        assert set(rates) == {0.25}


def test_dropout_for_a_family_that_has_none_is_refused() -> None:
    config = {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1}
    with pytest.raises(RecipeError, match="has no dropout"):
        create_model(config, OLD, seed=0, dropout=0.1)
    assert create_model(CONFIGS["llama"], OLD, seed=0, dropout=0.1).config.attention_dropout == 0.1
