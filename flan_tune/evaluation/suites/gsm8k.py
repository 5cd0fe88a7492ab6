"""GSM8K: grade-school word problems, answered with a number after free reasoning (Cobbe et al. 2021).

Rows come by a callable and have `question` and `answer`, the answer ending in '#### 18'. GSM8K's training split is
in the Flan chain-of-thought mixture, so a Flan model has seen this *task*; the test questions it has not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any

from flan_tune.errors import ScoreError
from flan_tune.evaluation.suites.suite import Item, Suite, SuiteTask, draw_rows

LAYOUT = "question_answer"  # `Q: ...` newline `A:`; exemplars reason, then say 'The answer is 18.'

Row = Mapping[str, Any]
Rows = Callable[[str], Iterable[Row]]

_CALCULATION = re.compile(r"<<[^>]*>>")  # calculator annotations: 16-3-4=<<16-3-4=9>>9


def gsm8k_suite(rows: Rows, *, n: int | None = None, shots: int = 0, seed: int = 0) -> Suite:
    """Suite 'gsm8k' with one task of that name, scored on the last number of the output.

    rows: split name -> rows; 'test' is asked for, and 'train' for the exemplars if `shots` > 0.
    n: how many questions, drawn by key from the split; None takes all, in order.
    Raises: ScoreError if a row has no number, or there are fewer rows than asked for.
    """
    questions = list(rows("test"))
    chosen = draw_rows(len(questions), n, "gsm8k", seed)
    header = "".join(_exemplar(row) for row in _first(rows("train"), shots)) if shots else ""
    items = [
        Item(f"gsm8k/{i}", "gsm8k", f"{header}Q: {questions[i]['question'].strip()}\nA:", _gold(questions[i]))
        for i in chosen
    ]
    task = SuiteTask("gsm8k", "gsm8k", items, 0.0, "number", LAYOUT, "test", shots)
    return Suite("gsm8k", [task])


def _first(rows: Iterable[Row], count: int) -> list[Row]:
    chosen = list(islice(rows, count))
    if len(chosen) < count:
        raise ScoreError(f"suite 'gsm8k': {count} exemplars are asked for, the split 'train' has {len(chosen)} rows.")
    return chosen


def _gold(row: Row) -> str:
    _, mark, number = str(row["answer"]).rpartition("####")
    if not mark or not number.strip():
        raise ScoreError(f"suite 'gsm8k': the answer {row['answer']!r} does not end in '#### number'.")
    return number.strip().replace(",", "")


def _exemplar(row: Row) -> str:
    reasoning = _CALCULATION.sub("", str(row["answer"]).rpartition("####")[0])
    return f"Q: {row['question'].strip()}\nA: {' '.join(reasoning.split())} The answer is {_gold(row)}.\n\n"
