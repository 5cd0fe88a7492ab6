"""The documentation says what is so: links lead somewhere, commands and keys exist, YAML reads, transcripts replay.

Two kinds of blocks of docs/add_a_task.md and docs/data_flow.md are run, in an empty folder that first gets every block
with a path beside its language (```yaml my_tasks/which_bin.yaml): `console` (lines that begin with `$ `) and `pycon`.
`...` in what they show stands for anything. `make golden` rewrites what has changed.
"""

from __future__ import annotations

import doctest
import io
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import typer.main
from pydantic import BaseModel

from flan_tune import strict_yaml
from flan_tune.cli.main import app
from flan_tune.cli.main import main as flan_tune
from flan_tune.mixtures.mixture import read_mixture
from flan_tune.objectives.mixture_of_denoisers import PRESETS
from flan_tune.prompts.present import PRESENTATIONS
from flan_tune.prompts.template import load_templates
from flan_tune.recipe import Recipe, check_source, read_source
from flan_tune.tasks.catalog import load_catalog
from flan_tune.tasks.shapes import SHAPES
from flan_tune.tasks.task import Source, Task

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    path for place in (".", "docs", "recipes", "benchmarks") for path in (ROOT / place).glob("*.md")
) + sorted((ROOT / "docs/design").glob("*.md"))
TRANSCRIPTS = [ROOT / "docs/add_a_task.md", ROOT / "docs/data_flow.md"]
RECIPES_PAGE = ROOT / "docs/recipes.md"
UPDATE = bool(os.environ.get("FLAN_TUNE_UPDATE_GOLDEN"))

_FENCE = re.compile(r"^```(?P<language>\w+)?[ ]*(?P<path>\S+)?\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
_INLINE_CODE = re.compile(r"`(?P<code>[^`\n]+)`")
_MATCH = doctest.OutputChecker()


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the path beside it ('' for none), its text, and where it stands."""

    language: str
    path: str
    body: str
    where: str


def blocks(document: Path) -> list[Block]:
    text = document.read_text(encoding="utf-8")
    return [
        Block(
            match["language"] or "",
            match["path"] or "",
            match["body"],
            f"{document.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}",
        )
        for match in _FENCE.finditer(text)
    ]


def prose(document: Path) -> str:
    return _FENCE.sub("", document.read_text(encoding="utf-8"))


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)


# ---- links and paths


def anchors(document: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_document
def test_relative_links_lead_to_files_and_headings(document: Path) -> None:
    for link in _LINK.finditer(prose(document)):
        target, _, anchor = link["target"].partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        path = (document.parent / target).resolve() if target else document
        assert path.exists(), f"{name_of(document)}: the link {link['target']!r} leads nowhere"
        assert not anchor or anchor in anchors(path), f"{name_of(document)}: no heading #{anchor} in {name_of(path)}"


@every_document
def test_paths_of_the_repository_that_are_named_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = re.findall(r"\b((?:flan_tune|recipes|data_mixtures|tests|docs|benchmarks)/[\w./-]*\w)", text)
    faults = [path for path in set(named) if not (ROOT / path).exists() and not (ROOT / f"{path}.py").exists()]
    assert not faults, f"{name_of(document)} names {faults}, which are not there"


@every_document
def test_make_targets_exist(document: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    shown = [block.body for block in blocks(document) if block.language in ("sh", "console", "")]
    named = re.findall(r"(?:^|`)make ([a-z-]+)", "\n".join([*shown, prose(document)]), re.MULTILINE)
    assert set(named) <= set(targets), f"{name_of(document)}: {set(named) - set(targets)}"


# ---- commands


def command_lines(document: Path) -> Iterator[tuple[str, str, bool]]:
    """(where, words, is it whole) of every flan-tune command: whole ones in blocks, maybe parts of one in the text."""
    for block in blocks(document):
        if block.language in ("python", "pycon", "yaml"):
            continue
        for line in block.body.replace("\\\n", " ").splitlines():
            found = re.search(r"^\s*(?:\$ )?(?:\w+=\S+ )*(?:srun .*?)?flan-tune (.*)", line)
            if found:
                yield block.where, found[1], True
    for code in _INLINE_CODE.finditer(prose(document)):
        found = re.match(r"(?:\w+=\S+ )*flan-tune (.*)", code["code"])
        if found:
            yield name_of(document), found[1], False


@every_document
def test_commands_that_are_shown_exist_with_their_options(document: Path) -> None:
    for where, words, is_whole in command_lines(document):
        fault = command_fault(words, is_whole)
        assert not fault, f"{where}: `flan-tune {words}`: {fault}"


def command_fault(words: str, is_whole: bool) -> str:
    arguments = [word for word in shlex.split(words, comments=True) if word not in ("...", "|")]
    command: Any = typer.main.get_command(app)
    while arguments and hasattr(command, "commands") and not arguments[0].startswith("-"):
        name = arguments.pop(0)
        if name not in command.commands:
            return f"there is no command {name!r}"
        command = command.commands[name]
    return _arguments_fault(command, arguments, is_whole and not hasattr(command, "commands"))


def _arguments_fault(command: Any, arguments: list[str], is_whole: bool) -> str:
    options = {name: p for p in command.params for name in [*p.opts, *p.secondary_opts] if name.startswith("-")}
    given, skip = 0, False
    for argument in arguments:
        name = argument.strip("[]").partition("=")[0]
        if skip:
            skip = False
        elif name.startswith("--"):
            if name not in options and name != "--help":
                return f"there is no option {name!r}"
            skip = name in options and not options[name].is_flag and "=" not in argument
        else:
            given += 1
    wanted = sum(p.required for p in command.params if p.param_type_name == "argument")
    return f"{wanted} arguments are wanted, {given} given" if is_whole and given < wanted else ""


def test_a_wrong_command_is_found() -> None:
    assert "no command" in command_fault("prepar recipe.yaml", True)
    assert "no option" in command_fault("prepare recipe.yaml --num-procs 2", True)
    assert "arguments are wanted" in command_fault("tasks show --index 3", True)


# ---- recipe keys


def sections(model: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """(dotted name, section), in order; a section comes before those inside it."""
    for name, field in model.model_fields.items():
        for section in _sections_in(field.annotation):
            yield prefix + name, section
            yield from sections(section, f"{prefix}{name}.")


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for argument in get_args(annotation) for section in _sections_in(argument)]


def keys_table(section: type[BaseModel]) -> str:
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, field in section.model_fields.items():
        default = "required" if field.is_required() else _default(field.default)
        lines.append(f"| `{name}` | {_value(field)} | {default} | {field.description} |")
    return "\n".join(lines)


def _default(value: Any) -> str:
    if value is None or isinstance(value, BaseModel):
        return "none"
    return f"`{value!r}`".replace("'", '"') if isinstance(value, str) else f"`{str(value).lower()}`"


def _value(field: Any) -> str:
    bounds = {"gt": "> ", "ge": ">= ", "lt": "< ", "le": "<= "}
    limits = [f"{sign}{getattr(m, name)}" for m in field.metadata for name, sign in bounds.items() if hasattr(m, name)]
    return ", ".join([_kind(field.annotation), *limits])


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if _sections_in(annotation):
        return "list of sections" if "list" in str(annotation) else "section"
    if get_origin(annotation) is list:
        return f"list of {_kind(get_args(annotation)[0])}"
    inner = [argument for argument in get_args(annotation) if argument is not type(None)]
    if get_origin(annotation) is not dict and inner:
        return _kind(inner[0])
    names = {int: "whole number", float: "number", bool: "`true`, `false`", str: "text"}
    return names.get(annotation, "mapping")


_MARKED = re.compile(r"(?<=<!-- keys: )(?P<name>[\w.]+) -->\n(?P<table>.*?)(?=<!-- end -->)", re.DOTALL)


def test_recipe_keys_are_all_documented_golden() -> None:
    page = RECIPES_PAGE.read_text(encoding="utf-8")
    tables = {name: keys_table(section) for name, section in sections()}
    assert [match["name"] for match in _MARKED.finditer(page)] == list(tables)
    fresh = _MARKED.sub(lambda match: f"{match['name']} -->\n{tables[match['name']]}\n", page)
    if UPDATE:
        RECIPES_PAGE.write_text(fresh, encoding="utf-8")
    assert page == fresh or UPDATE, "docs/recipes.md is not what flan_tune/recipe.py says: run `make golden`"


@every_document
def test_recipe_keys_that_are_named_exist(document: Path) -> None:
    known = {f"{name}.{key}" for name, section in sections() for key in section.model_fields} | {
        name for name, _ in sections()
    }
    for code in _INLINE_CODE.finditer(prose(document)):
        for name in re.findall(r"^(?:model|tokenizer|data|objective|training)(?:\.[a-z_]+)+(?=$|[=: ])", code["code"]):
            assert name in known or name.startswith("model.config."), f"{name_of(document)}: no recipe key {name!r}"


# ---- tables of names


def test_denoisers_of_the_presets_are_as_told() -> None:
    page = RECIPES_PAGE.read_text(encoding="utf-8")
    for name, preset in PRESETS.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        for denoiser in preset.denoisers:
            span = "prefix" if denoiser.mean_span is None else f"{denoiser.mean_span:g}"
            assert f"{denoiser.name} ({span}, {denoiser.rate:g}, {denoiser.mode.strip('[]')})" in row


def test_shapes_and_presentations_are_as_told() -> None:
    page = (ROOT / "docs/add_a_task.md").read_text(encoding="utf-8")
    for shape in SHAPES.values():
        assert f"| `{shape.name}` | {', '.join(shape.required)} | {', '.join(shape.optional)}".rstrip() in page
    for shown in PRESENTATIONS.values():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{shown.name}` |"))
        exemplars = "yes" if shown.few_shot else "no"
        has_options = shown.options and shown.role in ("answer", "reason_then_answer")
        assert row.startswith(f"| `{shown.name}` | `{shown.role}`")
        assert row.endswith(f"| {exemplars} | {'yes' if has_options else 'no'} |")


def test_held_out_generators_are_as_told() -> None:
    page = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith("| `held_out` |"))
    tasks = load_catalog().select("family:procedural")
    assert set(re.findall(r"`(\w+)`", row)) - {"held_out"} == {task.name for task in tasks if task.held_out}
    assert f"all {len(tasks)} built-in generators" in page


# ---- YAML


def whole_files(kind: str) -> list[Block]:
    found = [block for document in DOCUMENTS for block in blocks(document) if block.language == "yaml"]
    return [block for block in found if re.match(rf"# {kind}\b", block.body)]


def _write(folder: Path, block: Block, name: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(block.body, encoding="utf-8")
    return path


def test_yaml_that_is_shown_reads() -> None:
    for document in DOCUMENTS:
        for block in blocks(document):
            if block.language == "yaml":
                assert strict_yaml.read_text(block.body, block.where).faults == []


def test_cards_wordings_and_mixtures_that_are_shown_have_no_faults(tmp_path: Path) -> None:
    for number, block in enumerate(whole_files("card")):
        _write(tmp_path, block, f"card_{number}.yaml")
    catalog = load_catalog([tmp_path])
    for number, block in enumerate(whole_files("templates")):
        path = _write(tmp_path / "templates", block, f"set_{number}.yaml")
        for name, data in strict_yaml.read_file(path).data.items():
            shape, source = SHAPES[data["shape"]], Source("file", "rows.jsonl", "unknown")
            task = Task("shown", "variant", shape, source, "shown", templates=(f"{path.stem}/{name}",))
            assert load_templates(task, [tmp_path]).by_role, block.where
    for number, block in enumerate(whole_files("mixture")):
        path = _write(tmp_path, block, f"mixture_{number}.yml")
        assert read_mixture(path, catalog, PRESENTATIONS)[1] == [], block.where


def test_recipes_that_are_shown_have_no_faults(tmp_path: Path) -> None:
    for number, block in enumerate(whole_files("recipe")):
        path = _write(tmp_path, block, f"recipe_{number}.yaml")
        assert check_source(read_source(path))[1] == [], block.where


# ---- transcripts


@pytest.mark.parametrize("document", TRANSCRIPTS, ids=name_of)
def test_transcripts_replay_golden(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for variable in ("FLAN_TUNE_DATA", "FORCE_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    text = document.read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in blocks(document):
        if block.path:
            _write(tmp_path, block, block.path)
        elif block.language == "console":
            text = _replay(block, text, r"^\$ (?P<source>.*)$", lambda source: _shell(source, monkeypatch))
        elif block.language == "pycon":
            text = _replay(block, text, r"^>>> (?P<source>.*(?:\n\.\.\. .*)*)$", lambda source: _python(source, names))
    if UPDATE:
        document.write_text(text, encoding="utf-8")


def _replay(block: Block, text: str, prompt: str, run: Callable[[str], str]) -> str:
    """Runs what a block shows and compares; the document's text with what differs replaced, when updating."""
    found = list(re.finditer(prompt, block.body, re.MULTILINE))
    fresh = block.body[: found[0].start()]
    for number, match in enumerate(found):
        end = found[number + 1].start() if number + 1 < len(found) else len(block.body)
        shown = block.body[match.end() + 1 : end]
        got = re.sub(r"[ \t]+$", "", run(match["source"]), flags=re.MULTILINE)
        is_same = _MATCH.check_output(shown.strip("\n") + "\n", got.strip("\n") + "\n", doctest.ELLIPSIS)
        assert is_same or UPDATE, f"{block.where}: {match['source']}\nshown:\n{shown}\ngot:\n{got}"
        fresh += match[0] + "\n" + (shown if is_same else got.strip("\n") + "\n" * (1 + shown.endswith("\n\n")))
    return text.replace(block.body, fresh)


def _shell(source: str, monkeypatch: pytest.MonkeyPatch) -> str:
    words = shlex.split(source)
    assert words[0] == "flan-tune", "only flan-tune is run here: show other commands in a `sh` block"
    monkeypatch.setattr(sys, "argv", words)
    with io.StringIO() as output, redirect_stdout(output), redirect_stderr(output):
        with pytest.raises(SystemExit):
            flan_tune()
        return output.getvalue()


def _python(source: str, names: dict[str, Any]) -> str:
    code = compile(re.sub(r"^\.\.\. ", "", source, flags=re.MULTILINE) + "\n", "docs", "single")
    with io.StringIO() as output, redirect_stdout(output):
        exec(code, names)
        return output.getvalue()
