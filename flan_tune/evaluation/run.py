"""A model on a suite: lm-evaluation-harness asks, our scoring judges, results and samples are plain data.

Which model is behind `lm` is not known here: ours is lm.py, any other of lm-eval's classes will do.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from flan_tune.errors import ScoreError
from flan_tune.evaluation.results import summarize
from flan_tune.evaluation.scoring import CHOICE, judge
from flan_tune.evaluation.statistics import standard_error, wilson_interval
from flan_tune.evaluation.suites.lm_eval_task import build_lm_eval_task, most_probable, require_lm_eval
from flan_tune.evaluation.suites.suite import Item, Suite, SuiteTask

_PACKAGES = ("flan_tune", "lm_eval", "transformers", "torch", "datasets")


def evaluate_model(
    lm: Any, suite: Suite, *, work_dir: Path, max_new_tokens: int = 64, samples_file: Path | None = None
) -> dict[str, Any]:
    """Runs `suite` on `lm`, an instance of `lm_eval.api.model.LM`, decoding greedily.

    work_dir: items and answers are written here: items/<task>.jsonl and samples.jsonl (`samples_file` may put the
        latter elsewhere), one line per question: suite, task, group, id, prompt, output, extracted, target, correct.
    Returns JSON-ready {"suite", "tasks": {name: {...}}, "seen", "held_out", ..., "truncated", "versions"}; scores
    are in percent, see results.py. "truncated" counts prompts cut on the left, None if the model does not count.
    Raises: ScoreError if lm-eval is not installed, or `lm` gives no answer to some item.
    """
    before = getattr(lm, "truncated", None)
    logged = _ask(lm, suite, work_dir, max_new_tokens)
    after = getattr(lm, "truncated", None)
    samples = {task.name: _samples(suite, task, logged[task.name]) for task in suite.tasks}
    write_samples(samples, samples_file or work_dir / "samples.jsonl")
    return {
        "suite": suite.name,
        **summarize({task.name: _task_result(suite, task, samples[task.name]) for task in suite.tasks}),
        "truncated": None if before is None or after is None else after - before,
        "max_new_tokens": max_new_tokens,
        "model": dict(getattr(lm, "description", {})),
        "versions": versions(),
    }


def _ask(lm: Any, suite: Suite, work_dir: Path, max_new_tokens: int) -> dict[str, list[Mapping[str, Any]]]:
    """lm-eval's sample log: task name -> one entry per item, with the item (`doc`) and the responses."""
    require_lm_eval()
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    with _quiet_lm_eval():
        found = simple_evaluate(
            model=lm,
            tasks=[build_lm_eval_task(task, work_dir, max_new_tokens) for task in suite.tasks],
            task_manager=TaskManager(include_defaults=False),  # else 14,230 YAML files are indexed
            bootstrap_iters=0,
            log_samples=True,
            random_seed=None,  # everything is greedy: the caller's generators are left alone
            numpy_random_seed=None,
            torch_random_seed=None,
            fewshot_random_seed=0,
        )
    samples: dict[str, list[Mapping[str, Any]]] = found["samples"]
    return samples


def versions() -> dict[str, str]:
    """Versions of the packages a score depends on, those that are installed. Nothing is imported for it."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


@contextmanager
def _quiet_lm_eval() -> Iterator[None]:
    """Only lm-eval's errors are shown meanwhile: its warnings explain choices that are made here on purpose."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _samples(suite: Suite, task: SuiteTask, logged: list[Mapping[str, Any]]) -> list[dict[str, Any]]:
    by_id = {one["doc"]["id"]: one["filtered_resps"] for one in logged}
    missing = [item.id for item in task.items if item.id not in by_id]
    if missing:
        raise ScoreError(f"task {task.name!r}: lm-eval returned no answer for {len(missing)} items, as {missing[0]!r}.")
    return [_sample(suite, task, item, by_id[item.id]) for item in task.items]


def _sample(suite: Suite, task: SuiteTask, item: Item, responses: list[Any]) -> dict[str, Any]:
    about = {"suite": suite.name, "task": task.name, "group": task.group, "id": item.id, "prompt": item.inputs}
    if task.metric == CHOICE:
        chosen = most_probable(item, responses)
        scores = {option: float(response[0]) for option, response in zip(item.options or [], responses, strict=True)}
        answer = {"output": chosen, "extracted": chosen, "target": item.targets, "correct": chosen == item.targets}
        return {**about, **answer, "log_likelihoods": scores}
    judgement = judge(task.metric, responses[0], item)
    return {
        **about,
        "output": responses[0],
        "extracted": judgement.extracted,
        "target": item.targets,
        "correct": judgement.correct,
    }


def write_samples(samples: Mapping[str, list[dict[str, Any]]], path: Path) -> None:
    """Writes the samples of all tasks as JSONL."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(one, ensure_ascii=False) + "\n" for task in samples.values() for one in task)
    path.write_text("".join(lines), encoding="utf-8")


def _task_result(suite: Suite, task: SuiteTask, samples: list[dict[str, Any]]) -> dict[str, Any]:
    correct = [float(one["correct"]) for one in samples]
    error = standard_error(correct)
    low, high = wilson_interval(int(sum(correct)), len(correct))
    return {
        "score": 100 * sum(correct) / len(correct),
        "stderr": None if error is None else 100 * error,
        "interval": [100 * low, 100 * high],
        "n": len(correct),
        "unread": sum(one["extracted"] is None for one in samples),
        "chance": 100 * task.chance,
        "suite": suite.name,
        "group": task.group,
        "split": task.split,
        "shots": task.shots,
        "layout": task.layout,
        "metric": task.metric,
    }
