"""From fields to an example: a presentation (role, shots, options) applied by keyed draws.

A presentation is an operator over wordings, named in mixtures:

    zero_shot  zero_shot_no_options  few_shot  few_shot_no_options  cot  cot_few_shot  statement
    question  explanation  question_and_answer           (the inversions, zero-shot)

Every choice has a key of its own (seed, purpose, task, epoch, row), so none of them shifts another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from flan_tune.errors import RowError
from flan_tune.prompts.exemplars import draw_exemplars
from flan_tune.prompts.template import STATEMENT, ExemplarStyle, Template, TemplateSet, load_styles
from flan_tune.rng import Draws, key
from flan_tune.sources.rows import TaskRows
from flan_tune.tasks.adapters import Fields
from flan_tune.tasks.task import Task


@dataclass(frozen=True)
class Presentation:
    """How a row is shown: what is asked (`role`), with exemplars or not, with its options listed or not."""

    name: str
    role: str
    few_shot: bool = False
    options: bool = True


PRESENTATIONS: Mapping[str, Presentation] = {
    p.name: p
    for p in (
        Presentation("zero_shot", "answer"),
        Presentation("zero_shot_no_options", "answer", options=False),
        Presentation("few_shot", "answer", few_shot=True),
        Presentation("few_shot_no_options", "answer", few_shot=True, options=False),
        Presentation("cot", "reason_then_answer"),
        Presentation("cot_few_shot", "reason_then_answer", few_shot=True),
        Presentation("question", "question"),
        Presentation("explanation", "explanation"),
        Presentation("question_and_answer", "question_and_answer"),
        Presentation(STATEMENT, STATEMENT, few_shot=True, options=False),
    )
}
OPTION_STYLES = ("dashes", "letters")
_NEEDS_RATIONALE = ("reason_then_answer", "explanation")


@dataclass(frozen=True)
class Example:
    """One prompt as text, with where it came from. `exemplars` are (input, target) pairs, shown before the query.

    `exemplar_rows` are their row numbers; `options_style` is '' when no options are shown.
    """

    inputs: str
    targets: str
    task: str
    row: int
    epoch: int
    presentation: str
    role: str
    template: str
    options_style: str = ""
    head: str = ""
    exemplars: tuple[tuple[str, str], ...] = ()
    exemplar_rows: tuple[int, ...] = ()
    style: ExemplarStyle | None = None

    @property
    def shots(self) -> int:
        """How many exemplars are shown."""
        return len(self.exemplars)

    def with_shots(self, shots: int) -> Example:
        """The same example with only its first `shots` exemplars; without any it is a zero-shot prompt."""
        return replace(self, exemplars=self.exemplars[:shots], exemplar_rows=self.exemplar_rows[:shots])

    def text(self) -> tuple[str, str]:
        """(inputs, targets) as the model sees them.

        With one exemplar ("2+2?", "4") and the style ("Q: ", "\\nA:", "\\n\\n") the query "1+1?" gives
        inputs "Q: 2+2?\\nA:\\n4\\n\\nQ: 1+1?\\nA:".
        """
        if self.role == STATEMENT:
            return "", "\n".join([*(target for _, target in self.exemplars), self.targets])
        parts = [f"{self.head}\n\n"] if self.head else []
        if not self.exemplars or self.style is None:
            return "".join([*parts, self.inputs]), self.targets
        style = self.style
        for shown, answer in self.exemplars:
            parts.append(f"{style.input_prefix}{shown}{style.delimiter}\n{answer}{style.separator}")
        return "".join([*parts, f"{style.input_prefix}{self.inputs}{style.delimiter}"]), self.targets


def render_options(options: Sequence[str], style: str) -> str:
    """The block of options. dashes: 'Options:' and one '- ' line each; letters: '(A) ' and so on.

    >>> render_options(["yes", "no"], "letters")
    '(A) yes\\n(B) no'
    """
    if style == "letters":
        return "\n".join(f"({chr(ord('A') + i)}) {option}" for i, option in enumerate(options))
    return "\n".join(["Options:", *(f"- {option}" for option in options)])


def can_show(task: Task, templates: TemplateSet, presentation: str) -> bool:
    """Whether a task has wordings for what this presentation asks, and the rationale it needs. Looks at no rows."""
    if task.shape.name == "document":
        return presentation == STATEMENT
    role = PRESENTATIONS[presentation].role
    has_rationale = not task.adapt or "rationale" in task.adapt  # a generator's rows are fields, with a rationale
    return role in templates.by_role and (has_rationale or role not in _NEEDS_RATIONALE)


class Presenter:
    """Shows the rows of one task. `shots`: least and most exemplars of a few-shot prompt, drawn uniformly."""

    def __init__(self, rows: TaskRows, templates: TemplateSet, *, seed: int, shots: tuple[int, int] = (1, 4)) -> None:
        self.rows = rows
        self.templates = templates
        self.seed = seed
        self.shots = shots
        self.name = rows.task.name

    def supports(self, presentation: str) -> bool:
        """Whether the task can be shown so: `can_show`, and rows enough for exemplars."""
        has_others = len(self.rows) > 1 or self.rows.task.shape.name == "document"
        shown = PRESENTATIONS[presentation]
        return can_show(self.rows.task, self.templates, presentation) and (not shown.few_shot or has_others)

    def _draws(self, purpose: str, epoch: int, row: int) -> Draws:
        return Draws(key(self.seed, purpose, self.name, epoch, row))

    def choose(self, shares: Mapping[str, float], epoch: int, row: int) -> str:
        """A presentation by its share among those the task supports.

        Raises: RowError 'no presentation' if it supports none of them.
        """
        supported = [name for name in shares if shares[name] > 0 and self.supports(name)]
        if not supported:
            raise RowError("no presentation", f"task {self.name!r} supports none of {sorted(shares)}")
        draws = self._draws("presentation", epoch, row)
        return supported[draws.weighted([shares[name] for name in supported])]

    def example(self, row: int, epoch: int, presentation: str, shots: int | None = None, template: str = "") -> Example:
        """Row `row` shown by `presentation`. `shots` and `template` (an id) replace the draws.

        Raises: RowError if the row lacks what the presentation needs.
        """
        shown = PRESENTATIONS[presentation]
        fields = self._fields(row, epoch, shown)
        if self.rows.task.shape.name == "document":
            return Example("", fields["answer"], self.name, row, epoch, presentation, STATEMENT, "")
        chosen = self._template(row, epoch, shown.role, template)
        style = self._options_style(row, epoch, fields, shown)
        example = Example(
            inputs=chosen.render_input(fields, _choices(fields, style)),
            targets=chosen.render_target(fields),
            task=self.name,
            row=row,
            epoch=epoch,
            presentation=presentation,
            role=shown.role,
            template=chosen.id,
            options_style=style,
            head=chosen.render_head(fields),
        )
        if not example.targets:
            raise RowError("empty target", f"task {self.name!r}, row {row}")
        return self._with_exemplars(example, chosen, shown, shots) if shown.few_shot else example

    def _fields(self, row: int, epoch: int, shown: Presentation) -> Fields:
        fields = self.rows.fields(row)
        if shown.role in _NEEDS_RATIONALE and not fields.get("rationale", "").strip():
            raise RowError("no rationale", f"task {self.name!r}, row {row}")
        references = fields.get("references")
        if references:
            fields = {**fields, "answer": self._draws("reference", epoch, row).choice(references)}
        return fields

    def _template(self, row: int, epoch: int, role: str, wanted: str) -> Template:
        templates = self.templates.by_role.get(role, ())
        named = [t for t in templates if t.id == wanted]
        if not templates or (wanted and not named):
            raise RowError("no template", f"task {self.name!r} has no template {wanted or role!r}")
        return named[0] if named else self._draws("template", epoch, row).choice(templates)

    def _options_style(self, row: int, epoch: int, fields: Fields, shown: Presentation) -> str:
        if not shown.options or "options" not in fields or shown.role not in ("answer", "reason_then_answer"):
            return ""
        return self._draws("options", epoch, row).choice(OPTION_STYLES)

    def _with_exemplars(self, example: Example, template: Template, shown: Presentation, shots: int | None) -> Example:
        wanted = self._draws("shots", example.epoch, example.row).integer(*self.shots) if shots is None else shots

        def show(row: int) -> tuple[str, str] | None:
            try:
                fields = self._fields(row, example.epoch, shown)
            except RowError:
                return None
            choices = _choices(fields, example.options_style)
            shown_input, answer = template.render_input(fields, choices), template.render_target(fields)
            return (shown_input, answer) if answer else None

        found = draw_exemplars(
            self._draws("exemplar", example.epoch, example.row),
            row=example.row,
            query=(example.inputs, example.targets),
            num_rows=len(self.rows),
            shots=wanted,
            show=show,
        )
        return replace(
            example,
            exemplars=tuple(pair for _, pair in found),
            exemplar_rows=tuple(row for row, _ in found),
            style=self._draws("style", example.epoch, example.row).choice(_fitting_styles(template)),
        )


def _fitting_styles(template: Template) -> list[ExemplarStyle]:
    """A wording with a head names its inputs itself: a second prefix would read 'Question: Input: ...'."""
    return [style for style in load_styles() if not (template.head and style.input_prefix)]


def _choices(fields: Mapping[str, Any], style: str) -> str:
    return render_options(fields["options"], style) if style and "options" in fields else ""
