"""Wordings: sets of templates in YAML, each for one shape, by role.

    core:                              # a set; a card names it as '<file without .yaml>/core'
      shape: entailment
      answer:                          # a role; a wording is its input, the target has a default for every role
        - "{{ premise }} Does it follow that {{ hypothesis }}?"
        - {input: "...", target: "{{ answer }}", head: "said once, before the exemplars"}
      statement:                       # plain prose that says the whole row: text for pre-training

A wording sees the fields of its shape and `{{ choices }}`, the options as a block of lines. One that does not
mention `choices` gets the block appended; with options off the block's place is taken out again, and one of the gaps
round it with it. So there is never a copy of a wording for few-shot or for no options.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from flan_tune import strict_yaml
from flan_tune.errors import CardError, did_you_mean
from flan_tune.strict_yaml import Document
from flan_tune.tasks.shapes import ROLES, SHAPES, Shape
from flan_tune.tasks.task import Task
from flan_tune.wording import compile_text, names_used

TEMPLATES_FOLDER = Path(__file__).parent / "templates"
STYLES_FILE = TEMPLATES_FOLDER / "exemplar_styles.yaml"
STATEMENT = "statement"

_DEFAULT_TARGETS = {
    "answer": "{{ answer }}",
    "reason_then_answer": "{{ rationale }} So the answer is {{ answer }}.",
    "question": "{{ question }}",
    "explanation": "{{ rationale }}",
    "question_and_answer": "{{ question }}\n{{ answer }}",
}
_KEYS = ("input", "target", "head")
_NO_CHOICES = "\0"
_PLACE_OF_CHOICES = re.compile(rf"\s*(?:{_NO_CHOICES}\s*)+")


@dataclass(frozen=True)
class Template:
    """One wording. `id` is '<set>/<role>/<number>'; `head` is said once, before the exemplars."""

    id: str
    role: str
    input: str
    target: str
    head: str
    where: str

    def render_head(self, fields: Mapping[str, Any]) -> str:
        """The text said once for a whole prompt; empty for most wordings."""
        return str(compile_text(self.head, self.where)(fields)).strip() if self.head else ""

    def render_input(self, fields: Mapping[str, Any], choices: str) -> str:
        """The prompt for one row. `choices` is the block of options, empty when they are off.

        >>> wording = Template("t", "answer", "{{ question }}\\n\\n{{ choices }}\\n\\nWhich?", "", "", "t.yaml:1")
        >>> wording.render_input({"question": "Big or small?"}, "")
        'Big or small?\\n\\nWhich?'
        """
        mentioned = "choices" in names_used(self.input)
        text = str(compile_text(self.input, self.where)({**fields, "choices": choices or _NO_CHOICES}))
        if mentioned and not choices:
            text = _PLACE_OF_CHOICES.sub(_one_gap, text)
        elif not mentioned and choices:
            text = f"{text}\n{choices}"
        return text.strip(" ")

    def render_target(self, fields: Mapping[str, Any]) -> str:
        """What the model should say."""
        return str(compile_text(self.target, self.where)(fields)).strip()


def _one_gap(place: re.Match[str]) -> str:
    """What is left where options are not shown: the largest gap round them; nothing at the edges of the text."""
    if place.start() == 0 or place.end() == len(place.string):
        return ""
    return max(place[0].split(_NO_CHOICES), key=lambda gap: (gap.count("\n"), len(gap)))


@dataclass(frozen=True)
class TemplateSet:
    """The wordings of one or more sets, by role."""

    by_role: Mapping[str, tuple[Template, ...]] = field(default_factory=dict)
    fingerprint: str = ""


@dataclass(frozen=True)
class ExemplarStyle:
    """How exemplars are stacked: `input_prefix` input `delimiter` newline target, then `separator`."""

    input_prefix: str
    delimiter: str
    separator: str


def load_templates(task: Task, task_paths: Sequence[str | Path] = ()) -> TemplateSet:
    """All wordings of a task, from the sets its card names, in order.

    Raises: CardError naming the card's line and the near names, or the faults of the template file.
    """
    by_role: dict[str, tuple[Template, ...]] = {}
    digest = hashlib.sha256()
    for reference in task.templates:
        found = _find_set(reference, task, tuple(str(path) for path in task_paths))
        digest.update(json.dumps([[t.id, t.input, t.target, t.head] for t in found]).encode())
        for template in found:
            by_role[template.role] = (*by_role.get(template.role, ()), template)
    return TemplateSet(by_role, digest.hexdigest())


def _find_set(reference: str, task: Task, task_paths: tuple[str, ...]) -> tuple[Template, ...]:
    file, _, name = reference.rpartition("/")
    folders = [TEMPLATES_FOLDER, *(Path(path) / "templates" for path in task_paths)]
    known: list[str] = []
    for path in (folder / f"{file}.yaml" for folder in folders):
        sets = _read_sets(str(path), file) if path.exists() else {}
        known += [f"{file}/{there}" for there in sets]
        if name not in sets:
            continue
        shape, templates = sets[name]
        if shape.name != task.shape.name:
            raise CardError(
                f"{task.where}: template set {reference!r} is for the shape {shape.name!r}, "
                f"the task has {task.shape.name!r}."
            )
        return templates
    near = did_you_mean(reference, known) if known else did_you_mean(file, _template_files(folders))
    missing = "" if known else f" (no file {file}.yaml)"
    raise CardError(f"{task.where}: there is no template set {reference!r}{missing}.{near}")


def _template_files(folders: Sequence[Path]) -> list[str]:
    """Template files by the name cards use: their path in the folder, without .yaml."""
    return [str(path.relative_to(f).with_suffix("")) for f in folders for path in sorted(f.rglob("*.yaml"))]


@lru_cache(maxsize=1024)
def _read_sets(path: str, file: str) -> dict[str, tuple[Shape, tuple[Template, ...]]]:
    document = strict_yaml.read_file(path)
    document.path = f"templates/{file}.yaml" if Path(path).is_relative_to(TEMPLATES_FOLDER) else path
    faults = list(document.faults)
    sets = {}
    for name, data in _mapping(document.data, document, faults).items():
        if not _mapping(data, document, faults, name):
            continue
        shape_name = str(data.get("shape"))
        if shape_name not in SHAPES:
            near = did_you_mean(shape_name, SHAPES)
            faults.append(f"{document.at(name, 'shape')}: set {name!r} names no known shape.{near}")
            continue
        shape = SHAPES[shape_name]
        sets[name] = (shape, tuple(_read_templates(document, file, name, shape, faults)))
    if faults:
        raise CardError(*faults)
    return sets


def _mapping(data: Any, document: Document, faults: list[str], *address: str) -> dict[str, Any]:
    if isinstance(data, dict):
        return data
    if not document.faults:
        faults.append(f"{document.at(*address)}: a template file maps sets to roles, and roles to wordings.")
    return {}


def _read_templates(document: Document, file: str, name: str, shape: Shape, faults: list[str]) -> list[Template]:
    templates = []
    roles = (*ROLES, STATEMENT)
    for role, wordings in document.data[name].items():
        if role == "shape":
            continue
        if role not in roles:
            near = did_you_mean(role, roles)
            faults.append(f"{document.at(name, role)}: there is no role {role!r}.{near} They are {list(roles)}.")
            continue
        if not isinstance(wordings, list):
            faults.append(f"{document.at(name, role)}: role {role!r} has a list of wordings; found {wordings!r}.")
            continue
        for number, wording in enumerate(wordings):
            where = document.at(name, role, number)
            template = _read_wording(wording, f"{file}/{name}/{role}/{number}", role, where, faults)
            if template is not None:
                templates.append(template)
                faults += _name_faults(template, shape)
    return templates


def _read_wording(wording: Any, id_: str, role: str, where: str, faults: list[str]) -> Template | None:
    if isinstance(wording, str):
        wording = {"input": "", "target": wording} if role == STATEMENT else {"input": wording}
    if not isinstance(wording, dict) or any(not isinstance(value, str) for value in wording.values()):
        faults.append(f"{where}: a wording is text, or a mapping of {list(_KEYS)} to text; found {wording!r}.")
        return None
    unknown = [key for key in wording if key not in _KEYS]
    if unknown:
        faults += [f"{where}: unknown key {key!r}.{did_you_mean(key, _KEYS)}" for key in unknown]
        return None
    target = wording.get("target") or _DEFAULT_TARGETS.get(role, "")
    return Template(id_, role, wording.get("input", ""), target, wording.get("head", ""), where)


def _name_faults(template: Template, shape: Shape) -> list[str]:
    faults: list[str] = []
    for text in (template.input, template.target, template.head):
        try:
            compile_text(text, template.where)
        except CardError as error:
            faults += error.faults
            continue
        for name in sorted(names_used(text) - {*shape.fields, "choices"}):
            near = did_you_mean(name, shape.fields)
            faults.append(
                f"{template.where}: shape {shape.name!r} has no field {name!r}.{near} "
                f"Its fields are {list(shape.fields)}."
            )
    return faults


@lru_cache(maxsize=1)
def load_styles() -> tuple[ExemplarStyle, ...]:
    """The ways exemplars are stacked."""
    document = strict_yaml.read_file(STYLES_FILE)
    if document.faults:
        raise CardError(*document.faults)
    return tuple(ExemplarStyle(**style) for style in document.data["styles"])


def styles_fingerprint() -> str:
    """Hash of the stacking styles, for the fingerprint of packs."""
    return hashlib.sha256(STYLES_FILE.read_bytes()).hexdigest()
