"""A suite's task as lm-evaluation-harness wants it, over a JSONL file of items in a working folder.

Nothing is looked up by name, on the hub or in lm-eval's own tree of tasks, and no cache of data sets is written.
The config dict names each field plainly, so that lm-eval takes questions as they are: a text that holds `{{ }}`
would otherwise be rendered by Jinja, and a target such as '[1, 2]' read as a list.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from flan_tune.errors import ScoreError
from flan_tune.evaluation.scoring import CHOICE, judge
from flan_tune.evaluation.suites.suite import Item, SuiteTask

CORRECT = "correct"  # the one metric lm-eval aggregates: 1.0 or 0.0 per item


def require_lm_eval() -> None:
    """Raises ScoreError if lm-evaluation-harness is not installed."""
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise ScoreError("lm-evaluation-harness is not installed. Run `pip install 'flan_tune[eval]'`.") from None


def write_items(items: Sequence[Item], path: Path) -> None:
    """Writes items as JSONL, one a line, with the fields of `Item`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(asdict(item), ensure_ascii=False) + "\n" for item in items)
    path.write_text("".join(lines), encoding="utf-8")


def read_items(items_file: str) -> dict[str, Any]:
    """{'test': datasets.Dataset} of a file by `write_items`. lm-eval calls it with the config's `dataset_kwargs`.

    The columns are typed here, because a JSON reader left alone takes dates in targets for timestamps, and a
    column that is empty in every row for one without a type.
    """
    from datasets import Dataset, Features, List, Value

    text = Value("string")
    fields = {
        "id": text,
        "task": text,
        "inputs": text,
        "targets": text,
        "options": List(text),
        "references": List(text),
    }
    lines = Path(items_file).read_text(encoding="utf-8").split("\n")  # not splitlines: U+2028 may be in a question
    rows = [json.loads(line) for line in lines if line]
    return {"test": Dataset.from_list(rows, features=Features(fields))}


def lm_eval_config(task: SuiteTask, items_file: Path, max_new_tokens: int) -> dict[str, Any]:
    """The config dict of one task: `generate_until` with nothing to stop at, or `multiple_choice` for 'choice'."""
    config: dict[str, Any] = {
        "task": task.name,
        "custom_dataset": read_items,
        "dataset_kwargs": {"items_file": str(items_file)},
        "test_split": "test",
        "doc_to_text": "inputs",
        "doc_to_target": "targets",
        "target_delimiter": "",  # lm-eval would put a space; the model's own separator is put by the model
        "num_fewshot": 0,  # exemplars are part of `inputs`
        "process_results": process_results(task.metric),
        "metric_list": [{"metric": CORRECT, "aggregation": "mean", "higher_is_better": True}],
    }
    if task.metric == CHOICE:
        return {**config, "output_type": "multiple_choice", "doc_to_choice": "options"}
    generation = {"until": [], "max_gen_toks": max_new_tokens, "do_sample": False}
    return {**config, "output_type": "generate_until", "generation_kwargs": generation}


def process_results(metric: str) -> Callable[[Mapping[str, Any], Sequence[Any]], dict[str, float]]:
    """What lm-eval calls with an item and the model's responses; our scoring decides."""

    def score(doc: Mapping[str, Any], responses: Sequence[Any]) -> dict[str, float]:
        item = Item(**doc)
        if metric == CHOICE:
            return {CORRECT: float(most_probable(item, responses) == item.targets)}
        return {CORRECT: float(judge(metric, responses[0], item).correct)}

    return score


def most_probable(item: Item, responses: Sequence[tuple[float, bool]]) -> str:
    """The option with the greatest log-likelihood (the first of equal ones)."""
    options = item.options or []
    best = max(range(len(options)), key=lambda i: (responses[i][0], -i))
    return options[best]


def build_lm_eval_task(task: SuiteTask, work_dir: Path, max_new_tokens: int) -> Any:
    """An `lm_eval.api.task.ConfigurableTask`; its items are written to `work_dir`/items/<task>.jsonl.

    Raises: ScoreError if lm-evaluation-harness is not installed.
    """
    require_lm_eval()
    from lm_eval.api.task import ConfigurableTask

    items_file = work_dir / "items" / f"{task.name}.jsonl"
    write_items(task.items, items_file)
    return ConfigurableTask(config=lm_eval_config(task, items_file, max_new_tokens))
