"""The manifest of sealed packs: what its windows add up to, and what was asked for.

`seal` makes it from the windows' summaries, one at a time; compile.py makes those, and store.py says what the files
are. Whatever was lost on the way is here, by reason and task: rows that were filtered or replaced, examples that were
shortened or dropped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flan_tune import __version__
from flan_tune.errors import StreamError
from flan_tune.packing.fingerprint import join_parts
from flan_tune.packing.losses import plain_counts
from flan_tune.packing.settings import PackSettings
from flan_tune.packing.store import join_content_hashes, read_summary, read_vouched, write_index
from flan_tune.packing.stream import ExampleStream

if TYPE_CHECKING:
    from flan_tune.packing.compile import Compiler

_SUMS = (
    "packs",
    "tokens",
    "target_tokens",
    "segments",
    "shots_dropped",
    "truncated_examples",
    "truncated_tokens",
    "skipped_tokens",
    "sentinel_collisions",
)
_COUNTS = ("segments_by_kind", "presentations")
_COUNTS_BY_TASK = ("drops", "shortened", "replaced")
_OF_A_TASK = ("examples", "tokens", "target_tokens")
_OF_A_WINDOW = ("window", "packs", "sha256", "content_hash")


@dataclass
class _Totals:
    """What the windows add up to. It grows with the number of tasks; of a window only its hashes are kept."""

    windows: list[dict[str, Any]] = field(default_factory=list)
    sums: Counter[str] = field(default_factory=Counter)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    by_task: dict[str, dict[str, Counter[str]]] = field(default_factory=dict)
    of_tasks: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, summary: Mapping[str, Any]) -> None:
        self.windows.append({name: summary[name] for name in _OF_A_WINDOW})
        for name in _SUMS:
            self.sums[name] += summary[name]
        for name in _COUNTS:
            self.counts.setdefault(name, Counter()).update(summary[name])
        for name in _COUNTS_BY_TASK:
            for task, counts in summary[name].items():
                self.by_task.setdefault(name, {}).setdefault(task, Counter()).update(counts)
        for task, counts in summary["by_task"].items():
            self.of_tasks.setdefault(task, Counter()).update(dict(zip(_OF_A_TASK, counts, strict=True)))


def seal(compiler: Compiler, parts: Mapping[str, str], directory: Path, windows: int) -> dict[str, Any]:
    """The manifest of the first `windows` windows in `directory`: everything about the packs at once, plain data.

    Writes the index of packs, which the manifest names. Raises: StreamError if a window is not there.
    """
    settings, stream, tokenizer = compiler.settings, compiler.stream, compiler.tokenizer
    total = _Totals()
    fingerprint = join_parts(parts)
    index = write_index(directory, windows, _adding(total, directory, windows, fingerprint))
    tasks = _task_records(compiler.task_names, stream, total.of_tasks)
    tokens, targets = total.sums["tokens"], total.sums["target_tokens"]
    return {
        "flan_tune_version": __version__,
        "fingerprint": fingerprint,
        "fingerprint_parts": dict(parts),
        "content_hash": join_content_hashes(total.windows),
        "settings": asdict(settings),
        "layout": settings.layout,
        "max_length": settings.max_length,
        "max_target_length": settings.max_target_length,
        "vocab_size": tokenizer.vocab_size,
        "pad_id": tokenizer.pad_id,
        "eos_id": tokenizer.eos_id,
        "examples": sum(task["examples"] for task in tasks),
        **{name: total.sums[name] for name in _SUMS},
        "target_share": round(targets / tokens, 5),
        **_fill(settings, total.sums["packs"], tokens, targets),
        "families": _family_records(tasks),
        "tasks": tasks,
        "left_out": dict(stream.mixture.left_out),
        "dropped_tasks": stream.dropped,
        **{name: _sorted(total.counts.get(name, {})) for name in _COUNTS},
        **{name: plain_counts(total.by_task.get(name, {})) for name in _COUNTS_BY_TASK},
        "index": index,
        "windows": total.windows,
    }


def _fill(settings: PackSettings, packs: int, tokens: int, targets: int) -> dict[str, float]:
    """Shares of the packs that are not padding; of an encoder-decoder, also those of either side."""
    if settings.max_target_length is None:
        return {"fill": round(tokens / (packs * settings.max_length), 5)}
    return {
        "fill": round(tokens / (packs * (settings.max_length + settings.max_target_length)), 5),
        "encoder_fill": round((tokens - targets) / (packs * settings.max_length), 5),
        "decoder_fill": round(targets / (packs * settings.max_target_length), 5),
    }


def _adding(total: _Totals, directory: Path, windows: int, fingerprint: str) -> Iterator[Mapping[str, Any]]:
    for number in range(windows):
        summary = read_summary(directory, number, fingerprint)
        if summary is None:
            raise StreamError(f"{directory}: window {number} was there and is gone. Run the same command again.")
        total.add(summary)
        yield summary


def _task_records(
    names: Sequence[str], stream: ExampleStream, counts: Mapping[str, Mapping[str, int]]
) -> list[dict[str, Any]]:
    """One record a task, in the order of `names`: packs name a task by its place in this list."""
    entries = {entry.task.name: entry for entry in stream.entries}
    whole = sum(entry.share for entry in stream.entries)
    shares = dict.fromkeys(names, 0.0)
    for entry in stream.entries:  # a task may be in several members
        shares[entry.task.name] += entry.share / whole
    drawn = sum(of_task["examples"] for of_task in counts.values())
    records = []
    for name in names:
        rows = entries[name].presenter.rows
        of_task = {key: counts.get(name, {}).get(key, 0) for key in _OF_A_TASK}
        records.append(
            {
                "name": name,
                "family": entries[name].task.family,
                "rows": len(rows),
                **of_task,
                "wanted_share": round(shares[name], 6),
                "share": round(of_task["examples"] / drawn, 6) if drawn else 0.0,
                "repeats": round(of_task["examples"] / len(rows), 3),
                "filtered": dict(rows.drops),
            }
        )
    return records


def _family_records(tasks: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The tasks' records added up by family, in order of names."""
    families: dict[str, dict[str, Any]] = {}
    for task in sorted(tasks, key=lambda task: str(task["family"])):
        record = families.setdefault(task["family"], {"name": task["family"], "tasks": 0})
        record["tasks"] += 1
        for name in ("rows", *_OF_A_TASK, "wanted_share", "share"):
            record[name] = round(record.get(name, 0) + task[name], 6)
    return list(families.values())


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items()))


def read_manifest(directory: Path, fingerprint: str) -> dict[str, Any]:
    """The manifest of packs with this fingerprint; empty if there is none, or it cannot be read."""
    try:
        manifest = read_vouched(directory / "manifest.json")
    except ValueError:
        return {}
    return manifest if manifest.get("fingerprint") == fingerprint else {}


def check_same(directory: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises StreamError if windows that both manifests have hold other packs: then one recipe gave two streams."""
    pairs = zip(old.get("windows", ()), new["windows"], strict=False)
    changed = [str(one["window"]) for one, other in pairs if one["content_hash"] != other["content_hash"]]
    if changed:
        raise StreamError(
            f"{directory}: made again, window(s) {', '.join(changed)} hold other packs than those that were sealed "
            "here, though the recipe is the same: the code or a library that made them has changed. Delete the folder "
            "and prepare it anew; a run that was trained on the old packs cannot be resumed on these."
        )
