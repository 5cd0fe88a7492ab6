"""A card is its own test: each of its `check` rows must give the answer it states.

    check:
      - row: {text: "Snow is cold.", label: 0}     # a row as the source gives it
        answer: "yes"
        task: snow_facts                           # needed only where the card's tasks differ

Cards of a user's own are checked whenever they are loaded, the shipped ones by the tests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flan_tune.errors import FlanTuneError, did_you_mean
from flan_tune.strict_yaml import Document
from flan_tune.tasks.adapters import compile_adapt
from flan_tune.tasks.task import Task

_KEYS = ("row", "answer", "task")


def check_faults(document: Document, tasks: Sequence[Task]) -> list[str]:
    """What is wrong with the `check` rows of a card, with file:line; empty if all give their answers."""
    entries = document.data.get("check") or []
    if not isinstance(entries, list):
        return [f"{document.at('check')}: check is a list of {{row: ..., answer: ...}}, found {entries!r}."]
    return [fault for number, entry in enumerate(entries) for fault in _entry_faults(document, tasks, number, entry)]


def _entry_faults(document: Document, tasks: Sequence[Task], number: int, entry: Any) -> list[str]:
    where = document.at("check", number)
    if not isinstance(entry, dict) or not {"row", "answer"} <= set(entry) or not isinstance(entry["row"], dict):
        return [f"{where}: a check is {{row: ..., answer: ...}}, found {entry!r}."]
    faults = [f"{where}: unknown key {key!r}.{did_you_mean(key, _KEYS)}" for key in entry if key not in _KEYS]
    wanted = [task for task in tasks if entry.get("task", task.name) == task.name]
    if not wanted:
        near = did_you_mean(str(entry["task"]), [task.name for task in tasks])
        faults.append(f"{where}: the card has no task {entry['task']!r}.{near}")
    for task in wanted:
        found = _answer(task, entry["row"])
        if found != entry["answer"]:
            faults.append(f"{where}: task {task.name!r}: the row gives {found!r}, the card states {entry['answer']!r}.")
    return faults


def _answer(task: Task, row: dict[str, Any]) -> str:
    try:
        return str(compile_adapt(task)(row)["answer"])
    except FlanTuneError as error:
        return f"no answer: {error}"
