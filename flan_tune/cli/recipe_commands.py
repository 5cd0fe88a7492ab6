"""`check` and `prepare`: a recipe before training."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flan_tune.checks.preflight import check_recipe, is_missing_folder, pack_settings
from flan_tune.cli.progress import show_progress
from flan_tune.errors import EXIT_WRONG_INPUT, RecipeError
from flan_tune.packing.compile import open_stream
from flan_tune.packing.losses import in_words
from flan_tune.packing.prepare import prepare
from flan_tune.packing.settings import PackSettings
from flan_tune.packing.store import read_json
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


_LINE = ("fingerprint", "content_hash", "packs", "windows", "fill", "tokens", "target_tokens", "examples", "seconds")


def prepare_command(path: Path, overrides: Sequence[str], *, packs: str | None, as_json: bool, **how: Any) -> None:
    """Makes the packs of a recipe, and its tokenizer if it asks for one. `how`: see packing.prepare.prepare."""
    started = time.monotonic()
    recipe = check_recipe(path, overrides).require()
    settings = pack_settings(recipe, packs)
    if as_json:
        ensure_tokenizer(recipe, settings, _silent)
        manifest = prepare(settings, **how)
        print(json.dumps(_json_line(settings, manifest, time.monotonic() - started)))
        return
    with show_progress() as progress:
        ensure_tokenizer(recipe, settings, progress.say)
        manifest = prepare(settings, **how, progress=progress, say=progress.say)
    if manifest is not None:
        _print_manifest(manifest, settings)


def _json_line(settings: PackSettings, manifest: dict[str, Any] | None, seconds: float) -> dict[str, Any]:
    """What `--json` prints. Before the packs are sealed nothing is known of all of them: null."""
    known = {**manifest, "windows": len(manifest["windows"])} if manifest else {}
    known.setdefault("fingerprint", read_json(Path(settings.packs_dir) / "fingerprint.json").get("fingerprint"))
    return {name: known.get(name) for name in _LINE} | {"seconds": round(seconds, 2)}


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
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent) as staging:
        made = Path(staging) / folder.name
        train_sentencepiece(texts, made, vocab_size=train.vocab_size, model_type=train.model_type)
        try:
            made.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            return  # another shard was faster: all of them use its tokenizer
    say(
        f"tokenizer: {train.vocab_size} pieces from {train.num_examples} examples in {folder} "
        f"({time.monotonic() - started:.1f} s)"
    )


def _silent(_: str) -> None:
    pass


_LOST = ("shots_dropped", "truncated_examples", "skipped_tokens", "sentinel_collisions")


def _print_manifest(manifest: dict[str, Any], settings: PackSettings) -> None:
    families = {family["name"]: family["examples"] for family in manifest["families"]}
    second = f" + {manifest['max_target_length']}" if manifest["max_target_length"] else ""
    print(f"packs     {manifest['packs']} of {manifest['max_length']}{second} tokens in {settings.packs_dir}")
    print(f"tokens    {manifest['tokens']:,}, fill {manifest['fill']:.4f}, targets {manifest['target_share']:.1%}")
    print(f"examples  {manifest['examples']:,}: {in_words(families)}")
    _print_shares(manifest)
    lost = {name: manifest[name] for name in _LOST if manifest[name]}
    if lost:
        print("lost      " + ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in lost.items()))
    draws = {task["name"]: f"of {task['examples']:,} draws" for task in manifest["tasks"]}
    _print_by_task("replaced", manifest["replaced"], draws)
    _print_by_task("dropped", manifest["drops"], draws)
    rows = {task["name"]: "of its rows, when the source was opened" for task in manifest["tasks"]}
    _print_by_task("filtered", {task["name"]: task["filtered"] for task in manifest["tasks"] if task["filtered"]}, rows)
    if manifest["dropped_tasks"]:
        print(f"missing   {len(manifest['dropped_tasks'])} tasks without data were dropped; manifest.json names them")
    print(f"hash      {manifest['content_hash'][:16]}, fingerprint {manifest['fingerprint'][:16]}")


_MOST_TASKS = 10


def _print_by_task(title: str, by_task: dict[str, dict[str, int]], notes: dict[str, str]) -> None:
    """Counts by reason of the tasks with the largest ones; in the collection it may be hundreds that lose a few."""
    most = sorted(by_task, key=lambda task: (-sum(by_task[task].values()), task))
    for task in most[:_MOST_TASKS]:
        print(f"{title:9s} {task}: {in_words(by_task[task])} ({notes[task]})")
    if rest := most[_MOST_TASKS:]:
        total = sum(sum(by_task[task].values()) for task in rest)
        print(f"{title:9s} {total:,} in {len(rest)} more tasks; manifest.json names them")


def _print_shares(manifest: dict[str, Any]) -> None:
    """What was asked for beside what came out, where there are families to compare."""
    if len(manifest["families"]) > 1:
        shares = (f"{f['name']} {f['share']:.2%} (wanted {f['wanted_share']:.2%})" for f in manifest["families"])
        print("shares    " + ", ".join(shares))
    most = max(manifest["tasks"], key=lambda task: float(task["repeats"]))
    if most["repeats"] > 1:
        print(f"repeats   {most['name']} the most: each of its {most['rows']:,} rows {most['repeats']:.1f} times")
