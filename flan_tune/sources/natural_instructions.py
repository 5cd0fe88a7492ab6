"""Rows of Natural Instructions: one upstream JSON file per task, `<root>/natural-instructions/tasks/<task>.json`.

A row is an instance with the task's definition and its positive examples beside it, so that a prompt needs
nothing else: {definition, input, output: [text], examples: [{input, output, explanation}], id}.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from flan_tune.errors import RowError, SourceError
from flan_tune.sources.cache import cache_key, keep, kept
from flan_tune.sources.fingerprint import files_fingerprint
from flan_tune.sources.lines import FileBytes

FOLDER = "natural-instructions"

I64 = npt.NDArray[np.int64]

_KIND = "instances"
_WORTH_KEEPING = 50  # instances; where fewer lie is found again in no time
_MARK = re.compile(r"[ \t\n\r]*([,:{}\[\]])[ \t\n\r]*")
_decode = json.JSONDecoder().raw_decode


class InstructionRows:
    """The instances of one task file. In memory is where each lies in it, and what they share."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.fingerprint = files_fingerprint([path])
        self._file = FileBytes(path)

    @cached_property
    def _index(self) -> tuple[dict[str, Any], I64]:
        key = cache_key(self.fingerprint, self._path.stat().st_mtime_ns)  # a change in the middle moves the places
        found = kept(_KIND, key)
        if found is not None:
            return found[0], found[1][0]
        data, places = _read(self._path)
        shared = _shared(data)
        if len(places) >= 2 * _WORTH_KEEPING:
            keep(_KIND, key, shared, [places])
        return shared, places

    def __len__(self) -> int:
        return len(self._index[1]) // 2

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        shared, places = self._index
        begin, end = places[2 * number : 2 * number + 2].tolist()
        try:
            instance = json.loads(self._file.read(begin, end))
        except (OSError, ValueError) as error:
            raise SourceError(
                f"{self._path}: instance {number} is not where it was: {error}. If the file was changed while it was "
                "read, run the same command again."
            ) from None
        missing = [key for key in ("input", "output") if not isinstance(instance, dict) or key not in instance]
        if missing:
            raise RowError("missing field", f"{self._path}: instance {number} lacks {missing}")
        output = instance["output"] if isinstance(instance["output"], list) else [instance["output"]]
        if not output:
            raise RowError("empty answer", f"{self._path}: instance {number} has no output")
        return {**shared, "id": instance.get("id", str(number)), "input": instance["input"], "output": output}


def _read(path: Path) -> tuple[dict[str, Any], I64]:
    """The task file without its instances, and where each of these begins and ends in it, in bytes."""
    try:
        text = path.read_text(encoding="utf-8")
        try:
            data, places = _scan(text)
        except (ValueError, IndexError):
            data, places = json.loads(text), []  # this says better what is wrong
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: this task file is not JSON: {error}. Fetch the file again.") from None
    missing = [key for key in ("Definition", "Instances") if not isinstance(data, dict) or key not in data]
    if missing or data.pop("Instances") is not None:
        detail = f"lacks {missing}" if missing else "has no list of Instances"
        raise SourceError(f"{path}: the task file {detail}; it is not in the upstream format.")
    return data, _in_bytes(text, places)


def _shared(data: Mapping[str, Any]) -> dict[str, Any]:
    examples = [
        {key: _one_text(example.get(key, "")) for key in ("input", "output", "explanation")}
        for example in data.get("Positive Examples", [])
    ]
    return {"definition": _one_text(data["Definition"]), "examples": examples}


def _scan(text: str) -> tuple[dict[str, Any], list[int]]:
    """A JSON object with None as its Instances, and where each of these begins and ends. One is in memory at a time.

    Raises: ValueError or IndexError if the text is anything else.
    """
    data: dict[str, Any] = {}
    places: list[int] = []
    place, mark = _after(text, 0, "{"), ","
    while mark == ",":
        name, place = _decode(text, place)
        place = _after(text, place, ":")
        if name == "Instances" and text[place] == "[":
            data[name] = None
            places, place = _scan_list(text, place)
        else:
            data[name], place = _decode(text, place)
        mark, place = _mark(text, place)
    if mark != "}" or place != len(text):
        raise ValueError(place)
    return data, places


def _scan_list(text: str, place: int) -> tuple[list[int], int]:
    places: list[int] = []
    place, mark = _after(text, place, "["), ","
    if text[place] == "]":
        return places, place + 1
    while mark == ",":
        _, end = _decode(text, place)
        places += [place, end]
        mark, place = _mark(text, end)
    if mark != "]":
        raise ValueError(place)
    return places, place


def _mark(text: str, place: int) -> tuple[str, int]:
    """The mark that follows, and where what is after it begins."""
    found = _MARK.match(text, place)
    if found is None:
        raise ValueError(place)
    return found[1], found.end()


def _after(text: str, place: int, wanted: str) -> int:
    mark, place = _mark(text, place)
    if mark != wanted:
        raise ValueError(place)
    return place


def _in_bytes(text: str, places: list[int]) -> I64:
    """Places in characters to places in UTF-8."""
    if not text.isascii():
        places = list(accumulate(len(text[start:end].encode()) for start, end in pairwise([0, *places])))
    return np.array(places, dtype=np.int64)


def _one_text(value: Any) -> str:
    """Upstream writes some texts as a list with one member; an empty list and null are no text."""
    if isinstance(value, list):
        value = value[0] if value else None
    return "" if value is None else str(value).strip()


def task_file(name: str, root: Path) -> Path:
    """Where the file of a task lies under a data root."""
    return root / FOLDER / "tasks" / f"{name}.json"


def open_natural_instructions(name: str, root: Path) -> InstructionRows:
    """The rows of one task. Raises SourceError if its file is not under the data root."""
    path = task_file(name, root)
    if not path.exists():
        raise SourceError(f"{path}: there is no such task file. Put the upstream `tasks` folder there.")
    return InstructionRows(path)
