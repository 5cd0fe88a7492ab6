"""What a card reads of a dataset's rows, held against the columns the dataset has.

A column's type is written as in data/hub_schemas.json: "string", "int32" and so on; {"ClassLabel": [names]}, an
integer; {"Translation": [languages]}; any other mapping is a struct; [type] is a list. A list of structs comes as one
mapping of lists (`answers.text`), unless ROW_LISTS names it: then it is a list of mappings.

The templates are not run but followed: what is not known of an expression (None) is let pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from flan_tune.tasks.task import Task

Type = Any  # of a column, as above; None where it is not known
Scope = dict[str, Type]

ROW_LISTS = {("kilt_tasks", "output"), ("taskmaster1", "utterances")}  # read in the loading scripts of 2022
ADAPTER_READS: Mapping[str, tuple[str, ...]] = {"split_gsm8k": ("answer",), "split_listed_options": ("question",)}
ADAPTER_GIVES: Mapping[str, Scope] = {
    "split_gsm8k": {"final": "string", "reasoning": "string"},
    "split_listed_options": {"stem": "string", "listed": ["string"]},
}
_SAME_TYPE = ("list", "sort", "reverse", "unique", "select", "reject", "selectattr", "rejectattr", "default")
_OFFERED = ("pick", "loop", "self")
_METHODS_OF: Mapping[str, type] = {"string": str, "bool": bool, "float32": float, "float64": float}
_environment = ImmutableSandboxedEnvironment()


def is_class_label(kind: Type) -> bool:
    return isinstance(kind, dict) and set(kind) == {"ClassLabel"}


def columns_faults(task: Task, columns: Mapping[str, Type]) -> list[str]:
    """What `keep`, the adapter and `adapt` of a task read that rows with these columns do not have."""
    faults: list[str] = []
    scope = dict(columns)
    if task.each is not None:
        items, faults = _followed(task.each, scope, "each")
        scope |= {"each": items[0] if isinstance(items, list) else None, "each_index": "int32"}
    if task.keep is not None:
        faults += _followed(task.keep, scope, "keep")[1]
    if task.adapter:
        faults += [f"adapter: no column {name!r}" for name in ADAPTER_READS[task.adapter] if name not in scope]
        scope.update(ADAPTER_GIVES[task.adapter])
    for name, value in task.adapt.items():
        items = value if isinstance(value, list) else [value]
        followed = [_followed(item, scope, f"adapt.{name}") for item in items]
        faults += [fault for _, found in followed for fault in found]
        scope[name] = ["string"] if isinstance(value, list) else followed[0][0]
    return list(dict.fromkeys(faults))


def columns_read(task: Task, columns: Mapping[str, Type]) -> set[str]:
    """The columns that `adapt` reads, of the values the card has not given another meaning before."""
    read: set[str] = set()
    given: set[str] = set(ADAPTER_GIVES.get(task.adapter or "", ()))
    for name, value in task.adapt.items():
        for item in value if isinstance(value, list) else [value]:
            read |= (names_read(item) & set(columns)) - given
        given.add(name)
    return read


def names_read(source: str) -> set[str]:
    """All names that stand in a text with `{{ }}` or in an expression that begins with `=`."""
    return {node.name for node in _parsed(source).find_all(nodes.Name)}


def _parsed(source: str) -> nodes.Template:
    return _environment.parse("{{ " + source[1:].strip() + " }}" if source.startswith("=") else source)


def _followed(source: str, scope: Scope, place: str) -> tuple[Type, list[str]]:
    """The type of the value a card's text or expression gives, and what it reads that is not there."""
    follower = _Follower()
    tree = _parsed(source)
    if source.startswith("="):
        output = tree.body[0]
        assert isinstance(output, nodes.Output)
        kind = follower.type_of(output.nodes[0], dict(scope))
    else:
        follower.follow(tree, dict(scope))
        kind = "string"
    return kind, [f"{place}: {fault}" for fault in follower.faults]


class _Follower:
    """Follows the types of a template's expressions and collects what does not exist."""

    def __init__(self) -> None:
        self.faults: list[str] = []

    def follow(self, node: nodes.Node, scope: Scope) -> None:
        """Statements: the names they bind get the type of what they are bound to."""
        if isinstance(node, nodes.Expr):
            self.type_of(node, scope)
        elif isinstance(node, nodes.For):
            inner = {**scope, "loop": None}
            self._bind(node.target, self._element(self.type_of(node.iter, scope)), inner)
            for child in (*([node.test] if node.test else []), *node.body, *node.else_):
                self.follow(child, inner)
        elif isinstance(node, nodes.Assign):
            self._bind(node.target, self.type_of(node.node, scope), scope)
        else:
            for child in node.iter_child_nodes():
                self.follow(child, scope)

    def _bind(self, target: nodes.Node, kind: Type, scope: Scope) -> None:
        for name in [target] if isinstance(target, nodes.Name) else target.find_all(nodes.Name):
            scope[name.name] = kind if name is target else None

    def type_of(self, node: nodes.Node, scope: Scope) -> Type:
        if isinstance(node, nodes.Name):
            if node.name not in scope and node.name not in _OFFERED:
                self.faults.append(f"no column {node.name!r}")
            return scope.get(node.name)
        if isinstance(node, nodes.Getattr):
            return self._attribute(self.type_of(node.node, scope), node.attr)
        if isinstance(node, nodes.Getitem):
            kind = self.type_of(node.node, scope)
            if isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str):
                return self._attribute(kind, node.arg.value)
            self.follow(node.arg, scope)
            return kind if isinstance(node.arg, nodes.Slice) else self._element(kind)
        if isinstance(node, nodes.Filter):
            return self._filtered(node, scope)
        if isinstance(node, nodes.CondExpr):
            return self._chosen(node, scope)
        for child in node.iter_child_nodes():
            self.follow(child, scope)
        if isinstance(node, nodes.Or) and isinstance(node.right, nodes.Const | nodes.List):  # `name or ''`
            return _Follower().type_of(node.left, scope)
        return "string" if isinstance(node, nodes.Const) and isinstance(node.value, str) else None

    def _chosen(self, node: nodes.CondExpr, scope: Scope) -> Type:
        """`x if x is defined else y`: only the branch that these columns come to is followed."""
        decided = _decided(node.test, scope)
        if decided is None:
            self.follow(node.test, scope)
        kinds = [
            self.type_of(branch, scope)
            for branch, taken in ((node.expr1, decided is not False), (node.expr2, decided is not True))
            if branch is not None and taken
        ]
        return kinds[0] if len(kinds) == 1 else None

    def _filtered(self, node: nodes.Filter, scope: Scope) -> Type:
        kind = self.type_of(node.node, scope) if node.node is not None else None
        for child in (*node.args, *node.kwargs):
            self.follow(child, scope)
        if node.name in _SAME_TYPE:
            return kind
        if node.name in ("first", "last"):
            return self._element(kind)
        by = [keyword.value for keyword in node.kwargs if keyword.key == "attribute"]
        if node.name == "map" and by and isinstance(by[0], nodes.Const):
            return [self._attribute(self._element(kind), by[0].value)]
        return "string" if node.name in ("trim", "lower", "join", "replace") else None

    def _attribute(self, kind: Type, name: str) -> Type:
        """The type of `value.name` and of `value['name']`."""
        struct, listed = _as_struct(kind)
        if struct is None:
            if kind is not None and not hasattr(_python_type(kind), name):
                self.faults.append(f"{name!r} of a value of the type {_told(kind)}")
            return None
        if name in struct:
            return [struct[name]] if listed else struct[name]
        if not hasattr(dict, name):
            self.faults.append(f"{name!r} of a mapping with {sorted(struct)}")
        return None

    def _element(self, kind: Type) -> Type:
        """The type of a member of a list."""
        struct, listed = _as_struct(kind)
        if struct is not None and listed:
            self.faults.append(f"a member of a mapping of lists with {sorted(struct)}")
            return None
        if isinstance(kind, dict) and "rows" in kind:
            return kind["rows"]
        return kind[0] if isinstance(kind, list) else None


def _decided(test: nodes.Node, scope: Scope) -> bool | None:
    """Whether `x is defined` or `x is mapping` holds, where the columns tell."""
    if not isinstance(test, nodes.Test) or test.name not in ("defined", "mapping"):
        return None
    follower = _Follower()
    kind = follower.type_of(test.node, scope)
    if test.name == "defined":
        return not follower.faults
    return None if kind is None else _as_struct(kind)[0] is not None


def _as_struct(kind: Type) -> tuple[Mapping[str, Type] | None, bool]:
    """The fields of a mapping, and whether it is one of lists."""
    listed = isinstance(kind, list) and len(kind) == 1
    inner = kind[0] if listed else kind
    if not isinstance(inner, dict) or is_class_label(inner) or "rows" in inner:
        return None, False
    return (dict.fromkeys(inner["Translation"], "string") if "Translation" in inner else inner), listed


def _python_type(kind: Type) -> type:
    if isinstance(kind, list) or (isinstance(kind, dict) and "rows" in kind):
        return list
    return _METHODS_OF.get(kind, int) if isinstance(kind, str) else int


def _told(kind: Type) -> str:
    return kind if isinstance(kind, str) else _python_type(kind).__name__


def row_lists(dataset: str, columns: Mapping[str, Type]) -> dict[str, Type]:
    """The columns, with those of ROW_LISTS as lists of mappings."""
    return {name: {"rows": kind[0]} if (dataset, name) in ROW_LISTS else kind for name, kind in columns.items()}
