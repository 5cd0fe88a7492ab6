"""Opening rows: one protocol over every kind of source, and the rows of a task as checked fields.

`open_rows` gives raw rows by number. `open_task` adapts them and applies the filter (`keep`, rows without a label
or with a broken contract) once, so that shares and epochs are exact; what was dropped is counted by reason.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from flan_tune.errors import SourceError, did_you_mean
from flan_tune.sources.each import EachRows
from flan_tune.sources.hub import open_hub
from flan_tune.sources.mirror import list_splits, open_files, open_mirror
from flan_tune.sources.natural_instructions import open_natural_instructions, task_file
from flan_tune.sources.procedural.registry import ProceduralRows
from flan_tune.sources.row_filter import Usable, judge
from flan_tune.sources.text import Documents, TextPieces, list_text_splits, open_text
from flan_tune.tasks.adapters import Fields, compile_adapt
from flan_tune.tasks.task import Task

DATA_ROOT_VARIABLE = "FLAN_TUNE_DATA"
_FLAN_2021 = "flan2021."
_TEXT_ALONE = re.compile(r"\{\{ *(?P<name>\w+) *\}\}")
_SLICED = re.compile(r"(?P<name>[^\[]+)(\[(?P<start>-?\d*):(?P<stop>-?\d*)\])?")


class Rows(Protocol):
    """Rows addressed by number, in a fixed order, with a fingerprint of what they hold."""

    @property
    def fingerprint(self) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, number: int) -> Mapping[str, Any]: ...


def find_data_root(data_root: str | None = None) -> Path | None:
    """The recipe's data root, else the one in FLAN_TUNE_DATA, else None (rows come from the hub).

    Raises: SourceError if the folder does not exist.
    """
    chosen = data_root or os.environ.get(DATA_ROOT_VARIABLE)
    if not chosen:
        return None
    if not Path(chosen).is_dir():
        origin = "data_root of the recipe" if data_root else DATA_ROOT_VARIABLE
        raise SourceError(f"{origin} is {chosen!r}, which is not a folder. Correct it, or unset it to use the hub.")
    return Path(chosen)


def open_rows(task: Task, split: str, data_root: Path | None) -> Rows:
    """The raw rows of one split of a task; 'flan2021.train' is that of Flan 2021 where the card has one.

    Raises: SourceError if they cannot be opened; it names the splits that are there.
    """
    source = task.source
    if source.kind == "procedural":
        return ProceduralRows(source.name, source.parameters, split)
    wanted, part = source_split(task, split)
    rows = open_source_split(task, wanted, data_root)
    if part is None:
        return rows
    if task.reserve and not split.startswith(_FLAN_2021) and len(rows) <= task.reserve:
        raise SourceError(
            f"{task.where}: task {task.name!r} reserves {task.reserve} rows for validation, but its train split has "
            f"{len(rows)}. Lower splits.reserve."
        )
    sliced = _Slice(rows, *part.indices(len(rows)))
    if not len(sliced):
        raise SourceError(
            f"{task.where}: task {task.name!r} takes rows {part.start}:{part.stop} of {wanted!r} for {split!r}, but "
            f"there are only {len(rows)}. Supply the whole split, or correct `splits`."
        )
    return sliced


def open_source_split(task: Task, name: str, data_root: Path | None) -> Rows:
    """All rows of the source's own split `name`, whatever the card makes of it.

    Raises: SourceError if it cannot be opened; it names the splits that are there.
    """
    source = task.source
    if source.kind == "natural_instructions":
        return open_natural_instructions(source.name, _need_root(task, data_root))
    if source.kind == "text":
        return open_text(source.name, name, _need_root(task, data_root))
    rows: Documents
    if source.kind == "hub" and data_root is None:
        rows = _told_how_to_get(task, lambda: open_hub(source.name, source.config, name, source.revision))
    elif source.kind in ("hub", "data_root"):
        root = _need_root(task, data_root)
        rows = _told_how_to_get(task, lambda: open_mirror(source.name, source.config, name, root))
    else:
        rows = _open_beside(task, name)
    column = _TEXT_ALONE.fullmatch(str(task.adapt.get("answer"))) if task.shape.name == "document" else None
    if column:
        return TextPieces(rows, column=column["name"])
    return EachRows(rows, task) if task.each else rows


def _told_how_to_get(task: Task, open_it: Callable[[], Documents]) -> Documents:
    """What `open_it` opens; where it fails the message says how to get rows that cannot simply be downloaded."""
    try:
        return open_it()
    except SourceError as error:
        if not task.source.get:
            raise
        raise SourceError(f"{error} {task.source.get}") from None


def source_split(task: Task, split: str) -> tuple[str, slice | None]:
    """The source's name of a split, and the part of it where the card takes a slice or reserves rows.

    Raises: SourceError if the task has no such split.
    """
    reserved = {"train": slice(0, -task.reserve), "validation": slice(-task.reserve, None)} if task.reserve else {}
    if split.startswith(_FLAN_2021) and split.removeprefix(_FLAN_2021) in task.flan2021:
        return _sliced(task.flan2021[split.removeprefix(_FLAN_2021)])
    split = split.removeprefix(_FLAN_2021)
    if split in reserved:
        return task.splits.get("train", "train"), reserved[split]
    if task.splits and split not in task.splits:
        there = sorted({*task.splits, *reserved})
        near = did_you_mean(split, there)
        raise SourceError(f"{task.where}: task {task.name!r} has no split {split!r}.{near} It has {there}.")
    return _sliced(task.splits.get(split, split))


def _sliced(name: str) -> tuple[str, slice | None]:
    """'train[:-200]' -> ('train', slice(None, -200))."""
    match = _SLICED.fullmatch(name)
    assert match is not None, name  # the card was read
    start, stop = (int(match[key]) if match[key] else None for key in ("start", "stop"))
    return match["name"], None if match[2] is None else slice(start, stop)


def _open_beside(task: Task, split: str) -> Documents:
    """Rows that lie beside the card: one file, which is the split 'train', or a folder in a data root's layout."""
    folder, name = Path(task.where.rpartition(":")[0]).parent, task.source.name
    path = folder / name
    if path.is_dir():
        return open_mirror(name, task.source.config, split, folder)
    if not path.is_file() or not name.endswith((".jsonl", ".jsonl.gz", ".parquet")):
        raise SourceError(
            f"{task.where}: source.file is {name!r}; there is no .jsonl, .jsonl.gz or .parquet file and no folder of "
            f"that name in {folder}. Paths are relative to the card."
        )
    if split != "train":
        raise SourceError(
            f"{task.where}: {name!r} is one file, which is the split 'train'; there is no split {split!r}. Set aside "
            "rows for validation with splits.reserve, or name a folder with a file for each split."
        )
    return open_files([path])


def _need_root(task: Task, data_root: Path | None) -> Path:
    if data_root is None:
        holds = {"natural_instructions": "natural-instructions/", "text": "text/"}.get(
            task.source.kind, task.source.name
        )
        raise SourceError(
            f"task {task.name!r} reads a folder: set {DATA_ROOT_VARIABLE} (or data_root in the recipe) to the "
            f"folder that holds {holds}.{' ' * bool(task.source.get)}{task.source.get}"
        )
    return data_root


class _Slice:
    """Rows start..stop of other rows. `first` is the number there of its row 0."""

    def __init__(self, rows: Rows, start: int, stop: int, step: int) -> None:
        self._rows, self._range = rows, range(start, stop, step)
        self.first = start
        self.fingerprint = f"{rows.fingerprint}[{start}:{stop}]"
        self.columns: Collection[str] | None = getattr(rows, "columns", None)
        scan: Any = getattr(rows, "scan", None)
        self.scan = scan and (lambda begin, end, columns=None: scan(start + begin, start + end, columns))

    def __len__(self) -> int:
        return len(self._range)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        return self._rows[self._range[number]]


class TaskRows:
    """The usable rows of one split of a task, as checked fields of its shape.

    drops: reason -> number of rows left out when the source was opened.
    removed: rows that are left out, number -> reason; numbers are those of the source's own split.
    """

    def __init__(self, task: Task, split: str, rows: Rows, removed: Mapping[int, str] | None = None) -> None:
        self.task = task
        self.split = split
        self._rows = rows
        self._adapt = compile_adapt(task)
        self.fingerprint = rows.fingerprint
        self.drops: Counter[str] = Counter()
        self._usable = None if task.source.kind == "procedural" else self._filter(removed or {})
        self._known: dict[int, Fields] = {}
        self._age = 0

    def _filter(self, removed: Mapping[int, str]) -> Usable:
        first = self._rows.first if isinstance(self._rows, _Slice) else 0
        total = len(self._rows)
        gone = {number - first: reason for number, reason in removed.items() if 0 <= number - first < total}
        verdicts = judge(self.task, self._rows)
        self.drops.update(f"removed: {reason}" for reason in gone.values())
        self.drops.update(verdicts.counts(but=gone.keys()))
        return Usable(total, np.union1d(verdicts.numbers, np.array(sorted(gone), dtype=np.int64)))

    def __len__(self) -> int:
        return len(self._rows if self._usable is None else self._usable)

    def raw(self, number: int) -> Mapping[str, Any]:
        """The raw row behind usable row `number`."""
        return self._rows[number if self._usable is None else self._usable[number]]

    def fields(self, number: int) -> Fields:
        """The fields of usable row `number`, in [0, len). They are kept for a while: a caller must not change them."""
        if self._age != _memory.age:
            self._known, self._age = {}, _memory.age
        found = self._known.get(number)
        if found is None:
            found = self._adapt(self.raw(number))
            if len(self) <= _OFTEN:
                self._known[number] = found
                _memory.add(found)
        return found


_OFTEN = 100_000  # rows; of more each is hardly ever shown twice while it is in memory
_MOST_CHARACTERS = 1 << 26


class _Memory:
    """How much the fields take that all tasks of this process keep; all are forgotten at a certain `age`."""

    def __init__(self) -> None:
        self.age = 0
        self._added = 0
        self._characters = 0

    def add(self, fields: Fields) -> None:
        """Looks at one of 16 closely, which is near enough."""
        self._added += 1
        if self._added % 16:
            return
        for value in fields.values():
            texts = value if isinstance(value, list) else (value,)
            self._characters += 16 * (64 + sum(64 + len(text) for text in texts if isinstance(text, str)))
        if self._characters > _MOST_CHARACTERS:
            self.age += 1
            self._characters = 0


_memory = _Memory()


Removed = Callable[[str, str, str], Mapping[int, str]]  # (task, source's split, fingerprint) -> row number -> reason


def open_task(task: Task, split: str, data_root: Path | None, removed: Removed | None = None) -> TaskRows:
    """The usable rows of a task, without those that `removed` names: what a mixture's removal files leave out.

    Raises: SourceError if the source cannot be opened or no row of it is usable; what `removed` raises.
    """
    raw = open_rows(task, split, data_root)
    gone = removed(task.name, source_split(task, split)[0], raw.fingerprint) if removed else None
    rows = TaskRows(task, split, raw, gone)
    if not len(rows):
        raise SourceError(
            f"task {task.name!r}, split {split!r}: none of its rows can be used; dropped: {dict(rows.drops)}."
        )
    return rows


def declared_rows(task: Task, split: str) -> int | None:
    """How many rows a split has by the card, before any is filtered; None if the card does not say.

    A card counts the rows of its own splits, slices taken, the reserved rows of `train` not yet taken off.
    """
    plain = split.removeprefix(_FLAN_2021)
    if split != plain and plain in task.flan2021:
        wanted, part = _sliced(task.flan2021[plain])
        whole = next((task.rows.get(ours) for ours, name in task.splits.items() if name == wanted), None)
        return None if whole is None else len(range(whole)[part or slice(None)])
    if task.reserve and plain == "validation":
        return min(task.reserve, task.rows.get("train", task.reserve))
    counted = task.rows.get(plain)
    return counted if counted is None or plain != "train" else max(counted - task.reserve, 0)


def describe_status(task: Task, data_root: Path | None) -> str:
    """Where the rows of a task are: one line for listings.

    For example 'generated', 'on the hub', 'supplied by the user', 'data root: train, validation',
    'data root: dev_r1 (train_r1 is missing)', 'not in the data root; on the hub'.
    """
    source = task.source
    if source.kind == "procedural":
        return "generated"
    if source.kind == "file":
        return "a file beside the card"
    elsewhere = "on the hub" if source.kind == "hub" and not source.get else "supplied by the user"
    if data_root is None:
        return elsewhere
    there = found_splits(task, data_root)
    if not there:
        return f"not in the data root; {elsewhere}"
    wanted = source_split(task, "train")[0] if "train" in task.splits or not task.splits else None
    missing = f" ({wanted} is missing)" if wanted is not None and wanted not in there else ""
    return f"data root: {', '.join(there)}{missing}"


def found_splits(task: Task, data_root: Path) -> list[str]:
    """The source's splits of a task that lie in the data root; empty if none does."""
    source = task.source
    if source.kind == "natural_instructions":
        return ["train"] if task_file(source.name, data_root).exists() else []
    if source.kind == "text":
        return list_text_splits(source.name, data_root)
    return list_splits(source.name, source.config, data_root) if source.kind in ("hub", "data_root") else []
