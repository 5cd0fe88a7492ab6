"""Several examples of one row, for cards with `each`: a conversation is there once for each of its questions.

    each: =questions
    adapt: {question: "{{ each }}", answer: "{{ answers[each_index] }}"}

    rows with 2, 0 and 3 questions  ->  (row, each_index) = (0, 0) (0, 1) (2, 0) (2, 1) (2, 2), numbered 0 to 4

They are numbered one after the other, so that shares, epochs, slices and removed rows are as exact as those of rows.
Here a row gets its `each_index`; `each` itself is found when it is adapted (tasks/adapters.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from flan_tune.errors import RowError, SourceError
from flan_tune.sources.cache import cache_key, keep, kept
from flan_tune.sources.text import Documents
from flan_tune.tasks.adapters import EACH_INDEX, compile_each
from flan_tune.tasks.task import Task
from flan_tune.wording import code_hash, names_read

Row = Mapping[str, Any]

_KIND = "items"
_WORTH_KEEPING = 50  # rows


class EachRows:
    """The rows of a source, each as often as `task.each` gives items, with the column `each_index` beside the others.

    Reading them raises SourceError for a row of which `each` gives no list, and CardError for a name it does not have.
    """

    def __init__(self, rows: Documents, task: Task) -> None:
        self._rows = rows
        self._each = str(task.each)
        self._items = compile_each(task)
        self.fingerprint = f"{rows.fingerprint}/each {self._each}"
        columns = getattr(rows, "columns", None)
        self.columns: list[str] | None = None if columns is None else [*columns, EACH_INDEX]

    @cached_property
    def _before(self) -> npt.NDArray[np.int64]:
        """The number of items before each row, and of all."""
        total = len(self._rows)
        key = cache_key(self.fingerprint, total, code_hash())
        found = kept(_KIND, key)
        if found is not None:
            return found[1][0]
        counts = (self._count(row, number) for number, row in enumerate(self._rows.scan(0, total, self._needed(()))))
        before = np.cumsum([0, *counts], dtype=np.int64)
        if total >= _WORTH_KEEPING:
            keep(_KIND, key, {}, [before])
        return before

    def _count(self, row: Row, number: int) -> int:
        try:
            return len(self._items(row))
        except RowError as error:
            raise SourceError(f"{self._rows.where(number)}: {error}") from None

    def _needed(self, columns: Collection[str] | None) -> set[str] | None:
        """The columns to read where `columns` are wanted: those that `each` reads too."""
        if columns is None or self.columns is None:
            return None
        names = names_read(f"={self._each.removeprefix('=')}")
        return {*columns, *names} if names <= {*self.columns} else None  # the message about it is to name all columns

    def __len__(self) -> int:
        return int(self._before[-1])

    def __getitem__(self, number: int) -> Row:
        row, place = self._find(number)
        return {**self._rows[row], EACH_INDEX: place}

    def scan(self, start: int, stop: int, columns: Collection[str] | None = None) -> Iterator[Row]:
        """Items start .. stop-1 in order; each row is read once."""
        if start >= stop:
            return
        before, (first, _), (last, _) = self._before, self._find(start), self._find(stop - 1)
        for number, row in enumerate(self._rows.scan(first, last + 1, self._needed(columns)), first):
            begin, end = before[number : number + 2].tolist()
            for place in range(max(begin, start), min(end, stop)):
                yield {**row, EACH_INDEX: place - begin}

    def where(self, number: int) -> str:
        """'file, row n' of the row that an item is of, for messages."""
        return self._rows.where(self._find(number)[0])

    def _find(self, number: int) -> tuple[int, int]:
        """(row, place in it) of an item."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        row = int(self._before.searchsorted(number, "right")) - 1
        return row, number - int(self._before[row])
