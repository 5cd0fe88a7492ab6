"""Results as plain data: task scores to group means, several suites to one model, several models to one file.

All scores are in percent. `score` is accuracy, `normalized` is accuracy above chance (normalize.py), `stderr` is the
standard error of `score`. "seen" and "held_out" are unweighted means of `normalized` over the tasks of that group;
their `_stderr` takes the tasks as fixed and the questions as drawn, and is None if a task has one question only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flan_tune.errors import ScoreError
from flan_tune.evaluation.normalize import normalized_error, normalized_score
from flan_tune.evaluation.statistics import error_of_mean
from flan_tune.evaluation.suites.suite import HELD_OUT, SEEN

UNITS = {
    "score": "percent right",
    "normalized": "100 * (score - chance) / (100 - chance)",
    "stderr": "standard error of score, in percent",
    "interval": "95 % Wilson interval of score, in percent",
    "seen": "unweighted mean of normalized over the tasks of group 'seen'",
    "held_out": "unweighted mean of normalized over the tasks of group 'held_out'",
}

TaskResults = Mapping[str, Mapping[str, Any]]


def summarize(tasks: TaskResults) -> dict[str, Any]:
    """{"tasks", "seen", "seen_stderr", "held_out", "held_out_stderr", "groups"} from task results.

    `tasks` need `score`, `stderr`, `chance` (all in percent) and `group`; `normalized` is put beside them. A group
    without tasks has None. "groups" has every group: {"mean", "stderr", "tasks" (how many)}.

    >>> summarize({"a": {"score": 62.5, "stderr": 3.0, "chance": 25.0, "group": "seen"}})["seen"]
    50.0
    """
    full = {name: {**task, "normalized": _normalized(task)} for name, task in tasks.items()}
    groups = {
        group: _group_mean([task for task in full.values() if task["group"] == group])
        for group in dict.fromkeys(task["group"] for task in full.values())
    }
    absent: dict[str, Any] = {"mean": None, "stderr": None}
    headline = {}
    for group in (SEEN, HELD_OUT):
        headline[group] = groups.get(group, absent)["mean"]
        headline[f"{group}_stderr"] = groups.get(group, absent)["stderr"]
    return {"tasks": full, **headline, "groups": groups}


def _normalized(task: Mapping[str, Any]) -> float:
    return normalized_score(task["score"], task["chance"])


def _group_mean(tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    errors = [normalized_error(task["stderr"], task["chance"]) for task in tasks]
    mean = sum(task["normalized"] for task in tasks) / len(tasks)
    return {"mean": mean, "stderr": error_of_mean(errors), "tasks": len(tasks)}


def join_suites(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One model's results on several suites (each from run.evaluate_model) as one.

    Truncations are added up. Raises: ScoreError if there is none, or two suites have a task of the same name.
    """
    if not results:
        raise ScoreError("there are no suite results to join.")
    tasks: dict[str, Any] = {}
    for result in results:
        twice = sorted(set(tasks) & set(result["tasks"]))
        if twice:
            raise ScoreError(f"the task {twice[0]!r} is in two suites, the second is {result['suite']!r}. Rename it.")
        tasks.update(result["tasks"])
    counts = [result["truncated"] for result in results]
    return {
        "suites": [result["suite"] for result in results],
        **summarize(tasks),
        "truncated": None if None in counts else sum(counts),
        "model": results[0]["model"],
        "versions": results[0]["versions"],
    }


def merge_results(models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The results of several models, as the file results.json and the report have them:

        {"models": {"base": {"seen": 3.1, "held_out": 1.0,
                             "tasks": {name: {"score", "normalized", "n", "stderr", "group", "chance", ...}}, ...}},
         "units": {...}}

    All numbers are in percent; "units" says so in the file. The order of models is kept: the first is the base.
    Raises: ScoreError if the models did not answer the same tasks with the same number of questions.
    """
    if not models:
        raise ScoreError("there are no results to merge.")
    first_name, first = next(iter(models.items()))
    for name, result in models.items():
        _require_same_tasks(first_name, first, name, result)
    return {"models": {name: dict(result) for name, result in models.items()}, "units": UNITS}


def _require_same_tasks(name_a: str, a: Mapping[str, Any], name_b: str, b: Mapping[str, Any]) -> None:
    for task in sorted(set(a["tasks"]) | set(b["tasks"])):
        counts = [result["tasks"].get(task, {}).get("n") for result in (a, b)]
        if counts[0] != counts[1]:
            raise ScoreError(
                f"task {task!r}: model {name_a!r} has {counts[0]} answers and {name_b!r} has {counts[1]}. "
                "Only models that answered the same questions can be compared: evaluate them on the same suites."
            )
