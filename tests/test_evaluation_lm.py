"""Our LM: prompts as packing makes them, likelihoods under the mask of training, from a folder to scores."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_models_attention import CONFIGS

pytest.importorskip("lm_eval")

from flan_tune.errors import ScoreError
from flan_tune.evaluation.lm import FlanTuneLM, cut_at
from flan_tune.evaluation.run import evaluate_model
from flan_tune.evaluation.suites.suite import Item, Suite, SuiteTask
from flan_tune.models.export import export
from flan_tune.models.load import create_model
from flan_tune.packing.segments import Encoder, SegmentCounts, Supervised
from flan_tune.prompts.example import Example
from flan_tune.tokens.sentencepiece_training import train_sentencepiece
from flan_tune.tokens.tokenizer import Tokenizer

POSITIONS = 40
T5 = {"model_type": "t5", "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
T5 |= {"decoder_start_token_id": 0, "initializer_factor": 3.0}
TEXTS = ["which is it, a cat or a dog?", "the answer is (A)", "the answer is (B)", "a line\nof the text, 12 + 7"] * 20


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    plain = train_sentencepiece(TEXTS, tmp_path_factory.mktemp("tokenizer"), vocab_size=300)
    return plain.with_special_tokens(sentinels="new", num_sentinels=2, mode_tokens=True)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer):
    config = CONFIGS["llama"] | {"max_position_embeddings": POSITIONS}
    return create_model(config, tokenizer.vocab_size, seed=3).eval()


@pytest.fixture(scope="module")
def t5(tokenizer: Tokenizer):
    return create_model(T5, tokenizer.vocab_size, seed=3).eval()


def lm_of(model, tokenizer: Tokenizer, attention: str = "causal", separator: str = "\n", **options) -> FlanTuneLM:
    info = {"layout": "decoder_only", "attention": attention, "separator": separator, "mode_token": None}
    return FlanTuneLM(model, tokenizer, info, **options)


def seq2seq_of(model, tokenizer: Tokenizer, **options) -> FlanTuneLM:
    info = {"layout": "encoder_decoder", "attention": "causal", "separator": "", "mode_token": "[NLU]"}
    return FlanTuneLM(model, tokenizer, info, **options)


def requests(*args: tuple) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=one) for one in args]


def encode(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode_batch([text])[0].tolist()


def slow_score(model, prompt: list[int], rest: list[int], attention: str) -> float:
    """One row, nothing padded, the mask written out."""
    ids = prompt + rest
    allowed = torch.ones(len(ids), len(ids)).tril().bool()
    if attention == "prefix_lm":
        allowed[: len(prompt), : len(prompt)] = True
    with torch.no_grad():
        logits = model(torch.tensor([ids]), attention_mask=allowed[None, None], use_cache=False).logits[0]
    likelihood = logits.log_softmax(-1)
    return sum(float(likelihood[t - 1, ids[t]]) for t in range(len(prompt), len(ids)))


def test_a_prompt_is_bos_mode_token_inputs_and_separator(model, tokenizer: Tokenizer) -> None:
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    assert lm_of(model, tokenizer).prompt_ids(["a cat"], [1]) == [[bos, *encode(tokenizer, "a cat\n")]]
    assert lm_of(model, tokenizer, separator="eos").prompt_ids(["a cat"], [1]) == [
        [bos, *encode(tokenizer, "a cat"), eos]
    ]
    with_mode = lm_of(model, tokenizer, mode_token="[NLG]").prompt_ids(["a cat"], [1])[0]
    assert with_mode[:2] == [bos, tokenizer.mode_ids["[NLG]"]]


def test_unknown_mode_token_names_those_that_are_there(model, tokenizer: Tokenizer) -> None:
    with pytest.raises(ScoreError, match=r"no mode token '\[NLP\]'; it has \['\[NLG\]', '\[NLU\]', '\[S2S\]'\]"):
        lm_of(model, tokenizer, mode_token="[NLP]")


def test_a_long_prompt_loses_its_beginning_and_is_counted(model, tokenizer: Tokenizer) -> None:
    lm = lm_of(model, tokenizer, mode_token="[S2S]")
    text = "which is it, a cat or a dog? " * 9
    (prompt,) = lm.prompt_ids([text], [10])
    assert len(prompt) == POSITIONS - 10
    assert prompt[:2] == [tokenizer.bos_id, tokenizer.mode_ids["[S2S]"]]
    assert prompt[2:] == encode(tokenizer, text + "\n")[-(POSITIONS - 12) :]
    assert lm.truncated == 1
    lm.prompt_ids(["a cat"], [10])
    assert lm.truncated == 1
    with pytest.raises(ScoreError, match="no room for a prompt: the model has 40 positions"):
        lm.prompt_ids(["a cat"], [POSITIONS])


@pytest.mark.parametrize("attention", ["causal", "prefix_lm"])
def test_likelihood_is_that_of_the_mask_of_training(model, tokenizer: Tokenizer, attention: str) -> None:
    lm = lm_of(model, tokenizer, attention, batch_size=2)
    pairs = [("which is it?", "(A)"), ("a cat or a dog", "(B) a dog"), ("12", "7")]
    found = lm.loglikelihood(requests(*pairs))
    for (context, continuation), (total, _) in zip(pairs, found, strict=True):
        prompt = [tokenizer.bos_id, *encode(tokenizer, context + "\n")]
        assert total == pytest.approx(slow_score(model, prompt, encode(tokenizer, continuation), attention), abs=1e-4)


def test_the_two_masks_differ(model, tokenizer: Tokenizer) -> None:
    asked = requests(("which is it, a cat or a dog?", "(A)"))
    causal = lm_of(model, tokenizer).loglikelihood(asked)[0][0]
    assert abs(causal - lm_of(model, tokenizer, "prefix_lm").loglikelihood(asked)[0][0]) > 1e-3


def test_answers_are_greedy_whatever_the_batch(model, tokenizer: Tokenizer) -> None:
    settings = {"until": [], "max_gen_toks": 6, "do_sample": False}
    contexts = ["which is it?", "a cat", "12 + 7", "the answer is", "a line"]
    asked = requests(*((context, settings) for context in contexts))
    alone = [lm_of(model, tokenizer, "prefix_lm").generate_until([one])[0] for one in asked]
    assert lm_of(model, tokenizer, "prefix_lm", batch_size=3).generate_until(asked) == alone
    for context, answer in zip(contexts, alone, strict=True):
        ids = [tokenizer.bos_id, *encode(tokenizer, context + "\n")]
        out = model.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=6, eos_token_id=tokenizer.eos_id, pad_token_id=0
        )
        causal = lm_of(model, tokenizer).generate_until(requests((context, settings)))[0]
        assert causal == tokenizer.decode(t for t in out[0, len(ids) :].tolist() if t != tokenizer.eos_id)
        assert isinstance(answer, str)


def test_each_request_has_its_own_length_and_stops(model, tokenizer: Tokenizer) -> None:
    lm = lm_of(model, tokenizer)
    long = lm.generate_until(requests(("a cat", {"max_gen_toks": 12})))[0]
    stop = long[len(long) // 2]
    asked = [
        ("a cat", {"max_gen_toks": 12, "until": [stop]}),
        ("a cat", {"max_gen_toks": 1}),
        ("a cat", {"max_gen_toks": 12}),
    ]
    cut, one, whole = lm.generate_until(requests(*asked))
    assert (cut, whole) == (long.split(stop)[0], long)
    assert len(one) < len(long)
    with pytest.raises(ScoreError, match="greedily"):
        lm.generate_until(requests(("a cat", {"do_sample": True})))


# ---- an encoder-decoder


def test_an_encoder_reads_bos_mode_token_inputs_and_eos(t5, tokenizer: Tokenizer) -> None:
    bos, eos, nlu = tokenizer.bos_id, tokenizer.eos_id, tokenizer.mode_ids["[NLU]"]
    assert seq2seq_of(t5, tokenizer).prompt_ids(["a cat", ""], [1, 1]) == [
        [bos, nlu, *encode(tokenizer, "a cat"), eos],
        [bos, nlu, eos],
    ]
    assert seq2seq_of(t5, tokenizer, mode_token="none").prompt_ids([""], [1]) == [[bos, eos]]
    assert seq2seq_of(t5, tokenizer).max_positions is None
    with pytest.raises(ScoreError, match="nothing stands between its inputs and targets"):
        seq2seq_of(t5, tokenizer, separator="\n")


def test_a_cut_prompt_keeps_what_frames_it(t5, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a family with positions; T5 itself has no limit."""
    monkeypatch.setattr(t5.config, "max_position_embeddings", 20, raising=False)
    lm = seq2seq_of(t5, tokenizer)
    ids = encode(tokenizer, "which is it, a cat or a dog? " * 9)
    (prompt,) = lm.prompt_ids(["which is it, a cat or a dog? " * 9], [10])
    assert prompt == [tokenizer.bos_id, tokenizer.mode_ids["[NLU]"], *ids[-7:], tokenizer.eos_id]
    assert lm.truncated == 1


def test_prompts_are_those_of_packing(t5, model, tokenizer: Tokenizer) -> None:
    """What training reads of an example, in either layout."""
    example = Example("which is it?", "(A)", "t", 0, 0, "zero_shot", "answer", "w")
    for lm in (seq2seq_of(t5, tokenizer), lm_of(model, tokenizer, mode_token="[NLU]")):
        length = 64 if lm.is_encoder_decoder else None
        joint = {"too_long": "drop", "has_mode_token": True, "max_target_length": length}
        encoder = Encoder(tokenizer, max_length=64, separator=lm.separator, **joint)
        objective = Supervised(tokenizer, tokenizer.mode_ids["[NLU]"], lm.layout)
        ((segment,),) = objective.segments(encoder.encode([example], SegmentCounts()), SegmentCounts())
        assert segment.input_ids[: segment.prefix_length].tolist() == lm.prompt_ids(["which is it?"], [1])[0]


def test_the_mode_token_of_the_export_begins_every_prompt(t5, model, tokenizer: Tokenizer, tmp_path: Path) -> None:
    for name, one, layout, separator in (("t5", t5, "encoder_decoder", ""), ("llama", model, "decoder_only", "\n")):
        how = {"attention": "causal", "separator": separator, "layout": layout, "mode_token": "[S2S]"}
        export(one.state_dict(), one, tokenizer, tmp_path / name, **how)
        for given, wanted in ((None, "[S2S]"), ("[NLG]", "[NLG]"), ("none", None)):
            lm = FlanTuneLM.from_folder(tmp_path / name, mode_token=given, device="cpu")
            assert lm.description["mode_token"] == wanted
            assert lm.description["layout"] == layout
            head = [tokenizer.bos_id, *([tokenizer.mode_ids[wanted]] if wanted else [])]
            (prompt,) = lm.prompt_ids(["a cat"], [1])
            assert prompt[: len(head)] == head
            assert prompt[len(head)] == encode(tokenizer, "a cat")[0]


def test_an_encoder_decoder_scores_and_answers_as_its_own_forward(t5, tokenizer: Tokenizer) -> None:
    lm = seq2seq_of(t5, tokenizer, batch_size=2)
    pairs = [("which is it?", "(A)"), ("a cat or a dog", "(B) a dog"), ("12", "7")]
    found = lm.loglikelihood(requests(*pairs))
    settings = {"until": [], "max_gen_toks": 6}
    answers = lm.generate_until(requests(*((context, settings) for context, _ in pairs)))
    for (context, continuation), (total, is_greedy), answer in zip(pairs, found, answers, strict=True):
        read = torch.tensor(lm.prompt_ids([context], [1]))
        labels = torch.tensor([encode(tokenizer, continuation)])
        with torch.no_grad():
            likelihood = t5(input_ids=read, labels=labels).logits[0].log_softmax(-1)
        assert total == pytest.approx(float(likelihood.gather(-1, labels[0, :, None]).sum()), abs=1e-4)
        assert is_greedy == bool((likelihood.argmax(-1) == labels[0]).all())
        own = t5.generate(read, do_sample=False, max_new_tokens=6, eos_token_id=tokenizer.eos_id, pad_token_id=0)
        assert answer == tokenizer.decode(token for token in own[0, 1:].tolist() if token != tokenizer.eos_id)
    with pytest.raises(ScoreError, match="an encoder-decoder: it gives no likelihood of a whole text"):
        lm.loglikelihood_rolling(requests(("a",)))


# ---- all of it


def test_cut_at() -> None:
    assert cut_at("a b c", ["c", "b", ""]) == "a "
    assert cut_at("a b c", []) == "a b c"


def test_likelihood_of_a_whole_text(model, tokenizer: Tokenizer) -> None:
    ids = encode(tokenizer, "a cat or a dog")
    found = lm_of(model, tokenizer).loglikelihood_rolling(requests(("a cat or a dog",)))
    assert found == [pytest.approx(slow_score(model, [tokenizer.bos_id], ids, "causal"), abs=1e-4)]
    long = lm_of(model, tokenizer).loglikelihood_rolling(requests(("which is it, a cat or a dog? " * 9,)))
    assert long[0] < 0
    with pytest.raises(ScoreError, match="no likelihood of a whole text"):
        lm_of(model, tokenizer, "prefix_lm").loglikelihood_rolling(requests(("a",)))


def test_without_bos_an_empty_prompt_begins_with_eos(model, tokenizer: Tokenizer) -> None:
    bare = replace(
        tokenizer,
        backend=SimpleNamespace(
            **{**vars(tokenizer.backend), "bos_id": None, "encode_batch": tokenizer.backend.encode_batch}
        ),
    )
    assert lm_of(model, bare, separator="").prompt_ids([""], [1]) == [[tokenizer.eos_id]]


def test_from_a_folder_to_scores(model, tokenizer: Tokenizer, tmp_path: Path) -> None:
    export(model.state_dict(), model, tokenizer, tmp_path / "model", attention="prefix_lm", separator="\n")
    lm = FlanTuneLM.from_folder(tmp_path / "model", batch_size=2)
    items = [Item(f"pets/{i}", "pets", f"{i}: a cat or a dog?", "(A)", ["(A)", "(B)"]) for i in range(3)]
    suite = Suite(
        "toy",
        [
            SuiteTask("pets", "seen", items, 0.5, "choice", "plain", "test"),
            SuiteTask(
                "words", "held_out", [replace(item, task="words") for item in items], 0.0, "answer", "plain", "test"
            ),
        ],
    )
    results = evaluate_model(lm, suite, work_dir=tmp_path / "work", max_new_tokens=5)
    assert results["model"] == {
        "layout": "decoder_only",
        "attention": "prefix_lm",
        "separator": "\n",
        "mode_token": None,
        "path": str(tmp_path / "model"),
    }
    lines = [json.loads(line) for line in (tmp_path / "work" / "samples.jsonl").read_text().split("\n") if line]
    asked = requests(*((item.inputs, option) for item in items for option in item.options or []))
    direct = [total for total, _ in lm_of(model, tokenizer, "prefix_lm").loglikelihood(asked)]
    logged = [score for line in lines if line["task"] == "pets" for score in line["log_likelihoods"].values()]
    assert logged == pytest.approx(direct, abs=1e-4)
    assert results["truncated"] == 0
