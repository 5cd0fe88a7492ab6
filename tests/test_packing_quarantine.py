"""Rows that cannot be shown: what takes their place, how it is marked, and how many of them packs are sealed with."""

from __future__ import annotations

import doctest
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import FlanTune
from hypothesis import given
from hypothesis import strategies as st
from pack_folders import contents
from small_packs import edit, small_recipe, small_settings

from flan_tune.errors import StreamError
from flan_tune.packing import losses
from flan_tune.packing.compile import open_stream
from flan_tune.packing.losses import failure_lines
from flan_tune.packing.prepare import prepare
from flan_tune.packing.settings import PackSettings
from flan_tune.packing.store import PackReader, finished_windows, open_packs
from flan_tune.packing.stream import StreamCounts
from flan_tune.rng import Draws, key

SHARES = {"zero_shot": 0.5, "cot": 0.5}
ANY_NUMBER = {"max_failed_share": 1.0, "max_failed_share_of_task": 1.0}


def has_rationale(row: int) -> bool:
    return row % 5 < 3


def holey_settings(home: Path, told: Callable[[int], bool] = has_rationale, **changes: object) -> PackSettings:
    """Settings over 200 rows of a user's own task, of which those that `told` picks say why: only they can be shown by
    chain of thought."""
    (home / "cards" / "templates").mkdir(parents=True)
    (home / "cards" / "data" / "default").mkdir(parents=True)
    rows = [{"q": f"Is {n} even?", "a": "no" if n % 2 else "yes", "why": "So." if told(n) else ""} for n in range(200)]
    text = "\n".join(json.dumps(row) for row in rows)
    (home / "cards" / "data" / "default" / "train.jsonl").write_text(text)
    (home / "cards" / "templates" / "mine.yaml").write_text(
        "core: {shape: question_answer, answer: ['{{ question }}'], reason_then_answer: ['{{ question }} Explain.']}\n"
    )
    (home / "cards" / "card.yaml").write_text(
        """family: variant
tasks:
  - name: holey
    shape: question_answer
    source: {file: data, license: mit}
    templates: [mine/core]
    adapt: {question: "{{ q }}", answer: "{{ a }}", rationale: "{{ why }}"}
"""
    )
    (home / "mixture.yaml").write_text(f"members: [{{tasks: holey}}]\npresentations: {json.dumps(SHARES)}\n")
    return small_settings(home, task_paths=(str(home / "cards"),), num_packs=25, **changes)


@pytest.fixture(scope="module")
def holey(tmp_path_factory: pytest.TempPathFactory) -> PackSettings:
    """Settings with sealed packs of a few windows, which no test changes."""
    settings = holey_settings(tmp_path_factory.mktemp("holey"), **ANY_NUMBER)
    prepare(settings)
    return settings


@pytest.fixture(scope="module")
def packs(holey: PackSettings) -> PackReader:
    return open_packs(holey.packs_dir)


# What takes the place of a row


def test_a_replacement_keeps_the_presentation_of_its_slot(holey: PackSettings) -> None:
    """Compared with the plain rule, slot by slot: presentation of the scheduled row, first drawn row that has it."""
    stream, counts = open_stream(holey), StreamCounts()
    examples, draws = list(stream.examples(0, 400, counts)), stream.schedule.draws(0, 400)
    presenter = stream.entries[0].presenter
    replaced = 0
    for slot, (one, epoch, row) in enumerate(zip(examples, draws.epoch.tolist(), draws.row.tolist(), strict=True)):
        presentation = presenter.choose(SHARES, epoch, row)
        tried = [row, *(Draws(key(0, "replace", slot, attempt)).below(200) for attempt in range(32))]
        taken = next(n for n, row in enumerate(tried) if presentation != "cot" or has_rationale(row))
        expected = presenter.example(tried[taken], epoch, presentation)
        assert one == replace(expected, replaced=taken)
        replaced += taken > 0
    assert counts.replaced == {"holey": {"no rationale": replaced}}
    assert replaced > 50
    assert sum(one.presentation == "cot" for one in examples) > 170, "as many as without any replacement"


def test_where_no_row_has_what_a_presentation_needs_one_is_drawn_anew(tmp_path: Path) -> None:
    stream, counts = open_stream(holey_settings(tmp_path, lambda _: False)), StreamCounts()
    examples = list(stream.examples(0, 60, counts))
    assert {one.presentation for one in examples} == {"zero_shot"}
    marks = Counter(one.replaced > 32 for one in examples)
    assert marks[True] == counts.replaced["holey"]["no rationale"] > 10
    assert {one.replaced for one in examples if one.replaced <= 32} == {0}


def test_a_task_none_of_whose_rows_can_be_shown_is_told(tmp_path: Path) -> None:
    settings = holey_settings(tmp_path, lambda _: False)
    edit(tmp_path / "mixture.yaml", '"zero_shot": 0.5, ', "")
    message = r"task 'holey': 65 rows in a row cannot be shown \(no rationale 65\)\. .*`flan-tune tasks check holey`"
    with pytest.raises(StreamError, match=message):
        list(open_stream(settings).examples(0, 9, StreamCounts()))


# The mark


def test_packs_say_which_rows_took_the_place_of_others(holey: PackSettings, packs: PackReader) -> None:
    every = [packs.pack(number) for number in range(packs.num_packs)]
    marked = Counter(
        (int(e), int(r), int(m)) for p in every for e, r, m in zip(p.epoch, p.row, p.replaced, strict=True)
    )
    examples = open_stream(holey).examples(0, packs.manifest["examples"], StreamCounts())
    assert marked == Counter((one.epoch, one.row, one.replaced) for one in examples)
    number = sum(count for (_, _, mark), count in marked.items() if mark)
    assert packs.manifest["replaced"] == {"holey": {"no rationale": number}}
    assert packs.manifest["drops"] == {}


def test_people_see_the_mark_too(tmp_path: Path, flan_tune: FlanTune) -> None:
    settings = holey_settings(tmp_path)
    recipe = small_recipe(tmp_path)
    edit(recipe, "data:\n", f"data:\n  task_paths: {json.dumps(settings.task_paths)}\n")
    outcome = flan_tune("prepare", recipe)
    assert (outcome.code, "Traceback" in outcome.err) == (1, False)
    assert f"{tmp_path / 'run' / 'packs'}: not sealed: " in outcome.err
    words = outcome.err.partition("accept it: ")[2].partition(". Finished")[0].split()
    assert [word.partition("=")[0] for word in words] == ["data.max_failed_share", "data.max_failed_share_of_task"]
    outcome = flan_tune("prepare", recipe, *words)
    assert outcome.code == 0
    assert "replaced  holey: no rationale " in outcome.out

    (described,) = flan_tune.json("inspect", recipe, "--pack", 0)
    marks = [segment["replaced"] for segment in described["segments"]]
    shown = flan_tune("inspect", recipe, "--pack", 0).out
    assert shown.count("(replacement, try ") == sum(mark > 0 for mark in marks) > 0
    out = tmp_path / "all.jsonl"
    total = flan_tune.json("export", recipe, "--out", out)["replaced"]["holey"]["no rationale"]
    assert sum(json.loads(line)["replaced"] > 0 for line in out.read_text().splitlines()) == total


def test_a_task_that_is_in_no_pack_is_told_why(tmp_path: Path, flan_tune: FlanTune) -> None:
    recipe = small_recipe(tmp_path)
    (tmp_path / "mixture.yaml").write_text(
        """members: [{tasks: [add], rate: 1}, {tasks: [sort_numbers], rate: 1.0e-6}, {tasks: [cot_gsm8k], rate: 1}]
missing: drop
"""
    )
    assert flan_tune("prepare", recipe, f"data.data_root={tmp_path}").code == 0
    for task, reason in (
        ("sort_numbers", "none of the "),
        ("cot_gsm8k", "It was left out: "),
        ("sort_numbrs", "Did you mean"),
    ):
        outcome = flan_tune("inspect", recipe, f"data.data_root={tmp_path}", "--task", task)
        assert outcome.code == 1
        assert f"no pack holds the task '{task}'. " in outcome.err
        assert reason in outcome.err


# How many are too many


def test_too_many_are_not_sealed_and_nothing_is_lost_by_it(
    tmp_path: Path, holey: PackSettings, packs: PackReader
) -> None:
    settings = replace(holey, packs_dir=str(tmp_path), max_failed_share=0.01, max_failed_share_of_task=0.1)
    said: list[str] = []
    with pytest.raises(StreamError) as caught:
        prepare(settings, say=said.append)
    first, second, advice = caught.value.faults
    number, draws = packs.manifest["replaced"]["holey"]["no rationale"], packs.manifest["examples"]
    share = f"{number} of {draws} draws, {number / draws:.1%}"
    assert first == f"{tmp_path}: not sealed: {share}, failed; data.max_failed_share allows 1.0%:"
    assert second == f"  holey: {share} (data.max_failed_share_of_task allows 10.0%): no rationale {number}"
    assert "the same command then seals at once" in advice
    assert said == [], "window 0 held too few to be judged"
    assert sorted(finished_windows(tmp_path)) == [window["window"] for window in packs.manifest["windows"]]
    assert not (tmp_path / "manifest.json").exists()

    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("window-*")}
    sealed = prepare(replace(settings, **ANY_NUMBER))
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("window-*")} == times
    assert sealed is not None
    assert contents(tmp_path) == contents(packs.directory)
    for repair in (False, True):  # what is sealed is not judged again
        again = prepare(settings, repair=repair)
        assert again is not None
        assert again["content_hash"] == sealed["content_hash"]


def test_the_first_window_warns(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(StreamError):
        prepare(holey_settings(tmp_path, window_examples=200), say=said.append)
    (warning,) = said
    assert warning.startswith("warning: if all windows are like the first, they will not be sealed: ")
    assert "\n  holey: " in warning


LONG = {"too long": 99, "target too long": 99, "too short": 99}  # is as the recipe wants it
FEW_COUNTS = st.dictionaries(
    st.sampled_from("abc"), st.dictionaries(st.sampled_from("xyz"), st.integers(1, 40), min_size=1)
)


@given(
    draws=st.fixed_dictionaries({name: st.integers(240, 400) for name in "abc"}),
    replaced=FEW_COUNTS,
    dropped=FEW_COUNTS,
    limits=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_either_limit_is_enough_and_what_is_proposed_is_accepted(
    draws: dict[str, int],
    replaced: dict[str, dict[str, int]],
    dropped: dict[str, dict[str, int]],
    limits: tuple[float, float],
) -> None:
    settings = PackSettings(
        "", "", "", 8, 1, "supervised", max_failed_share=limits[0], max_failed_share_of_task=limits[1]
    )
    failed = {name: sum(by.get(name, {}).get(r, 0) for by in (replaced, dropped) for r in "xyz") for name in draws}
    total = sum(failed.values())
    of_all = total >= 20 and total / sum(draws.values()) > limits[0]
    of_task = [name for name in draws if failed[name] >= 20 and failed[name] / draws[name] > limits[1]]
    lines = failure_lines(settings, draws, replaced, dropped, {"a": LONG, "b": LONG})
    assert bool(lines) == (of_all or bool(of_task))
    named = {line.split(":")[0].strip() for line in lines[1:-1]}
    assert named == ({name for name in draws if failed[name]} if of_all else set(of_task))
    if lines:
        words = lines[-1].partition("accept it: ")[2].partition(". Finished")[0].split()
        accepted = {name.removeprefix("data."): float(value) for name, value in (word.split("=") for word in words)}
        assert failure_lines(replace(settings, **accepted), draws, replaced, dropped) == []


def test_the_examples_of_the_docstrings_are_true() -> None:
    assert doctest.testmod(losses).failed == 0
