"""Which rows of a task are usable: every row is judged once, and the verdicts are kept in the cache.

A verdict follows from the row, the card's `adapt` and `keep`, and the code that applies them; all of it is in the key
that it is kept under. Rows that a removal file leaves out are taken off afterwards: the same verdicts serve every
mixture.
"""

from __future__ import annotations

import hashlib
import inspect
from collections import Counter
from collections.abc import Collection, Mapping
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from flan_tune.errors import RowError
from flan_tune.sources.cache import cache_key, keep, kept
from flan_tune.tasks import adapters, shapes
from flan_tune.tasks.adapters import EACH, EACH_INDEX, compile_adapt, compile_keep
from flan_tune.tasks.task import Task
from flan_tune.wording import code_hash, names_read

I64 = npt.NDArray[np.int64]

_KIND = "usable"
_WORTH_KEEPING = 50  # rows; fewer are judged again in no time


class Readable(Protocol):
    """Rows that can be judged. They may besides have `scan(start, stop, columns)` and `columns`."""

    @property
    def fingerprint(self) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, number: int) -> Mapping[str, Any]: ...


class Verdicts(NamedTuple):
    """The rows that are not usable: their numbers, ascending; a code for each; and the reason that a code means."""

    numbers: I64
    codes: npt.NDArray[np.uint8]
    reasons: list[str]

    def counts(self, but: Collection[int] = ()) -> Counter[str]:
        """How many rows there are for each reason, without some rows."""
        codes = self.codes[~np.isin(self.numbers, list(but))] if but else self.codes
        found = np.bincount(codes, minlength=len(self.reasons)).tolist()
        return Counter({reason: number for reason, number in zip(self.reasons, found, strict=True) if number})


class Usable:
    """Number among the usable rows -> number among all. In memory are the rows left out, or the others if fewer."""

    def __init__(self, rows: int, left_out: I64) -> None:
        self._length = rows - len(left_out)
        self._has_fewer = self._length < len(left_out)
        if self._has_fewer:
            is_usable = np.ones(rows, dtype=bool)
            is_usable[left_out] = False
            self._numbers: I64 = np.flatnonzero(is_usable)
        else:
            self._numbers = left_out - np.arange(len(left_out))  # usable rows before each that is left out

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, number: int) -> int:
        if not 0 <= number < self._length:
            raise IndexError(number)
        if not len(self._numbers):
            return number
        return (
            int(self._numbers[number]) if self._has_fewer else number + int(self._numbers.searchsorted(number, "right"))
        )


def judge(task: Task, rows: Readable) -> Verdicts:
    """Which rows `task` cannot use, and why. Raises: CardError if the card reads what the rows do not have."""
    if len(rows) < _WORTH_KEEPING:
        return _judge(task, rows)
    key = cache_key(rows.fingerprint, len(rows), _card_parts(task), _code_hash())
    found = kept(_KIND, key)
    if found is None:
        verdicts = _judge(task, rows)
        keep(_KIND, key, {"reasons": verdicts.reasons}, [verdicts.numbers, verdicts.codes])
        return verdicts
    header, (numbers, codes) = found
    return Verdicts(numbers, codes, header["reasons"])


def _card_parts(task: Task) -> list[Any]:
    shape = task.shape
    return [shape.name, shape.required, shape.optional, list(task.adapt.items()), task.adapter, task.keep, task.each]


@lru_cache(maxsize=1)
def _code_hash() -> str:
    code = inspect.getsource(adapters) + inspect.getsource(shapes)
    return hashlib.sha256(f"{code_hash()} {code}".encode()).hexdigest()


def _judge(task: Task, rows: Readable) -> Verdicts:
    is_kept, adapt = compile_keep(task), compile_adapt(task)
    scan = getattr(rows, "scan", None)
    scanned = iter(scan(0, len(rows), columns_read(task, getattr(rows, "columns", None)))) if scan else None
    numbers, codes, known = [], [], dict[str, int]()
    for number in range(len(rows)):
        try:
            row = rows[number] if scanned is None else next(scanned)
            if is_kept(row):
                adapt(row)
                continue
            reason = "not kept"
        except RowError as error:
            reason = error.reason
        numbers.append(number)
        codes.append(known.setdefault(reason, len(known)))
    return Verdicts(np.array(numbers, dtype=np.int64), np.array(codes, dtype=np.uint8), list(known))


def columns_read(task: Task, columns: Collection[str] | None) -> set[str] | None:
    """Those of `columns` that a card reads; None if that cannot be told, or a name is none of them."""
    if columns is None or task.adapter or not task.adapt or "pick" in columns:
        return None
    expressions = [f"={one.removeprefix('=')}" for one in (task.keep, task.each) if one]
    names = frozenset[str]().union(*map(_names_in, [*task.adapt.values(), *expressions]))
    made = {*task.adapt, EACH} if task.each else {*task.adapt}
    if not names <= {*columns, *made}:
        return None  # the message about it is to name all columns
    return {name for name in columns if name in names or (task.each and name == EACH_INDEX)} or None


def _names_in(value: Any) -> frozenset[str]:
    if isinstance(value, list):
        return frozenset[str]().union(*map(_names_in, value))
    return names_read(value)
