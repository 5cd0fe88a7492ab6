"""`export`: the rendered examples of a recipe's mixture in the order of the stream, for training with anything else.

    full                {index, inputs, targets, task, family, template, presentation, role, shots, ...}
    prompt_completion   {prompt, completion}: what TRL reads; the prompt ends with the recipe's separator

An example is whole: nothing is cut to the recipe's max_length, because that is counted in tokens of its model.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from flan_tune.checks.preflight import check_recipe, pack_settings
from flan_tune.errors import RecipeError, StreamError
from flan_tune.packing.compile import open_stream, open_tokenizer
from flan_tune.packing.fingerprint import fingerprint_parts
from flan_tune.packing.losses import in_words
from flan_tune.packing.prepare import check_folder
from flan_tune.packing.settings import PackSettings
from flan_tune.packing.store import open_packs, staged
from flan_tune.packing.stream import StreamCounts
from flan_tune.prompts.example import Example

_BATCH = 10_000
_SECONDS_BETWEEN_LINES = 5.0
_TEXT = "inputs targets task family template presentation role options_style dialog_style prompt completion".split()

Record = dict[str, Any]


def export_command(
    path: Path,
    overrides: Sequence[str],
    *,
    file_format: str,
    out: Path,
    num_examples: int | None,
    columns: str,
    packs: str | None,
    as_json: bool,
) -> None:
    """Writes examples 0, 1, ... of the stream to `out`, under another name until it is whole."""
    started = last = time.monotonic()
    settings = pack_settings(check_recipe(path, overrides).require(), packs)
    total = num_examples or _examples_of_packs(settings)
    stream, counts = open_stream(settings), StreamCounts()
    families: Counter[str] = Counter()
    with _open_writer(out, file_format) as writer:
        for start in range(0, total, _BATCH):
            batch = list(stream.examples(start, min(_BATCH, total - start), counts))
            families.update(example.family for example in batch)
            writer.write([_record(start + i, one, columns, settings.separator) for i, one in enumerate(batch)])
            done, now = start + len(batch), time.monotonic()
            if not as_json and (now - last >= _SECONDS_BETWEEN_LINES or done == total):
                last = now
                print(f"{done:,}/{total:,} examples, {done / max(now - started, 1e-6):,.0f}/s", flush=True)
    replaced = {task: dict(sorted(reasons.items())) for task, reasons in sorted(counts.replaced.items())}
    summary = {
        "file": str(out),
        "format": file_format,
        "columns": columns,
        "examples": total,
        "families": dict(sorted(families.items())),
        "replaced": replaced,
        "dropped_tasks": stream.dropped,
        "bytes": out.stat().st_size,
        "seconds": round(time.monotonic() - started, 2),
    }
    if as_json:
        print(json.dumps(summary, ensure_ascii=False))
    else:
        _print(summary)


def _examples_of_packs(settings: PackSettings) -> int:
    """How many examples the recipe's packs were made of."""
    try:
        manifest = open_packs(settings.packs_dir).manifest
    except StreamError as error:
        raise RecipeError(f"how many examples? Give --examples N, or prepare the packs, which tell: {error}") from None
    check_folder(Path(settings.packs_dir), fingerprint_parts(settings, open_tokenizer(settings).fingerprint))
    return int(manifest["examples"])


def _record(index: int, example: Example, columns: str, separator: str) -> Record:
    inputs, targets = example.text()
    if columns == "prompt_completion":
        joint = "\n" if separator == "eos" else separator  # a token of the model's own is no text
        return {"prompt": inputs + joint if inputs else "", "completion": targets}
    return {
        "index": index,
        "inputs": inputs,
        "targets": targets,
        "task": example.task,
        "family": example.family,
        "template": example.template,
        "presentation": example.presentation,
        "role": example.role,
        "shots": example.shots,
        "options_style": example.options_style,
        "dialog_style": example.dialog_style,
        "turn": example.turn,
        "row": example.row,
        "epoch": example.epoch,
        "replaced": example.replaced,
        "exemplar_rows": list(example.exemplar_rows),
    }


class _Writer(Protocol):
    def write(self, records: Sequence[Record]) -> None: ...
    def close(self) -> None: ...


class _JsonLines:
    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def write(self, records: Sequence[Record]) -> None:
        self._file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in records)

    def close(self) -> None:
        self._file.close()


class _Parquet:
    """The columns have the types of the first batch's names, so that a batch of zero-shot prompts fits the next."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: Any = None

    def write(self, records: Sequence[Record]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        def type_of(name: str) -> Any:
            if name == "exemplar_rows":
                return pa.list_(pa.int64())
            return pa.string() if name in _TEXT else pa.int64()

        schema = pa.schema([(name, type_of(name)) for name in records[0]])
        if self._writer is None:
            self._writer = pq.ParquetWriter(self._path, schema)
        self._writer.write_table(pa.Table.from_pylist(list(records), schema))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


@contextmanager
def _open_writer(out: Path, file_format: str) -> Iterator[_Writer]:
    """A writer of `out`, which has its name only once everything is written."""
    if out.is_dir():
        raise RecipeError(f"--out {out}: this is a folder. Name a file in it.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"--out {out}: its folder cannot be made ({error.strerror}). Choose another.") from None
    with staged(out) as staging:
        writer: _Writer = _Parquet(staging) if file_format == "parquet" else _JsonLines(staging)
        try:
            yield writer
        finally:
            writer.close()


def _print(summary: Mapping[str, Any]) -> None:
    print(f"examples  {summary['examples']:,}: {in_words(summary['families'])}")
    for task, reasons in summary["replaced"].items():
        print(f"replaced  {task}: {in_words(reasons)}")
    if summary["dropped_tasks"]:
        print(f"missing   {len(summary['dropped_tasks'])} tasks without data were dropped; --json names them")
    print(f"file      {summary['file']}, {summary['bytes']:,} bytes, {summary['columns']} columns")
