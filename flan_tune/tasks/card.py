"""A card: one YAML file that says what a dataset's tasks are. Read here into `Task`s; no rows are touched.

    family: muffin
    defaults: {shape: entailment, source: {hub: facebook/anli, license: ...}, adapt: {...}, templates: [...]}
    tasks:
      - {name: anli_r1, splits: {train: train_r1}, rows: {train: 16946}}     # may override any default
    check:
      - row: {...}             # the card is its own test
        answer: "Yes"

All faults of a file are collected and told at once. How a row is turned into fields is in adapters.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flan_tune.errors import did_you_mean
from flan_tune.strict_yaml import Document
from flan_tune.tasks.adapters import ADAPTERS
from flan_tune.tasks.shapes import SHAPES, Shape

FAMILIES = ("muffin", "t0_sf", "cot", "niv2", "procedural", "text", "evaluation", "variant")
COUNTED_FAMILIES = ("muffin", "t0_sf", "niv2", "cot")  # the 1,838
SOURCE_KINDS = ("hub", "natural_instructions", "procedural", "text", "file")

_CARD_KEYS = ("family", "defaults", "tasks", "check", "index")
_TASK_KEYS = (
    "name published_name shape source adapt adapter keep splits rows templates category languages held_out notes"
).split()
_SOURCE_KEYS = ("config", "revision", "license")
_NAME = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True)
class Source:
    """Where the rows of a task come from. `kind` is one of SOURCE_KINDS, `name` is a hub id, generator or corpus."""

    kind: str
    name: str
    license: str
    config: str | None = None
    revision: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)  # difficulty of a generator


@dataclass(frozen=True)
class Task:
    """One task as the papers count them, as its card declares it.

    splits: our name -> the source's name; empty means the names are the same.
    reserve: that many last rows of the train split are its validation split instead.
    rows: rows per split before filtering, so that rates can be computed without opening sources.
    where: 'file:line' of its entry, for messages.
    """

    name: str
    family: str
    shape: Shape
    source: Source
    published_name: str
    category: str = ""
    adapt: Mapping[str, Any] = field(default_factory=dict)
    adapter: str | None = None
    keep: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    reserve: int = 0
    rows: Mapping[str, int] = field(default_factory=dict)
    templates: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    held_out: bool = False
    notes: str = ""
    where: str = ""


@dataclass
class CardFaults:
    """Collects the faults of one card with their lines."""

    document: Document
    found: list[str] = field(default_factory=list)

    def add(self, message: str, *address: str | int) -> None:
        self.found.append(f"{self.document.at(*address)}: {message}")


def parse_card(document: Document) -> tuple[list[Task], list[str]]:
    """The tasks of a card and all its faults. Tasks with faults are left out."""
    faults = CardFaults(document, list(document.faults))
    data = document.data
    if not isinstance(data, dict):
        if not document.faults:
            faults.add(f"a card is a mapping with the keys {list(_CARD_KEYS)}, found {type(data).__name__}.")
        return [], faults.found
    _check_keys(data, _CARD_KEYS, faults)
    family = data.get("family")
    if family not in FAMILIES:
        faults.add(f"family is {family!r}; it must be one of {list(FAMILIES)}.", "family")
    tasks = []
    for number, entry in enumerate(data.get("tasks") or []):
        task = _parse_task(str(family), data.get("defaults") or {}, entry, number, faults)
        if task is not None:
            tasks.append(task)
    return tasks, faults.found


def _check_keys(mapping: Mapping[str, Any], known: Any, faults: CardFaults, *address: str | int) -> None:
    for name in mapping:
        if name not in known:
            faults.add(f"unknown key {name!r}.{did_you_mean(name, known)}", *address, name)


def _parse_task(family: str, defaults: Mapping[str, Any], entry: Any, number: int, faults: CardFaults) -> Task | None:
    before = len(faults.found)
    if not isinstance(entry, dict):
        faults.add(f"a task is a mapping, found {entry!r}.", "tasks", number)
        return None
    _check_keys(entry, _TASK_KEYS, faults, "tasks", number)
    if number == 0:
        _check_keys(defaults, _TASK_KEYS, faults, "defaults")
    lines = _Lines(entry, number, faults)
    merged = {**defaults, **entry, "source": {**(defaults.get("source") or {}), **(entry.get("source") or {})}}
    name = merged.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        lines.add(f"name is {name!r}; it must be text of [a-z0-9_].", "name")
        return None
    shape = _parse_shape(merged, lines)
    source = _parse_source(merged["source"], lines)
    adapt = _parse_adapt(family, merged, shape, lines)
    splits, reserve = _parse_splits(merged, lines)
    templates = _text_list(merged, "templates", lines)
    languages = _text_list(merged, "languages", lines)
    if len(faults.found) > before or shape is None or source is None:
        return None
    return Task(
        name=name,
        family=family,
        shape=shape,
        source=source,
        published_name=str(merged.get("published_name", name)),
        category=str(merged.get("category", "")),
        adapt=adapt,
        adapter=merged.get("adapter"),
        keep=merged.get("keep"),
        splits=splits,
        reserve=reserve,
        rows=merged.get("rows") or {},
        templates=templates,
        languages=languages,
        held_out=merged.get("held_out") in (True, "true"),
        notes=str(merged.get("notes", "")),
        where=faults.document.at("tasks", number, "name"),
    )


@dataclass
class _Lines:
    """Finds the line of a key that may stand in the task's entry or in the defaults."""

    entry: Mapping[str, Any]
    number: int
    faults: CardFaults

    def add(self, message: str, key: str, *rest: str | int) -> None:
        own = key in self.entry and (not rest or ("tasks", self.number, key, *rest) in self.faults.document.lines)
        self.faults.add(message, *(("tasks", self.number) if own else ("defaults",)), key, *rest)


def _parse_shape(merged: Mapping[str, Any], lines: _Lines) -> Shape | None:
    name = merged.get("shape")
    if name in SHAPES:
        return SHAPES[str(name)]
    near = did_you_mean(str(name), SHAPES)
    lines.add(f"there is no shape {name!r}.{near} The shapes are {sorted(SHAPES)}.", "shape")
    return None


def _parse_source(data: Mapping[str, Any], lines: _Lines) -> Source | None:
    kinds = [kind for kind in SOURCE_KINDS if kind in data]
    if len(kinds) != 1:
        lines.add(f"source must name exactly one of {list(SOURCE_KINDS)}, found {sorted(data)}.", "source")
        return None
    kind = kinds[0]
    extra = {key: value for key, value in data.items() if key not in (kind, *_SOURCE_KEYS)}
    if extra and kind != "procedural":
        for key in extra:
            lines.add(f"unknown key {key!r} in source.{did_you_mean(key, (*_SOURCE_KEYS, kind))}", "source", key)
        return None
    for key in (kind, *_SOURCE_KEYS):
        if key in data and not isinstance(data[key], str):
            lines.add(f"source.{key} is {data[key]!r}, text is wanted: quote it.", "source", key)
            return None
    if "license" not in data:
        lines.add("source has no license. Write the one its owner states, or 'unknown'.", "source")
        return None
    return Source(kind, data[kind], data["license"], data.get("config"), data.get("revision"), extra)


def _parse_adapt(family: str, merged: Mapping[str, Any], shape: Shape | None, lines: _Lines) -> Mapping[str, Any]:
    adapt = merged.get("adapt") or {}
    if merged.get("adapter") is not None and merged["adapter"] not in ADAPTERS:
        near = did_you_mean(str(merged["adapter"]), ADAPTERS)
        lines.add(f"there is no adapter {merged['adapter']!r}.{near} They are {sorted(ADAPTERS)}.", "adapter")
    if not isinstance(adapt, dict):
        lines.add(f"adapt is {adapt!r}; it maps the fields of the shape to text.", "adapt")
        return {}
    for name, value in adapt.items():
        _check_adapt_value(name, value, shape, lines)
    if shape is not None and family != "procedural":
        missing = [name for name in shape.required if name not in adapt]
        if missing:
            lines.add(
                f"shape {shape.name!r} needs the field(s) {missing}, which `adapt` does not produce. "
                "Add them, or choose another shape.",
                "adapt",
            )
    return adapt


def _check_adapt_value(name: str, value: Any, shape: Shape | None, lines: _Lines) -> None:
    if shape is not None and name not in shape.fields:
        near = did_you_mean(name, shape.fields)
        lines.add(
            f"shape {shape.name!r} has no field {name!r}.{near} Its fields are {list(shape.fields)}.", "adapt", name
        )
    for place, item in enumerate(value) if isinstance(value, list) else [(None, value)]:
        if not isinstance(item, str):
            rest = (name,) if place is None else (name, place)
            lines.add(
                f"adapt.{name} holds {item!r}, a {type(item).__name__}, where text is wanted. "
                "YAML 1.1 reads unquoted yes/no/on/off as booleans and 1 as a number: quote it.",
                "adapt",
                *rest,
            )


def _parse_splits(merged: Mapping[str, Any], lines: _Lines) -> tuple[dict[str, str], int]:
    splits = dict(merged.get("splits") or {})
    splits.pop("flan2021", None)  # the slices of Flan 2021, kept in the card beside the plain ones
    reserve = splits.pop("reserve", 0)
    if not isinstance(reserve, int) or reserve < 0:
        lines.add(f"splits.reserve is {reserve!r}; it is a number of rows.", "splits", "reserve")
        reserve = 0
    for name, value in splits.items():
        if not isinstance(value, str):
            lines.add(f"splits.{name} is {value!r}; it names a split of the source.", "splits", name)
    return splits, reserve


def _text_list(merged: Mapping[str, Any], key: str, lines: _Lines) -> tuple[str, ...]:
    value = merged.get(key) or []
    if not isinstance(value, list) or any(not isinstance(item, str) for item in value):
        lines.add(f"{key} is {value!r}; it is a list of text (quote 'no' and 'on').", key)
        return ()
    return tuple(value)
