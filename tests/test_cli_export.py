"""`export`: the stream as a file, whole or not at all; and somebody else's trainer trains on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command_line import FlanTune
from small_packs import ROOT, edit, small_recipe, small_settings

from flan_tune.errors import SourceError
from flan_tune.packing.compile import open_stream
from flan_tune.packing.stream import ExampleStream, StreamCounts

FULL = (
    "index inputs targets task family template presentation role shots options_style dialog_style turn row epoch "
    "replaced exemplar_rows"
).split()


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return small_recipe(tmp_path)


def test_the_file_is_the_stream_in_its_order(recipe: Path, flan_tune: FlanTune) -> None:
    out = recipe.parent / "new" / "flan.jsonl"
    summary = flan_tune.json("export", recipe, "--out", out, "--examples", 60)
    assert (summary["examples"], summary["families"], summary["bytes"]) == (60, {"procedural": 60}, out.stat().st_size)
    written = read(out)
    stream = open_stream(small_settings(recipe.parent))
    for number, (record, example) in enumerate(zip(written, stream.examples(0, 60, StreamCounts()), strict=True)):
        assert list(record) == FULL
        assert (record["index"], record["inputs"], record["targets"]) == (number, *example.text())
        for name in ("task", "family", "template", "presentation", "role", "shots", "options_style", "row", "epoch"):
            assert record[name] == getattr(example, name)
        assert record["exemplar_rows"] == list(example.exemplar_rows)
    assert {record["shots"] for record in written} == {0, 1, 2, 3}


def test_both_formats_hold_the_same_and_fewer_examples_are_the_first(recipe: Path, flan_tune: FlanTune) -> None:
    folder = recipe.parent
    for name, count in (("a.jsonl", 40), ("b.jsonl", 25), ("c.parquet", 40)):
        file_format = name.partition(".")[2]
        assert (
            flan_tune("export", recipe, "--format", file_format, "--out", folder / name, "--examples", count).code == 0
        )
    assert read(folder / "a.jsonl")[:25] == read(folder / "b.jsonl")
    assert read(folder / "a.jsonl") == read(folder / "c.parquet")


def test_batches_have_the_same_columns(recipe: Path, flan_tune: FlanTune, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flan_tune.cli.export._BATCH", 7)
    out = recipe.parent / "a.parquet"
    assert flan_tune("export", recipe, "--format", "parquet", "--out", out, "--examples", 40).code == 0
    assert [record["index"] for record in read(out)] == list(range(40))


@pytest.mark.parametrize(("separator", "end"), [('"\\n"', "\n"), ('" -> "', " -> "), ("eos", "\n")])
def test_prompt_and_completion_are_what_trl_reads(recipe: Path, flan_tune: FlanTune, separator: str, end: str) -> None:
    edit(recipe.parent / "mixture.yaml", "zero_shot: 0.4", "zero_shot: 0.4, statement: 0.2")
    out = recipe.parent / "a.jsonl"
    options = ["--examples", 40, "--columns", "prompt_completion"]
    assert flan_tune("export", recipe, f"data.separator={separator}", "--out", out, *options).code == 0
    stream = open_stream(small_settings(recipe.parent))
    texts = [example.text() for example in stream.examples(0, 40, StreamCounts())]
    assert read(out) == [{"prompt": i + end if i else "", "completion": t} for i, t in texts]
    assert "" in [record["prompt"] for record in read(out)], "a statement has no prompt"


def test_without_a_number_it_writes_what_the_packs_hold(recipe: Path, flan_tune: FlanTune) -> None:
    out = recipe.parent / "a.jsonl"
    outcome = flan_tune("export", recipe, "--out", out)
    assert outcome.code == 1
    assert "Give --examples N, or prepare the packs" in outcome.err
    manifest = flan_tune.json("prepare", recipe)
    assert flan_tune.json("export", recipe, "--out", out)["examples"] == manifest["examples"] == len(read(out))
    outcome = flan_tune("export", recipe, "data.data_seed=5", "--out", out)
    assert outcome.code == 1
    assert "changed: data_seed" in outcome.err


def test_what_is_written_in_part_never_has_the_name(
    recipe: Path, flan_tune: FlanTune, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = recipe.parent / "data" / "a.jsonl"
    assert flan_tune("export", recipe, "--out", out, "--examples", 20).code == 0
    before = out.read_bytes()
    whole = ExampleStream.examples

    def breaks(stream: ExampleStream, start: int, count: int, counts: StreamCounts) -> Any:
        if start:
            raise SourceError("the disk is gone.")
        return whole(stream, start, count, counts)

    monkeypatch.setattr(ExampleStream, "examples", breaks)
    monkeypatch.setattr("flan_tune.cli.export._BATCH", 10)
    for file_format in ("jsonl", "parquet"):
        outcome = flan_tune("export", recipe, "--format", file_format, "--out", out, "--examples", 30)
        assert (outcome.code, outcome.err.strip()) == (1, "the disk is gone.")
    assert out.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == ["a.jsonl"]


def test_a_file_that_cannot_be_is_told(recipe: Path, flan_tune: FlanTune) -> None:
    for out, message in ((recipe.parent, "this is a folder"), (recipe / "a.jsonl", "its folder cannot be made")):
        outcome = flan_tune("export", recipe, "--out", out, "--examples", 3)
        assert outcome.code == 1
        assert outcome.err.startswith(f"--out {out}: {message}")


SAVE_MODEL = """
import json, sys
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

data, folder = sys.argv[1:]
made = Tokenizer(models.BPE())
made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
texts = [text for line in open(data) for text in json.loads(line).values()]
made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>"]))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=400, **sizes)).save_pretrained(folder)
tokenizer.save_pretrained(folder)
"""


@pytest.mark.slow
def test_the_trainer_of_transformers_trains_on_it(recipe: Path, flan_tune: FlanTune) -> None:
    """The script of docs/data_alone.md, on a random model: what is exported is all it is given."""
    folder = recipe.parent
    options = ["--examples", 200, "--columns", "prompt_completion"]
    assert flan_tune("export", recipe, "--out", folder / "flan.jsonl", *options).code == 0
    run_python(folder, "-c", SAVE_MODEL, "flan.jsonl", "model")
    script = [str(ROOT / "docs/examples/train_on_export.py"), "--data", "flan.jsonl", "--model", "model"]
    steps = ["--max_steps", "12", "--learning_rate", "3e-2", "--max_length", "200", "--output_dir", "out"]
    printed = run_python(folder, *script, *steps)
    assert "of 200 examples have at most 200 tokens" in printed
    first, last = (float(word) for word in printed.partition("loss ")[2].split() if word.replace(".", "").isdigit())
    assert last < 0.8 * first
    assert (folder / "out" / "model.safetensors").exists()


def run_python(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
