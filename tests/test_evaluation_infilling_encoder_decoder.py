"""Infilling asked of an encoder-decoder: the encoder reads what is shown, the decoder says the spans."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("lm_eval")

from test_evaluation_infilling import DOCUMENTS, some_questions
from test_evaluation_lm import T5

from flan_tune.evaluation.infilling import NATS, NO_MODE, compare_infilling, measure_infilling
from flan_tune.evaluation.infilling_forms import Ask, Form, asks
from flan_tune.evaluation.infilling_table import infilling_table
from flan_tune.evaluation.lm import FlanTuneLM
from flan_tune.evaluation.suites.infilling import draw_passages
from flan_tune.models.load import create_model
from flan_tune.tokens.sentencepiece_training import train_sentencepiece


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> FlanTuneLM:
    """An encoder-decoder that has learnt nothing."""
    texts = [document["text"] for document in DOCUMENTS]
    plain = train_sentencepiece(texts, tmp_path_factory.mktemp("tokenizer"), vocab_size=300)
    tokenizer = plain.with_special_tokens(sentinels="new", num_sentinels=8, mode_tokens=True)
    model = create_model(T5, tokenizer.vocab_size, seed=3).eval()
    info = {"layout": "encoder_decoder", "attention": "causal", "separator": "", "mode_token": None}
    return FlanTuneLM(model, tokenizer, info)


def slow_nats(lm: FlanTuneLM, ask: Ask) -> float:
    """One row, by T5's own forward."""
    with torch.no_grad():
        logits = lm.model(input_ids=torch.tensor([ask.prompt]), labels=torch.tensor([ask.answer])).logits[0]
    tokens = lm.tokens
    logits[:, [tokens.eos_id, *tokens.sentinel_ids, *tokens.mode_ids.values()]] = -torch.inf
    return -sum(float(logits.log_softmax(-1)[t, ask.answer[t]]) for t in range(ask.start, ask.stop))


def test_it_is_asked_in_every_form_that_makes_sense(lm: FlanTuneLM, tmp_path: Path) -> None:
    questions = some_questions(draw_passages(DOCUMENTS, lm.tokens, 2, length=64))
    found = measure_infilling(lm, questions, tmp_path / "samples.jsonl", lambda line: None)
    for form in (Form("sentinels", "[NLU]"), Form("left", "[S2S]"), Form("prompt")):
        measured = found.values["infilling_3x4"][str(form)][NATS]
        for question, nats in zip(questions["infilling_3x4"], measured, strict=True):
            asked = asks(form, question, lm.tokens, encoder_decoder=True)
            assert {ask.prompt[-1] for ask in asked} == {lm.tokens.eos_id}
            assert nats == pytest.approx(sum(slow_nats(lm, ask) for ask in asked) / 12, abs=1e-4)
    assert found.causal_text == {}
    assert "m: an encoder-decoder gives no likelihood of a text alone" in infilling_table({"m": found.result}, {})
    decoder = replace(found, causal_text={NO_MODE: [1.0, 2.0]})
    assert compare_infilling(decoder, found)["causal_text"] == compare_infilling(found, decoder)["causal_text"] == {}
