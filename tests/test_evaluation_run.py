"""lm-evaluation-harness end to end, with models that answer from a dictionary: scores are what they must be."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.model import LM

from flan_tune.errors import ScoreError
from flan_tune.evaluation.results import join_suites, merge_results, summarize
from flan_tune.evaluation.run import evaluate_model
from flan_tune.evaluation.suites.lm_eval_task import read_items, write_items
from flan_tune.evaluation.suites.suite import Item, Suite, SuiteTask
from flan_tune.reports.table import comparison_table


class Parrot(LM):
    """Says what it was told to say to a prompt, and likes options in the order it was told."""

    def __init__(self, sayings: dict[str, str]) -> None:
        super().__init__()
        self.sayings = sayings
        self.truncated = 7
        self.asked: list[tuple] = []

    def generate_until(self, requests, disable_tqdm=False):
        self.asked += [request.args for request in requests]
        self.truncated += 1
        return [self.sayings.get(request.args[0], "") for request in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        self.asked += [request.args for request in requests]
        return [(0.0 if self.sayings.get(request.args[0]) == request.args[1] else -9.0, False) for request in requests]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


# Prompts and targets that lm-eval, left to its ways, would render, parse or strip.
ODD = {
    "{{ 7 * 7 }} is?": "{{ 49 }}",
    "12": "[1, 2]",
    " a line\u2028break and a trailing space ": "2021-03-04",
    "plain?": "3",
}


def odd_task() -> SuiteTask:
    items = [Item(f"odd/{i}", "odd", inputs, targets) for i, (inputs, targets) in enumerate(ODD.items())]
    return SuiteTask("odd", "seen", items, 0.0, "answer", "plain", "test")


def choice_task() -> SuiteTask:
    items = [Item(f"choice/{i}", "choice", f"which {i}?", "(B)", ["(A)", "(B)"]) for i in range(4)]
    return SuiteTask("choice", "held_out", items, 0.5, "choice", "flan", "validation", 2)


def sum_task() -> SuiteTask:
    items = [Item(f"sum/{i}", "sum", f"{i}+{i}?", str(2 * i)) for i in range(5)]
    return SuiteTask("sum", "held_out", items, 0.0, "number", "plain", "test")


def suite() -> Suite:
    return Suite("toy", [odd_task(), choice_task(), sum_task()])


SAYINGS = {
    **ODD,
    **{f"which {i}?": "(B)" if i else "(A)" for i in range(4)},
    **{f"{i}+{i}?": f"I make it {2 * i}." for i in range(3)},
    "3+3?": "7",
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("work")
    lm = Parrot(SAYINGS)
    return lm, evaluate_model(lm, suite(), work_dir=folder, max_new_tokens=17), folder


def test_scores_are_what_was_said(run) -> None:
    _, results, _ = run
    tasks = results["tasks"]
    assert (tasks["odd"]["score"], tasks["odd"]["n"], tasks["odd"]["normalized"]) == (100, 4, 100)
    assert (tasks["choice"]["score"], tasks["choice"]["normalized"], tasks["choice"]["chance"]) == (75, 50, 50)
    assert (tasks["sum"]["score"], tasks["sum"]["unread"]) == (60, 1)
    assert (results["seen"], results["held_out"]) == (100, 55)
    assert tasks["sum"]["stderr"] == pytest.approx(100 * (0.6 * 0.4 / 4) ** 0.5)
    assert (tasks["choice"]["split"], tasks["choice"]["shots"], tasks["choice"]["layout"]) == ("validation", 2, "flan")
    assert results["truncated"] == 1
    assert "lm_eval" in results["versions"]
    assert json.loads(json.dumps(results)) == results


def test_prompts_reach_the_model_untouched(run) -> None:
    lm, _, _ = run
    prompts = [args[0] for args in lm.asked]
    assert prompts[: len(ODD)] == list(ODD)
    assert ("which 1?", "(B)") in lm.asked  # no space is put before a continuation
    settings = lm.asked[0][1]
    assert (settings["until"], settings["max_gen_toks"], settings["do_sample"]) == ([], 17, False)


def test_samples_are_written_line_by_line(run) -> None:
    _, _, folder = run
    lines = [json.loads(line) for line in (folder / "samples.jsonl").read_text(encoding="utf-8").split("\n") if line]
    assert len(lines) == 13
    by_id = {line["id"]: line for line in lines}
    assert by_id["sum/1"] == {
        "suite": "toy",
        "task": "sum",
        "group": "held_out",
        "id": "sum/1",
        "prompt": "1+1?",
        "output": "I make it 2.",
        "extracted": "2",
        "target": "2",
        "correct": True,
    }
    assert by_id["choice/0"]["output"] == "(A)"
    assert by_id["choice/0"]["log_likelihoods"] == {"(A)": 0.0, "(B)": -9.0}
    assert by_id["sum/4"]["extracted"] is None


def test_items_keep_their_types_in_the_file(tmp_path: Path) -> None:
    items = odd_task().items + choice_task().items
    write_items(items, tmp_path / "items.jsonl")
    assert [Item(**row) for row in read_items(str(tmp_path / "items.jsonl"))["test"]] == items


def test_without_lm_eval_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ScoreError, match=r"pip install 'flan_tune\[eval\]'"):
        evaluate_model(Parrot({}), suite(), work_dir=tmp_path)


def result(**scores: tuple[float, float, str]) -> dict:
    tasks = {
        name: {"score": score, "stderr": 2.0, "chance": chance, "group": group, "n": 100}
        for name, (score, chance, group) in scores.items()
    }
    return {"suite": "s", **summarize(tasks), "truncated": 1, "model": {}, "versions": {}}


def test_means_are_over_normalised_tasks_not_over_scores() -> None:
    found = result(a=(62.5, 25.0, "seen"), b=(10.0, 0.0, "seen"), c=(50.0, 50.0, "held_out"), d=(1.0, 0.0, "gsm8k"))
    assert (found["seen"], found["held_out"]) == (30, 0)
    assert found["seen_stderr"] == pytest.approx(((2 / 0.75) ** 2 + 2**2) ** 0.5 / 2)
    assert found["groups"]["gsm8k"] == {"mean": 1.0, "stderr": 2.0, "tasks": 1}
    assert result(a=(1.0, 0.0, "seen"))["held_out"] is None


def test_suites_of_one_model_are_joined() -> None:
    joined = join_suites([result(a=(10.0, 0.0, "seen")), result(b=(20.0, 0.0, "seen"))])
    assert (joined["seen"], joined["truncated"], sorted(joined["tasks"])) == (15, 2, ["a", "b"])
    with pytest.raises(ScoreError, match="in two suites"):
        join_suites([result(a=(10.0, 0.0, "seen"))] * 2)
    with pytest.raises(ScoreError, match="no suite results"):
        join_suites([])


def test_merged_file_has_the_agreed_form() -> None:
    base, flan = (
        result(a=(3.1, 0.0, "seen"), b=(1.0, 0.0, "held_out")),
        result(a=(9.0, 0.0, "seen"), b=(5.0, 0.0, "held_out")),
    )
    merged = merge_results({"base": base, "flan": flan})
    assert list(merged["models"]) == ["base", "flan"]
    assert merged["models"]["base"]["seen"] == 3.1
    assert merged["models"]["base"]["held_out"] == 1.0
    assert {"score", "normalized", "n", "stderr"} <= set(merged["models"]["flan"]["tasks"]["a"])
    assert "percent" in merged["units"]["score"]
    assert "flan" in comparison_table(merged)  # the reports read this very form


def test_models_that_answered_other_questions_are_not_compared() -> None:
    with pytest.raises(ScoreError, match="'b': model 'x' has None answers and 'y' has 100"):
        merge_results({"x": result(a=(1.0, 0.0, "seen")), "y": result(a=(1.0, 0.0, "seen"), b=(1.0, 0.0, "seen"))})
    with pytest.raises(ScoreError, match="no results"):
        merge_results({})
