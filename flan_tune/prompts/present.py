"""From fields to an example: a presentation (role, shots, options) applied by keyed draws.

Every choice has a key of its own, (seed, purpose, task, epoch, row), so none of them shifts another. What there is to
draw: presentations in presentations.py, wordings in template.py, layouts in styles.py, exemplars in exemplars.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, NamedTuple

from flan_tune.errors import RowError
from flan_tune.prompts.example import Example
from flan_tune.prompts.exemplars import Pair, draw_exemplars, what_is_asked
from flan_tune.prompts.presentations import ANSWERING, PRESENTATIONS, Presentation
from flan_tune.prompts.styles import (
    OPTION_FORMS,
    DialogStyle,
    ExemplarStyle,
    OptionStyle,
    draw_dialog_style,
    draw_option_style,
    fitting_styles,
    is_labelled,
)
from flan_tune.prompts.template import INLINE_EXAMPLE, STATEMENT, Template, TemplateSet, supplied_names
from flan_tune.rng import Draws, extend, key
from flan_tune.sources.rows import TaskRows
from flan_tune.tasks.adapters import Fields
from flan_tune.tasks.task import Task

__all__ = ["PRESENTATIONS", "Example", "Presenter", "can_show"]

_LAST_TURN = 20  # the last one that is drawn as an answer, as in the Flan collection
_ASKING = ("question", "question_and_answer")
_FEWEST_MIXED = 2
# Their targets are answers to something, which exemplars may call a question or a problem; a summary is none, and what
# a prompt or an instruction asks for may itself be a question.
_QUESTIONS = frozenset(
    "question_answer multiple_choice reading entailment fact_check classification text_pair coreference".split()
)


class _Layout(NamedTuple):
    """How the parts of one prompt are laid out, alike for the row and its exemplars."""

    options: OptionStyle | None
    dialog: DialogStyle | None


def can_show(task: Task, templates: TemplateSet, presentation: str) -> bool:
    """Whether a task has wordings for what this presentation asks, and the fields they need. Looks at no rows."""
    return _can_show(task, templates, presentation, supplied_names(task))


def _can_show(task: Task, templates: TemplateSet, presentation: str, supplied: AbstractSet[str]) -> bool:
    if task.shape.name == "document":
        return presentation == STATEMENT
    shown = PRESENTATIONS[presentation]
    wordings = templates.usable(shown.role, supplied)
    return bool(wordings) and (not shown.mixed or len(_mixable(wordings)) >= _FEWEST_MIXED)


def _mixable(wordings: Sequence[Template]) -> list[Template]:
    return [one for one in wordings if one.is_mixable]


class Presenter:
    """Shows the rows of one task.

    shots: least and most exemplars of a few-shot prompt, drawn uniformly, where its presentation does not say.
    option_forms: the kinds of lists that options are shown as; each is drawn alike often.
    """

    def __init__(
        self,
        rows: TaskRows,
        templates: TemplateSet,
        *,
        seed: int,
        shots: tuple[int, int] = (1, 4),
        option_forms: Sequence[str] = OPTION_FORMS,
    ) -> None:
        self.rows = rows
        self.templates = templates
        self.seed = seed
        self.shots = shots
        self.option_forms = tuple(option_forms)
        self.name = rows.task.name
        self._shape = rows.task.shape.name
        self._epoch: int | None = None
        self._keys: dict[str, int] = {}  # of this epoch, by purpose
        self._wordings: dict[str, tuple[Template, ...]] = {}
        self._supported: dict[str, bool] = {}
        self._shares: dict[tuple[tuple[str, float], ...], tuple[list[str], list[float]]] = {}
        given = rows.task.adapt or rows.fields(0)  # a generator's rows are fields
        self._supplied = supplied_names(rows.task, given)

    def supports(self, presentation: str) -> bool:
        """Whether the task can be shown so: `can_show`, and rows enough for exemplars."""
        if presentation not in self._supported:
            has_others = len(self.rows) > 1 or self._shape == "document"
            able = _can_show(self.rows.task, self.templates, presentation, self._supplied)
            self._supported[presentation] = able and (has_others or not PRESENTATIONS[presentation].few_shot)
        return self._supported[presentation]

    def choose(self, shares: Mapping[str, float], epoch: int, row: int) -> str:
        """A presentation by its share among those the task supports.

        Raises: RowError 'no presentation' if it supports none of them.
        """
        whole = tuple(shares.items())
        if whole not in self._shares:
            names = [name for name, share in whole if share > 0 and self.supports(name)]
            self._shares[whole] = names, [shares[name] for name in names]
        names, of_names = self._shares[whole]
        if not names:
            raise RowError("no presentation", f"task {self.name!r} supports none of {sorted(shares)}")
        return names[self._draws("presentation", epoch, row).weighted(of_names)] if len(names) > 1 else names[0]

    def example(self, row: int, epoch: int, presentation: str, shots: int | None = None, template: str = "") -> Example:
        """Row `row` shown by `presentation`. `shots` and `template` (an id) replace the draws.

        Raises: RowError if the row lacks what the presentation needs.
        """
        shown = PRESENTATIONS[presentation]
        raw = self.rows.fields(row)
        if self._shape == "document":
            text, family = raw["answer"], self.rows.task.family
            return Example("", text, self.name, row, epoch, presentation, STATEMENT, "", family=family)
        wording = self._template(row, epoch, shown.role, template)
        fields = self._prepare(raw, row, epoch, wording)
        layout = self._layout(row, epoch, fields, shown, wording)
        inputs, targets = _render(wording, fields, layout)
        if not targets:
            raise RowError("empty target", f"task {self.name!r}, row {row}")
        found: list[tuple[int, Pair]] = []
        style = None
        if shown.few_shot:
            found = self._exemplars(row, epoch, raw, shown, wording, layout, shots)
            style = self._stacking(row, epoch, inputs, wording)
        return Example(
            inputs=inputs,
            targets=targets,
            task=self.name,
            row=row,
            epoch=epoch,
            presentation=presentation,
            role=shown.role,
            template=wording.id,
            options_style=layout.options.name if layout.options else "",
            head=wording.render_head(fields),
            exemplars=tuple([pair for _, pair in found]),
            exemplar_rows=tuple([number for number, _ in found]),
            style=style,
            family=self.rows.task.family,
            turn=fields.get("turn"),
            dialog_style=layout.dialog.name if layout.dialog else "",
        )

    def _draws(self, purpose: str, epoch: int, row: int) -> Draws:
        """Draws for key(seed, purpose, task, epoch, row); all but the row stays the same for a long time."""
        if epoch != self._epoch:
            self._epoch, self._keys = epoch, {}
        if purpose not in self._keys:
            self._keys[purpose] = key(self.seed, purpose, self.name, epoch)
        return Draws(extend(self._keys[purpose], row))

    def _usable(self, role: str) -> tuple[Template, ...]:
        if role not in self._wordings:
            self._wordings[role] = self.templates.usable(role, self._supplied)
        return self._wordings[role]

    def _template(self, row: int, epoch: int, role: str, wanted: str) -> Template:
        wordings = self._usable(role)
        if wanted:
            wordings = tuple(one for one in wordings if one.id == wanted)
        if not wordings:
            raise RowError("no template", f"task {self.name!r} has no template {wanted or role!r}")
        return self._draws("template", epoch, row).choice(wordings)

    def _prepare(self, raw: Fields, row: int, epoch: int, wording: Template) -> Fields:
        """The fields as a wording shows them: with a drawn reference, the answered turn, the inline example."""
        if "rationale" in wording.names and not raw.get("rationale", "").strip():
            raise RowError("no rationale", f"task {self.name!r}, row {row}")
        references = raw.get("references")
        fields = {**raw, "answer": self._draws("reference", epoch, row).choice(references)} if references else raw
        if self._shape == "dialog":
            return self._answered_turn(fields, row, epoch, wording.role)
        if wording.role == INLINE_EXAMPLE:
            return {**fields, "example": self._first_example(fields, row)}
        return fields

    def _answered_turn(self, fields: Fields, row: int, epoch: int, role: str) -> Fields:
        """Which turn is the answer, the one before it as `question`, and as `turns` those that are shown."""
        turns: list[str] = fields["turns"]
        added: Fields = {}
        if "answer" not in fields:
            last = min(_LAST_TURN, len(turns) - 1)
            least = 2 if role in _ASKING and last > 1 else 1  # so that something is shown before the question
            turn = self._draws("turn", epoch, row).integer(least, last)
            added = {"turn": turn, "answer": turns[turn]}
            turns = turns[:turn]
        return {**fields, **added, "question": turns[-1], "turns": turns[:-1] if role in _ASKING else turns}

    def _first_example(self, fields: Fields, row: int) -> Mapping[str, Any]:
        """The first example, unless it is the row itself."""
        for example in fields.get("examples", ()):
            if example["input"].strip() != fields["input"].strip():
                shown: Mapping[str, Any] = example
                return shown
        raise RowError("no example", f"task {self.name!r}, row {row}")

    def _layout(self, row: int, epoch: int, fields: Fields, shown: Presentation, wording: Template) -> _Layout:
        options = dialog = None
        if shown.options and "options" in fields and (shown.role in ANSWERING or "choices" in wording.names):
            of_row = fields["options"]
            may_be_marker = shown.role == "answer" and fields["answer"] in of_row
            draws = self._draws("options", epoch, row)
            options = draw_option_style(draws, self.option_forms, of_row, markers=may_be_marker)
        if self._shape == "dialog":
            dialog = draw_dialog_style(self._draws("dialog", epoch, row))
        return _Layout(options, dialog)

    def _exemplars(
        self,
        row: int,
        epoch: int,
        raw: Fields,
        shown: Presentation,
        wording: Template,
        layout: _Layout,
        shots: int | None,
    ) -> list[tuple[int, Pair]]:
        mixed = _mixable(self._usable(shown.role)) if shown.mixed else []
        mix = self._draws("mixed template", epoch, row) if mixed else None

        def show(other: int) -> tuple[Any, Pair] | None:
            own = mixed[mix.at(other, len(mixed))] if mix else wording
            try:
                its = self.rows.fields(other)
                fields = self._prepare(its, other, epoch, own)
            except RowError:
                return None
            if not _fits(layout.options, fields):
                return None
            pair = _render(own, fields, layout)
            return (what_is_asked(its), pair) if pair[1] else None

        least, most = shown.shots or self.shots
        wanted = shots
        if wanted is None:
            wanted = least if least == most else self._draws("shots", epoch, row).integer(least, most)
        return draw_exemplars(
            self._draws("exemplar", epoch, row),
            row=row,
            asked=what_is_asked(raw),
            num_rows=len(self.rows),
            shots=wanted,
            show=show,
        )

    def _stacking(self, row: int, epoch: int, inputs: str, wording: Template) -> ExemplarStyle:
        starts, ends = is_labelled(inputs)
        styles = fitting_styles(
            starts or bool(wording.head),  # the head names the inputs: a prefix would read 'Question: Input: ...'
            ends or self._shape == "dialog",  # it ends with the name of who speaks next
            wording.role in ANSWERING and self._shape in _QUESTIONS,
        )
        return self._draws("style", epoch, row).choice(styles)


def _fits(style: OptionStyle | None, fields: Fields) -> bool:
    """Whether a list like the query's can be made of the options of an exemplar, its answer among them."""
    if style is None or "options" not in fields:
        return True
    return style.fits(len(fields["options"])) and (not style.markers or fields["answer"] in fields["options"])


def _render(wording: Template, fields: Fields, layout: _Layout) -> Pair:
    style = layout.options
    options = fields.get("options") if style else None
    if layout.dialog:
        goes_on = wording.role in ANSWERING
        fields = {**fields, "dialog": layout.dialog.render(fields["turns"], goes_on=goes_on)}
    inputs = wording.render_input(fields, style.render(options) if style and options else "")
    if style and options and style.markers:
        fields = {**fields, "answer": style.markers[options.index(fields["answer"])]}
    return inputs, wording.render_target(fields)
