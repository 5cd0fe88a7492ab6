"""Natural Instructions files: rows with definition and examples beside them, and what is wrong with a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_data import INSTRUCTIONS

from flan_tune.errors import RowError, SourceError
from flan_tune.sources import natural_instructions
from flan_tune.sources.natural_instructions import InstructionRows, open_natural_instructions
from flan_tune.sources.rows import open_task
from flan_tune.tasks.shapes import SHAPES
from flan_tune.tasks.task import Source, Task

ADAPT = {"definition": "{{ definition }}", "input": "{{ input }}", "references": "=output", "answer": "{{ output[0] }}"}


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "task.json"
    path.write_text(json.dumps({**INSTRUCTIONS, **changes}), encoding="utf-8")
    return path


def test_a_row_has_all_a_prompt_needs(data_root: Path) -> None:
    rows = open_natural_instructions("task001_toy_sums", data_root)
    shared = {
        "definition": "Add the two numbers.",
        "examples": [{"input": "1 and 2", "output": "3", "explanation": "One and two make three."}],
    }
    assert [rows[number] for number in range(len(rows))] == [
        {**shared, "id": "task001-a", "input": "2 and 2", "output": ["4", "four"]},
        {**shared, "id": "task001-b", "input": "2 and 3", "output": ["5"]},
        {**shared, "id": "2", "input": "0 and 1", "output": ["1"]},
    ]


def test_texts_that_are_missing_are_empty_and_not_words(tmp_path: Path) -> None:
    rows = InstructionRows(
        write(tmp_path, Definition=[], **{"Positive Examples": [{"input": "a", "explanation": None}]})
    )
    assert rows[0]["definition"] == ""
    assert rows[0]["examples"] == [{"input": "a", "output": "", "explanation": ""}]


@given(
    instances=st.lists(
        st.fixed_dictionaries({"input": st.text(max_size=9), "output": st.text(min_size=1, max_size=9)})
    ),
    indent=st.none() | st.integers(0, 3),
    ascii_only=st.booleans(),
    order=st.permutations(["Definition", "Instances", "Categories", "Positive Examples"]),
)
def test_instances_are_found_where_they_lie(
    tmp_path_factory: pytest.TempPathFactory, instances: Any, indent: int | None, ascii_only: bool, order: list[str]
) -> None:
    data = {**INSTRUCTIONS, "Instances": instances, "Categories": ['"Instances": [{}]']}
    text = json.dumps({name: data[name] for name in order}, indent=indent, ensure_ascii=ascii_only)
    path = tmp_path_factory.mktemp("task") / "task.json"
    path.write_bytes(text.encode("utf-8", "replace"))
    rows = InstructionRows(path)
    wanted = json.loads(path.read_text(encoding="utf-8"))["Instances"]
    assert [{"input": row["input"], "output": row["output"][0]} for row in rows] == wanted


def test_where_instances_lie_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAN_TUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(natural_instructions, "_WORTH_KEEPING", 2)
    path = write(tmp_path)
    before = list(InstructionRows(path))
    monkeypatch.setattr(natural_instructions, "_read", lambda path: pytest.fail("read again"))
    assert list(InstructionRows(path)) == before
    assert len(before) == 3


def test_a_change_in_the_middle_of_a_large_file_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fingerprint does not see it; where instances lie is another thing then."""
    monkeypatch.setenv("FLAN_TUNE_CACHE", str(tmp_path / "cache"))
    instances = [{"id": str(n), "input": f"{n} " + "x" * 1000, "output": "y"} for n in range(3000)]
    before = InstructionRows(write(tmp_path, Instances=instances))
    assert len(before) == 3000
    instances[1500:1502] = [{**instances[1500], "input": "short"}, {**instances[1501], "input": "y" * 2005}]
    after = InstructionRows(write(tmp_path, Instances=instances))
    assert after.fingerprint == before.fingerprint
    assert [row["input"] for row in after] == [one["input"] for one in instances]
    with pytest.raises(
        SourceError, match=r"task\.json: instance 1501 is not where it was: .*has changed.* run the same"
    ):
        before[1501]


def test_a_missing_task_file_is_named(data_root: Path) -> None:
    with pytest.raises(SourceError) as caught:
        open_natural_instructions("task999_nothing", data_root)
    assert str(caught.value) == (
        f"{data_root}/natural-instructions/tasks/task999_nothing.json: there is no such task file. "
        "Put the upstream `tasks` folder there."
    )


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "this task file is not JSON: Expecting property name enclosed in double quotes"),
        ("[]", r"the task file lacks \['Definition', 'Instances'\]; it is not in the upstream format\."),
        ('{"Definition": ["x"], "Instances": {}}', "the task file has no list of Instances"),
        ('{"Definition": ["x"], "Instances": [{} {}]}', "this task file is not JSON: Expecting ',' delimiter"),
        ('{"Definition": ["x"], "Instances": [{}]} {}', "this task file is not JSON: Extra data"),
        ('{"Definition": ["x"]}', r"the task file lacks \['Instances'\]; it is not in the upstream format\."),
    ],
)
def test_a_file_of_another_form_is_named(tmp_path: Path, content: str, fault: str) -> None:
    path = tmp_path / "task.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SourceError, match=rf"task\.json: {fault}"):
        len(InstructionRows(path))


@pytest.mark.parametrize(
    ("instance", "reason"),
    [({"input": "x", "output": []}, "empty answer"), ({"input": "x"}, "missing field"), (5, "missing field")],
)
def test_an_instance_without_an_answer_drops_that_row_only(tmp_path: Path, instance: Any, reason: str) -> None:
    with pytest.raises(RowError) as caught:
        InstructionRows(write(tmp_path, Instances=[instance]))[0]
    assert caught.value.reason == reason
    folder = tmp_path / "natural-instructions" / "tasks"
    folder.mkdir(parents=True)
    write(folder, Instances=[instance, *INSTRUCTIONS["Instances"]])
    source = Source("natural_instructions", "task", "apache-2.0")
    rows = open_task(
        Task("task", "niv2", SHAPES["instruction"], source, "task", adapt=ADAPT, where="x:1"), "train", tmp_path
    )
    assert len(rows) == 3
    assert rows.drops == {reason: 1}
    assert rows.fields(0)["answer"] == "4"
    assert rows.fields(0)["references"] == ["4", "four"]


def test_the_fingerprint_follows_the_file(tmp_path: Path) -> None:
    before = InstructionRows(write(tmp_path)).fingerprint
    assert InstructionRows(write(tmp_path)).fingerprint == before
    assert InstructionRows(write(tmp_path, Definition=["Other."])).fingerprint != before
