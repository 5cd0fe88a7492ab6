"""Rows that were drawn and could not be used: counted by task and reason, and how many of them are too many.

A draw has failed when its row was replaced by another one, since it could not be shown, or its example was dropped,
since no target came out of it. Many of these mean that a card or the data is wrong. Two other losses are counted and
not judged: rows that were filtered when their source was opened are never drawn, and dropping what is too long or too
short is what the recipe's lengths say (some tasks of the Flan collection ask for stories of thousands of words).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from flan_tune.packing.settings import PackSettings

TOO_LONG, TARGET_TOO_LONG, TOO_SHORT = "too long", "target too long", "too short"

_NO_FAILURES = (TOO_LONG, TARGET_TOO_LONG, TOO_SHORT)
_FEWEST = 20  # with fewer failed draws nothing is judged: shares of small numbers say little
_MOST_NAMED = 10

ByTask = Mapping[str, Mapping[str, int]]


class _Failed(NamedTuple):
    """Failed draws of a task, or of all: how many of how many."""

    number: int
    draws: int

    @property
    def share(self) -> float:
        return min(self.number / max(self.draws, 1), 1.0)  # a replacement may be dropped, and counts twice

    def is_over(self, limit: float) -> bool:
        return self.number >= _FEWEST and self.share > limit

    def __str__(self) -> str:
        return f"{self.number:,} of {self.draws:,} draws, {self.share:.1%}"


def failure_lines(settings: PackSettings, draws: Mapping[str, int], *failed: ByTask) -> list[str]:
    """What to tell if too many draws failed, of all or of one task: tasks, reasons, what to do. Empty if they are few.

    draws: number by task. failed: numbers by task and reason, of rows replaced, of examples dropped; those for
        their length do not count.
    """
    reasons = _added(failed)
    tasks = {name: _Failed(sum(reasons[name].values()), draws.get(name, 0)) for name in reasons}
    whole = _Failed(sum(task.number for task in tasks.values()), sum(draws.values()))
    of_all, of_task = settings.max_failed_share, settings.max_failed_share_of_task
    over = [name for name, task in tasks.items() if task.is_over(of_task)]
    if not over and not whole.is_over(of_all):
        return []
    allowed, wanted = f"data.max_failed_share_of_task allows {of_task:.1%}", []
    lines = [f"too many draws of {len(over)} task(s) failed; {allowed}:"]
    if whole.is_over(of_all):
        lines = [f"{whole}, failed; data.max_failed_share allows {of_all:.1%}:"]
        wanted.append(f"data.max_failed_share={_rounded_up(whole.share)}")
    if over:
        wanted.append(f"data.max_failed_share_of_task={_rounded_up(max(tasks[name].share for name in over))}")
    shown = sorted(tasks if whole.is_over(of_all) else over, key=lambda name: (name not in over, -tasks[name].number))
    for name in shown[:_MOST_NAMED]:
        lines.append(f"  {name}: {tasks[name]}{f' ({allowed})' if name in over else ''}: {in_words(reasons[name])}")
    if len(shown) > _MOST_NAMED:
        lines.append(f"  and {len(shown) - _MOST_NAMED} more tasks")
    return [
        *lines,
        "Their rows were replaced or their examples dropped. See why with `flan-tune tasks check TASK`: correct the "
        "card, give the task presentations that its rows have the fields for, or leave it out with `exclude`. To "
        f"accept it: {' '.join(wanted)}. Finished windows are kept: the same command then seals at once.",
    ]


def _added(failed: tuple[ByTask, ...]) -> dict[str, Counter[str]]:
    reasons: dict[str, Counter[str]] = {}
    for by_task in failed:
        for task, counts in by_task.items():
            judged = {reason: count for reason, count in counts.items() if reason not in _NO_FAILURES}
            if judged:
                reasons.setdefault(task, Counter()).update(judged)
    return reasons


def _rounded_up(share: float) -> float:
    return math.ceil(share * 100) / 100


def in_words(counts: Mapping[str, int]) -> str:
    """Counts for a person, in order of names.

    >>> in_words({"muffin": 12_000, "cot": 30})
    'cot 30, muffin 12,000'
    """
    return ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))


def plain_counts(counts: ByTask) -> dict[str, dict[str, int]]:
    """Counts by task and reason as plain data, in order of names.

    >>> plain_counts({"b": Counter(y=1, x=2), "a": {"z": 3}})
    {'a': {'z': 3}, 'b': {'x': 2, 'y': 1}}
    """
    return {task: dict(sorted(by_reason.items())) for task, by_reason in sorted(counts.items())}
