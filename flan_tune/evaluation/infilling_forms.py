"""How a model is asked for what was taken out of a text, and how its answer is read: token ids, no model.

    left         the text up to the blank, to be continued: all that a causal model is trained for
    prompt       the passage with its gaps in plain text, a request, then the text up to the blank
    sentinels    the passage with a sentinel for each blank, answered by sentinel 0, span 0, sentinel 1, ...

Each may stand behind a mode token: "sentinels [NLU]", and "left [S2S]", which is the S denoiser's own form.
In "left" and "prompt" the text up to a blank holds the true spans of the blanks before it: where there are several
blanks, that favours a model without sentinels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from flan_tune.evaluation.suites.infilling import Question
from flan_tune.objectives.denoise import corrupt
from flan_tune.objectives.segment import Ids, joined_ids
from flan_tune.tokens.tokenizer import Tokenizer

GAP = " ____ "
REQUEST = "\n\nThe same text with nothing left out:\n"
_ROOM_OF_PROMPT = 64  # positions for what the form "prompt" has besides the passage, twice
_EXTREME_SPAN, _EXTREME_SHARE = 12, 0.3  # UL2 (arXiv:2205.05131), section 3.1.2


class Form(NamedTuple):
    """A way to ask: "left", "prompt" or "sentinels", behind a mode token ("" = none).

    >>> str(Form("sentinels", "[NLU]")), str(Form("left"))
    ('sentinels [NLU]', 'left')
    """

    view: str
    mode: str = ""

    def __str__(self) -> str:
        return f"{self.view} {self.mode}".rstrip()


class Ask(NamedTuple):
    """One blank asked for: what the model reads, what it should say, and where in that the span lies."""

    prompt: list[int]
    answer: list[int]
    start: int
    stop: int


def forms_of(tokenizer: Tokenizer, blanks: int, passage_tokens: int, max_positions: int | None) -> list[Form]:
    """The forms in which a model can be asked: some need sentinels or mode tokens, and "prompt" needs positions for
    the passage twice."""
    modes = tokenizer.mode_ids
    forms = [Form("left"), *(Form("left", mode) for mode in ("[S2S]",) if mode in modes)]
    if max_positions is None or 2 * passage_tokens + _ROOM_OF_PROMPT <= max_positions:
        forms.append(Form("prompt"))
    if len(tokenizer.sentinel_ids) >= blanks:
        forms += [Form("sentinels"), *(Form("sentinels", mode) for mode in ("[NLU]", "[NLG]") if mode in modes)]
    return forms


def native_form(question: Question, tokenizer: Tokenizer) -> Form:
    """The form in which a model was trained to answer: sentinels if it has them, else the text on the left.

    Its mode token, if there are any, is [NLG] for what UL2 calls extreme (spans of 12 tokens or more, or 30 % of the
    text hidden), [NLU] for the rest.
    """
    count = len(question.starts)
    if len(tokenizer.sentinel_ids) < count:
        return Form("left")
    share = count * question.length / len(question.passage.ids)
    mode = "[NLG]" if question.length >= _EXTREME_SPAN or share >= _EXTREME_SHARE else "[NLU]"
    return Form("sentinels", mode if mode in tokenizer.mode_ids else "")


def head_ids(tokenizer: Tokenizer, mode: str) -> list[int]:
    """What stands before any text: BOS if the tokenizer has one, then the mode token, if any."""
    return [one for one in (tokenizer.bos_id, tokenizer.mode_ids[mode] if mode else None) if one is not None]


def asks(form: Form, question: Question, tokenizer: Tokenizer, *, encoder_decoder: bool = False) -> list[Ask]:
    """One ask for each blank. In the form "sentinels" all have the same prompt and answer.

    encoder_decoder: the prompt is what an encoder reads, so EOS ends it.

    With BOS 1, [NLU] 90, sentinels 99 98, and 10..19 with the blanks 12 13 and 16 17, "sentinels [NLU]" gives

        prompt 1 90 10 11 99 14 15 98 18 19, answer 99 12 13 98 16 17 with spans at 1..3 and 4..6

    and "left" the prompts 1 10 11 (answer 12 13) and 1 10 11 12 13 14 15 (answer 16 17).
    """
    head, end = head_ids(tokenizer, form.mode), [tokenizer.eos_id] if encoder_decoder else []
    if form.view == "sentinels":
        return _sentinel_asks(head, end, question, tokenizer)
    if form.view == "prompt":
        head += joined_ids(*_with_gaps(question, tokenizer)).tolist()
    lefts = [question.passage.ids[:start].tolist() for start in question.starts]
    return [
        Ask(head + left + end, span.tolist(), 0, question.length)
        for left, span in zip(lefts, question.spans, strict=True)
    ]


def _sentinel_asks(head: list[int], end: list[int], question: Question, tokenizer: Tokenizer) -> list[Ask]:
    inputs, targets = corrupt(question.passage.ids, question.mask, tokenizer.sentinel_ids)
    prompt, answer = head + inputs.tolist() + end, targets.tolist()
    step = question.length + 1  # a sentinel and its span
    return [Ask(prompt, answer, k * step + 1, (k + 1) * step) for k in range(len(question.starts))]


def _with_gaps(question: Question, tokenizer: Tokenizer) -> list[Ids]:
    gap, request = tokenizer.encode_batch([GAP, REQUEST])
    first, *others = question.shown
    return [first, *(part for other in others for part in (gap, other)), request]


def read_blanks(output: Sequence[int], sentinels: Sequence[int], count: int) -> list[list[int] | None]:
    """What an output says for each of `count` blanks: the tokens between its sentinel and the next one; None where its
    sentinel is missing. If a sentinel comes twice, the first counts.

    >>> read_blanks([99, 5, 6, 98, 98, 7], sentinels=[99, 98, 97], count=3)
    [[5, 6], [], None]
    """
    pool = set(sentinels)
    places = [place for place, token in enumerate(output) if token in pool]
    said: dict[int, list[int]] = {}
    for place, end in pairwise([*places, len(output)]):
        said.setdefault(output[place], list(output[place + 1 : end]))
    return [said.get(sentinel) for sentinel in sentinels[:count]]
