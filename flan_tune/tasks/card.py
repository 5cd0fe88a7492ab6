"""A card: one YAML file that says what a dataset's tasks are. Read here into `Task`s; no rows are touched.

    family: muffin
    defaults: {shape: entailment, source: {hub: facebook/anli, license: ...}, adapt: {...}, templates: [...]}
    tasks:
      - {name: anli_r1, splits: {train: train_r1}, rows: {train: 16946}}     # may override any default
    check:
      - row: {...}             # the card is its own test
        answer: "Yes"

A task of the shape `prompted` carries its wording: `prompt: {input: ..., target: ...}` gives the fields `prompt` and
`answer`; its `adapt` may name values of any name for them to use. `each` makes several rows of one (sources/each.py).

All faults of a file are collected and told at once. How a row is turned into fields is in adapters.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flan_tune.errors import did_you_mean
from flan_tune.strict_yaml import Document
from flan_tune.tasks.adapters import ADAPTERS
from flan_tune.tasks.shapes import SHAPES, Shape
from flan_tune.tasks.task import FAMILIES, SOURCE_KINDS, Source, Task

_CARD_KEYS = ("family", "defaults", "tasks", "check", "index")
_TASK_KEYS = (
    "name published_name shape source adapt adapter prompt keep each splits rows templates category languages tags "
    "held_out notes"
).split()
_SOURCE_KEYS = ("config", "revision", "license", "get")
_PROMPT_KEYS = ("input", "target")
_SLICED = re.compile(r"[^\[\]]+(\[-?\d*:-?\d*\])?")
_TEXT_KEYS = ("published_name", "adapter", "keep", "each", "category", "notes")
_WITH_EACH = ("hub", "data_root", "file")
_NAME = re.compile(r"[a-z0-9_]+")


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
            found = "an empty file" if data is None else type(data).__name__
            faults.add(f"a card is a mapping with the keys {list(_CARD_KEYS)}, found {found}.")
        return [], faults.found
    _check_keys(data, _CARD_KEYS, faults)
    family = data.get("family")
    if family not in FAMILIES:
        near = did_you_mean(str(family), FAMILIES)
        faults.add(f"family is {family!r}; it must be one of {list(FAMILIES)}.{near}", "family")
    defaults = _mapping(data, "defaults", faults)
    _check_keys(defaults, _TASK_KEYS, faults, "defaults")
    entries = data.get("tasks")
    if not isinstance(entries, list) or not entries:
        faults.add(f"tasks is {entries!r}; it is a list with at least one task.", "tasks")
        entries = []
    parsed = [_parse_task(str(family), defaults, entry, number, faults) for number, entry in enumerate(entries)]
    return [task for task in parsed if task is not None], list(dict.fromkeys(faults.found))


def _mapping(data: Mapping[str, Any], key: str, faults: CardFaults, *address: str | int) -> dict[str, Any]:
    """data[key] as a mapping; one that is not there or is something else (a fault) reads as empty."""
    value = data.get(key)
    if value is not None and not isinstance(value, dict):
        faults.add(f"{key} is {value!r}; a mapping is wanted.", *address, key)
    return value if isinstance(value, dict) else {}


def _check_keys(mapping: Mapping[str, Any], known: Sequence[str], faults: CardFaults, *address: str | int) -> None:
    for name in mapping:
        if name not in known:
            near = did_you_mean(name, known) or f" The keys here are {list(known)}."
            faults.add(f"unknown key {name!r}.{near}", *address, name)


def _parse_task(family: str, defaults: Mapping[str, Any], entry: Any, number: int, faults: CardFaults) -> Task | None:
    before = len(faults.found)
    if not isinstance(entry, dict):
        faults.add(f"a task is a mapping, found {entry!r}.", "tasks", number)
        return None
    _check_keys(entry, _TASK_KEYS, faults, "tasks", number)
    merged = {**defaults, **entry}
    for key in ("source", "adapt"):
        own = _mapping(entry, key, faults, "tasks", number)
        inherited = _mapping(defaults, key, faults, "defaults")
        another_shape = key == "adapt" and entry.get("shape", defaults.get("shape")) != defaults.get("shape")
        merged[key] = own if another_shape else {**inherited, **own}
    task = _build_task(family, merged, _Lines(entry, defaults, number, faults))
    return task if len(faults.found) == before else None


def _build_task(family: str, merged: Mapping[str, Any], lines: _Lines) -> Task | None:
    name = merged.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        lines.add(f"name is {name!r}; it must be text of [a-z0-9_].", "name")
    held_out = merged.get("held_out", False)
    if not isinstance(held_out, bool):
        lines.add(f"held_out is {held_out!r}; it is true or false.", "held_out")
    shape, source = _parse_shape(merged, lines), _parse_source(merged["source"], lines)
    splits, flan2021, reserve = _parse_splits(merged, lines)
    text = {key: _text(merged, key, lines) for key in _TEXT_KEYS}
    parts: dict[str, Any] = {
        "adapt": _parse_adapt(family, merged, shape, lines),
        "rows": _parse_rows(merged, lines),
        "templates": _text_list(merged, "templates", lines),
        "languages": _text_list(merged, "languages", lines),
        "tags": _text_list(merged, "tags", lines),
    }
    if shape is None or source is None:
        return None
    if text["each"] is not None and (source.kind not in _WITH_EACH or shape.name == "document"):
        lines.add(f"`each` is for rows of {list(_WITH_EACH)}, and not for documents.", "each")
    return Task(
        name=str(name),
        family=family,
        shape=shape,
        source=source,
        published_name=text["published_name"] or str(name),
        category=text["category"] or "",
        adapter=text["adapter"],
        keep=text["keep"],
        each=text["each"],
        splits=splits,
        flan2021=flan2021,
        reserve=reserve,
        held_out=held_out,
        notes=text["notes"] or "",
        where=lines.faults.document.at("tasks", lines.number, "name"),
        **parts,
    )


@dataclass
class _Lines:
    """Finds the line of a key that may stand in the task's entry or in the defaults."""

    entry: Mapping[str, Any]
    defaults: Mapping[str, Any]
    number: int
    faults: CardFaults

    def add(self, message: str, key: str, *rest: str | int) -> None:
        own = key in self.entry and (not rest or ("tasks", self.number, key, *rest) in self.faults.document.lines)
        inherited = not own and key in self.defaults
        self.faults.add(message, *(("defaults",) if inherited else ("tasks", self.number)), key, *rest)


def _parse_shape(merged: Mapping[str, Any], lines: _Lines) -> Shape | None:
    name = merged.get("shape")
    if isinstance(name, str) and name in SHAPES:
        return SHAPES[name]
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
    if kind == "data_root" and not data.get("get"):
        lines.add("source has no `get`: say where the rows come from and where the user puts them.", "source")
        return None
    return Source(
        kind, data[kind], data["license"], data.get("config"), data.get("revision"), data.get("get", ""), extra
    )


def _parse_adapt(family: str, merged: Mapping[str, Any], shape: Shape | None, lines: _Lines) -> Mapping[str, Any]:
    adapt = {**merged["adapt"], **_parse_prompt(merged, shape, lines)}
    adapter = merged.get("adapter")
    if isinstance(adapter, str) and adapter not in ADAPTERS:
        near = did_you_mean(adapter, ADAPTERS)
        lines.add(f"there is no adapter {adapter!r}.{near} They are {sorted(ADAPTERS)}.", "adapter")
    for name, value in merged["adapt"].items():
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


def _parse_prompt(merged: Mapping[str, Any], shape: Shape | None, lines: _Lines) -> dict[str, str]:
    """The fields `prompt` and `answer` that the key `prompt` of a task gives."""
    prompt = merged.get("prompt")
    if prompt is None:
        return {}
    if shape is not None and shape.name != "prompted":
        lines.add(f"a task with a prompt of its own has the shape 'prompted', not {shape.name!r}.", "prompt")
    if not isinstance(prompt, dict) or set(prompt) != set(_PROMPT_KEYS):
        lines.add(f"prompt is {prompt!r}; it is {{input: ..., target: ...}}.", "prompt")
        return {}
    for name, value in prompt.items():
        if not isinstance(value, str):
            lines.add(f"prompt.{name} is {value!r}, a {type(value).__name__}, where text is wanted.", "prompt", name)
            return {}
    return {"prompt": prompt["input"], "answer": prompt["target"]}


def _check_adapt_value(name: str, value: Any, shape: Shape | None, lines: _Lines) -> None:
    if shape is not None and name not in shape.fields and shape.name != "prompted":
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


def _parse_splits(merged: Mapping[str, Any], lines: _Lines) -> tuple[dict[str, str], dict[str, str], int]:
    """Our splits, those of Flan 2021, and the rows reserved from train."""
    given = merged.get("splits") or {}
    if not isinstance(given, dict):
        lines.add(f"splits is {given!r}; it maps our names of splits to the source's.", "splits")
        return {}, {}, 0
    splits = {name: value for name, value in given.items() if name not in ("flan2021", "reserve")}
    flan2021 = given.get("flan2021") or {}
    if not isinstance(flan2021, dict):
        lines.add(f"splits.flan2021 is {flan2021!r}; it maps our names of splits to slices.", "splits", "flan2021")
        flan2021 = {}
    reserve = given.get("reserve", 0)
    if not _is_count(reserve):
        lines.add(f"splits.reserve is {reserve!r}; it is a number of rows.", "splits", "reserve")
    elif reserve and "validation" in splits:
        lines.add(
            "splits names a validation split and reserves one from train. Delete one of them.", "splits", "reserve"
        )
    for rest, value in [*(((n,), v) for n, v in splits.items()), *((("flan2021", n), v) for n, v in flan2021.items())]:
        if not isinstance(value, str) or not _SLICED.fullmatch(value):
            lines.add(
                f"splits.{'.'.join(rest)} is {value!r}; it names a split of the source, with or without a slice "
                "of rows: 'train' or 'train[:-200]'.",
                "splits",
                *rest,
            )
    return splits, flan2021, reserve


def _parse_rows(merged: Mapping[str, Any], lines: _Lines) -> dict[str, int]:
    rows = merged.get("rows") or {}
    if not isinstance(rows, dict) or not all(_is_count(value) for value in rows.values()):
        lines.add(f"rows is {rows!r}; it maps splits to numbers of rows.", "rows")
        return {}
    return rows


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _text(merged: Mapping[str, Any], key: str, lines: _Lines) -> str | None:
    value = merged.get(key)
    if value is None or isinstance(value, str):
        return value
    lines.add(f"{key} is {value!r}, a {type(value).__name__}, where text is wanted: quote it.", key)
    return None


def _text_list(merged: Mapping[str, Any], key: str, lines: _Lines) -> tuple[str, ...]:
    value = merged.get(key) or []
    if not isinstance(value, list) or any(not isinstance(item, str) for item in value):
        lines.add(f"{key} is {value!r}; it is a list of text (quote 'no' and 'on').", key)
        return ()
    return tuple(value)
