"""From a row to the fields of a shape: a card's `adapt` mapping, compiled, and the few adapters that need code.

`adapt` values: text with `{{ }}` gives text; a value that begins with `=` is one expression and may give a list;
a list is a list of texts. They see the row's columns and the fields adapted before them. Where a card has `each`, they
see the item as `each` and its place in the list, from 0, as `each_index`. A named adapter runs first and adds columns
of its own; the list of adapters is closed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from flan_tune.errors import CardError, RowError
from flan_tune.wording import Render, compile_expression, compile_text

if TYPE_CHECKING:
    from flan_tune.tasks.task import Task

Row = Mapping[str, Any]
Fields = dict[str, Any]

EACH, EACH_INDEX = "each", "each_index"

_CALCULATOR = re.compile(r"<<[^<>]*>>")


def split_gsm8k(row: Row) -> dict[str, str]:
    """`answer` at its `####` into `final` and `reasoning`; calculator marks and line breaks are taken out.

    >>> split_gsm8k({"answer": "2+2 = <<2+2=4>>4 eggs.\\nDone.\\n#### 4"})
    {'final': '4', 'reasoning': '2+2 = 4 eggs. Done.'}
    """
    reasoning, mark, final = str(row["answer"]).partition("####")
    if not mark:
        raise RowError("no final answer", "there is no '####' in the answer")
    lines = [line.strip() for line in _CALCULATOR.sub("", reasoning).splitlines() if line.strip()]
    sentences = [line if line.endswith(tuple(".!?:,;")) else f"{line}." for line in lines]
    return {"final": final.strip(), "reasoning": " ".join(sentences)}


def split_listed_options(row: Row) -> dict[str, Any]:
    """A question that ends in 'Options:' and a list of dashes, into `stem` and `listed`.

    >>> split_listed_options({"question": "Which?\\nOptions:\\n- a\\n- b"})
    {'stem': 'Which?', 'listed': ['a', 'b']}
    """
    stem, mark, rest = str(row["question"]).partition("\nOptions:\n")
    if not mark:
        raise RowError("no options", "there is no 'Options:' line in the question")
    listed = [line.removeprefix("- ").strip() for line in rest.splitlines() if line.strip()]
    return {"stem": stem.strip(), "listed": listed}


ADAPTERS: Mapping[str, Callable[[Row], Mapping[str, Any]]] = {
    "split_gsm8k": split_gsm8k,
    "split_listed_options": split_listed_options,
}


def compile_adapt(task: Task) -> Callable[[Row], Fields]:
    """A function from a row of `task` to checked fields of its shape.

    It raises RowError for a row that breaks the contract and CardError for a name the rows do not have.
    A task without `adapt` (procedural) gets its rows as they are.
    """
    with_item = _compile_item(task)
    prepare = ADAPTERS[task.adapter] if task.adapter else None
    renders = {name: _compile_value(value, f"{task.where}: adapt.{name}") for name, value in task.adapt.items()}
    named = [name for name in renders if name in task.shape.fields]  # a `prompted` task has names of its own besides

    def adapt(row: Row) -> Fields:
        values = with_item(row)
        if prepare is not None:
            values.update(_prepared(prepare, row, task.where))
        for name, render in renders.items():
            values[name] = render(values)
        fields = {name: values[name] for name in named} if renders else values
        task.shape.check(fields)
        return fields

    return adapt


def compile_keep(task: Task) -> Callable[[Row], bool]:
    """Whether a row is kept: the card's `keep` expression, or always."""
    if task.keep is None:
        return lambda row: True
    render = compile_expression(task.keep.removeprefix("=").strip(), f"{task.where}: keep")
    if task.each is None:
        return lambda row: bool(render(row))
    with_item = _compile_item(task)
    return lambda row: bool(render(with_item(row)))


def compile_each(task: Task) -> Callable[[Row], list[Any]]:
    """The items of a row, by the card's `each`; a card without it has one item for each row.

    It raises RowError for a row of which it gives no list.
    """
    if task.each is None:
        return lambda row: [None]
    render = compile_expression(task.each.removeprefix("=").strip(), f"{task.where}: each")

    def items(row: Row) -> list[Any]:
        found = render(row)
        if not isinstance(found, list):
            raise RowError("unreadable value", f"{task.where}: each gives {found!r:.80}, where a list is wanted")
        return found

    return items


def _compile_item(task: Task) -> Callable[[Row], dict[str, Any]]:
    """The values of a row, with its item where the card has `each`: that of its `each_index`, the first without one."""
    if task.each is None:
        return dict
    items = compile_each(task)

    def with_item(row: Row) -> dict[str, Any]:
        found, place = items(row), row.get(EACH_INDEX, 0)
        if place not in range(len(found)):
            raise RowError("missing element", f"{task.where}: each gives {len(found)} items, none is at {place!r}")
        return {**row, EACH: found[place], EACH_INDEX: place}

    return with_item


def _prepared(prepare: Callable[[Row], Mapping[str, Any]], row: Row, where: str) -> Mapping[str, Any]:
    try:
        return prepare(row)
    except KeyError as error:
        raise CardError(f"{where}: adapter {prepare.__name__!r} reads {error}, the row has {sorted(row)}.") from None


def _compile_value(value: Any, where: str) -> Render:
    if isinstance(value, list):
        renders = [_compile_value(item, where) for item in value]
        return lambda values: [render(values) for render in renders]
    if value.startswith("="):
        return compile_expression(value[1:].strip(), where)
    return compile_text(value, where)
