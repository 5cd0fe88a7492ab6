"""T5 and mT5 in use: decoding with a cache, exports, and the questions of `flan-tune verify`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_models_attention import VOCAB, compiles, pack_of
from test_models_encoder_decoder import FAMILIES, SEGMENTS, START, UNTIED, model_of, own_logits, pairs
from test_models_export import SmallTokenizer
from transformers import AutoModelForSeq2SeqLM, GenerationConfig

from flan_tune.errors import FlanTuneError, RecipeError
from flan_tune.models import generate as generate_module
from flan_tune.models import lowering
from flan_tune.models.audit import expected_sides
from flan_tune.models.export import export, read_export_info
from flan_tune.models.generate import generate, score
from flan_tune.models.load import decoder_start_id_of, load_model
from flan_tune.models.parity import accumulation_parity, packed_against_alone
from flan_tune.models.subject import Subject

pytestmark = [compiles, pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")]
PROMPTS = [[5, 6, 7, 8, 9, 10, 1], [1], [13, 14, 1], [16, 17, 18, 1], [20, 1]]
NEW = 6


@pairs
def test_generation_and_scores_are_those_of_the_full_forward(family: str, backend: str, monkeypatch):
    """Every logit while decoding with a cache is the teacher-forced one, whatever the batch."""
    model, seen = model_of(family, backend), []
    choose = generate_module._choose

    def watched(logits, batch, choice):
        seen.extend((one, list(row.prompt), list(row.generated)) for one, row in zip(logits, batch, strict=True))
        return choose(logits, batch, choice)

    monkeypatch.setattr(generate_module, "_choose", watched)
    how = {"attention": "causal", "eos_id": 1, "pad_id": 0, "max_new_tokens": NEW}
    generated = generate(model, PROMPTS, **how)
    with torch.no_grad():
        for logits, prompt, tokens in seen:
            if len(tokens) == NEW or 1 in tokens:
                continue
            expected = own_logits(model, [*prompt, *tokens, 2], len(prompt))[-1]
            torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
        for prompt, tokens in zip(PROMPTS, generated, strict=True):
            ids = torch.tensor([prompt])
            own = model.generate(
                ids, do_sample=False, max_new_tokens=NEW, eos_token_id=1, pad_token_id=0, decoder_start_token_id=START
            )
            assert [t for t in own[0, 1:].tolist() if t != 1] == tokens
    assert generate(model, PROMPTS, batch_size=2, **how) == generated

    rests = [[*tokens[:2], 9] for tokens in generated[:-1]] + [[]]
    results = score(model, PROMPTS, rests, attention="causal", batch_size=4)
    for prompt, rest, (likelihood, is_best) in zip(PROMPTS, rests, results, strict=True):
        if not rest:
            assert (likelihood, is_best) == (0.0, True)
            continue
        with torch.no_grad():
            logits = own_logits(model, [*prompt, *rest], len(prompt))
        labels = torch.tensor(rest)
        expected = float(logits.log_softmax(-1).gather(-1, labels[:, None]).sum())
        assert likelihood == pytest.approx(expected, rel=1e-4, abs=1e-4)
        assert is_best == bool((logits.argmax(-1) == labels).all())


def test_what_an_encoder_cannot_read_is_refused():
    model = model_of("t5")
    with pytest.raises(FlanTuneError, match="prompt 1 is empty: an encoder reads one token at least"):
        generate(model, [[1], []], attention="causal", eos_id=1, pad_id=0, max_new_tokens=3)
    long = [list(range(3, 60)) * 20]  # no position is too far for relative ones
    assert len(generate(model, long, attention="causal", eos_id=-1, pad_id=0, max_new_tokens=3)[0]) == 3


@pytest.mark.parametrize("family", ["t5", "t5_v1_1", pytest.param("mt5", marks=pytest.mark.long)])
@pytest.mark.parametrize("copies", [False, True])
def test_an_export_loads_in_plain_transformers(family: str, copies: bool, tmp_path: Path):
    model, folder = model_of(family), tmp_path / "model"
    state_dict = {name: t.clone() if copies else t for name, t in model.state_dict().items()}
    tokenizer = SmallTokenizer(pad_id=3, eos_id=1)
    how = {"attention": "causal", "separator": "", "layout": "encoder_decoder", "mode_token": "[S2S]"}
    export(state_dict, model, tokenizer, folder, **how)
    plain = AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    ours = load_model(str(folder), vocab_size=VOCAB, seed=0).eval()
    with torch.no_grad():
        expected = own_logits(model, *SEGMENTS[0])
        for loaded in (plain, ours):
            assert decoder_start_id_of(loaded) == START  # although padding is 3 by now
            assert torch.equal(own_logits(loaded, *SEGMENTS[0]), expected)
            assert (loaded.lm_head.weight is loaded.shared.weight) == (family not in UNTIED)
    generation = GenerationConfig.from_pretrained(folder)
    assert (generation.decoder_start_token_id, generation.eos_token_id) == (START, 1)
    info = read_export_info(folder)
    assert (info["layout"], info["mode_token"], info["attention"]) == ("encoder_decoder", "[S2S]", "causal")
    card = (folder / "README.md").read_text()
    for words in ("AutoModelForSeq2SeqLM", "text2text-generation", "began with the mode token [S2S]"):
        assert words in card
    assert "then the answer" not in card


def test_a_folder_that_is_not_ours_says_its_layout(tmp_path: Path):
    model_of("mt5").save_pretrained(tmp_path)
    info = read_export_info(tmp_path)
    assert (info["layout"], info["mode_token"]) == ("encoder_decoder", None)
    (tmp_path / "flan_tune.json").write_text(json.dumps({"format": 1, "attention": "causal"}))
    assert read_export_info(tmp_path)["layout"] == "encoder_decoder"
    with pytest.raises(ValueError, match="is not that of model type 'mt5'"):
        export({}, model_of("mt5"), SmallTokenizer(), tmp_path / "new", attention="causal", separator="")


PACKS = [pack_of(SEGMENTS), pack_of(SEGMENTS[1:]), pack_of(SEGMENTS[:2]), pack_of(SEGMENTS[2:])]


def subject(backend: str = "auto", **changes) -> Subject:
    how = {"revision": None, "vocab_size": VOCAB, "seed": 1, "attention": "causal", "attn_implementation": backend}
    how |= {"bf16": False, "z_loss": 0.0, "max_length": 24, "pad_id": 0, "max_target_length": 16} | changes
    return Subject(FAMILIES["t5"], **how)


@pytest.mark.parametrize("backend", ["auto", "eager"])
def test_a_sound_subject_passes_every_question(backend: str):
    one = subject(backend)
    answers = [one.back_end(), one.leak_probe(), one.plain_row(), one.packed_against_alone(PACKS[:1])]
    answers += [one.accumulation(PACKS), one.mask_audit(PACKS[0])]
    assert all(passed for passed, _ in answers), answers
    assert "varlen: it is for decoders" in answers[0][1]
    assert answers[-1][1] == "encoder: 131 pairs; decoder: 41 pairs; cross: 83 pairs"
    masks = one.masks(PACKS[0])
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == {
        "encoder": (24, 24),
        "decoder": (16, 16),
        "cross": (16, 24),
    }


def test_a_subject_knows_which_length_is_missing():
    with pytest.raises(RecipeError, match=r"'t5' needs data.max_target_length"):
        subject(max_target_length=None)
    llama = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    how = {"revision": None, "vocab_size": VOCAB, "seed": 1, "attention": "causal", "attn_implementation": "sdpa"}
    how |= {"bf16": False, "z_loss": 0.0, "max_length": 24, "pad_id": 0}
    with pytest.raises(RecipeError, match=r"'llama' has no decoder of its own for data.max_target_length"):
        Subject(llama | {"num_attention_heads": 4}, max_target_length=8, **how)


@pytest.mark.parametrize("mask", ["cross_allowed_BQK", "allowed_BLL"])
def test_a_leak_shows_in_parity_and_audit(mask: str, monkeypatch: pytest.MonkeyPatch):
    one = subject()
    right = getattr(lowering, mask)
    monkeypatch.setattr(lowering, mask, lambda *specs: torch.ones_like(right(*specs)))
    parity = packed_against_alone(one.loss, PACKS[:1], one.batch, True)
    assert parity.loss > 1e-2
    assert (parity.gradient or 0) > 1e-2
    assert not one.leak_probe()[0]
    passed, text = one.mask_audit(PACKS[0])
    assert not passed
    assert ("cross" in text) == (mask == "cross_allowed_BQK")
    assert accumulation_parity(one.loss, PACKS, one.batch, True).holds  # which it does not touch


def test_expected_masks_by_brute_force():
    """Pair by pair, also where the encoder has no padding for the decoder's to see."""
    for width in (24, 18):
        number = {side: [] for side in ("encoder", "decoder")}
        for n, (ids, prefix) in enumerate(SEGMENTS, start=1):
            number["encoder"] += [n] * prefix
            number["decoder"] += [n] * (len(ids) - prefix)
        number["encoder"] += [0] * (width - len(number["encoder"]))
        number["decoder"] += [0] * (16 - len(number["decoder"]))
        encoder, decoder = (np.array(one) for one in number.values())
        found = expected_sides(PACKS[0], width, 16)
        for q, a in enumerate(encoder):
            for k, b in enumerate(encoder):
                assert bool(found["encoder"][q, k]) == (a == b and (a > 0 or k <= q))
        for q, a in enumerate(decoder):
            for k, b in enumerate(decoder):
                assert bool(found["decoder"][q, k]) == (a == b and k <= q)
            for k, b in enumerate(encoder):
                assert bool(found["cross"][q, k]) == (a == b or (a == 0 and 0 not in encoder))
