"""Questions, and what each model said, side by side, marked right or wrong.

What is shown is chosen by a rule that is said in the page, not by what looks good: the first question of a task, and
the first one on which the models are not all right or all wrong.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flan_tune.reports.headline import model_cell
from flan_tune.reports.inputs import GROUP_TITLES, HELD_OUT, SEEN, ReportInputs
from flan_tune.reports.page import Section, details, escape, notice, paragraph

TASKS_PER_GROUP = 4
_SHORT_PROMPT = 700  # characters; longer ones are folded
_LONGEST_OUTPUT = 600  # characters shown of an output
_RULE = (
    "Of up to {count} tasks of each kind, in the order of their names: the first question, and then the first one that "
    "some models got right and some wrong. The second is chosen for that, so it does not show how often they differ."
)

Sample = Mapping[str, Any]


def samples_section(inputs: ReportInputs) -> Section:
    """Prompts and outputs of several tasks, all models side by side."""
    return Section("samples", "Questions and answers", _body(inputs.samples))


def _body(samples: Mapping[str, Sequence[Sample]]) -> str:
    by_task = _by_task(samples)
    if not by_task:
        return notice("There are no sample outputs: the samples files were not given, or are empty.")
    silent = [model for model, lines in samples.items() if not lines]
    parts = [paragraph(_RULE.format(count=TASKS_PER_GROUP))]
    parts += [notice(f"There are no samples of model {model}.") for model in silent]
    for task in _chosen_tasks(by_task):
        group, questions = by_task[task]
        parts.append(f"<h3>{escape(task)} <span class='hint'>{escape(_kind(group))}</span></h3>")
        parts += [_question(questions[one], list(samples)) for one in chosen_questions(questions)]
    return "".join(parts)


def _kind(group: str) -> str:
    return {SEEN: "seen in training", HELD_OUT: "held out"}.get(group, group)


def _by_task(samples: Mapping[str, Sequence[Sample]]) -> dict[str, tuple[str, dict[str, dict[str, Sample]]]]:
    """task -> (group, {question id: {model: sample}})."""
    found: dict[str, tuple[str, dict[str, dict[str, Sample]]]] = {}
    for model, lines in samples.items():
        for line in lines:
            _, questions = found.setdefault(str(line.get("task")), (str(line.get("group", "")), {}))
            questions.setdefault(str(line.get("id")), {})[model] = line
    return found


def _chosen_tasks(by_task: Mapping[str, tuple[str, Any]]) -> list[str]:
    groups = dict.fromkeys([*GROUP_TITLES, *(group for group, _ in by_task.values())])
    chosen = []
    for group in groups:
        chosen += sorted(task for task, (its, _) in by_task.items() if its == group)[:TASKS_PER_GROUP]
    return chosen


def chosen_questions(questions: Mapping[str, Mapping[str, Sample]]) -> list[str]:
    """Ids of the first question, and of the first other one that some models got right and some wrong."""
    first = next(iter(questions))
    differ = [
        number
        for number, said in questions.items()
        if number != first and len({bool(one.get("correct")) for one in said.values()}) > 1
    ]
    return [first, *differ[:1]]


def _question(said: Mapping[str, Sample], models: Sequence[str]) -> str:
    some = next(iter(said.values()))
    answers = "".join(_answer(model, position, said.get(model)) for position, model in enumerate(models))
    target = f'<p class="target">Right answer: <code>{escape(some.get("target", ""))}</code></p>'
    return (
        f'<div class="sample"><div class="question">{_prompt(str(some.get("prompt", "")))}{target}</div>'
        f'<div class="answers">{answers}</div></div>'
    )


def _prompt(text: str) -> str:
    if len(text) <= _SHORT_PROMPT:
        return f"<pre>{escape(text)}</pre>"
    return details(f"Prompt of {len(text):,} characters, ending …{text[-80:]}", f"<pre>{escape(text)}</pre>")


def _answer(model: str, position: int, sample: Sample | None) -> str:
    name = f"<span>{model_cell(model, position)}</span>"
    if sample is None:
        return f'<div class="answer"><h4>{name}</h4><p class="empty">not asked</p></div>'
    mark = '<span class="right">✓ right</span>' if sample.get("correct") else '<span class="wrong">✗ wrong</span>'
    return f'<div class="answer"><h4>{name}{mark}</h4>{_output(str(sample.get("output", "")))}</div>'


def _output(text: str) -> str:
    if not text.strip():
        return '<p class="empty">nothing was said</p>'
    rest = len(text) - _LONGEST_OUTPUT
    more = f'<span class="empty"> … and {rest:,} more characters</span>' if rest > 0 else ""
    return f"<pre>{escape(text[:_LONGEST_OUTPUT].strip())}{more}</pre>"
