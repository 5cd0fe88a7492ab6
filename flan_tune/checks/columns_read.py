"""Which columns of its rows a card reads, found without any row: in `adapt`, in `keep`, and by its adapter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from jinja2 import TemplateSyntaxError

from flan_tune.errors import RowError
from flan_tune.tasks.adapters import ADAPTERS, EACH, EACH_INDEX, Row
from flan_tune.tasks.task import Task
from flan_tune.wording import names_read

_CONDITION = re.compile(r"\b(if|or|and|defined|default)\b")


def columns_read(task: Task, *, surely: bool = False) -> set[str]:
    """The columns of a row, and of those that an adapter adds, that the card reads.

    surely: without those that only a condition may ask for.
    """
    read, made = set[str](), set[str]()
    expressions = {"keep": task.keep, "each": task.each}
    values = {**task.adapt, **{name: f"={one.removeprefix('=')}" for name, one in expressions.items() if one}}
    for name, value in values.items():
        for one in value if isinstance(value, list) else [value]:
            if not surely or not _CONDITION.search(one):
                read |= _names_in(one) - made
        made.add(name)
    if not task.each:
        return read
    return read - {EACH, EACH_INDEX} if surely else {*read - {EACH}, EACH_INDEX}


def missing_columns(task: Task, row: Row) -> list[str]:
    """The columns that the card reads of every row and that this row does not have."""
    if task.adapter is None:
        return sorted(columns_read(task, surely=True) - set(row))
    _, added = through_adapter(task, row)
    return sorted(columns_read(task, surely=True) - {*row, *added}) if added else []


def made_from(task: Task, name: str) -> set[str]:
    """The columns that a field is made from, through the fields before it."""
    base: dict[str, set[str]] = {}
    for made, value in task.adapt.items():
        names = set[str]().union(*map(_names_in, value if isinstance(value, list) else [value]))
        base[made] = set[str]().union(*(base.get(one, {one}) for one in names))
    return base.get(name, set())


def through_adapter(task: Task, row: Row) -> tuple[set[str], set[str]]:
    """The columns of a row that the task's adapter reads, and those it adds."""
    if task.adapter is None:
        return set(), set()
    recorder = _Recorder(row)
    try:
        added = set(ADAPTERS[task.adapter](recorder))
    except (RowError, KeyError):
        added = set()
    return recorder.read, added


def _names_in(value: str) -> frozenset[str]:
    try:
        return names_read(value)
    except TemplateSyntaxError:  # compiling it says so
        return frozenset()


class _Recorder(Mapping[str, Any]):
    """A row that remembers which of its columns were read."""

    def __init__(self, row: Row) -> None:
        self.row, self.read = row, set[str]()

    def __getitem__(self, name: str) -> Any:
        self.read.add(name)
        return self.row[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.row)

    def __len__(self) -> int:
        return len(self.row)
