"""Exports: what is read back is what was meant, whole or not at all, and the folder says how to use it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_models_attention import CONFIGS, SEGMENTS, batch_of, families
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from flan_tune.errors import CheckpointError, RecipeError
from flan_tune.models.export import compare_with_files, export, read_export_info
from flan_tune.models.forward import full_logits
from flan_tune.models.load import create_model, load_model

VOCAB = 61
TIED = CONFIGS["llama"] | {"tie_word_embeddings": True}


@dataclass
class SmallTokenizer:
    """Writes one file; no more of a tokenizer is wanted here."""

    pad_id: int = 0
    eos_id: int = 3
    bos_id: int | None = 1
    sentinel_ids: tuple[int, ...] = (60, 59)
    mode_ids: dict[str, int] = field(default_factory=lambda: {"[S2S]": 56, "[NLG]": 57})

    def save(self, directory: Path) -> None:
        (directory / "tokenizer.model").write_bytes(b"pieces")


def write(model, directory: Path, tokenizer=None, state_dict=None, **options) -> None:
    options = {"attention": "prefix_lm", "separator": "\n"} | options
    export(
        model.state_dict() if state_dict is None else state_dict,
        model,
        tokenizer or SmallTokenizer(),
        directory,
        **options,
    )


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip(family: str, dtype: torch.dtype, tmp_path: Path):
    model = create_model(CONFIGS[family], VOCAB, seed=1, dtype=dtype)
    write(model, tmp_path / "model")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ours = load_model(str(tmp_path / "model"), vocab_size=VOCAB, seed=0, dtype=dtype)
    for loaded in (plain, ours):
        assert loaded.dtype == dtype
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor)
    batch = batch_of(SEGMENTS, "prefix_lm")
    with torch.no_grad():
        one, other = (full_logits(m.eval(), batch) for m in (model, ours))
    assert torch.equal(one, other)
    assert not (tmp_path / "model.tmp").exists()


def test_the_state_dict_is_written_not_the_model(tmp_path: Path):
    """Under ZeRO-3 the model's own parameters are empty; and a float32 master may be exported as bfloat16."""
    model = create_model(CONFIGS["llama"], VOCAB, seed=1)
    meant = {
        name: tensor.bfloat16() for name, tensor in create_model(CONFIGS["llama"], VOCAB, seed=2).state_dict().items()
    }
    write(model, tmp_path / "model", state_dict=meant)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = load_model(str(tmp_path / "model"), vocab_size=VOCAB, seed=0, dtype=torch.bfloat16)
    assert all(torch.equal(tensor, meant[name]) for name, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("copies", [False, True])
def test_tied_weights(copies: bool, tmp_path: Path):
    model = create_model(TIED, VOCAB, seed=1)
    state_dict = {name: t.clone() if copies else t for name, t in model.state_dict().items()}
    write(model, tmp_path / "model", state_dict=state_dict)
    loaded = load_model(str(tmp_path / "model"), vocab_size=VOCAB, seed=0)
    assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert torch.equal(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_what_the_folder_says(tmp_path: Path):
    model = create_model(CONFIGS["llama"], VOCAB, seed=1)
    write(model, tmp_path / "model", extra={"step": 20})
    info = read_export_info(tmp_path / "model")
    assert info["attention"] == "prefix_lm"
    assert info["separator"] == "\n"
    assert info["mode_tokens"] == {"[S2S]": 56, "[NLG]": 57}
    assert info["sentinels"] == [60, 59]
    assert info["step"] == 20
    assert set(info["versions"]) == {"flan_tune", "torch", "transformers"}
    config = AutoConfig.from_pretrained(tmp_path / "model")
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 3, 0)
    generation = GenerationConfig.from_pretrained(tmp_path / "model")
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 3, 0)
    assert (tmp_path / "model" / "tokenizer.model").read_bytes() == b"pieces"
    assert model.config.eos_token_id == 2  # the model in hand is as it was


def test_padding_by_the_end_token_must_not_freeze_its_row(tmp_path: Path):
    model = create_model(CONFIGS["llama"], VOCAB, seed=1)
    write(model, tmp_path / "model", SmallTokenizer(pad_id=3))
    loaded = load_model(str(tmp_path / "model"), vocab_size=VOCAB, seed=0)
    assert loaded.get_input_embeddings().padding_idx is None
    assert GenerationConfig.from_pretrained(tmp_path / "model").pad_token_id == 3


def test_model_card_begins_with_how_to_use_it(tmp_path: Path):
    model = create_model(CONFIGS["llama"], VOCAB, seed=1)
    for attention, words in (("prefix_lm", "must be used with its prefix"), ("causal", "any causal back-end")):
        write(model, tmp_path / attention, attention=attention, separator="eos")
        card = (tmp_path / attention / "README.md").read_text()
        first_text = card.split("---\n")[2].strip().splitlines()
        assert words in "\n".join(first_text[:3])
        assert "end-of-sequence token, then the answer" in card
        assert ("must be used" in card) == (attention == "prefix_lm")


def test_no_file_names_the_machine(tmp_path: Path):
    create_model(CONFIGS["llama"], VOCAB, seed=1).save_pretrained(tmp_path / "base")
    write(load_model(str(tmp_path / "base"), vocab_size=VOCAB, seed=0), tmp_path / "model")
    for path in (tmp_path / "model").glob("*"):
        assert str(tmp_path).encode() not in path.read_bytes()


def test_an_export_replaces_an_export_and_nothing_else(tmp_path: Path):
    one, two = (create_model(CONFIGS["llama"], VOCAB, seed=seed) for seed in (1, 2))
    write(one, tmp_path / "model")
    (tmp_path / "model.tmp").mkdir()
    (tmp_path / "model.tmp" / "left_over").write_text("by a run that was killed")
    write(two, tmp_path / "model")
    assert not (tmp_path / "model" / "left_over").exists()
    assert torch.equal(load_file(tmp_path / "model" / "model.safetensors")["lm_head.weight"], two.lm_head.weight)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter").write_text("years of work")
    with pytest.raises(CheckpointError, match="are no export of ours"):
        write(one, tmp_path / "thesis")
    assert (tmp_path / "thesis" / "chapter").exists()
    with pytest.raises(RecipeError, match="attention is 'full'"):
        write(one, tmp_path / "other", attention="full")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w["lm_head.weight"].view(-1)[5:6].neg_(), "'lm_head.weight' has other values"),
        (lambda w: w.pop("model.norm.weight"), "'model.norm.weight' was not written"),
        (lambda w: w.update({"lm_head.weight": w["lm_head.weight"][:-1]}), r"\(60, 32\) in the file"),
        (lambda w: w.update({"lm_head.weight": w["lm_head.weight"].half()}), "torch.float16"),
        (lambda w: w.update({"extra.weight": torch.ones(1)}), "nobody meant to write"),
    ],
)
def test_a_damaged_file_is_caught(change, message: str, tmp_path: Path):
    model = create_model(CONFIGS["llama"], VOCAB, seed=1)
    model.save_pretrained(tmp_path)
    compare_with_files(model.state_dict(), model, tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        compare_with_files(model.state_dict(), model, tmp_path)


def test_not_a_number_is_compared_too(tmp_path: Path):
    model = create_model(CONFIGS["llama"], VOCAB, seed=1)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan
    write(model, tmp_path / "model")


def test_families_laid_out_otherwise_in_files(tmp_path: Path):
    config = CONFIGS["qwen2"] | {"model_type": "qwen2_moe", "num_experts": 4, "num_experts_per_tok": 2}
    config |= {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16}
    model = create_model(config, VOCAB, seed=1)
    write(model, tmp_path / "model", attention="causal")
    loaded = load_model(str(tmp_path / "model"), vocab_size=VOCAB, seed=0)
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_a_folder_without_the_file_is_a_causal_model(tmp_path: Path):
    info = read_export_info(tmp_path)
    assert (info["attention"], info["separator"], info["mode_tokens"]) == ("causal", "", {})
    (tmp_path / "flan_tune.json").write_text('{"format": 99}')
    with pytest.raises(CheckpointError, match="format 99"):
        read_export_info(tmp_path)
