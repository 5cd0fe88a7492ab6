"""Is an output right: the answer is extracted from the text, then compared with the target.

An output from which no answer can be read is wrong, and its `extracted` is None, so that the two can be counted
apart. How often that happens to a task is for the reader of samples.jsonl; nothing is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from flan_tune.errors import ScoreError, did_you_mean
from flan_tune.evaluation.suites.suite import Item

CHOICE = "choice"  # not in METRICS: it compares probabilities and reads no text

_THE_ANSWER_IS = re.compile(r"\bthe answer is\b[ \t]*:?", re.IGNORECASE)
# A minus sign counts unless a digit stands before it (5-3); commas only where they separate thousands.
_NUMBER = re.compile(r"(?<!\d)-?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)")
_LETTER = re.compile(r"\s*(?:\(([A-Za-z])\)|([A-Z])(?=[).:]|\s*$|\s*\n))")


@dataclass(frozen=True)
class Judgement:
    """What was read from an output (None: nothing could be) and whether it is right."""

    extracted: str | None
    correct: bool


Metric = Callable[[str, Item], Judgement]


def normalize_answer(text: str) -> str:
    """`text` with spaces collapsed, one trailing period removed, and case folded.

    >>> normalize_answer("  The  Cat. ")
    'the cat'
    """
    return " ".join(text.split()).removesuffix(".").rstrip().casefold()


def after_the_answer_is(text: str) -> str | None:
    """What follows the last 'the answer is', to the end of its line, or None if the phrase is not there.

    Source: the scorer of BIG-Bench Hard (Suzgun et al. 2022), which reproduces its 27 published Codex scores.
    We differ: case does not matter, and a colon may follow.

    >>> after_the_answer_is("Two and two make 4. So the answer is 4.")
    '4.'
    """
    found = list(_THE_ANSWER_IS.finditer(text))
    if not found:
        return None
    rest = text[found[-1].end() :].strip()
    return rest.splitlines()[0].strip() if rest else None


def last_number(text: str) -> str | None:
    """The last number in `text`, commas removed and zeros that say nothing left out, or None.

    >>> last_number("She has $1,200.50 left, not 5-3"), last_number("none")
    ('3', None)
    """
    found = _NUMBER.findall(text)
    if not found:
        return None
    number = Decimal(found[-1].replace(",", ""))
    plain = format(number.normalize(), "f")
    return "0" if plain == "-0" else plain


def option_number(text: str, options: list[str]) -> int | None:
    """Which option an output names: by its whole text, else by a letter as in '(B)', 'B.' or 'B'. None if neither.

    >>> option_number("(B) a dog", ["a cat", "a dog"]), option_number("A cat.", ["a cat", "a dog"])
    (1, 0)
    """
    normalized = [normalize_answer(option) for option in options]
    if normalize_answer(text) in normalized:
        return normalized.index(normalize_answer(text))
    letter = _LETTER.match(text)
    if letter is None:
        return None
    number = ord((letter.group(1) or letter.group(2)).upper()) - ord("A")
    return number if number < len(options) else None


def _right_answers(item: Item) -> list[str]:
    return [item.targets, *(item.references or [])]


def first_line(text: str) -> str:
    """The first line that is not blank: a model that answers and then runs on has answered.

    >>> first_line("\\n yes\\nQuestion: what")
    ' yes'
    """
    return next((line for line in text.split("\n") if line.strip()), "")


def _plain(output: str, item: Item) -> Judgement:
    extracted = normalize_answer(first_line(output))
    right = {normalize_answer(answer) for answer in _right_answers(item)}
    return Judgement(extracted or None, extracted in right or normalize_answer(output) in right)


def _reasoned(output: str, item: Item) -> Judgement:
    found = after_the_answer_is(output)
    if found is None:
        return Judgement(None, False)
    right = {normalize_answer(after_the_answer_is(answer) or answer) for answer in _right_answers(item)}
    return Judgement(normalize_answer(found), normalize_answer(found) in right)


def _number(output: str, item: Item) -> Judgement:
    right = {last_number(answer) for answer in _right_answers(item)}
    if None in right:
        raise ScoreError(f"task {item.task!r}, item {item.id!r}: the target {item.targets!r} holds no number.")
    extracted = last_number(output)
    return Judgement(extracted, extracted in right)


def _option(output: str, item: Item) -> Judgement:
    options = item.options or []
    right = option_number(item.targets, options)
    if right is None:
        raise ScoreError(
            f"task {item.task!r}, item {item.id!r}: the target {item.targets!r} is none of the options {options}."
        )
    number = option_number(after_the_answer_is(output) or output, options)
    return Judgement(None if number is None else options[number], number == right)


METRICS: Mapping[str, Metric] = {
    "answer": _plain,  # the whole output is the answer
    "reasoned_answer": _reasoned,  # the answer follows the last 'the answer is'
    "number": _number,  # the last number is the answer
    "option": _option,  # the output names one of the options
}


def judge(metric: str, output: str, item: Item) -> Judgement:
    """Whether `output` answers `item`, by the metric of that name.

    Raises: ScoreError for an unknown metric, or a target the metric cannot read.

    >>> judge("answer", " Yes.", Item("0", "t", "Is it?", "yes"))
    Judgement(extracted='yes', correct=True)
    """
    if metric not in METRICS:
        raise ScoreError(
            f"task {item.task!r}: there is no metric {metric!r}.{did_you_mean(metric, METRICS)} "
            f"There are {sorted([*METRICS, CHOICE])}."
        )
    return METRICS[metric](output, item)
