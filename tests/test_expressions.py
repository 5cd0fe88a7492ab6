"""Expressions in Python: whatever the values, they give what Jinja gives, or nothing."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from card_rows import rows_of_checks
from hypothesis import given, settings
from hypothesis import strategies as st
from jinja2.parser import Parser

from flan_tune import wording
from flan_tune.errors import CardError, RowError
from flan_tune.expressions import Compiler
from flan_tune.tasks.adapters import ADAPTERS
from flan_tune.tasks.catalog import load_catalog
from flan_tune.wording import pick

SOURCES = """
    a ; a.b ; a['b'] ; a[0] ; a[-1] ; a[1:] ; a[:-1] ; a[::2] ; a[b] ; a.b.c ; a['b']['c'] ; a._b ; a.keys ; [a, [1, b]]
    a.strip() ; a.strip('x') ; a.split('x') ; a.partition(' ')[0] ; a.replace('a', 'b') ; a.index('a') ; a.count(b)
    a.get('b') ; a.get('b', 1) ; a.values() ; a.items() ; a.join(b) ; ' '.join(a) ; a.removeprefix('x').upper()
    pick(['x', 'y'], a) ; pick(a, b) ; a and b ; a or b ; not a ; a or '' ; (a or '').strip() ; a ~ b ; a ~ 'x' ~ b
    a == b ; a != b ; a < b ; a <= 1 ; a > b ; a >= 'x' ; a in b ; a not in b ; 1 < a < 3 ; a + b ; a - b ; a * b
    a // b ; a / b ; a % b ; -a ; a ** 2 ; 'x' if a else b ; b if a ; a is defined ; c is defined ; c is not defined
    a is string ; a is mapping ; a is none ; a is boolean ; a is sameas b ; c ; c or a ; a or c ; a and c
    a.__class__ ; self ; pick ; a.format(b) ; a.upper ; a.encode() ; a.sort() ; a.append(1) ; none ; true
    {'x': a}['x'] ; (a, b) ; (a, b)[0] ; a|trim ; a|lower ; a|upper ; a|length ; a|count ; a|list ; a|join ; a|join(b)
    a|join(', ') ; a|replace('x', b) ; a|unique ; a|unique|list ; a|select|list ; a|reject|list ; a|map('trim')|list
    a|map('lower')|join(' ') ; a|map('length')|list ; a|map('join')|list ; a|map('upper') ; a|map('trim')|length
    a|map(attribute='b')|list ; a|first ; a|int ; a|select('string')|list ; a|default('x') ; a|trim('x') ; a|sort
    a|string ; [a, b]|join ; [a, b]|select|list|length
"""
leaves = st.none() | st.booleans() | st.integers(-3, 3) | st.floats(-2, 2) | st.text("aAxb é\n", max_size=4)
values = st.recursive(
    leaves,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["b", "_b", "keys"]), inner, max_size=2)
    ),
    max_leaves=5,
)


@cache
def of_cards() -> list[str]:
    """Every text and expression of the shipped cards, as it stands there."""
    found = set()
    for task in load_catalog().values():
        for value in [*task.adapt.values(), *([task.keep] if task.keep else [])]:
            found |= set(value if isinstance(value, list) else [value])
    return sorted(found)


def compiled(source: str) -> Any:
    return Compiler({"pick": pick}).compile(Parser(wording._environment(), source, state="variable").parse_expression())


def outcome(function: Any, row: dict[str, Any]) -> tuple[Any, str]:
    """(what it gives, why it drops the row); the first is None for anything that is left to Jinja."""
    try:
        found = function(row)
    except RowError as error:
        return None, error.reason
    except Exception:
        return None, ""
    return (type(found), repr(found)) if type(found) in wording._SIMPLE else None, ""


def check(source: str, row: dict[str, Any]) -> None:
    """Python gives the same, or leaves it to Jinja."""
    function = compiled(source)
    found = outcome(function, row) if function is not None else (None, "")
    if found != (None, ""):
        assert found == outcome(wording._environment().compile_expression(source, undefined_to_none=False), row)


@settings(max_examples=1000, deadline=None)
@given(source=st.sampled_from([one.strip() for one in SOURCES.replace("\n", ";").split(";")]), a=values, b=values)
def test_python_says_what_jinja_says(source: str, a: Any, b: Any) -> None:
    check(source or "a", {"a": a, "b": b})


@cache
def both_ways(source: str) -> tuple[wording.Render, wording.Render]:
    """(as it is compiled, by Jinja alone) for a text or an expression as a card has it."""
    compile_ = wording.compile_expression if source.startswith("=") else wording.compile_text
    source = source.removeprefix("=").strip() if source.startswith("=") else source
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Compiler, "compile", lambda self, node: None)
        by_jinja = compile_.__wrapped__(source, "x")
    return compile_(source, "x"), by_jinja


def test_cards_say_the_same_of_the_rows_they_are_checked_by() -> None:
    """Whatever they say: that a row has no label, too."""
    gave: set[str] = set()
    for task, row in rows_of_checks():
        try:
            values = {**row, **(ADAPTERS[task.adapter](row) if task.adapter else {})}
        except RowError:
            continue  # this is a row of another task of the card
        for name, value in [("keep", task.keep or "=1"), *task.adapt.items()]:
            sources = value if isinstance(value, list) else [value]
            for source in sources:
                either, by_jinja = both_ways(source)
                assert said(either, values) == said(by_jinja, values), (task.name, name)
            try:
                found = [both_ways(source)[0](values) for source in sources]
            except (CardError, RowError):
                break
            values[name] = found if isinstance(value, list) else found[0]
            gave.update(sources)
    assert gave >= set(of_cards())


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_cards_say_the_same_by_either_way(data: st.DataObject) -> None:
    """Messages too, where they say that something is wrong."""
    source = data.draw(st.sampled_from(of_cards()))
    is_expression = source.startswith("=")
    names = sorted(wording.names_used("{{ " + source[1:] + " }}" if is_expression else source))
    row = {name: data.draw(values) for name in names if data.draw(st.integers(0, 3))}
    either, by_jinja = both_ways(source)
    assert said(either, row) == said(by_jinja, row)


def said(render: wording.Render, row: dict[str, Any]) -> str:
    try:
        return repr(render(row))
    except (CardError, RowError) as error:
        return f"{type(error).__name__} {error}"


@pytest.mark.parametrize(
    ("source", "row", "said"),
    [
        ("a.strip()", {"a": " x\n"}, "x"),
        ("pick(options, label)", {"options": ["yes", "no"], "label": 1}, "no"),
        ("choices.text | map('trim') | list", {"choices": {"text": [" a", "b "]}}, ["a", "b"]),
        ("(answer or '').strip()", {"answer": None}, ""),
        ("turns[:-1] if turns | length > 1 else turns", {"turns": ["a", "b"]}, ["a"]),
        ("question.partition('?')[0] ~ '?'", {"question": "Who? I."}, "Who?"),
    ],
)
def test_what_cards_do_most_is_known(source: str, row: dict[str, Any], said: Any) -> None:
    function = compiled(source)
    assert function is not None
    assert function(row) == said


@pytest.mark.parametrize("source", ["a.append(1)", "a.format(1)", "a.__class__", "a._b()", "self", "a|attr('b')"])
def test_what_the_sandbox_guards_is_left_to_it(source: str) -> None:
    assert compiled(source) is None
