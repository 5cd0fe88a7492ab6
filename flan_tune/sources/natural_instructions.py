"""Rows of Natural Instructions: one upstream JSON file per task, `<root>/natural-instructions/tasks/<task>.json`.

A row is an instance with the task's definition and its positive examples beside it, so that a prompt needs
nothing else: {definition, input, output: [text], examples: [{input, output, explanation}], id}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from flan_tune.errors import RowError, SourceError
from flan_tune.sources.mirror import files_fingerprint

FOLDER = "natural-instructions"


class InstructionRows:
    """The instances of one task file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.fingerprint = files_fingerprint([path])

    @cached_property
    def _data(self) -> dict[str, Any]:
        return _read(self._path)

    @cached_property
    def _shared(self) -> dict[str, Any]:
        examples = [
            {key: _one_text(example.get(key, "")) for key in ("input", "output", "explanation")}
            for example in self._data.get("Positive Examples", [])
        ]
        return {"definition": _one_text(self._data["Definition"]), "examples": examples}

    def __len__(self) -> int:
        return len(self._data["Instances"])

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        instance = self._data["Instances"][number]
        missing = [key for key in ("input", "output") if not isinstance(instance, dict) or key not in instance]
        if missing:
            raise RowError("missing field", f"{self._path}: instance {number} lacks {missing}")
        output = instance["output"] if isinstance(instance["output"], list) else [instance["output"]]
        if not output:
            raise RowError("empty answer", f"{self._path}: instance {number} has no output")
        return {
            **self._shared,
            "id": instance.get("id", str(number)),
            "input": instance["input"],
            "output": output,
        }


def _read(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SourceError(f"{path}: this task file is not JSON: {error}. Fetch the file again.") from None
    missing = [key for key in ("Definition", "Instances") if not isinstance(data, dict) or key not in data]
    if missing:
        raise SourceError(f"{path}: the task file lacks {missing}; it is not in the upstream format.")
    found: dict[str, Any] = data
    return found


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
