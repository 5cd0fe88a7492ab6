"""`evaluate --suites tasks`: a user's own cards, their held-back rows, none that training drew."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import FlanTune
from small_data import write
from test_models_attention import CONFIGS

from flan_tune.errors import ScoreError
from flan_tune.evaluation.suites.own_tasks import OwnTask, own_tasks_suite
from flan_tune.evaluation.suites.procedural import RenderedRow

CARD = """family: custom
tasks:
  - name: which_bin
    shape: classification
    source: {file: which_bin.jsonl, license: cc0-1.0}
    adapt: {text: "{{ item }}", options: ["paper", "glass", "depot"], answer: "{{ bin }}"}
    splits: {train: train, reserve: 4}
  - name: how_far
    shape: classification
    source: {file: how_far, license: cc0-1.0}
    adapt: {text: "{{ item }}", options: ["near", "far"], answer: "{{ bin }}"}
"""


@pytest.fixture
def cards(tmp_path: Path) -> Path:
    """Two tasks: one reserves four rows of one file, the other has a folder with a split `test`."""
    folder = tmp_path / "my_tasks"
    bins = [{"item": f"thing {n}", "bin": ("paper", "glass", "depot")[n % 3]} for n in range(9)]
    far = [{"item": f"place {n}", "bin": ("near", "far")[n % 2]} for n in range(3)]
    write(folder / "which_bin.jsonl", bins)
    for split, rows in (("train", far), ("test", far), ("validation", far[:1])):
        write(folder / f"how_far/default/{split}.jsonl", rows)
    (folder / "cards.yaml").write_text(CARD)
    return folder


def asked(rows: int, contents: list[int] | None = None) -> OwnTask:
    keys = contents or list(range(rows))
    return OwnTask("mine", "validation", rows, lambda row: RenderedRow(f"q{row}?", "a", ["a", "b"], keys[row]))


def test_rows_that_were_seen_or_asked_are_passed_over() -> None:
    suite, removed = own_tasks_suite([asked(4, [5, 7, 7, 8])], 50, {5})
    (task,) = suite.tasks
    assert len(task.items) == 2
    assert {item.inputs for item in task.items} < {"q1?", "q2?", "q3?"}
    assert removed == {"mine": 2}
    assert (task.chance, task.split, task.group, task.metric) == (0.5, "validation", "tasks", "answer")


def test_more_rows_are_the_same_and_then_others() -> None:
    """Which rows are asked is keyed, so that a larger sample holds the smaller one."""
    few, many = (own_tasks_suite([asked(200)], n, set())[0].tasks[0].items for n in (5, 20))
    assert many[:5] == few
    assert [item.id for item in few] != [f"mine/{row}" for row in range(5)]


def test_a_task_without_a_new_row_is_refused() -> None:
    with pytest.raises(ScoreError, match=r"none of the 3 rows of split 'validation' is new. Keep rows back"):
        own_tasks_suite([asked(3)], 50, {0, 1, 2})


@pytest.fixture
def model(tmp_path: Path) -> Path:
    pytest.importorskip("lm_eval")
    from flan_tune.models.export import export
    from flan_tune.models.load import create_model
    from flan_tune.tokens.sentencepiece_training import train_sentencepiece

    tokenizer = train_sentencepiece(["which bin is right for thing 1?"] * 99, tmp_path / "tokenizer", vocab_size=300)
    tokenizer = tokenizer.with_special_tokens(sentinels="new", num_sentinels=2, mode_tokens=True)
    made = create_model(CONFIGS["llama"], tokenizer.vocab_size, seed=0)
    how: dict[str, Any] = {"attention": "causal", "separator": "\n", "mode_token": "[NLG]"}
    export(made.state_dict(), made, tokenizer, tmp_path / "run" / "model", **how)
    return tmp_path / "run" / "model"


def test_the_command_asks_what_was_held_back(model: Path, cards: Path, flan_tune: FlanTune) -> None:
    options = ["--suites", "tasks", "--task-path", cards, "--rows", "3", "--max-new-tokens", "2"]
    results = flan_tune.json("evaluate", model, *options)
    tasks = results["tasks"]
    assert {name: (task["n"], task["split"]) for name, task in tasks.items()} == {
        "which_bin": (3, "validation"),
        "how_far": (3, "test"),
    }
    assert tasks["which_bin"]["chance"] == pytest.approx(100 / 3)
    lines = (model.parent / "evaluation/tasks/samples.jsonl").read_text(encoding="utf-8").splitlines()
    samples = [json.loads(line) for line in lines]
    assert {one["prompt"][one["prompt"].index("thing") :][:7] for one in samples if one["task"] == "which_bin"} <= {
        f"thing {n}" for n in range(5, 9)
    }
    assert results["model"]["mode_token"] == "[NLG]"
    other = flan_tune.json("evaluate", model, *options, "--mode-token", "none")
    assert other["model"]["mode_token"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suites", "tasks"], "the suite 'tasks' asks the cards of --task-path FOLDER: give both, or neither."),
        (["--suites", "gsm8k", "--task-path", "."], "give both, or neither"),
        (["--suites", "tasks", "--task-path", "{empty}"], "there are no cards in"),
        (["--suites", "tasks", "--task-path", "{bare}"], "no split 'validation'. Set aside rows for validation"),
    ],
)
def test_wrong_input_is_found_before_the_model_is_opened(
    flan_tune: FlanTune, cards: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "bare/which_bin.jsonl", [{"item": "a", "bin": "paper"}])
    card = CARD[: CARD.index("  - name: how_far")].replace("    splits: {train: train, reserve: 4}\n", "")
    (tmp_path / "bare/card.yaml").write_text(card)
    folders = {"empty": tmp_path / "empty", "bare": tmp_path / "bare"}
    outcome = flan_tune("evaluate", "no_model", *(option.format(**folders) for option in options))
    assert outcome.code == 1
    assert message in " ".join(outcome.err.split()), outcome
