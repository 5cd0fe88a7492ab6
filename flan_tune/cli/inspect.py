"""`inspect`: what is in a pack, as a person can read it."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flan_tune.checks.preflight import check_recipe, pack_settings
from flan_tune.errors import RecipeError, StreamError, did_you_mean
from flan_tune.packing.compile import open_tokenizer
from flan_tune.packing.fingerprint import changed_parts, fingerprint_parts
from flan_tune.packing.store import Pack, PackReader, open_packs
from flan_tune.tokens.tokenizer import Tokenizer


def inspect_command(
    path: Path,
    overrides: Sequence[str],
    *,
    pack: int | None,
    step: int | None,
    task: str | None,
    packs: str | None,
    as_json: bool,
) -> None:
    """Prints one pack with its segments, or the packs of a step in short. `pack`, `step`, `task`: at most one."""
    if sum(choice is not None for choice in (pack, step, task)) > 1:
        raise RecipeError("give one of --pack, --step and --task, not several.")
    recipe = check_recipe(path, overrides).require()
    settings = pack_settings(recipe, packs)
    reader = open_packs(settings.packs_dir)
    tokenizer = open_tokenizer(settings)
    changed = changed_parts(reader.manifest["fingerprint_parts"], fingerprint_parts(settings, tokenizer.fingerprint))
    if changed:
        print(
            f"note: these packs were made by another recipe than today's; changed: {', '.join(changed)}.",
            file=sys.stderr,
        )
    if step is not None:
        numbers = _numbers_of_step(reader, step, recipe.training.global_batch_size)
    else:
        numbers = [_find_task(reader, task) if task else (pack or 0)]
    described = [_describe(reader, number, tokenizer) for number in numbers]
    if as_json:
        print(json.dumps(described, ensure_ascii=False))
    elif step is not None:
        _print_short(described)
    else:
        _print_segments(described[0])


def _numbers_of_step(reader: PackReader, step: int, size: int) -> list[int]:
    numbers = list(range(step * size, min((step + 1) * size, reader.num_packs)))
    if not numbers:
        last = (reader.num_packs - 1) // size
        raise StreamError(f"{reader.directory}: there is no step {step}; the packs are for steps 0 to {last}.")
    return numbers


def _find_task(reader: PackReader, task: str) -> int:
    names = [record["name"] for record in reader.manifest["tasks"]]
    if task in names:
        wanted = names.index(task)
        for number in range(reader.num_packs):
            if wanted in reader.pack(number).task:
                return number
    raise StreamError(f"{reader.directory}: no pack holds the task {task!r}.{did_you_mean(task, names)}")


def _describe(reader: PackReader, number: int, tokenizer: Tokenizer) -> dict[str, Any]:
    pack = reader.pack(number)
    start = 0
    segments = []
    for place in range(len(pack.segment_lengths)):
        length, prefix = int(pack.segment_lengths[place]), int(pack.prefix_lengths[place])
        ids = pack.input_ids[start : start + length]
        segments.append(_segment(pack, place, reader, tokenizer, ids[:prefix].tolist(), ids[prefix:].tolist()))
        start += length
    return {
        "pack": number,
        "tokens": len(pack.input_ids),
        "max_length": reader.manifest["max_length"],
        "target_tokens": pack.target_tokens,
        "segments": segments,
    }


def _segment(
    pack: Pack, place: int, reader: PackReader, tokenizer: Tokenizer, inputs: list[int], targets: list[int]
) -> dict[str, Any]:
    return {
        "task": reader.manifest["tasks"][int(pack.task[place])]["name"],
        "row": int(pack.row[place]),
        "epoch": int(pack.epoch[place]),
        "cut": int(pack.cut[place]),
        "kind": pack.kind[place],
        "presentation": pack.presentation[place],
        "template": pack.template[place],
        "shots": int(pack.shots[place]),
        "input_tokens": len(inputs),
        "tokens": len(inputs) + len(targets),
        "inputs": _text(tokenizer, inputs),
        "targets": _text(tokenizer, targets),
    }


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
    """Text with sentinels and mode tokens written out."""
    names = {id_: f"<{number}>" for number, id_ in enumerate(tokenizer.sentinel_ids)}
    names.update({id_: name for name, id_ in tokenizer.mode_ids.items()})
    parts: list[str] = []
    run: list[int] = []
    for id_ in ids:
        if id_ in names:
            parts += [tokenizer.decode(run), names[id_]]
            run = []
        else:
            run.append(id_)
    return "".join([*parts, tokenizer.decode(run)])


def _print_segments(described: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"pack {described['pack']}: {described['tokens']} of {described['max_length']} tokens, "
        f"{described['target_tokens']} targets, {len(described['segments'])} segments"
    )
    for number, s in enumerate(described["segments"]):
        cut = f" cut {s['cut']}" if s["cut"] else ""
        console.print(
            Text(
                f"\n[{number}] {s['task']} row {s['row']} epoch {s['epoch']}{cut}: {s['kind']}, {s['presentation']}, "
                f"template {s['template'] or 'none'}, {s['shots']} shots, "
                f"{s['input_tokens']} input + {s['tokens'] - s['input_tokens']} other tokens",
                style="bold",
            )
        )
        if s["inputs"]:
            console.print(Text(s["inputs"], style="cyan"))
        console.print(Text("-> " + s["targets"], style="green"))


def _print_short(described: list[dict[str, Any]]) -> None:
    for one in described:
        tasks = sorted({s["task"] for s in one["segments"]})
        print(
            f"pack {one['pack']}: {one['tokens']} tokens, {one['target_tokens']} targets, "
            f"{len(one['segments'])} segments: {', '.join(tasks)}"
        )
