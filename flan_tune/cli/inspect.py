"""`inspect`: what is in a pack, as a person can read it: segments, who sees whom, where each came from.

|=====>>|---->|....        = seen in both directions   - seen from behind only   > target   . padding

An encoder-decoder has two such lines, one for each side.
"""

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
from flan_tune.packing.losses import in_words
from flan_tune.packing.settings import PackSettings
from flan_tune.packing.store import Pack, PackReader, open_packs
from flan_tune.tasks.catalog import load_catalog
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
    """Prints one pack with its segments, or the packs of a step in short. `pack`, `step`, `task`: at most one.

    Of the first pack that holds a task the text of that task's segments is shown.
    """
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
    if task is not None:
        task = _canonical(task, settings)
    if step is not None:
        numbers = _numbers_of_step(reader, step, recipe.training.global_batch_size)
    else:
        numbers = [_find_task(reader, task) if task else (pack or 0)]
    described = [_describe(reader, number, tokenizer, recipe.model.attention) for number in numbers]
    if as_json:
        print(json.dumps(described, ensure_ascii=False))
        return
    for one in described:
        if step is not None:
            _print_in_short(one)
        else:
            _print_with_text(one, task)


def _numbers_of_step(reader: PackReader, step: int, size: int) -> list[int]:
    numbers = list(range(step * size, min((step + 1) * size, reader.num_packs)))
    if not numbers:
        last = (reader.num_packs - 1) // size
        raise StreamError(f"{reader.directory}: there is no step {step}; the packs are for steps 0 to {last}.")
    return numbers


def _canonical(task: str, settings: PackSettings) -> str:
    """A task's name here, for one that may be its published name."""
    catalog = load_catalog(settings.task_paths)
    return catalog[task].name if task in catalog else task


def _find_task(reader: PackReader, task: str) -> int:
    manifest = reader.manifest
    records = {record["name"]: record for record in manifest["tasks"]}
    if task in records and records[task]["examples"]:
        wanted = list(records).index(task)
        for number in range(reader.num_packs):
            if wanted in reader.pack(number).task:
                return number
    raise StreamError(f"{reader.directory}: no pack holds the task {task!r}.{_why_not(task, records, manifest)}")


def _why_not(task: str, records: dict[str, Any], manifest: dict[str, Any]) -> str:
    """Why a task is in no pack, as a sentence with a space before it; near names if there is no such task."""
    reason = manifest["dropped_tasks"].get(task) or manifest["left_out"].get(task)
    if reason:
        return f" It was left out: {reason}"
    if task not in records:
        return did_you_mean(task, records)
    drawn, whole = records[task]["examples"], manifest["examples"]
    if drawn:
        return f" All {drawn} of its examples were dropped: {in_words(manifest['drops'].get(task, {}))}."
    return f" Its share is {records[task]['wanted_share']:.3%}, and none of the {whole:,} examples is its."


def _describe(reader: PackReader, number: int, tokenizer: Tokenizer, attention: str) -> dict[str, Any]:
    pack = reader.pack(number)
    is_prefix_seen = attention == "prefix_lm" or reader.layout == "encoder_decoder"
    start = 0
    segments = []
    for place in range(len(pack.segment_lengths)):
        length, prefix = int(pack.segment_lengths[place]), int(pack.prefix_lengths[place])
        ids = pack.input_ids[start : start + length]
        shown = _segment(pack, place, reader, tokenizer, ids[:prefix].tolist(), ids[prefix:].tolist())
        segments.append({**shown, **_mask(length, prefix, is_prefix_seen)})
        start += length
    return {
        "pack": number,
        "layout": reader.layout,
        "tokens": len(pack.input_ids),
        "max_length": reader.manifest["max_length"],
        "max_target_length": reader.manifest.get("max_target_length"),
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
        "replaced": int(pack.replaced[place]),
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


def _mask(length: int, prefix: int, is_prefix_seen: bool) -> dict[str, int]:
    """Tokens of a segment by what they see of it: all of the prefix, or what is before them; and which are predicted.

    >>> _mask(9, 6, True), _mask(9, 6, False)["bidirectional_tokens"]
    ({'bidirectional_tokens': 6, 'causal_tokens': 3, 'target_tokens': 3}, 0)
    """
    bidirectional = prefix if is_prefix_seen else 0
    return {
        "bidirectional_tokens": bidirectional,
        "causal_tokens": length - bidirectional,
        "target_tokens": length - max(prefix, 1),
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


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False, soft_wrap=True)


def _print_head(console: Any, described: dict[str, Any], tasks: str = "") -> None:
    from rich.text import Text

    segments = _counted(len(described["segments"]), "segment")
    console.print(f"pack {described['pack']}: {_tokens_in_words(described)}, {segments}{tasks}")
    for strip in _strips(described):
        console.print(Text.assemble(*strip))


def _print_in_short(described: dict[str, Any]) -> None:
    """A line per segment."""
    from rich.text import Text

    console = _console()
    _print_head(console, described, f": {', '.join(sorted({s['task'] for s in described['segments']}))}")
    for number, s in enumerate(described["segments"]):
        console.print(Text(f"  [{number}] {_provenance(s)}", style="bold"))


def _print_with_text(described: dict[str, Any], task: str | None) -> None:
    """Segments with their text; if a task is given, those of others have a line only."""
    from rich.text import Text

    console = _console()
    _print_head(console, described)
    console.print(Text(_legend(described), style="dim"))
    for number, s in enumerate(described["segments"]):
        console.print(Text(f"\n[{number}] {_provenance(s)}", style="bold"))
        if task not in (None, s["task"]):
            continue
        console.print(Text(_mask_in_words(s, described["layout"]), style="dim"))
        if s["inputs"]:
            console.print(Text(s["inputs"], style=_INPUT_STYLE[s["bidirectional_tokens"] > 0]))
        console.print(Text("-> " + s["targets"], style=_TARGET_STYLE))


_LEGEND = {"=": "seen in both directions", "-": "seen from behind only", ">": "target", ".": "padding"}
_INPUT_STYLE = {True: "cyan", False: "yellow"}  # seen in both directions or not
_TARGET_STYLE = "green"
_STYLES = {"=": _INPUT_STYLE[True], "-": _INPUT_STYLE[False], ">": _TARGET_STYLE}
_STRIP_WIDTH = 96


def _legend(described: dict[str, Any]) -> str:
    """What the marks mean that are in the lines: '= seen in both directions   > target   . padding'."""
    drawn = {mark for strip in _strips(described) for marks, _ in strip for mark in marks}
    sides = ["above the encoder, below the decoder:"] if described["layout"] == "encoder_decoder" else []
    return "   ".join([*sides, *(f"{mark} {words}" for mark, words in _LEGEND.items() if mark in drawn)])


def _counted(number: int, what: str) -> str:
    """A number of things.

    >>> _counted(1, "shot"), _counted(0, "shot")
    ('1 shot', '0 shots')
    """
    return f"{number} {what}{'' if number == 1 else 's'}"


def _tokens_in_words(described: dict[str, Any]) -> str:
    """'57 of 64 tokens, 23 targets', or '34 of 64 encoder tokens, 23 of 32 decoder tokens'."""
    tokens, targets = described["tokens"], described["target_tokens"]
    if described["layout"] == "decoder_only":
        return f"{tokens} of {described['max_length']} tokens, {targets} targets"
    return (
        f"{tokens - targets} of {described['max_length']} encoder tokens, "
        f"{targets} of {described['max_target_length']} decoder tokens"
    )


def _provenance(s: dict[str, Any]) -> str:
    cut = f" cut {s['cut']}" if s["cut"] else ""
    replaced = f" (replacement, try {s['replaced']})" if s["replaced"] else ""
    return (
        f"{s['task']} row {s['row']}{replaced} epoch {s['epoch']}{cut}: {s['kind']}, {s['presentation']}, "
        f"template {s['template'] or 'none'}, {_counted(s['shots'], 'shot')}, "
        f"{_counted(s['tokens'], 'token')}, {_counted(s['target_tokens'], 'target')}"
    )


def _mask_in_words(s: dict[str, Any], layout: str) -> str:
    """'mask: 32 tokens bidirectional prefix, 2 causal; 2 targets'."""
    if layout == "encoder_decoder":
        return f"mask: {s['bidirectional_tokens']} tokens in the encoder, {s['target_tokens']} targets of the decoder"
    both = f"{s['bidirectional_tokens']} tokens bidirectional prefix, " if s["bidirectional_tokens"] else ""
    return f"mask: {both}{s['causal_tokens']} {'' if both else 'tokens '}causal; {s['target_tokens']} targets"


def _strips(described: dict[str, Any]) -> list[list[tuple[str, str]]]:
    """The lines that draw a pack: one, or one for the encoder and one for the decoder."""
    segments, length = described["segments"], described["max_length"]
    if described["layout"] == "encoder_decoder":
        encoder = [[("=", s["bidirectional_tokens"])] for s in segments]
        decoder = [[(">", s["target_tokens"])] for s in segments]
        return [_strip(encoder, length), _strip(decoder, described["max_target_length"])]
    parts = [
        [
            ("=", s["bidirectional_tokens"]),
            ("-", s["causal_tokens"] - s["target_tokens"]),
            (">", s["target_tokens"]),
        ]
        for s in segments
    ]
    return [_strip(parts, length)]


def _strip(segments: list[list[tuple[str, int]]], length: int) -> list[tuple[str, str]]:
    """(characters, style) that draw (mark, tokens) to scale; a part that is there has at least one character."""

    def drawn(mark: str, tokens: int) -> tuple[str, str]:
        width = max(round(tokens * _STRIP_WIDTH / length), 1) if tokens else 0
        return mark * width, _STYLES.get(mark, "dim")

    padding = length - sum(tokens for parts in segments for _, tokens in parts)
    line = [piece for parts in segments for piece in (("|", "bold"), *(drawn(*part) for part in parts))]
    return [*line, ("|", "bold"), drawn(".", padding)]
