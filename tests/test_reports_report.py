"""The report: self-contained, complete, well-formed, and honest about what it was not given."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from flan_tune import rng
from flan_tune.reports.inputs import ReportInputs, StageFiles, read_curves
from flan_tune.reports.loss_curves import smoothed
from flan_tune.reports.report import write_report
from flan_tune.reports.samples import chosen_questions
from flan_tune.reports.table import comparison_table

pytest.importorskip("matplotlib")

MODELS = ("base", "ul2r", "flan", "ul2r_flan")
SEEN = (
    "addition",
    "antonyms",
    "boolean_logic",
    "calendar_days",
    "copy_last",
    "count_letters",
    "odd_one_out",
    "sorting",
)
HELD_OUT = ("character_case", "clock_arithmetic", "kinship", "list_reversal", "sums_of_three")
LEVELS = {"base": (4, 2), "ul2r": (7, 3), "flan": (71, 38), "ul2r_flan": (76, 47)}


def invented_task(model: str, task: str, group: str) -> dict:
    """A task's results, invented for the tests: about the level of its model."""
    draw = rng.Draws(rng.key(3, model, task))
    level = LEVELS[model][group == "held_out"]
    normalized = max(-8.0, min(98.0, level + 44 * (draw.uniform() - 0.5) * (level > 20 or 0.2)))
    chance = 50.0 if task in ("boolean_logic", "kinship") else 0.0
    score = chance + normalized * (100 - chance) / 100
    error = (score * (100 - score) / 99) ** 0.5
    return {
        "score": score,
        "normalized": normalized,
        "n": 100,
        "stderr": error,
        "chance": chance,
        "group": group,
        "interval": [max(0.0, score - 2 * error), min(100.0, score + 2 * error)],
    }


def invented_results() -> dict:
    models = {}
    for model in MODELS:
        tasks = {task: invented_task(model, task, "seen") for task in SEEN}
        tasks |= {task: invented_task(model, task, "held_out") for task in HELD_OUT}
        means = {
            group: [t["normalized"] for t in tasks.values() if t["group"] == group] for group in ("seen", "held_out")
        }
        models[model] = {
            "seen": sum(means["seen"]) / len(SEEN),
            "seen_stderr": 1.3,
            "held_out": sum(means["held_out"]) / len(HELD_OUT),
            "held_out_stderr": 2.1,
            "tasks": tasks,
            "truncated": 0,
        }
    return {"models": models}


def invented_samples() -> dict[str, list[dict]]:
    return {model: [invented_sample(model, task, i) for task in SEEN + HELD_OUT for i in range(4)] for model in MODELS}


def invented_sample(model: str, task: str, number: int) -> dict:
    draw = rng.Draws(rng.key(5, model, task, number))
    right = draw.uniform() < LEVELS[model][task in HELD_OUT] / 100
    said = "17" if right else ("the the the sum is of sum number number" * 3 if model == "base" else "19")
    return {
        "task": task,
        "group": "held_out" if task in HELD_OUT else "seen",
        "id": f"{task}/{number}",
        "prompt": f"Work out <b>{number + 3}</b> plus {14 - number}.\nGive the number only.",
        "output": said,
        "target": "17",
        "correct": right,
    }


def write_metrics(path: Path, steps: int, families: bool) -> Path:
    draw = rng.Draws(rng.key(7, path.name))
    lines = []
    for step in range(1, steps + 1):
        loss = 1.1 + 4.2 * (step / 8 + 1) ** -0.7 + 0.25 * (draw.uniform() - 0.5)
        line = {"step": step, "loss": loss, "learning_rate": 1e-3}
        if families:
            names = ("counting", "logic", "strings")
            line["loss_by_family"] = {name: loss * (0.6 + 0.2 * i) for i, name in enumerate(names)}
        lines.append(json.dumps(line))
    path.write_text("\n".join(lines) + "\n")
    return path


def invented_stages(folder: Path) -> list[StageFiles]:
    manifest = folder / "manifest.json"
    tasks = [
        {
            "name": task,
            "family": "procedural",
            "rows": 10_000,
            "examples": 1000 + 7 * i,
            "wanted_share": 0.125,
            "share": 0.122 + 0.001 * i,
            "repeats": 0.1 + 0.001 * i,
            "filtered": {},
        }
        for i, task in enumerate(SEEN)
    ]
    totals = {"packs": 1920, "max_length": 512, "fill": 0.973, "examples": 8196, "target_share": 0.214, "tasks": tasks}
    totals |= {"presentations": {"zero_shot": 6100, "few_shot": 2096}, "drops": {"sorting": {"no label": 3}}}
    manifest.write_text(json.dumps(totals))
    status = folder / "status.json"
    status.write_text('{"state": "done", "message": ""}')
    recipe = "model:\n  hidden_size: 128\nobjective: supervised\ntraining:\n  max_steps: 240\n  learning_rate: 1.0e-3\n"
    return [
        StageFiles("ul2r", write_metrics(folder / "a.jsonl", 160, False), recipe, manifest, status),
        StageFiles("flan", write_metrics(folder / "b.jsonl", 240, True), recipe, manifest, status),
    ]


def invented_inputs(folder: Path) -> ReportInputs:
    """A whole report's inputs, invented for the tests."""
    return ReportInputs(
        title="Quickstart: UL2R and Flan on a small model",
        results=invented_results(),
        stages=invented_stages(folder),
        samples=invented_samples(),
        timings={"prepare ul2r": 12.3, "train ul2r": 140.2, "train flan": 221.0, "evaluate": 64.9},
        versions={"flan_tune": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "lm_eval": "0.4.13"},
    )


class Outline(HTMLParser):
    """Follows tags, so that one left open or closed twice is found, and keeps what the page would load."""

    VOID = ("meta", "br", "hr", "img", "link", "input")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "data", "action"):
                self.loads.append(value or "")
            if name == "id":
                self.ids.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def read_page(path: Path) -> tuple[str, Outline]:
    page = path.read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(page)
    outline.close()
    assert outline.open == []
    return page, outline


@pytest.fixture(scope="module")
def full_page(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Outline]:
    folder = tmp_path_factory.mktemp("report")
    return read_page(write_report(invented_inputs(folder), folder / "out" / "report.html"))


def test_page_loads_nothing(full_page: tuple[str, Outline]) -> None:
    page, outline = full_page
    assert all(target.startswith("#") for target in outline.loads)
    for word in ("http://", "https://", "<script", "@import", "url(//"):
        assert word not in page


def test_ids_are_unique_and_inner_links_lead_somewhere(full_page: tuple[str, Outline]) -> None:
    _, outline = full_page
    assert len(set(outline.ids)) == len(outline.ids)
    assert {target[1:] for target in outline.loads} <= set(outline.ids)


def test_every_model_and_task_is_there(full_page: tuple[str, Outline]) -> None:
    text = "".join(full_page[1].text)
    for name in (*MODELS, *SEEN, *HELD_OUT):
        assert name in text
    for said in ("✓ right", "✗ wrong", "hidden_size: 128", "97.3 %", "1,920", "lm_eval", "no label", "2 min 20 s"):
        assert said in text


def test_what_a_run_wrote_is_escaped(full_page: tuple[str, Outline]) -> None:
    assert "<b>3</b>" not in full_page[0]
    assert "Work out &lt;b&gt;3&lt;/b&gt;" in full_page[0]


def test_best_of_a_column_is_bold_and_gain_is_over_the_first(full_page: tuple[str, Outline]) -> None:
    models = invented_results()["models"]
    best = models["ul2r_flan"]["held_out"]
    assert f"<strong>{best:.1f}<span" in full_page[0]
    assert f"+{best - models['base']['held_out']:.1f}" in full_page[0]


def test_same_inputs_give_the_same_page(tmp_path: Path) -> None:
    inputs = invented_inputs(tmp_path)
    first = write_report(inputs, tmp_path / "1.html").read_bytes()
    assert write_report(inputs, tmp_path / "2.html").read_bytes() == first


def test_nothing_given_is_said_not_raised(tmp_path: Path) -> None:
    page, _ = read_page(write_report(ReportInputs("Empty"), tmp_path / "report.html"))
    for said in (
        "There are no results",
        "There are no scores of single tasks",
        "There are no training stages",
        "There are no sample outputs",
        "Times were not given",
        "Versions were not given",
    ):
        assert said in page


def test_broken_files_are_said_not_raised(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 3.0}\n{"step": 2, "loss": NaN}\n{"step": 3, "lo')
    (tmp_path / "manifest.json").write_text("[1]")
    (tmp_path / "status.json").write_text('{"state": "failed", "message": "The loss is not finite."}')
    stage = StageFiles("flan", tmp_path / "metrics.jsonl", None, tmp_path / "manifest.json", tmp_path / "status.json")
    bare = StageFiles("ul2r", tmp_path / "none.jsonl", "a: 1", tmp_path / "none.json")
    results = {"models": {"a $x": {"tasks": {"t": {"normalized": None}}}, "b": {"seen": 1.0, "truncated": 4}}}
    samples = {"a $x": [{"task": "t", "id": "1", "prompt": "p" * 900}], "b": []}
    inputs = ReportInputs("Broken", results, [stage, bare], samples)
    page, _ = read_page(write_report(inputs, tmp_path / "report.html"))
    for said in (
        "1 of 3 lines of metrics.jsonl could not be read",
        "The manifest of its data does not hold an object",
        "The manifest of its data is missing (none.json)",
        "This stage did not end well: failed. The loss is not finite.",
        "There is no metrics file",
        "The recipe of this stage was not given",
        "b: 4 prompts were too long",
        "not asked",
        "nothing was said",
    ):
        assert said in page


def test_a_step_logged_twice_counts_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [
        '{"step": 1, "loss": 3.0}',
        '{"step": 2, "loss": 9.0}',
        '{"step": 2, "loss": 2.0, "loss_by_family": {"a": 1, "b": null}}',
        '{"step": 3, "loss": null}',
    ]
    path.write_text("\n".join(lines))
    curves = read_curves(path)
    assert (curves.steps, curves.loss, curves.families) == ([1, 2], [3.0, 2.0], {"a": ([2], [1.0])})


def test_smoothing_keeps_a_constant_and_stays_within_range() -> None:
    assert smoothed([5.0] * 9, 2) == pytest.approx([5.0] * 9)
    values = [3.0, 1.0, 4.0, 1.0, 5.0]
    assert all(1.0 <= value <= 5.0 for value in smoothed(values, 3))


def test_samples_shown_are_the_first_and_the_first_that_differs() -> None:
    right, wrong = {"correct": True}, {"correct": False}
    questions = {"0": {"a": right, "b": right}, "1": {"a": wrong, "b": wrong}, "2": {"a": wrong, "b": right}}
    assert chosen_questions(questions) == ["0", "2"]


def test_plain_table_is_aligned_and_complete() -> None:
    table = comparison_table(invented_results())
    lines = table.splitlines()
    assert lines[0].split() == ["tasks", *MODELS]
    assert all(any(line.startswith(f"  {task} ") for line in lines) for task in SEEN + HELD_OUT)
    assert len({len(line) for line in lines[2:-1]}) == 1
    assert len(comparison_table(invented_results(), per_task=False).splitlines()) == 5
    assert comparison_table({}) == "There are no results."
