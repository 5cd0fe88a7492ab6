"""`check` and `prepare`: a recipe before training."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flan_tune.checks.preflight import check_recipe, is_missing_folder, pack_settings
from flan_tune.errors import EXIT_WRONG_INPUT, RecipeError
from flan_tune.packing.compile import open_stream, prepare
from flan_tune.packing.settings import PackSettings
from flan_tune.packing.stream import StreamCounts
from flan_tune.recipe import Recipe
from flan_tune.tokens.sentencepiece_training import train_sentencepiece


def check_command(path: Path, overrides: Sequence[str], *, as_json: bool) -> int:
    """Prints the faults of a recipe; the exit code."""
    checked = check_recipe(path, overrides)
    if as_json:
        print(json.dumps({"faults": checked.faults, "notes": checked.notes}, ensure_ascii=False))
    else:
        for fault in checked.faults:
            print(fault, file=sys.stderr)
        for note in checked.notes:
            print(f"note: {note}")
        if not checked.faults:
            print(f"{path}: no faults.")
    return EXIT_WRONG_INPUT if checked.faults else 0


def prepare_command(path: Path, overrides: Sequence[str], *, packs: str | None, num_proc: int, as_json: bool) -> None:
    """Makes the packs of a recipe, and its tokenizer if it asks for one."""
    recipe = check_recipe(path, overrides).require()
    settings = pack_settings(recipe, packs)
    say = _silent if as_json else print
    ensure_tokenizer(recipe, settings, say)
    manifest = prepare(settings, num_proc=num_proc, progress=None if as_json else _Progress(settings))
    if as_json:
        names = ("fingerprint", "content_hash", "packs", "fill", "tokens", "target_tokens", "examples", "seconds")
        print(json.dumps({**{n: manifest[n] for n in names}, "windows": len(manifest["windows"])}))
    else:
        _print_manifest(manifest, settings)


def ensure_tokenizer(recipe: Recipe, settings: PackSettings, say: Any) -> None:
    """Trains the tokenizer a recipe asks for, unless its folder exists."""
    train = recipe.tokenizer.train
    folder = Path(settings.tokenizer_path)
    if train is None and is_missing_folder(settings.tokenizer_path):
        raise RecipeError(
            f"{folder}: there is no tokenizer here yet. Run the stage that makes it first, "
            "or ask for one with tokenizer.train."
        )
    if train is None or folder.exists():
        return
    started = time.monotonic()
    stream = open_stream(settings)
    examples = stream.examples(0, train.num_examples, StreamCounts())
    texts = ("\n".join(part for part in example.text() if part) for example in examples)
    staging = folder.with_name(folder.name + ".tmp")
    train_sentencepiece(texts, staging, vocab_size=train.vocab_size, model_type=train.model_type)
    staging.rename(folder)
    say(
        f"tokenizer: {train.vocab_size} pieces from {train.num_examples} examples in {folder} "
        f"({time.monotonic() - started:.1f} s)"
    )


def _silent(*_: Any) -> None:
    pass


class _Progress:
    """A line per window: rate, and how long the rest takes."""

    def __init__(self, settings: PackSettings) -> None:
        self.settings = settings
        self.started = time.monotonic()
        self.examples = self.tokens = self.windows = 0

    def __call__(self, summary: dict[str, Any], done: int, planned: int) -> None:
        self.examples += summary["examples"]
        self.tokens += summary["tokens"]
        self.windows += 1
        seconds = max(time.monotonic() - self.started, 1e-6)
        left = (planned - done) * seconds / self.windows
        print(
            f"window {summary['window']}: {summary['packs']} packs; {done}/{planned} windows, "
            f"{self.examples / seconds:,.0f} examples/s, {self.tokens / seconds:,.0f} tokens/s, {left:.0f} s left",
            flush=True,
        )


def _print_manifest(manifest: dict[str, Any], settings: PackSettings) -> None:
    families: dict[str, int] = {}
    for task in manifest["tasks"]:
        families[task["family"]] = families.get(task["family"], 0) + task["examples"]
    print(f"packs     {manifest['packs']} of {manifest['max_length']} tokens in {settings.packs_dir}")
    print(f"tokens    {manifest['tokens']:,}, fill {manifest['fill']:.4f}, targets {manifest['target_share']:.1%}")
    print(f"examples  {manifest['examples']:,}: " + ", ".join(f"{f} {n:,}" for f, n in sorted(families.items())))
    lost = {
        name: manifest[name] for name in ("shots_dropped", "truncated_examples", "skipped_tokens") if manifest[name]
    }
    if lost:
        print("lost      " + ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in lost.items()))
    for title in ("drops", "replaced"):
        for task, reasons in manifest[title].items():
            print(f"{title:9s} {task}: " + ", ".join(f"{reason} {count}" for reason, count in reasons.items()))
    filtered = [task for task in manifest["tasks"] if task["filtered"]]
    for task in filtered:
        reasons = ", ".join(f"{reason} {count}" for reason, count in task["filtered"].items())
        print(f"filtered  {task['name']}: {reasons} (of its rows, when the source was opened)")
    if manifest["dropped_tasks"]:
        print(f"missing   {len(manifest['dropped_tasks'])} tasks without data were dropped; manifest.json names them")
    print(f"hash      {manifest['content_hash'][:16]}, fingerprint {manifest['fingerprint'][:16]}")
