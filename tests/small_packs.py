"""What tests of packs start from: a tokenizer of a few hundred pieces, a mixture of generated rows, their settings.

Nothing is downloaded and nothing takes long: the tokenizer is trained on a handful of sentences, windows are small.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import sentencepiece

from flan_tune.packing.settings import PackSettings
from flan_tune.tasks.catalog import load_catalog
from flan_tune.tasks.task import Task
from flan_tune.tokens.sentencepiece_training import BOS_ID, EOS_ID, PAD_ID, UNK_ID
from flan_tune.tokens.tokenizer import SENTENCEPIECE_FILE, SPECIALS_FILE, SentencePieceBackend, Tokenizer

ROOT = Path(__file__).parent.parent
TASKS = ("add", "sentiment", "true_sum", "first_letter")
MIXTURE = f"""members:
  - {{tasks: [{", ".join(TASKS)}], rate: 1.0}}
presentations: {{zero_shot: 0.4, few_shot: 0.3, cot: 0.3}}
shots: [1, 3]
"""


def task(name: str) -> Task:
    """A shipped task."""
    return load_catalog()[name]


def make_tokenizer(folder: Path, vocab_size: int = 320) -> Tokenizer:
    """A sentencepiece tokenizer saved in `folder` as the package saves its own, but without files for transformers."""
    sentences = [f"The {word} sum of {n} and {n + 1} is {2 * n + 1}." for n in range(40) for word in ("small", "large")]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences),
        model_writer=model,
        vocab_size=vocab_size,
        model_type="bpe",
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_id=UNK_ID,
        bos_id=BOS_ID,
        eos_id=EOS_ID,
        pad_id=PAD_ID,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / SENTENCEPIECE_FILE).write_bytes(model.getvalue())
    (folder / SPECIALS_FILE).write_text('{"added": [], "sentinel_ids": [], "mode_ids": {}}')
    return Tokenizer(SentencePieceBackend(folder / SENTENCEPIECE_FILE))


def small_settings(folder: Path, **changes: Any) -> PackSettings:
    """Settings of a few packs of generated rows, everything below `folder`; `changes` replace any of them."""
    mixture = folder / "mixture.yaml"
    if not mixture.exists():
        mixture.write_text(MIXTURE)
    if not (folder / "tokenizer").exists():
        make_tokenizer(folder / "tokenizer")
    values: dict[str, Any] = {
        "mixture": str(mixture),
        "tokenizer_path": str(folder / "tokenizer"),
        "packs_dir": str(folder / "packs"),
        "max_length": 192,
        "num_packs": 40,
        "objective": "supervised",
        "window_examples": 60,
    }
    return PackSettings(**(values | changes))


def small_recipe(folder: Path) -> Path:
    """A recipe of a few packs of generated rows, everything below `folder`, paths in full."""
    settings = small_settings(folder)
    path = folder / "recipe.yaml"
    path.write_text(
        f"""model:
  config: {{model_type: llama, hidden_size: 32}}
tokenizer: {{name_or_path: {settings.tokenizer_path}}}
data:
  mixture: {settings.mixture}
  max_length: {settings.max_length}
  window_examples: {settings.window_examples}
objective: {{kind: supervised}}
training:
  output_dir: {folder / "run"}
  max_steps: 10
  global_batch_size: 4
  learning_rate: 1e-3
"""
    )
    return path


def edit(path: Path, old: str, new: str) -> None:
    """Replaces text in a file; it has to be there."""
    text = path.read_text()
    assert old in text, f"{old!r} is not in {path}"
    path.write_text(text.replace(old, new))
