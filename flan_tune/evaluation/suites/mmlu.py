"""MMLU: four-way multiple choice in 57 subjects (Hendrycks et al. 2020), asked directly.

The Flan paper's MMLU numbers are on the *validation* split (1,531 questions), but for its Tables 1 and 4 (test);
the split is said with every result. Rows come by a callable and have `question`, `subject`, `choices`, `answer`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from flan_tune.errors import ScoreError
from flan_tune.evaluation.suites.suite import Item, Suite, SuiteTask, draw_rows

# `The following are ... about {subject}.`, then exemplars and the question as `Q:`, `(A) .. (B) ..`, `A:`. The paper
# does not print its direct layout; U-PaLM, appendix 11.4, says the answer is an option in brackets, as here.
LAYOUT = "flan"
LETTERS = ("(A)", "(B)", "(C)", "(D)")

Row = Mapping[str, Any]
Rows = Callable[[str], Iterable[Row]]


def mmlu_suite(rows: Rows, *, split: str = "validation", n: int | None = None, shots: int = 0, seed: int = 0) -> Suite:
    """Suite 'mmlu', scored by which of '(A)'..'(D)' is most probable.

    rows: split name -> rows of all subjects; `split` is asked for, and 'dev' for the exemplars if `shots` > 0
        (in the order of that split, of the question's own subject).
    n: None makes one task per subject, 'mmlu_<subject>', to be averaged unweighted as the paper does. A number
        makes one task 'mmlu' of `n` questions drawn by key over all subjects: a spot check, not the paper's score.
    Raises: ScoreError if a row is not four-way, or a subject has too few exemplars.
    """
    questions = list(rows(split))
    exemplars = _exemplars(rows("dev"), shots) if shots else {}
    chosen = draw_rows(len(questions), n, "mmlu", seed)
    by_task: dict[str, list[Item]] = {}
    for i in chosen:
        task = "mmlu" if n is not None else f"mmlu_{questions[i]['subject']}"
        by_task.setdefault(task, []).append(_item(questions[i], f"{split}/{i}", task, exemplars, shots))
    tasks = [SuiteTask(task, "mmlu", items, 0.25, "choice", LAYOUT, split, shots) for task, items in by_task.items()]
    return Suite("mmlu", tasks)


def _item(row: Row, item_id: str, task: str, exemplars: Mapping[str, Sequence[str]], shots: int) -> Item:
    shown = list(exemplars.get(row["subject"], []))
    if len(shown) < shots:
        raise ScoreError(
            f"suite 'mmlu': subject {row['subject']!r} has {len(shown)} exemplars in split 'dev', {shots} are wanted."
        )
    subject = str(row["subject"]).replace("_", " ")
    header = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    return Item(item_id, task, header + "".join(shown) + _question(row), _answer(row), list(LETTERS))


def _exemplars(rows: Iterable[Row], shots: int) -> dict[str, list[str]]:
    by_subject: dict[str, list[str]] = {}
    for row in rows:
        shown = by_subject.setdefault(row["subject"], [])
        if len(shown) < shots:
            shown.append(f"{_question(row)} {_answer(row)}\n\n")
    return by_subject


def _question(row: Row) -> str:
    choices = " ".join(f"{letter} {choice}" for letter, choice in zip(LETTERS, row["choices"], strict=False))
    return f"Q: {row['question'].strip()}\n{choices}\nA:"


def _answer(row: Row) -> str:
    if len(row["choices"]) != len(LETTERS) or not 0 <= row["answer"] < len(LETTERS):
        found = f"{len(row['choices'])} choices and the answer {row['answer']}"
        raise ScoreError(
            f"suite 'mmlu': {row['question']!r} has {found}; four choices and an answer in [0, 4) are wanted."
        )
    return LETTERS[row["answer"]]
