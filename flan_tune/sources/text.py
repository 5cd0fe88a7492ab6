"""Plain documents: `<root>/text/<corpus>/<split>[-NNNNN].{parquet,jsonl,jsonl.gz}`, each row {"text": ...}.

A row here is a piece: documents are cut at paragraph ends into pieces of at most 32,768 characters, addressed
(document, piece), nothing lost. Cutting to token lengths is the objective's work, not this file's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from flan_tune.errors import SourceError
from flan_tune.sources.mirror import JsonLines, ParquetRows, open_files, split_files

PIECE_CHARACTERS = 32_768


def cut_pieces(text: str, limit: int = PIECE_CHARACTERS) -> list[int]:
    """Where each piece of `text` ends. Pieces end after a blank line, else a line, else a space, else at the limit.

    >>> cut_pieces("one\\n\\ntwo three", limit=9)
    [5, 14]
    """
    ends = []
    start = 0
    while len(text) - start > limit:
        window = text[start : start + limit]
        for mark in ("\n\n", "\n", " "):
            place = window.rfind(mark)
            if place > 0:
                start += place + len(mark)
                break
        else:
            start += limit
        ends.append(start)
    return [*ends, len(text)] if len(text) > start or not ends else ends


class TextPieces:
    """Pieces of documents by number, documents in file order."""

    def __init__(self, documents: JsonLines | ParquetRows, limit: int = PIECE_CHARACTERS) -> None:
        self.fingerprint = f"{documents.fingerprint}/{limit}"
        self._documents = documents
        self._limit = limit

    @cached_property
    def _places(self) -> list[tuple[int, int, int]]:
        """(document, start, end) of every piece."""
        places = []
        for number in range(len(self._documents)):
            start = 0
            for end in cut_pieces(self._text(number), self._limit):
                places.append((number, start, end))
                start = end
        return places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        document, start, end = self._places[number]
        return {"text": self._text(document)[start:end], "document": document, "start": start}

    def _text(self, number: int) -> str:
        row = self._documents[number]
        text = row.get("text")
        if not isinstance(text, str):
            found = f"the keys {sorted(row)}" if "text" not in row else repr(text)
            raise SourceError(
                f"{self._documents.where(number)}: a document is {{'text': ...}} with text in it, found {found}."
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
