"""Shapes: the frozen lists of fields a row may be adapted to. A wording is written for a shape, not for a dataset.

Every shape has `answer` (text: what the model should say). Two fields mean the same in every shape:
`options` (list of text, the answer is one of them) and `rationale` (text: the reasoning that leads to the
answer; its presence makes the roles that need one available).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flan_tune.errors import RowError

ROLES = ("answer", "reason_then_answer", "question", "explanation", "question_and_answer")
_LIST_FIELDS = frozenset({"options", "turns", "references", "examples"})


@dataclass(frozen=True)
class Shape:
    """A named list of fields. `required` and `optional` are disjoint; both hold text unless listed as a list."""

    name: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    @property
    def fields(self) -> tuple[str, ...]:
        """All fields, the required ones first."""
        return self.required + self.optional

    def check(self, fields: Mapping[str, Any]) -> None:
        """Raises RowError if `fields` breaks the contract of this shape."""
        for name in self.required:
            if name not in fields:
                raise RowError("missing field", f"{name!r} is not there")
        for name, value in fields.items():
            _check_value(name, value)
        if not fields["answer"].strip():
            raise RowError("empty answer", "the answer is blank")
        if "options" in fields:
            _check_options(fields["options"], fields["answer"])


def _check_value(name: str, value: Any) -> None:
    if name in _LIST_FIELDS:
        if not isinstance(value, list) or not value:
            raise RowError("empty list", f"{name!r} is {value!r}, a list with members is wanted")
    elif not isinstance(value, str):
        raise RowError("not text", f"{name!r} is {value!r}, text is wanted")
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str) and not text.isascii():
            _check_unicode(name, text)


def _check_unicode(name: str, text: str) -> None:
    """JSON may spell half of a surrogate pair, which no tokenizer can read."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RowError("not text", f"{name!r} holds {text[error.start]!r}, half of a surrogate pair") from None


def _check_options(options: list[Any], answer: str) -> None:
    if any(not isinstance(option, str) or not option.strip() for option in options):
        raise RowError("bad options", f"an option is blank or not text: {options!r}")
    if len(set(options)) != len(options):
        raise RowError("bad options", f"two options are equal: {options!r}")
    if answer not in options:
        raise RowError("answer not in options", f"{answer!r} is not one of {options!r}")


def _shape(name: str, required: str, optional: str = "") -> Shape:
    return Shape(name, tuple(required.split()), tuple(optional.split()))


SHAPES: Mapping[str, Shape] = {
    shape.name: shape
    for shape in (
        _shape("question_answer", "question answer", "rationale references"),
        _shape("multiple_choice", "question options answer", "context rationale"),
        _shape("reading", "context question answer", "options rationale references title"),
        _shape("entailment", "premise hypothesis options answer", "rationale"),
        _shape("fact_check", "claim options answer", "rationale"),
        _shape("classification", "text options answer", "rationale"),
        _shape("text_pair", "text_1 text_2 options answer", "rationale"),
        _shape("transform", "text answer", "rationale"),
        _shape("completion", "context answer", "options rationale"),
        _shape("data_to_text", "data answer", "references"),
        _shape("translation", "text source_language target_language answer", "references"),
        _shape("summarization", "document answer", "references"),
        _shape("dialog", "turns answer", "rationale"),
        _shape("instruction", "definition input answer", "references options examples"),
        _shape("document", "answer"),  # plain text: the whole text is the target
    )
}
