"""What a suite is: named tasks, each a list of rendered questions with one way of scoring them.

Nothing here knows where questions come from (procedural.py, gsm8k.py, mmlu.py) or how they are run (run.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from flan_tune import rng
from flan_tune.errors import ScoreError

SEEN = "seen"
HELD_OUT = "held_out"
_NAME = re.compile(r"[a-z0-9_]+")


@dataclass(frozen=True)
class Item:
    """One rendered question.

    `inputs` ends without the separator: the model's own is put behind it when it is tokenised. `options` are the
    answers to choose from, if there are any. `references` are further right answers, besides `targets`.
    """

    id: str
    task: str
    inputs: str
    targets: str
    options: list[str] | None = None
    references: list[str] | None = None


@dataclass(frozen=True)
class SuiteTask:
    """The questions of one task, and how they are asked and scored.

    group: "seen" or "held_out" (from the training of the models compared), or the name of the suite.
    chance: what guessing scores, in [0, 1).
    metric: a name in scoring.METRICS, or "choice": the most probable of `options` is taken, nothing is generated.
    layout, split, shots: said with every result, because a score without them cannot be compared.
    """

    name: str
    group: str
    items: list[Item]
    chance: float
    metric: str
    layout: str
    split: str
    shots: int = 0

    def __post_init__(self) -> None:
        faults = list(self._faults())
        if faults:
            raise ScoreError(*faults)

    def _faults(self) -> list[str]:
        faults = []
        if not _NAME.fullmatch(self.name):
            faults.append(f"task {self.name!r}: the name may hold a-z, 0-9 and _ only. Rename it.")
        if not self.items:
            faults.append(f"task {self.name!r}: it has no items. Give at least one question.")
        if not 0 <= self.chance < 1:
            faults.append(f"task {self.name!r}: chance is {self.chance}, a number in [0, 1) is wanted.")
        ids = [item.id for item in self.items]
        if len(set(ids)) != len(ids):
            twice = next(one for one in ids if ids.count(one) > 1)
            faults.append(f"task {self.name!r}: the id {twice!r} is given to two items. Number them apart.")
        if self.metric == "choice":
            faults += [f"task {self.name!r}: {fault}" for fault in _choice_faults(self.items)]
        return faults


def _choice_faults(items: Sequence[Item]) -> list[str]:
    return [
        f"item {item.id!r} has the target {item.targets!r} and the options {item.options}; "
        "with metric 'choice' the target must be one of at least two options."
        for item in items
        if not item.options or len(item.options) < 2 or item.targets not in item.options
    ][:5]


@dataclass(frozen=True)
class Suite:
    """Named tasks that are run together."""

    name: str
    tasks: list[SuiteTask] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [task.name for task in self.tasks]
        if not names:
            raise ScoreError(f"suite {self.name!r} has no tasks.")
        if len(set(names)) != len(names):
            raise ScoreError(f"suite {self.name!r}: two tasks have the same name among {sorted(names)}.")


def mean_chance(items: Sequence[Item]) -> float:
    """What guessing among the options scores on average, in [0, 1); an item without options counts as 0.

    >>> mean_chance([Item("0", "t", "?", "a", ["a", "b"]), Item("1", "t", "?", "7")])
    0.25
    """
    return sum(1 / len(item.options) if item.options else 0.0 for item in items) / len(items)


def draw_rows(available: int, n: int | None, suite: str, seed: int) -> list[int]:
    """Row numbers of a suite's questions: all in order if `n` is None, else `n` of them drawn by key, sorted.

    Raises: ScoreError if there are fewer than `n`.
    """
    if n is None:
        return list(range(available))
    if n > available:
        raise ScoreError(f"suite {suite!r}: {n} questions are asked for, the split has {available}. Ask for fewer.")
    return sorted(rng.permutation(available, rng.key(seed, "suite questions", suite))[:n].tolist())
