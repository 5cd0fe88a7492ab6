"""Plain documents: `<root>/text/<corpus>/<split>[-NNNNN].{parquet,jsonl,jsonl.gz}`, each row {"text": ...}.

The documents of a card of the shape `document` are cut the same way, whatever source they come from.

A row here is a piece: documents are cut at paragraph ends into pieces of at most 32,768 characters, addressed
(document, piece), nothing lost. Cutting to token lengths is the objective's work, not this file's.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flan_tune.errors import SourceError
from flan_tune.sources.cache import cache_key, keep, kept
from flan_tune.sources.mirror import open_files, split_files

PIECE_CHARACTERS = 32_768

I64 = npt.NDArray[np.int64]

_MARKS = (("\n\n", "\n\r\n"), ("\n",), (" ",))
_KIND = "pieces"
_WORTH_KEEPING = 50  # documents


def cut_pieces(text: str, limit: int = PIECE_CHARACTERS) -> list[int]:
    """Where each piece of `text` ends. Pieces end after a blank line, else a line, else a space, else at the limit.

    Lines may end with "\\r\\n" as well.

    >>> cut_pieces("one\\n\\ntwo three", limit=9)
    [5, 14]
    """
    ends = []
    start = 0
    while len(text) - start > limit:
        window = text[start : start + limit]
        start += next((end for marks in _MARKS if (end := _last_end(window, marks))), limit)
        ends.append(start)
    return [*ends, len(text)] if len(text) > start or not ends else ends


def _last_end(window: str, marks: Sequence[str]) -> int:
    """Where the last of the marks ends; 0 if there is none. One that `window` begins with is none."""
    places = ((window.rfind(mark, 1), mark) for mark in marks)
    return max((place + len(mark) for place, mark in places if place > 0), default=0)


class Documents(Protocol):
    """Rows of a source, one document each."""

    @property
    def fingerprint(self) -> str: ...
    def __len__(self) -> int: ...
    def __getitem__(self, number: int) -> Mapping[str, Any]: ...
    def scan(self, start: int, stop: int, columns: Collection[str] | None = None) -> Iterator[Mapping[str, Any]]: ...
    def where(self, number: int) -> str: ...


class TextPieces:
    """Pieces of documents by number, documents in file order. `column` holds their text, and names it here too."""

    def __init__(self, documents: Documents, limit: int = PIECE_CHARACTERS, column: str = "text") -> None:
        self.fingerprint = f"{documents.fingerprint}/{limit}"
        self._documents = documents
        self._limit = limit
        self._column = column

    @cached_property
    def _index(self) -> tuple[I64, npt.NDArray[np.int32]]:
        """(pieces before each document and in all, where each piece ends in its document)."""
        total = len(self._documents)
        key = cache_key(self.fingerprint, self._column, total)
        found = kept(_KIND, key)
        if found is not None:
            return found[1][0], found[1][1]
        numbers, ends = [0], array("i")
        for number, row in enumerate(self._documents.scan(0, total, [self._column])):
            ends.extend(cut_pieces(self._text(row, number), self._limit))
            numbers.append(len(ends))
        index = np.array(numbers, dtype=np.int64), np.array(ends, dtype=np.int32)
        if total >= _WORTH_KEEPING:
            keep(_KIND, key, {}, index)
        return index

    def __len__(self) -> int:
        return len(self._index[1])

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        if not 0 <= number < len(self):
            raise IndexError(number)
        document = int(self._index[0].searchsorted(number, "right")) - 1
        return self._piece(number, document, self._text(self._documents[document], document))

    def scan(self, start: int, stop: int, columns: Collection[str] | None = None) -> Iterator[Mapping[str, Any]]:
        """Pieces start .. stop-1 in order; each document is read once."""
        if start >= stop:
            return
        before = self._index[0]
        first, last = before.searchsorted([start, stop - 1], "right").tolist()
        for document, row in enumerate(self._documents.scan(first - 1, last, [self._column]), first - 1):
            text = self._text(row, document)
            for number in range(max(int(before[document]), start), min(int(before[document + 1]), stop)):
                yield self._piece(number, document, text)

    def _piece(self, number: int, document: int, text: str) -> Mapping[str, Any]:
        before, ends = self._index
        start = int(ends[number - 1]) if number > before[document] else 0
        return {self._column: text[start : int(ends[number])], "document": document, "start": start}

    def _text(self, row: Mapping[str, Any], document: int) -> str:
        text = row.get(self._column)
        if not isinstance(text, str):
            found = f"the keys {sorted(row)}" if self._column not in row else repr(text)
            raise SourceError(
                f"{self._documents.where(document)}: a document is {{{self._column!r}: ...}} with text in it, found "
                f"{found}."
            )
        return text


def list_text_splits(corpus: str, root: Path) -> list[str]:
    """The splits of a corpus under the data root; empty if it is not there."""
    return sorted(split_files(root / "text" / corpus))


def open_text(corpus: str, split: str, root: Path) -> TextPieces:
    """The pieces of one split of a corpus. Raises SourceError naming what is there."""
    folder = root / "text" / corpus
    found = split_files(folder)
    if split not in found:
        there = sorted(path.name for path in (root / "text").iterdir()) if (root / "text").is_dir() else []
        detail = f"its splits are {sorted(found)}" if found else f"the corpora there are {there}"
        raise SourceError(f"{folder}: there is no split {split!r} of this corpus; {detail}.")
    return TextPieces(open_files(found[split]))
