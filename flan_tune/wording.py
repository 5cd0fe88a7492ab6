"""The one sandboxed Jinja environment: text with `{{ }}`, and expressions that begin with `=`.

Both are compiled once and give what they say or raise: an unknown name raises, None raises, and the values of
a row are only ever substituted, never parsed. `pick(options, label)` is the one function offered, because
Python's own indexing takes the last option for a label of -1. Of Jinja's filters only `random` is missing:
draws are rng.py's.

Most texts and expressions are so simple that Python says the same about ten times as fast: see expressions.py. A value
that is not plain text or a number, and every exception, is left to Jinja, so that both ways say the same.
"""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache, wraps
from typing import Any

import jinja2
from jinja2 import StrictUndefined, TemplateSyntaxError, UndefinedError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.parser import Parser
from jinja2.runtime import Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import missing

from flan_tune import expressions
from flan_tune.errors import CardError, RowError
from flan_tune.expressions import Compiler, Evaluate

Render = Callable[[Mapping[str, Any]], Any]

_PLAIN = frozenset({str, int, float})  # Python writes them as Jinja does
_SIMPLE = _PLAIN | {bool, list, dict, type(None)}  # what an expression may give without asking Jinja


def pick(options: Any, label: Any) -> Any:
    """The option a class label names. A label outside [0, n) is 'no label': the row is dropped and counted.

    >>> pick(["Yes", "No"], 1)
    'No'
    """
    if isinstance(label, Undefined):
        label._fail_with_undefined_error()
    if not isinstance(options, list):
        raise TypeError(f"pick takes a list of options, this is a {type(options).__name__}")
    if isinstance(label, bool) or not isinstance(label, int):
        raise RowError("no label", f"the label is {label!r}, an integer is wanted")
    if not 0 <= label < len(options):
        raise RowError("no label", f"the label is {label}, there are {len(options)} options")
    return options[label]


class _NoElementError(UndefinedError):
    """A list is too short, or a value is None: the fault of one row, where an unknown name is the card's."""


class _StrictUndefined(StrictUndefined):
    """Raises on every use but `is defined`, and tells what a row lacks from an unknown name."""

    __slots__ = ()

    def __init__(
        self, hint: str | None = None, obj: Any = missing, name: Any = None, exc: type[Exception] = UndefinedError
    ) -> None:
        is_element = obj is None or (obj is not missing and isinstance(name, int))
        super().__init__(hint, obj, name, _NoElementError if is_element else exc)  # type: ignore[arg-type]


def _refuse_none(value: Any) -> Any:
    if value is None:
        raise RowError("empty value", "a value is None")
    return _refuse_methods(value)


def _refuse_methods(value: Any) -> Any:
    if callable(value) and not isinstance(value, Undefined):  # `row.items` is a method of the row, not its column
        name = value.__name__
        raise TypeError(f"this is the method {name!r}; a column of that name is read as data[{name!r}]")
    return value


_TEXT_FILTERS = "capitalize indent lower replace string title trim truncate upper wordwrap".split()


def _of_text(apply: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that refuses None; Jinja's own make the text 'None' of it."""

    @wraps(apply)
    def refusing(*arguments: Any, **options: Any) -> Any:
        if any(argument is None for argument in arguments):
            raise RowError("empty value", "a value is None")
        return apply(*arguments, **options)

    return refusing


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        undefined=_StrictUndefined, finalize=_refuse_none, autoescape=False, keep_trailing_newline=True
    )
    environment.globals.clear()
    environment.globals["pick"] = pick
    del environment.filters["random"]
    for name in _TEXT_FILTERS:
        environment.filters[name] = _of_text(environment.filters[name])
    return environment


@lru_cache(maxsize=65536)
def compile_text(source: str, where: str) -> Render:
    """A function from values to text. `where` is named in errors ("card.yaml:7: adapt.premise").

    Raises: CardError if the source is not a template. The function raises CardError for an unknown name.

    >>> compile_text("{{ a }} and {{ b }}", "x")({"a": 1, "b": 2})
    '1 and 2'
    """
    try:
        parts = _plain_parts(_environment().parse(source))
        return _compile_jinja(source, where) if parts is None else _join(parts, source, where)
    except TemplateSyntaxError as error:
        raise CardError(f"{where}: {source!r} is not a template: {_said(error.message)}.") from None


def _compile_jinja(source: str, where: str) -> Render:
    template = _environment().from_string(source)
    return lambda values: _guarded(lambda: template.render(values), source, where, values)


def _plain_parts(tree: nodes.Template) -> list[str | Evaluate] | None:
    """The pieces of text of a template and what is put between them, if Python knows all of it."""
    parts: list[str | Evaluate] = []
    compiler = Compiler({"pick": pick})
    for output in tree.body:
        for node in output.nodes if isinstance(output, nodes.Output) else [output]:
            part = node.data if isinstance(node, nodes.TemplateData) else compiler.compile(node)
            if part is None:
                return None
            parts.append(part)
    return parts


def _join(parts: list[str | Evaluate], source: str, where: str) -> Render:
    """What Jinja would make of `parts`: by Python's `%` where all values are plain, by Jinja itself otherwise."""
    evaluates = [part for part in parts if not isinstance(part, str)]
    pattern = "".join(part.replace("%", "%%") if isinstance(part, str) else "%s" for part in parts)
    alone = evaluates[0] if pattern == "%s" else None
    jinja: list[Render] = []  # compiled when it is wanted first, which it hardly ever is

    def render(values: Mapping[str, Any]) -> Any:
        try:
            if alone is not None:
                one = alone(values)
                if type(one) is str:
                    return one
            found = tuple([evaluate(values) for evaluate in evaluates])
            if _PLAIN.issuperset(map(type, found)):
                return pattern % found
        except RowError:
            raise
        except Exception:  # Jinja says what is wrong, or does what Python cannot
            pass
        if not jinja:
            jinja.append(_compile_jinja(source, where))
        return jinja[0](values)

    return render


@lru_cache(maxsize=65536)
def _compile_expression(source: str) -> Callable[..., Any]:
    return _environment().compile_expression(source, undefined_to_none=False)


@lru_cache(maxsize=65536)
def compile_expression(source: str, where: str) -> Render:
    """A function from values to any value, for `=expression`; `source` comes without the sign.

    >>> compile_expression("choices.text", "x")({"choices": {"text": ["a", "b"]}})
    ['a', 'b']
    """
    try:
        expression = _compile_expression(source)
    except TemplateSyntaxError as error:
        raise CardError(f"{where}: {source!r} is not an expression: {_said(error.message)}.") from None

    def by_jinja(values: Mapping[str, Any]) -> Any:
        result = expression(dict(values))
        for value in result if isinstance(result, list) else [result]:
            if isinstance(value, Undefined):
                value._fail_with_undefined_error()
        return _refuse_methods(result)

    tree = Parser(_environment(), source, state="variable").parse_expression()
    in_python = Compiler({"pick": pick}).compile(tree)

    def evaluate(values: Mapping[str, Any]) -> Any:
        if in_python is not None:
            try:
                result = in_python(values)
                if type(result) in _SIMPLE:
                    return result
            except RowError:
                raise
            except Exception:  # as in _join
                pass
        return _guarded(lambda: by_jinja(values), source, where, values)

    return evaluate


@lru_cache(maxsize=65536)
def names_used(source: str) -> frozenset[str]:
    """The names a text template reads, `pick` aside."""
    return frozenset(meta.find_undeclared_variables(_environment().parse(source))) - {"pick"}


def names_read(value: str) -> frozenset[str]:
    """The names that a value of a card reads: a text template, or an expression with `=` before it."""
    return names_used("{{ " + value[1:] + " }}" if value.startswith("=") else value)


@lru_cache(maxsize=1)
def code_hash() -> str:
    """A hash over the code that texts and expressions are evaluated by: with it changes what they give."""
    code = [jinja2.__version__, inspect.getsource(expressions), inspect.getsource(sys.modules[__name__])]
    return hashlib.sha256("\n".join(code).encode()).hexdigest()


def _said(message: str | None) -> str:
    return str(message).rstrip(".")  # Jinja ends some of its messages with a full stop and others not


def _guarded(run: Callable[[], Any], source: str, where: str, values: Mapping[str, Any]) -> Any:
    try:
        return run()
    except _NoElementError as error:
        raise RowError("missing element", f"{where}: {source!r}: {error.message}") from None
    except UndefinedError as error:
        known = sorted(str(name) for name in values)
        raise CardError(
            f"{where}: {error.message} in {source!r}. The row has {known}. Correct the name, or map it in `adapt`."
        ) from None
    except SecurityError as error:
        raise CardError(f"{where}: {source!r} is not allowed here: {_said(error.message)}.") from None
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, ZeroDivisionError) as error:
        raise RowError("unreadable value", f"{where}: {source!r}: {error}") from None
