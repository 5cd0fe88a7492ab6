"""A task: a dataset (or a config, round or prompt of it) as the papers count them, as its card declares it.

Plain values. How a card is read into tasks is in card.py, how a row of one becomes fields in adapters.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flan_tune.tasks.shapes import Shape

FAMILIES = ("muffin", "t0_sf", "cot", "niv2", "procedural", "text", "evaluation", "variant", "custom")
COUNTED_FAMILIES = ("muffin", "t0_sf", "niv2", "cot")  # the 1,838
SOURCE_KINDS = ("hub", "data_root", "natural_instructions", "procedural", "text", "file")


@dataclass(frozen=True)
class Source:
    """Where the rows of a task come from.

    kind: one of SOURCE_KINDS; name: a hub id, a folder of the data root, a generator or a corpus.
    get: how a user comes by rows that cannot simply be downloaded, and where he puts them; empty for the others.
    """

    kind: str
    name: str
    license: str
    config: str | None = None
    revision: str | None = None
    get: str = ""
    parameters: Mapping[str, Any] = field(default_factory=dict)  # difficulty of a generator


@dataclass(frozen=True)
class Task:
    """One task as the papers count them, as its card declares it.

    splits: our name -> the source's name, which may carry a slice ('train[:-200]'); empty means the names are the same.
    flan2021: the same for the slices of Flan 2021, where they differ; opened as the split 'flan2021.train' and so on.
    each: gives a list of a row, which is a row for each item of it, `each` (sources/each.py); `rows` counts items.
    reserve: that many last rows of the train split are its validation split instead.
    tags: words to select tasks by (`tag:xlingual_test`).
    rows: rows per split before filtering, so that rates can be computed without opening sources.
    where: 'file:line' of its entry, for messages.
    """

    name: str
    family: str
    shape: Shape
    source: Source
    published_name: str
    category: str = ""
    adapt: Mapping[str, Any] = field(default_factory=dict)
    adapter: str | None = None
    keep: str | None = None
    each: str | None = None
    splits: Mapping[str, str] = field(default_factory=dict)
    flan2021: Mapping[str, str] = field(default_factory=dict)
    reserve: int = 0
    rows: Mapping[str, int] = field(default_factory=dict)
    templates: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    held_out: bool = False
    notes: str = ""
    where: str = ""
