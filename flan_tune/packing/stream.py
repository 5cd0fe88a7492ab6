"""The stream of examples: mixture + catalog + rows + prompts, addressed by global index.

Opening a stream opens every source of the mixture and computes the exact schedule; `examples(start, count)` is
then a pure function. A row that cannot be shown (no rationale, an empty target) is quarantined: another row of the
same task takes its slot, drawn by (seed, 'replace', slot, attempt). It is shown by the presentation that was drawn for
the slot, so that presentations keep their shares; only where no row that was tried has what this presentation needs is
one drawn anew with the row.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from flan_tune.errors import RowError, SourceError, StreamError
from flan_tune.mixtures.mixture import Member, Mixture, examples_share, load_mixture
from flan_tune.mixtures.schedule import Schedule
from flan_tune.packing.losses import in_words
from flan_tune.packing.settings import PackSettings
from flan_tune.prompts.present import PRESENTATIONS, Example, Presenter
from flan_tune.prompts.styles import styles_fingerprint
from flan_tune.prompts.template import load_templates
from flan_tune.rng import Draws, key
from flan_tune.sources.rows import TaskRows, find_data_root, open_rows, open_task
from flan_tune.tasks.catalog import load_catalog
from flan_tune.tasks.task import Task

_ATTEMPTS = 32  # rows that are tried with the presentation of a slot, and as many with one of their own
_AT_ONCE = 10_000


@dataclass
class Entry:
    """One task in one member of the mixture."""

    task: Task
    presenter: Presenter
    presentations: dict[str, float]
    share: float


@dataclass
class StreamCounts:
    """What happened to rows. replaced: per task, by the reason why the scheduled row of a slot could not be shown."""

    replaced: dict[str, Counter[str]] = field(default_factory=dict)

    def replace(self, task: str, reason: str) -> None:
        self.replaced.setdefault(task, Counter())[reason] += 1


def open_mixture(settings: PackSettings) -> tuple[Mixture, Path | None]:
    """The mixture that `settings` name, and the data root of its rows."""
    mixture = load_mixture(settings.mixture, load_catalog(settings.task_paths), PRESENTATIONS)
    return mixture, find_data_root(settings.data_root)


class ExampleStream:
    """Examples of a mixture by global index.

    Raises: SourceError naming every task whose rows cannot be opened, unless the mixture says `missing: drop`.
    """

    def __init__(
        self, mixture: Mixture, *, seed: int, data_root: Path | None, task_paths: tuple[str, ...] = ()
    ) -> None:
        self.seed = seed
        self.mixture = mixture
        self.dropped: dict[str, str] = {}
        self._data_root = data_root
        self._task_paths = task_paths
        rows = self._open_all()
        self.entries = [entry for member in mixture for entry in self._member_entries(member, rows)]
        if not self.entries:
            raise SourceError("no task of the mixture has any rows.", *self.dropped.values())
        names = _unique([entry.task.name for entry in self.entries])
        sizes = [len(entry.presenter.rows) for entry in self.entries]
        self.schedule = Schedule(names, [entry.share for entry in self.entries], sizes, seed)

    def _open_all(self) -> dict[str, TaskRows]:
        rows: dict[str, TaskRows] = {}
        faults = {}
        for task in self.mixture.tasks():
            try:
                removed = self.mixture.removals.of
                rows[task.name] = open_task(task, self.mixture.split, self._data_root, removed)
            except SourceError as error:
                faults[task.name] = str(error)
        if faults and self.mixture.missing == "error":
            raise SourceError(*missing_message(faults))
        self.dropped = faults
        return rows

    def _member_entries(self, member: Member, rows: dict[str, TaskRows]) -> list[Entry]:
        there = [task for task in member.tasks if task.name in rows]
        weights = [examples_share(len(rows[task.name]), member) for task in there]
        shares = dict(member.presentations or self.mixture.presentations)
        entries = []
        for task, weight in zip(there, weights, strict=True):
            templates = load_templates(task, self._task_paths)
            presenter = Presenter(
                rows[task.name],
                templates,
                seed=self.seed,
                shots=self.mixture.shots,
                option_forms=self.mixture.option_forms,
            )
            if not any(presenter.supports(name) for name, share in shares.items() if share > 0):
                raise StreamError(unshowable_message(task, shares))
            entries.append(Entry(task, presenter, shares, member.rate * weight / sum(weights)))
        return entries

    def examples(self, start: int, count: int, counts: StreamCounts) -> Iterator[Example]:
        """Examples start .. start+count-1; replacements are counted in `counts`."""
        for first in range(start, start + count, _AT_ONCE):
            yield from self._some(first, min(_AT_ONCE, start + count - first), counts)

    def _some(self, start: int, count: int, counts: StreamCounts) -> list[Example]:
        """Made task by task and row by row, so that sources are read in their order; each draw has a key of its own."""
        draws = self.schedule.draws(start, count)
        order = np.lexsort((draws.row, draws.task))
        columns = (column[order].tolist() for column in (draws.task, draws.epoch, draws.row))
        made: dict[int, Example] = {}
        for place, task, epoch, row in zip(order.tolist(), *columns, strict=True):
            made[place] = self._example(self.entries[task], epoch, row, start + place, counts)
        return [made[place] for place in range(count)]

    def _example(self, entry: Entry, epoch: int, row: int, slot: int, counts: StreamCounts) -> Example:
        presentation = entry.presenter.choose(entry.presentations, epoch, row)
        try:
            return entry.presenter.example(row, epoch, presentation)
        except RowError as error:
            counts.replace(entry.task.name, error.reason)
            return self._replacement(entry, epoch, slot, presentation, error.reason)

    def _replacement(self, entry: Entry, epoch: int, slot: int, presentation: str, reason: str) -> Example:
        presenter, reasons = entry.presenter, Counter([reason])
        for attempt in range(2 * _ATTEMPTS):
            row = Draws(key(self.seed, "replace", slot, attempt)).below(len(presenter.rows))
            if attempt >= _ATTEMPTS:
                presentation = presenter.choose(entry.presentations, epoch, row)
            try:
                return replace(presenter.example(row, epoch, presentation), replaced=attempt + 1)
            except RowError as error:
                reasons[error.reason] += 1
        raise StreamError(
            f"task {entry.task.name!r}: {reasons.total()} rows in a row cannot be shown ({in_words(reasons)}). "
            f"See one with `flan-tune tasks check {entry.task.name}`; correct its card, give it another presentation, "
            "or leave it out with `exclude`."
        )


def missing_message(faults: dict[str, str]) -> list[str]:
    """The one message for tasks that cannot be opened."""
    lines = [f"{len(faults)} task(s) of the mixture cannot be opened:"]
    lines += [f"  {name}: {fault}" for name, fault in sorted(faults.items())]
    return [*lines, "Supply their data, leave them out with `exclude`, or write `missing: drop` in the mixture."]


def unshowable_message(task: Task, shares: Mapping[str, float]) -> str:
    """The message for a task that none of the presentations it is given can show."""
    given = sorted(name for name, share in shares.items() if share > 0)
    return (
        f"{task.where}: task {task.name!r} supports none of the presentations {given} that the mixture gives it. "
        "Give it another (text is shown by `statement`), or leave the task out."
    )


def _unique(names: list[str]) -> list[str]:
    """The second mention of a task gets '#2', so that its order of rows has a key of its own.

    >>> _unique(["a", "b", "a"])
    ['a', 'b', 'a#2']
    """
    seen: Counter[str] = Counter()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return unique


def stream_fingerprint(mixture: Mixture, *, data_root: Path | None, task_paths: tuple[str, ...]) -> dict[str, str]:
    """Hashes of what decides the stream, by part: mixture, removed rows, cards, wordings, sources. Opens no rows.

    `missing` is no part: which tasks are there is seen in the other parts.
    Raises: SourceError as opening the stream would.
    """
    cards, wordings, sources, faults = {}, {}, {}, {}
    for task in mixture.tasks():
        try:
            sources[task.name] = open_rows(task, mixture.split, data_root).fingerprint
        except SourceError as error:
            faults[task.name] = str(error)
            continue
        source = replace(task.source, license="")  # a corrected license changes no row
        cards[task.name] = repr((task.shape, source, sorted(task.adapt.items()), task.adapter, task.keep))
        wordings[task.name] = load_templates(task, task_paths).fingerprint
    if faults and mixture.missing == "error":
        raise SourceError(*missing_message(faults))
    members = [
        ([t.name for t in m.tasks], m.rate, m.max_examples, m.temperature, m.presentations) for m in mixture.members
    ]
    whole = (members, dict(mixture.presentations), mixture.shots, mixture.option_forms, mixture.split)
    return {
        "mixture": _hash(repr(whole)),
        "removed rows": mixture.removals.fingerprint,
        "cards": _hash(json.dumps(cards, sort_keys=True)),
        "wordings": _hash(json.dumps(wordings, sort_keys=True) + styles_fingerprint()),
        "sources": _hash(json.dumps(sources, sort_keys=True)),
    }


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
