"""`flan-tune contamination`: which rows of a mixture hold questions of evaluation suites.

Every usable row of every task, all text of its fields, is compared with every question by the three rules of
overlap.py. What comes out is a list of rows to leave out (a removal file, see mixtures/removals.py), the questions that
were met, and a report by suite, task of a suite and training task. A task is one piece of work, so processes may share
them; its rows stream through in batches and the result does not depend on who did what.

Generators are not compared: their rows are made from a number, and evaluations of them are kept apart by content.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flan_tune.checks.overlap import I64, LEAST_COVERAGE, RULES, Matches, OverlapIndex, shared_words
from flan_tune.checks.test_questions import Question, SuiteQuestions
from flan_tune.errors import RowError, SourceError
from flan_tune.mixtures.mixture import Mixture
from flan_tune.mixtures.removals import Removal
from flan_tune.packing.stream import missing_message
from flan_tune.packing.work import Summary, in_processes
from flan_tune.sources.rows import Rows, found_splits, open_rows, open_source_split, source_split
from flan_tune.tasks.adapters import Fields, compile_adapt, compile_keep
from flan_tune.tasks.task import Task

TOGETHER = f"{RULES[2]}, several rows"  # PaLM's rule is about all training data at once

_BATCH_CHARACTERS = 1 << 22
_SHOWN_PER_TASK = 2  # examples to look at, of each suite and rule
_MOST_SHOWN = 20  # of each suite and rule
_SHOWN_CHARACTERS = 400

_IF_KILLED = "Run the command again with a smaller --num-proc."

Progress = Callable[[Summary, int, int], None]


@dataclass(frozen=True)
class Contamination:
    """What was found. `report` is for report.json, `questions` has a line for each question that was met."""

    report: dict[str, Any]
    questions: list[dict[str, Any]]
    removals: list[Removal]


def find_contamination(
    mixture: Mixture,
    suites: Sequence[SuiteQuestions],
    data_root: Path | None,
    *,
    max_rows: int | None = None,
    num_proc: int = 1,
    progress: Progress | None = None,
) -> Contamination:
    """Compares the rows of a mixture with the questions of suites.

    Rows that the mixture removes already are compared as well, so that its removal file can be written anew.
    max_rows: only so many rows of each task, for a quick look. progress: called with (a task's summary, done, of all).
    Raises: SourceError naming every task that cannot be opened, unless the mixture says `missing: drop`.
    """
    _check_found(mixture, data_root)
    tasks = [task for task in mixture.tasks() if task.source.kind != "procedural"]
    questions = [question for suite in suites for question in suite.questions]
    index = OverlapIndex(questions)
    job = _Job(questions, tasks, mixture.split, data_root, max_rows)
    numbers = range(len(tasks))
    work = in_processes(job.open, numbers, num_proc, here=partial(job.compare, index), if_killed=_IF_KILLED)
    summaries: dict[int, Summary] = {}
    met_runs = np.zeros(len(index.short.hashes), dtype=bool)
    for summary in work:
        summaries[summary["number"]] = summary
        met_runs[summary.pop("met_runs", [])] = True
        if progress:
            progress(summary, len(summaries), len(tasks))
    found = [summaries[number] for number in range(len(tasks))]
    faults = {one["name"]: one["fault"] for one in found if one["fault"]}
    if faults and mixture.missing == "error":
        raise SourceError(*missing_message(faults))
    compared = [one for one in found if not one["fault"]]
    met = _met_questions(compared, index.covered(np.flatnonzero(met_runs)))
    return _join(mixture, suites, index, compared, met, faults)


def _check_found(mixture: Mixture, data_root: Path | None) -> None:
    """Says at once what is not there: rows are first read when a task's turn comes."""
    faults: dict[str, str] = {}
    if mixture.missing == "drop" or data_root is None:
        return
    for task in mixture.tasks():
        if task.source.kind in ("procedural", "file") or found_splits(task, data_root):
            continue
        try:
            open_rows(task, mixture.split, data_root)
        except SourceError as error:
            faults[task.name] = str(error)
    if faults:
        raise SourceError(*missing_message(faults))


@dataclass(frozen=True)
class _Job:
    """What each process has to know. One piece of work is one task, by its number."""

    questions: Sequence[Question]
    tasks: Sequence[Task]
    split: str
    data_root: Path | None
    max_rows: int | None

    def open(self) -> Callable[[int], Summary]:
        """The work, in a process of its own."""
        return partial(self.compare, OverlapIndex(self.questions))

    def compare(self, index: OverlapIndex, number: int) -> Summary:
        """What the rows of one task hold."""
        task = self.tasks[number]
        named = {"number": number, "name": task.name, "family": task.family, "fault": ""}
        try:
            rows = _open(task, self.split, self.data_root)
        except SourceError as error:
            return {**named, "fault": str(error), "rows": 0, "removals": ()}
        tally = _Tally(index, self.questions)
        compared, dropped = 0, Counter[str]()
        for numbers, texts in _batches(_texts(task, rows, self.max_rows, dropped)):
            tally.add(numbers, texts)
            compared += len(numbers)
        where = {"split": rows.split, "source": rows.rows.fingerprint}
        return {**named, **where, "rows": compared, "dropped": dict(sorted(dropped.items())), **tally.summary()}


@dataclass(frozen=True)
class _SplitRows:
    """The rows of a split as the card cuts it, by their number in the source's own split."""

    split: str
    rows: Rows
    numbers: range


def _open(task: Task, split: str, data_root: Path | None) -> _SplitRows:
    name, part = source_split(task, split)
    rows = open_source_split(task, name, data_root)
    return _SplitRows(name, rows, range(len(rows))[part or slice(None)])


def _texts(
    task: Task, rows: _SplitRows, max_rows: int | None, dropped: Counter[str]
) -> Iterator[tuple[int, list[str]]]:
    """(row number, texts) of the usable rows."""
    adapt, keep = compile_adapt(task), compile_keep(task)
    for number in rows.numbers[:max_rows]:
        try:
            row = rows.rows[number]
            if keep(row):
                yield number, _texts_of(adapt(row), task.shape.asked)
            else:
                dropped["not kept"] += 1
        except RowError as error:
            dropped[error.reason] += 1


def _texts_of(fields: Fields, asked: str) -> list[str]:
    """Every text of the fields, and what is asked together with its options."""
    texts = list(_flat(fields.values()))
    if "options" in fields and isinstance(fields.get(asked), str):
        texts.append("\n".join([fields[asked], *fields["options"]]))
    return texts


def _flat(values: Iterable[Any]) -> Iterator[str]:
    for value in values:
        if isinstance(value, str):
            yield value
        elif isinstance(value, Mapping):
            yield from _flat(value.values())
        elif isinstance(value, Iterable):
            yield from _flat(value)


def _batches(rows: Iterable[tuple[int, list[str]]]) -> Iterator[tuple[list[int], list[list[str]]]]:
    numbers: list[int] = []
    texts: list[list[str]] = []
    size = 0
    for number, row in rows:
        numbers.append(number)
        texts.append(row)
        size += sum(map(len, row))
        if size >= _BATCH_CHARACTERS:
            yield numbers, texts
            numbers, texts, size = [], [], 0
    if numbers:
        yield numbers, texts


@dataclass
class _Tally:
    """Counts the matches of one task's batches."""

    index: OverlapIndex
    questions: Sequence[Question]
    removals: list[tuple[int, str, int]] = field(default_factory=list)  # row, rule, question
    examples: list[dict[str, Any]] = field(default_factory=list)
    rows_of_suites: dict[str, Counter[str]] = field(default_factory=dict)  # suite -> rule or 'any' -> rows

    def __post_init__(self) -> None:
        self.suites = list(dict.fromkeys(one.suite for one in self.questions))
        self._suite_of = np.array([self.suites.index(one.suite) for one in self.questions], dtype=np.int64)
        self._row_of = {rule: np.full(len(self.questions), -1, dtype=np.int64) for rule in RULES}
        self._met = np.zeros(len(self.index.short.hashes), dtype=bool)
        self._shown: Counter[tuple[int, str]] = Counter()

    def add(self, numbers: Sequence[int], texts: Sequence[Sequence[str]]) -> None:
        """The matches of a batch of rows."""
        row_numbers = np.array(numbers, dtype=np.int64)
        for matches, found in self.index.compare(texts):
            self._met[found.short[1]] = True
            self._count(matches, row_numbers)
            self._remove(matches, row_numbers)
            self._show(matches, row_numbers, texts)

    def _count(self, matches: Matches, row_numbers: I64) -> None:
        num_suites = len(self.suites)
        suite = self._suite_of[matches.question]
        for rule, hit in zip((*RULES, "any"), (*matches.by_rule, np.ones(len(suite), dtype=bool)), strict=True):
            rows = np.unique(matches.row[hit] * num_suites + suite[hit])
            for number, count in enumerate(np.bincount(rows % num_suites, minlength=num_suites).tolist()):
                if count:
                    self.rows_of_suites.setdefault(self.suites[number], Counter())[rule] += count
        for rule, hit in zip(RULES, matches.by_rule, strict=True):
            question, first = np.unique(matches.question[hit], return_index=True)
            is_new = self._row_of[rule][question] < 0
            self._row_of[rule][question[is_new]] = row_numbers[matches.row[hit][first[is_new]]]

    def _remove(self, matches: Matches, row_numbers: I64) -> None:
        """Each row once, for the strongest rule and the first question."""
        strength = np.argmax(np.stack(matches.by_rule), axis=0)
        order = np.lexsort((matches.question, strength, matches.row))
        rows, first = np.unique(matches.row[order], return_index=True)
        for row, place in zip(row_numbers[rows].tolist(), order[first].tolist(), strict=True):
            self.removals.append((row, RULES[strength[place]], int(matches.question[place])))

    def _show(self, matches: Matches, row_numbers: I64, texts: Sequence[Sequence[str]]) -> None:
        """Keeps the first rows of each suite and rule to look at."""
        suite = self._suite_of[matches.question]
        for rule, hit in zip(RULES, matches.by_rule, strict=True):
            for number in range(len(self.suites)):
                places = np.flatnonzero(hit & (suite == number))
                _, first = np.unique(matches.row[places], return_index=True)
                for place in places[first[: _SHOWN_PER_TASK - self._shown[number, rule]]].tolist():
                    self._shown[number, rule] += 1
                    question, row = int(matches.question[place]), int(matches.row[place])
                    self.examples.append(
                        {
                            "rule": rule,
                            "question": question,
                            "row": int(row_numbers[row]),
                            "coverage": round(float(matches.coverage[place]), 3),
                            "shared": shared_words(self.questions[question], texts[row]),
                            "text": _shorten(" | ".join(texts[row])),
                        }
                    )

    def summary(self) -> Summary:
        """What is sent to whoever joins the tasks: small, but for the rows that are hit."""
        return {
            "removals": self.removals,
            "examples": self.examples,
            "rows_of_suites": {suite: dict(counts) for suite, counts in self.rows_of_suites.items()},
            "row_of": {
                rule: dict(zip((met := np.flatnonzero(rows >= 0)).tolist(), rows[met].tolist(), strict=True))
                for rule, rows in self._row_of.items()
            },
            "met_runs": np.flatnonzero(self._met),
        }


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]} ..."


# ---- joining


def _join(
    mixture: Mixture,
    suites: Sequence[SuiteQuestions],
    index: OverlapIndex,
    found: Sequence[Summary],
    met: Mapping[int, Mapping[str, Any]],
    faults: Mapping[str, str],
) -> Contamination:
    questions = [question for suite in suites for question in suite.questions]
    removals = [
        Removal(one["name"], one["split"], row, f"{rule} of {questions[q].suite}", questions[q].name, one["source"])
        for one in found
        for row, rule, q in one["removals"]
    ]
    before = {(task, split, row) for (task, split), rows in mixture.removals.rows.items() for row in rows}
    again = before & {(one.task, one.split, one.row) for one in removals}
    generated = {task.name: "its rows are generated" for task in mixture.tasks() if task.source.kind == "procedural"}
    report = {
        "rules": {"question": "a text of the row is the question", "13-gram": "any", "8-gram": LEAST_COVERAGE},
        "rows": sum(one["rows"] for one in found),
        "removed_rows": len(removals),
        "already_removed": len(again),
        "removed_but_not_met": len(before) - len(again),
        "suites": {suite.name: _suite_report(suite, index, met, first) for suite, first in _with_first(suites)},
        "tasks": {one["name"]: _task_report(one) for one in found},
        "not_compared": {**generated, **faults},
        "examples": _examples(found, questions),
    }
    lines = [{"question": questions[q].name, **rules} for q, rules in sorted(met.items())]
    return Contamination(report, lines, removals)


def _with_first(suites: Sequence[SuiteQuestions]) -> Iterator[tuple[SuiteQuestions, int]]:
    """Each suite with the number of its first question."""
    first = 0
    for suite in suites:
        yield suite, first
        first += len(suite.questions)


def _met_questions(
    found: Sequence[Summary], covered: Iterable[tuple[int, float]]
) -> dict[int, dict[str, dict[str, Any]]]:
    """Question -> rule -> where it was first met; also those that are `covered` by several rows together."""
    met: dict[int, dict[str, dict[str, Any]]] = {}
    for one in found:
        for rule, rows in one["row_of"].items():
            for question, row in rows.items():
                place = {"task": one["name"], "split": one["split"], "row": row}
                met.setdefault(question, {}).setdefault(rule, place)
    for question, coverage in covered:
        if RULES[2] not in met.get(question, {}):
            met.setdefault(question, {})[TOGETHER] = {"coverage": round(coverage, 3)}
    return met


def _suite_report(
    suite: SuiteQuestions, index: OverlapIndex, met: Mapping[int, Mapping[str, Any]], first: int
) -> dict[str, Any]:
    numbers = range(first, first + len(suite.questions))
    tasks: dict[str, list[int]] = {}
    for number, question in zip(numbers, suite.questions, strict=True):
        tasks.setdefault(question.task, []).append(number)
    return {
        "origin": suite.origin,
        **_counts(numbers, index, met),
        "tasks": {name: _counts(of_task, index, met) for name, of_task in tasks.items()},
    }


def _counts(numbers: Sequence[int], index: OverlapIndex, met: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    hits = Counter(rule for number in numbers for rule in met.get(number, ()))
    chosen = np.array(numbers, dtype=np.int64)
    return {
        "questions": len(numbers),
        "clean": sum(not met.get(number) for number in numbers),
        "met": {rule: hits[rule] for rule in (*RULES, TOGETHER)},
        "too_short": {rule: int(short[chosen].sum()) for rule, short in index.too_short.items()},
    }


def _task_report(one: Summary) -> dict[str, Any]:
    names = ("family", "split", "source", "rows", "dropped")
    return {**{name: one[name] for name in names}, "removed": len(one["removals"]), "suites": one["rows_of_suites"]}


def _examples(found: Sequence[Summary], questions: Sequence[Question]) -> list[dict[str, Any]]:
    """The first rows of each suite and rule, with the texts of row and question."""
    shown = Counter[tuple[str, str]]()
    examples = []
    for one, example in [(summary, example) for summary in found for example in summary["examples"]]:
        question = questions[example["question"]]
        shown[question.suite, example["rule"]] += 1
        if shown[question.suite, example["rule"]] <= _MOST_SHOWN:
            texts = [question.question, *question.options, question.answer]
            asked = {"question": question.name, "question_text": _shorten(" | ".join(text for text in texts if text))}
            examples.append({"task": one["name"], "split": one["split"], **example, **asked})
    return examples
