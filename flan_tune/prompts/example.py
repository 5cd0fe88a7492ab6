"""One prompt as text, with where it came from."""

from __future__ import annotations

from dataclasses import dataclass, replace

from flan_tune.prompts.styles import ExemplarStyle
from flan_tune.prompts.template import STATEMENT


@dataclass(frozen=True)
class Example:
    """One prompt as text, with where it came from. `exemplars` are (input, target) pairs, shown before the query.

    family, task, row, epoch: what is shown; `turn`: the number of the answered turn, where a dialog had one drawn.
    presentation, role, template: how it is asked; of mixed wordings `template` is the query's.
    options_style: a plain list's name, or 'heading/item/ending' with '/marker' where the target is the marker of an
    option; '' when no options are shown. dialog_style: 'heading/speakers/between'.
    exemplar_rows: the row numbers of the exemplars.
    replaced: how many rows were tried before `row` took a scheduled one's place; 0 for a scheduled row.
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
    family: str = ""
    turn: int | None = None
    dialog_style: str = ""
    replaced: int = 0

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
        head = f"{self.head}\n\n" if self.head else ""
        if not self.exemplars or self.style is None:
            return head + self.inputs, self.targets
        style = self.style
        before, between, after = style.input_prefix, f"{style.delimiter}\n", style.separator
        stacked = "".join([f"{before}{shown}{between}{answer}{after}" for shown, answer in self.exemplars])
        return f"{head}{stacked}{before}{self.inputs}{style.delimiter}", self.targets
