"""Training a sentencepiece model on the spot, for recipes that start from nothing.

The model is byte-equal for the same texts, in any process (checked for bpe and unigram). That holds only because
every text is handed over: sentencepiece's own sampling (`input_sentence_size`) differs from process to process.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flan_tune.errors import RecipeError
from flan_tune.tokens.tokenizer import SENTENCEPIECE_FILE, SentencePieceBackend, Tokenizer

UNK_ID, BOS_ID, EOS_ID, PAD_ID = 0, 1, 2, 3
_SETTINGS: dict[str, Any] = {
    "byte_fallback": True,
    "split_digits": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
    "character_coverage": 1.0,
    "max_sentence_length": 1 << 20,  # a longer text would be left out; pieces of documents are 32,768 characters
    "unk_id": UNK_ID,
    "bos_id": BOS_ID,
    "eos_id": EOS_ID,
    "pad_id": PAD_ID,
    "minloglevel": 2,
}


def train_sentencepiece(
    texts: Iterable[str], directory: Path, *, vocab_size: int, model_type: str = "bpe"
) -> Tokenizer:
    """Trains a model on `texts`, saves it to `directory` and returns the tokenizer.

    vocab_size: all ids, of which 256 are bytes (nothing is ever unknown) and 4 are special.
    Spaces and newlines are kept as they are, digits are split, so that numbers are spelled alike everywhere.
    Raises: RecipeError if the texts cannot fill the vocabulary.
    """
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(text for text in texts if text),
            model_writer=model,
            vocab_size=vocab_size,
            model_type=model_type,
            **_SETTINGS,
        )
    except (RuntimeError, OSError) as error:
        raise RecipeError(
            f"a sentencepiece model of {vocab_size} pieces cannot be trained on these texts: {error} "
            "Change tokenizer.train.vocab_size, or give it more text."
        ) from None
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / SENTENCEPIECE_FILE
    path.write_bytes(model.getvalue())
    tokenizer = Tokenizer(SentencePieceBackend(path))
    tokenizer.save(directory)
    return tokenizer
