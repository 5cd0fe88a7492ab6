"""Words looked up: the ids of the tokenizer itself, whatever the text; what does not work by words is left alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece as module_sp
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from flan_tune.tokens import words as module
from flan_tune.tokens.conversion import read_model
from flan_tune.tokens.words import Words, words_of_bytes, words_of_sentencepiece

TEXTS = [f"Ann's {n} apples aren't {2 * n}; they'LL be: 'so', \n\n\tÉté {n}€  and   more." for n in range(50)]
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN = LLAMA_3.replace("{1,3}", "")
GPT_4O = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
    r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
pieces = st.sampled_from(
    ["Ann", "'s", "'LL", "12345", " ", "  ", "\n", "\r\n", "\t", "\0", ".", "...", "é", "ſ", "日本", "e\u0301", "–"]
)
texts = st.lists(st.text(max_size=30) | st.lists(pieces, max_size=12).map("".join), max_size=6)


def train(pre_tokenizer: Any, normalizer: Any = None, added: tuple[str, ...] = ()) -> Tokenizer:
    rust = Tokenizer(models.BPE())
    rust.pre_tokenizer, rust.decoder = pre_tokenizer, decoders.ByteLevel()
    if normalizer is not None:
        rust.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    rust.train_from_iterator(TEXTS, trainer)
    rust.add_tokens([AddedToken(token, normalized=False) for token in added])
    rust.encode_special_tokens = True
    return rust


def split(source: str) -> Any:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(source), "isolated"), byte_level])


GPT_2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
KINDS = {
    "gpt_2": train(GPT_2),
    "nfc": train(GPT_2, normalizers.NFC()),
    "added": train(GPT_2, added=("Ann", "   ", "  ")),
    "llama_3": train(split(LLAMA_3)),
    "qwen": train(split(QWEN), normalizers.NFC()),
    "gpt_4o": train(split(GPT_4O)),
}
OPENED = {name: words_of_bytes(rust) for name, rust in KINDS.items()}


def plain(rust: Tokenizer, given_texts: list[str]) -> list[list[int]]:
    return [one.ids for one in rust.encode_batch(given_texts, add_special_tokens=False)]


@pytest.mark.parametrize("name", KINDS)
@given(texts)
def test_the_ids_are_those_of_the_tokenizer(name: str, given_texts: list[str]) -> None:
    words = OPENED[name]
    assert words is not None
    found = words.encode_batch(given_texts)
    assert all(ids.dtype == np.int32 for ids in found)
    assert [ids.tolist() for ids in found] == plain(KINDS[name], given_texts)


def test_a_text_that_spells_a_special_token_is_text() -> None:
    words = OPENED["gpt_2"]
    assert words is not None
    (ids,) = words.encode_batch(["<s>a</s>"])
    assert not {0, 1} & set(ids.tolist())


@pytest.mark.parametrize("name", KINDS)
def test_a_text_that_holds_the_mark_of_a_first_word_is_read_as_it_is(name: str) -> None:
    words, given_texts = OPENED[name], ["Ann \0Ann 's \0", "\0Ann Ann", "Ann"]
    assert words is not None
    assert [ids.tolist() for ids in words.encode_batch(given_texts)] == plain(KINDS[name], given_texts)


def test_a_text_that_cannot_be_encoded_leaves_no_trace() -> None:
    words = words_of_bytes(KINDS["nfc"])
    assert words is not None
    with pytest.raises(TypeError):
        words.encode_batch(["fine words here", "half \ud800 of a pair"])
    assert [ids.tolist() for ids in words.encode_batch(TEXTS)] == plain(KINDS["nfc"], TEXTS)


def test_words_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    words = words_of_bytes(KINDS["gpt_2"])
    assert words is not None
    monkeypatch.setattr(module, "_MOST_WORDS", 10)
    for text in (*TEXTS, *TEXTS):
        assert [ids.tolist() for ids in words.encode_batch([text])] == plain(KINDS["gpt_2"], [text])
    assert len(words._numbers) < 40


def changed(**parts: Any) -> Tokenizer:
    data = json.loads(KINDS["gpt_2"].to_str())
    data["model"]["dropout"] = parts.pop("dropout", None)
    return Tokenizer.from_str(json.dumps({**data, **parts}))


@pytest.mark.parametrize(
    "rust",
    [
        changed(dropout=0.1),
        changed(normalizer={"type": "Lowercase"}),
        changed(pre_tokenizer=None),
        train(pre_tokenizers.ByteLevel(add_prefix_space=True)),
        train(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
        train(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), GPT_2])),
        train(split(r"\p{L}{2}+|.")),  # possessive, or repeated: not the same everywhere
        train(split(r"\w+|\W")),
        train(GPT_2, added=tuple(f"<{n}>" for n in range(100))),
        Tokenizer(models.WordLevel({"a": 0}, unk_token="a")),
    ],
)
def test_a_tokenizer_that_may_work_otherwise_is_left_alone(rust: Tokenizer) -> None:
    rust.encode_special_tokens = True
    assert words_of_bytes(rust) is None


def test_an_expression_that_leaves_something_between_words_is_not_followed() -> None:
    rust = train(split(r"[a-z]+"))
    words = words_of_bytes(rust)
    given_texts = ["Ann has 2 apples.", "none"]
    assert isinstance(words, Words)
    assert [ids.tolist() for ids in words.encode_batch(given_texts)] == plain(rust, given_texts)


# Sentencepiece.


def sentencepiece(folder: Path, **settings: Any) -> tuple[Any, Any]:
    """(the model, its ModelProto), trained as train_sentencepiece does but for `settings`."""
    plain_settings = {
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "minloglevel": 2,
        "vocab_size": 340,
    }
    path = folder / "tokenizer.model"
    with path.open("wb") as file:
        module_sp.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS), model_writer=file, **{**plain_settings, **settings}
        )
    return module_sp.SentencePieceProcessor(model_file=str(path)), read_model(path)


def words_of(model: Any, proto: Any) -> Words | None:
    return words_of_sentencepiece(proto, lambda given_texts: model.encode(list(given_texts), out_type="numpy"))


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Words]:
    model, proto = sentencepiece(tmp_path_factory.mktemp("bpe"))
    words = words_of(model, proto)
    assert words is not None
    return model, words


@given(given_texts=texts)
@settings(max_examples=300)
def test_the_ids_are_those_of_a_sentencepiece_bpe(bpe: tuple[Any, Words], given_texts: list[str]) -> None:
    model, words = bpe
    given_texts = [
        *given_texts,
        " ".join(given_texts),
        "  ".join(given_texts) + " ",
        "▁".join(given_texts),
        "\n".join(given_texts),
    ]
    assert [ids.tolist() for ids in words.encode_batch(given_texts)] == model.encode(given_texts)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "unigram", "vocab_size": 300},
        {"normalization_rule_name": "nmt_nfkc"},
        {"remove_extra_whitespaces": True},
        {"add_dummy_prefix": False},
        {"split_by_whitespace": False, "vocab_size": 420},
        {"treat_whitespace_as_suffix": True},
        {"user_defined_symbols": ["<extra_id_0>"]},
    ],
)
def test_a_sentencepiece_model_that_may_work_otherwise_is_left_alone(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert words_of(*sentencepiece(tmp_path, **changes)) is None
