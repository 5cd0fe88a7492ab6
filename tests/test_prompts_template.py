"""Wordings: options in and out of them, sets read from files, and every fault of a file at once."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flan_tune.errors import CardError
from flan_tune.prompts import exemplars, present, template
from flan_tune.prompts.present import render_options
from flan_tune.prompts.template import Template, TemplateSet, load_templates
from flan_tune.tasks.catalog import load_catalog
from flan_tune.tasks.shapes import Shape

OPTIONS = ["ZZfirst", "ZZsecond"]
STYLES = {"dashes": ["Options:", "- ZZfirst", "- ZZsecond"], "letters": ["(A) ZZfirst", "(B) ZZsecond"]}


def wording(text: str, target: str = "{{ answer }}") -> Template:
    return Template("t/answer/0", "answer", text, target, "", "t.yaml:1")


def marked_fields(shape: Shape) -> dict[str, Any]:
    """Fields whose values can be told apart wherever they turn up; options only where the shape must have them."""
    fields: dict[str, Any] = {name: f"<{name}>" for name in shape.fields}
    lists = {"turns": ["<turn>"], "references": [OPTIONS[0]], "examples": ["<example>"], "options": OPTIONS}
    return fields | {name: value for name, value in lists.items() if name in fields} | {"answer": OPTIONS[0]}


def shipped_sets() -> dict[str, tuple[Shape, TemplateSet]]:
    return {",".join(task.templates): (task.shape, load_templates(task)) for task in load_catalog().values()}


def user_task(folder: Path, templates: str, *, shape: str = "question_answer", reference: str = "mine/core") -> Any:
    """A task of a user's own folder whose wordings are in `templates`, the text of templates/mine.yaml."""
    (folder / "templates").mkdir(parents=True, exist_ok=True)
    (folder / "templates" / "mine.yaml").write_text(templates)
    (folder / "card.yaml").write_text(
        "family: procedural\n"
        "tasks:\n"
        f"  - {{name: mine, shape: {shape}, source: {{procedural: add, license: mit}}, templates: [{reference}]}}\n"
    )
    return load_catalog([folder])["mine"]


@pytest.mark.parametrize("module", [template, present, exemplars])
def test_the_examples_of_the_docstrings_are_true(module: Any) -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Who?", "Who?\n{block}"),
        ("Who?\n{{ choices }}\nSay it.", "Who?\n{block}\nSay it."),
        ("{{ choices }}\n\nWho?", "{block}\n\nWho?"),
    ],
)
@pytest.mark.parametrize("style", STYLES)
def test_options_stand_where_the_wording_wants_them_or_else_at_the_end(text: str, shown: str, style: str) -> None:
    block = render_options(OPTIONS, style)
    assert block.split("\n") == STYLES[style]
    assert wording(text).render_input({}, block) == shown.format(block=block)


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("Who?", "Who?"),
        ("Who?\n{{ choices }}\nSay it.", "Who?\nSay it."),
        ("Who?\n\n{{ choices }}\n\nSay it.", "Who?\n\nSay it."),
        ("Who?\n\n{{ choices }}\nSay it.", "Who?\n\nSay it."),
        ("Who?\n\n{{ choices }}", "Who?"),
        ("{{ choices }}\n\nWho?", "Who?"),
        ("Who? {{ choices }}\nSay it.", "Who?\nSay it."),
        ("Who? {{ choices }} Say it.", "Who? Say it."),
    ],
)
def test_options_off_leave_no_trace(text: str, without: str) -> None:
    assert wording(text).render_input({}, "") == without


@given(st.lists(st.sampled_from(["A.", "B.", "{{ choices }}"]), min_size=1), st.data())
def test_options_off_leave_no_gap_that_was_not_written(parts: list[str], data: st.DataObject) -> None:
    gaps = [data.draw(st.sampled_from([" ", "\n", "\n\n"])) for _ in parts[1:]]
    text = parts[0] + "".join(gap + part for gap, part in zip(gaps, parts[1:], strict=True))
    shown = wording(text).render_input({}, "")
    assert re.findall(r"[AB]\.", shown) == [part for part in parts if part != "{{ choices }}"]
    assert shown == shown.strip()
    assert set(re.findall(r"\s+", shown)) <= set(gaps)


@pytest.mark.parametrize("reference", shipped_sets())
def test_every_shipped_wording_shows_options_once_or_not_at_all(reference: str) -> None:
    shape, templates = shipped_sets()[reference]
    fields = marked_fields(shape)
    for one in [one for role, of_role in templates.by_role.items() if role != "statement" for one in of_role]:
        without = one.render_input(fields, "")
        assert "ZZ" not in without, f"{one.id} gives an option or the answer away"
        assert "\0" not in without
        assert "\n\n\n" not in without
        assert without == without.strip()
        if one.role in ("answer", "reason_then_answer"):
            block = render_options(OPTIONS, "dashes")
            shown = one.render_input(fields, block)
            assert shown.count(block) == 1
            assert shown.count("ZZ") == len(OPTIONS)
            assert OPTIONS[0] in one.render_target(fields)


WITH_OPTIONS = [name for name, (shape, _) in shipped_sets().items() if "options" in shape.required]


@pytest.mark.parametrize("reference", WITH_OPTIONS)
def test_options_do_not_come_between_a_label_and_the_answer(reference: str) -> None:
    shape, templates = shipped_sets()[reference]
    block = render_options(OPTIONS, "dashes")
    for one in templates.by_role["answer"]:
        before = one.render_input(marked_fields(shape), block).partition(f"\n{block}")[0]
        assert not before.endswith(":"), f"{one.id}: put {{{{ choices }}}} before its last line"


@pytest.mark.parametrize("reference", shipped_sets())
def test_no_two_shipped_wordings_of_a_role_are_the_same(reference: str) -> None:
    for templates in shipped_sets()[reference][1].by_role.values():
        assert len({(one.head, one.input, one.target) for one in templates}) == len(templates)


def test_sets_of_a_card_add_up_in_order(tmp_path: Path) -> None:
    sets = (
        "core: {shape: question_answer, answer: [a, b]}\nmore: {shape: question_answer, answer: [c], question: [d]}\n"
    )
    found = load_templates(user_task(tmp_path, sets, reference="mine/core, mine/more"), [tmp_path])
    assert [one.input for one in found.by_role["answer"]] == ["a", "b", "c"]
    assert [one.id for one in found.by_role["answer"]] == [
        "mine/core/answer/0",
        "mine/core/answer/1",
        "mine/more/answer/0",
    ]
    assert [one.target for one in found.by_role["question"]] == ["{{ question }}"]


def test_the_fingerprint_follows_the_wordings_and_not_the_comments(tmp_path: Path) -> None:
    texts = [
        "core: {shape: question_answer, answer: [a]}\n",
        "# c\ncore:\n  shape: question_answer\n  answer:\n    - a\n",
    ]
    same = [load_templates(user_task(tmp_path / str(n), text), [tmp_path / str(n)]) for n, text in enumerate(texts)]
    assert same[0].fingerprint == same[1].fingerprint
    changed = user_task(tmp_path / "c", "core: {shape: question_answer, answer: [{input: a, head: h}]}\n")
    assert load_templates(changed, [tmp_path / "c"]).fingerprint != same[0].fingerprint


FAULTY = """\
core:
  shape: question_answer
  answer:
    - "{{ qestion }}"
    - {input: "{{ question }}", tarjet: x}
    - "{{ question"
    - [a]
  anser:
    - x
  question: "text"
other:
  shape: questoin_answer
third: 3
"""


def test_all_faults_of_a_template_file_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    task = user_task(tmp_path, FAULTY)
    with pytest.raises(CardError) as caught:
        load_templates(task, [tmp_path])
    file = tmp_path / "templates" / "mine.yaml"
    found = {fault.removeprefix(f"{file}:").partition(":")[0]: fault for fault in caught.value.faults}
    assert list(found) == ["4", "5", "6", "7", "8", "10", "12", "13"]
    assert "has no field 'qestion'. Did you mean 'question'?" in found["4"]
    assert "unknown key 'tarjet'. Did you mean 'target'?" in found["5"]
    assert "is not a template" in found["6"]
    assert "found ['a']" in found["7"]
    assert "no role 'anser'. Did you mean 'answer'?" in found["8"]
    assert "a list of wordings; found 'text'" in found["10"]
    assert "Did you mean 'question_answer'?" in found["12"]
    assert "maps sets to roles" in found["13"]


@pytest.mark.parametrize(
    ("reference", "advice"),
    [
        ("mine/cor", "Did you mean 'mine/core'?"),
        ("entailmnt/core", "(no file entailmnt.yaml). Did you mean 'entailment'?"),
        ("entailment/core", "is for the shape 'entailment', the task has 'question_answer'"),
    ],
)
def test_a_set_that_does_not_fit_is_named_with_what_is_near(tmp_path: Path, reference: str, advice: str) -> None:
    task = user_task(tmp_path, "core: {shape: question_answer, answer: [a]}\n", reference=reference)
    with pytest.raises(CardError, match=re.escape(advice)) as caught:
        load_templates(task, [tmp_path])
    assert str(caught.value).startswith(f"{tmp_path / 'card.yaml'}:3: ")
