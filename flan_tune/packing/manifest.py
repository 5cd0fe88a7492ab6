"""The manifest of sealed packs: what its windows add up to, and what was asked for.

`seal` makes it from the windows' summaries; compile.py makes those, and store.py says what the files are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from flan_tune import __version__
from flan_tune.packing.fingerprint import join_parts
from flan_tune.packing.store import join_content_hashes
from flan_tune.packing.stream import Entry, ExampleStream

if TYPE_CHECKING:
    from flan_tune.packing.compile import Compiler

_SUMS = ("segments", "shots_dropped", "truncated_examples", "truncated_tokens", "skipped_tokens")
_COUNTS = ("segments_by_kind", "presentations")
_COUNTS_BY_TASK = ("drops", "replaced")


def seal(compiler: Compiler, parts: Mapping[str, str], windows: list[dict[str, Any]]) -> dict[str, Any]:
    """The manifest: everything about the packs at once, plain data. `windows` are the summaries, in order."""
    settings, stream, tokenizer = compiler.settings, compiler.stream, compiler.tokenizer
    packs, tokens, targets = (sum(window[name] for window in windows) for name in ("packs", "tokens", "target_tokens"))
    examples = add_counts(window["examples_by_task"] for window in windows)
    return {
        "flan_tune_version": __version__,
        "fingerprint": join_parts(parts),
        "fingerprint_parts": dict(parts),
        "content_hash": join_content_hashes(windows),
        "settings": asdict(settings),
        "packs": packs,
        "max_length": settings.max_length,
        "vocab_size": tokenizer.vocab_size,
        "pad_id": tokenizer.pad_id,
        "eos_id": tokenizer.eos_id,
        "tokens": tokens,
        "target_tokens": targets,
        "target_share": round(targets / tokens, 5),
        "fill": round(tokens / (packs * settings.max_length), 5),
        "examples": sum(examples.values()),
        "tasks": _task_records(compiler.task_names, stream, examples),
        "left_out": dict(stream.mixture.left_out),
        "dropped_tasks": stream.dropped,
        **{name: sum(window[name] for window in windows) for name in _SUMS},
        **{name: add_counts(window[name] for window in windows) for name in _COUNTS},
        **{name: _add_counts_by_task(window[name] for window in windows) for name in _COUNTS_BY_TASK},
        "windows": windows,
    }


def _task_records(names: Sequence[str], stream: ExampleStream, examples: Mapping[str, int]) -> list[dict[str, Any]]:
    """One record a task, in the order of `names`: packs name a task by its place in this list."""
    entries = {entry.task.name: entry for entry in stream.entries}
    whole = sum(entry.share for entry in stream.entries)
    shares = dict.fromkeys(names, 0.0)
    for entry in stream.entries:  # a task may be in several members
        shares[entry.task.name] += entry.share / whole
    total = sum(examples.values())
    return [_task_record(entries[name], examples.get(name, 0), shares[name], total) for name in names]


def _task_record(entry: Entry, drawn: int, wanted_share: float, total: int) -> dict[str, Any]:
    rows = entry.presenter.rows
    return {
        "name": entry.task.name,
        "family": entry.task.family,
        "rows": len(rows),
        "examples": drawn,
        "wanted_share": round(wanted_share, 6),
        "share": round(drawn / total, 6) if total else 0.0,
        "repeats": round(drawn / len(rows), 3),
        "filtered": dict(rows.drops),
    }


def add_counts(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Counts added up name by name, in order of names.

    >>> add_counts([{"b": 1, "a": 2}, {"b": 3}])
    {'a': 2, 'b': 4}
    """
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(sorted(total.items()))


def _add_counts_by_task(counts: Iterable[Mapping[str, Mapping[str, int]]]) -> dict[str, dict[str, int]]:
    by_task: dict[str, list[Mapping[str, int]]] = {}
    for one in counts:
        for task, by_reason in one.items():
            by_task.setdefault(task, []).append(by_reason)
    return {task: add_counts(by_reason) for task, by_reason in sorted(by_task.items())}
