"""Infilling measured: a model is asked for spans that were taken out of held-out text, in every form it understands.

Which spans is said in suites/infilling.py, how they are asked for in infilling_forms.py. Measured are

    exact             share of the blanks whose every token is right
    f1                overlap of the tokens said and those taken out, as bags
    nats_per_token    negative log-likelihood of the spans, given what stands before them and their length

Answers are greedy. Every form is told how long the span is: until then, what ends an answer (sentinels, mode tokens,
EOS) is not among the tokens to choose from, and behind a span the next sentinel is given. Sentinels that a model says
unasked are counted in answers of their own (`unread`).

Besides, the same passages are scored as plain causal text, to see what denoising costs there; not by an
encoder-decoder, which gives no likelihood of a text alone. Its encoder reads what is shown, and its decoder answers.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flan_tune.errors import ScoreError
from flan_tune.evaluation.infilling_forms import GAP, Ask, Form, asks, forms_of, head_ids, native_form, read_blanks
from flan_tune.evaluation.results import summarize
from flan_tune.evaluation.run import versions
from flan_tune.evaluation.statistics import paired_difference, wilson_interval
from flan_tune.evaluation.suites.infilling import SPLIT, Passage, Question
from flan_tune.tokens.tokenizer import Tokenizer

if TYPE_CHECKING:
    from flan_tune.evaluation.lm import FlanTuneLM

SUITE = "infilling"
EXACT, F1, NATS = "exact", "f1", "nats_per_token"
METRICS = (EXACT, F1, NATS)
NO_MODE = "no mode token"
_PERCENT = {EXACT: 100.0, F1: 100.0, NATS: 1.0}

Values = Mapping[str, list[float]]  # metric -> one value a question


@dataclass(frozen=True)
class Infilling:
    """What one model was measured to do.

    values: task -> form -> metric -> one value a question; exact and f1 are means over its blanks, in [0, 1].
    native: task -> the form the model was trained to answer in.
    causal_text: mode token, or NO_MODE -> nats per token of each passage, read causally from its beginning. Empty for
        an encoder-decoder.
    result: all of it in short, as results.py joins it: plain values, and percent for exact and f1.
    """

    values: Mapping[str, Mapping[str, Values]]
    native: Mapping[str, str]
    causal_text: Mapping[str, list[float]]
    result: Mapping[str, Any]


class _Answer(NamedTuple):
    """What was said for the blanks of a question, how unlikely the truth is, and how many blanks are not answered if
    nothing is given."""

    said: list[list[int]]
    nats: float  # per token, over all blanks
    unread: int


def measure_infilling(
    lm: FlanTuneLM, questions: Mapping[str, Sequence[Question]], samples_file: Path, say: Callable[[str], None] = print
) -> Infilling:
    """Asks `lm` all questions in all its forms, and scores their passages as causal text.

    questions: of `infilling_questions`. samples_file: gets one line of JSON for each question and form.
    say: is told after each task.
    Raises: ScoreError if the model's positions do not hold a passage.
    """
    groups = list(questions.values())
    passages = [question.passage for question in groups[0]]
    forms = _forms(lm, groups)
    values: dict[str, dict[str, Values]] = {}
    tasks: dict[str, Any] = {}
    samples_file.parent.mkdir(parents=True, exist_ok=True)
    with samples_file.open("w", encoding="utf-8") as file:
        for name, group in questions.items():
            answers = {str(form): _answer(lm, form, group) for form in forms}
            values[name] = {form: _values(group, answers[form]) for form in answers}
            tasks[name] = _task_result(group[0], values[name], answers, str(native_form(group[0], lm.tokens)))
            file.writelines(_sample_lines(name, group, answers, values[name], tasks[name], lm.tokens))
            say(f"{name}: {len(group)} passages, {len(forms)} forms")
    modes = [form.mode for form in forms if form.view == "left" and not lm.is_encoder_decoder]
    text = {mode or NO_MODE: _causal_text(lm, passages, mode) for mode in modes}
    result = {
        "suite": SUITE,
        **summarize(tasks),
        "causal_text": {mode: _text_result(nats) for mode, nats in text.items()},
        "truncated": 0,
        "model": dict(lm.description),
        "versions": versions(),
    }
    return Infilling(values, {name: tasks[name]["layout"] for name in tasks}, text, result)


def _forms(lm: FlanTuneLM, groups: Sequence[Sequence[Question]]) -> list[Form]:
    blanks = max(len(group[0].starts) for group in groups)
    longest = max(len(question.passage.ids) for group in groups for question in group)
    needed = longest + 2 * blanks + 2  # sentinels on both sides, BOS, mode token
    if lm.max_positions is not None and lm.max_positions < needed:
        raise ScoreError(f"suite 'infilling' needs {needed} positions, the model has {lm.max_positions}.")
    return forms_of(lm.tokens, blanks, longest, lm.max_positions)


# ---- asking


def _answer(lm: FlanTuneLM, form: Form, questions: Sequence[Question]) -> list[_Answer]:
    asked = [asks(form, question, lm.tokens, encoder_decoder=lm.is_encoder_decoder) for question in questions]
    ends, length = _end_ids(lm.tokens, questions), questions[0].length
    if form.view == "sentinels":
        said, unread = _say_sentinels(lm, asked, length, ends), _unread(lm, asked)
    else:
        said, unread = _say(lm, asked, length, ends), [0] * len(asked)
    return [_Answer(*one) for one in zip(said, _nats(lm, asked, ends), unread, strict=True)]


def _end_ids(tokenizer: Tokenizer, questions: Sequence[Question]) -> list[int]:
    """What can end a span. Sentinels that are words of the passages too (U-PaLM's) can be meant as words."""
    words = {token for question in questions for token in question.passage.ids.tolist()}
    return sorted({tokenizer.eos_id, *tokenizer.sentinel_ids, *tokenizer.mode_ids.values()} - words)


def _say(lm: FlanTuneLM, asked: Sequence[list[Ask]], length: int, ends: list[int]) -> list[list[list[int]]]:
    outputs = iter(_generate(lm, [ask.prompt for group in asked for ask in group], length, excluded_ids=ends))
    return [[next(outputs) for _ in group] for group in asked]


def _say_sentinels(lm: FlanTuneLM, asked: Sequence[list[Ask]], length: int, ends: list[int]) -> list[list[list[int]]]:
    """Spans of `length` tokens, each behind its sentinel, which is given."""
    step = length + 1

    def sentinel_due(said: list[int]) -> int | None:
        return lm.tokens.sentinel_ids[len(said) // step] if len(said) % step == 0 else None

    outputs = _generate(
        lm, [group[0].prompt for group in asked], step * len(asked[0]), excluded_ids=ends, guide=sentinel_due
    )
    return [[said[start + 1 : start + step] for start in range(0, len(said), step)] for said in outputs]


def _unread(lm: FlanTuneLM, asked: Sequence[list[Ask]]) -> list[int]:
    """Blanks of each question whose sentinel is missing from an answer of which nothing is given."""
    count, sentinels = len(asked[0]), lm.tokens.sentinel_ids

    def is_complete(output: list[int]) -> bool:
        return sentinels[count - 1] in output

    # Twice what is wanted: an answer that is too long for one blank leaves room for the next.
    outputs = _generate(lm, [group[0].prompt for group in asked], 2 * len(asked[0][0].answer), stop=is_complete)
    return [read_blanks(output, sentinels, count).count(None) for output in outputs]


def _generate(lm: FlanTuneLM, prompts: list[list[int]], most: int, **how: Any) -> list[list[int]]:
    from flan_tune.models.generate import generate

    room = most if lm.max_positions is None else lm.max_positions - max(map(len, prompts))
    found: list[list[int]] = generate(
        lm.model,
        prompts,
        attention=lm.attention,
        eos_id=lm.tokens.eos_id,
        pad_id=lm.tokens.pad_id,
        max_new_tokens=min(most, room),
        batch_size=lm.batch_size,
        **how,
    )
    return found


def _nats(lm: FlanTuneLM, asked: Sequence[list[Ask]], ends: list[int]) -> list[float]:
    """Nats per token of the spans of each question; what stands around them in an answer does not count."""
    flat = [ask for group in asked for ask in group]
    answers = _log_likelihoods(lm, [ask.prompt for ask in flat], [ask.answer for ask in flat], ends)
    nats = iter([-float(answer[ask.start : ask.stop].sum()) for ask, answer in zip(flat, answers, strict=True)])
    return [sum(next(nats) for _ in group) / sum(ask.stop - ask.start for ask in group) for group in asked]


def _log_likelihoods(
    lm: FlanTuneLM, prompts: list[list[int]], answers: list[list[int]], excluded_ids: Sequence[int] = ()
) -> list[Any]:
    from flan_tune.models.generate import token_log_likelihoods

    found: list[Any] = token_log_likelihoods(
        lm.model,
        prompts,
        answers,
        attention=lm.attention,
        pad_id=lm.tokens.pad_id,
        batch_size=lm.batch_size,
        excluded_ids=excluded_ids,
    )
    return found


def _causal_text(lm: FlanTuneLM, passages: Sequence[Passage], mode: str) -> list[float]:
    """Nats per token of each passage. Its prompt is BOS and mode token, in which a prefix-LM has nothing to see ahead:
    so it reads the text causally, as the others do."""
    prompt = head_ids(lm.tokens, mode) or [lm.tokens.eos_id]
    likelihoods = _log_likelihoods(lm, [prompt for _ in passages], [one.ids.tolist() for one in passages])
    return [-float(one.mean()) for one in likelihoods]


# ---- scores


def token_f1(said: Sequence[int], span: Sequence[int]) -> float:
    """Harmonic mean of precision and recall of the tokens, as bags: order does not count.

    >>> token_f1([5, 6, 7], [7, 8, 5]), token_f1([], [7])
    (0.6666666666666666, 0.0)
    """
    common = sum((Counter(said) & Counter(span)).values())
    return 2 * common / (len(said) + len(span))


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error; the error is None for fewer than two values.

    >>> mean_and_error([1.0, 0.0, 1.0, 1.0, 0.0])  # for right and wrong, as statistics.standard_error has it
    (0.6, 0.2449489742783178)
    """
    n, mean = len(values), math.fsum(values) / len(values)
    if n < 2:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)


def _values(questions: Sequence[Question], answers: Sequence[_Answer]) -> dict[str, list[float]]:
    blanks = [
        [(said, span.tolist()) for said, span in zip(answer.said, question.spans, strict=True)]
        for question, answer in zip(questions, answers, strict=True)
    ]
    return {
        EXACT: [sum(said == span for said, span in of_one) / len(of_one) for of_one in blanks],
        F1: [sum(token_f1(said, span) for said, span in of_one) / len(of_one) for of_one in blanks],
        NATS: [answer.nats for answer in answers],
    }


# ---- results as plain data


def _summary(values: Values) -> dict[str, float | None]:
    """Means and standard errors, in percent where that is the unit."""
    found: dict[str, float | None] = {}
    for metric, of_questions in values.items():
        mean, error = mean_and_error([_PERCENT[metric] * value for value in of_questions])
        found |= {metric: mean, f"{metric}_stderr": error}
    return found


def _text_result(nats: list[float]) -> dict[str, float | None]:
    return {**_summary({NATS: nats}), "perplexity": math.exp(mean_and_error(nats)[0])}


def _task_result(
    question: Question, values: Mapping[str, Values], answers: Mapping[str, Sequence[_Answer]], native: str
) -> dict[str, Any]:
    count, exact = len(question.starts), values[native][EXACT]
    unread = {form: sum(one.unread for one in answers[form]) for form in answers}
    forms: dict[str, Any] = {form: {**_summary(values[form]), "unread": unread[form]} for form in values}
    # Three blanks of one passage are not three draws: they have no Wilson interval.
    interval = [100 * end for end in wilson_interval(int(sum(exact)), len(exact))] if count == 1 else None
    return {
        "score": forms[native][EXACT],
        "stderr": forms[native][f"{EXACT}_stderr"],
        "interval": interval,
        "n": len(exact),
        "unread": unread[native],
        "chance": 0.0,
        "suite": SUITE,
        "group": f"{SUITE}, {'one blank' if count == 1 else f'{count} blanks'}",
        "split": SPLIT,
        "shots": 0,
        "layout": native,
        "metric": EXACT,
        "forms": forms,
    }


def _sample_lines(
    name: str,
    questions: Sequence[Question],
    answers: Mapping[str, Sequence[_Answer]],
    values: Mapping[str, Values],
    task: Mapping[str, Any],
    tokenizer: Tokenizer,
) -> list[str]:
    samples = [
        {
            "suite": SUITE,
            "task": name,
            "group": task["group"],
            "id": question.id,
            "form": form,
            "prompt": GAP.join(tokenizer.decode(part) for part in question.shown),
            "output": _joined(tokenizer, answers[form][number].said),
            "extracted": [tokenizer.decode(said) for said in answers[form][number].said],
            "target": _joined(tokenizer, question.spans),
            "correct": values[form][EXACT][number] == 1,
            **{metric: values[form][metric][number] for metric in METRICS},
        }
        for form in answers
        for number, question in enumerate(questions)
    ]
    return [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]


def _joined(tokenizer: Tokenizer, spans: Sequence[Any]) -> str:
    return " | ".join(tokenizer.decode(span) for span in spans)


# ---- two models


def compare_infilling(base: Infilling, other: Infilling) -> dict[str, Any]:
    """`other` minus `base` on the same spans, paired by passage: {"tasks", "means", "causal_text"}.

    "tasks": for each task, `other` in its native form against each form of `base` without a mode token. "means": the
    same for the mean over span lengths, by number of blanks. "causal_text": plain text read causally, where both can.
    Each holds, by metric, {"difference", "low", "high", "p_value", "n"}, see `paired_difference`; exact match and F1 in
    percent; fewer nats per token are better.
    """
    names = list(other.native)
    forms = [form for form in base.values[names[0]] if "[" not in form]
    ours = {name: other.values[name][other.native[name]] for name in names}
    group_of = {name: other.result["tasks"][name]["group"] for name in names}
    members = {group: [name for name in names if group_of[name] == group] for group in group_of.values()}
    return {
        "tasks": {name: {form: _differences(base.values[name][form], ours[name]) for form in forms} for name in names},
        "means": {
            group: {
                form: _differences(
                    _over_lengths([base.values[name][form] for name in members[group]]),
                    _over_lengths([ours[name] for name in members[group]]),
                )
                for form in forms
            }
            for group in members
        },
        "causal_text": {
            mode: _differences({NATS: base.causal_text[NO_MODE]}, {NATS: nats})[NATS]
            for mode, nats in other.causal_text.items()
            if base.causal_text
        },
    }


def _over_lengths(values: Sequence[Values]) -> Values:
    """Per passage, the mean over span lengths: what is asked about one passage is not independent."""
    return {
        metric: [math.fsum(lengths) / len(lengths) for lengths in zip(*(one[metric] for one in values), strict=True)]
        for metric in METRICS
    }


def _differences(base: Values, other: Values) -> dict[str, Any]:
    """`other` minus `base`, by metric."""
    scaled = ([[_PERCENT[metric] * value for value in values[metric]] for values in (other, base)] for metric in base)
    return {metric: vars(paired_difference(*pair)) for metric, pair in zip(base, scaled, strict=True)}
