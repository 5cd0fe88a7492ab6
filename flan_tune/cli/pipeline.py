"""`run` and `report`: the stages of a pipeline file, each started as a command of its own.

    title: The quickstart
    output_dir: runs/quickstart
    launch: recipes/accelerate/single_cpu.yaml      # how each training stage is launched
    parallel: 2                                     # jobs at once
    stages:
      - {name: base, recipe: base.yaml}             # relative to this file
      - {name: flan, recipe: flan.yaml}
    evaluate: {suites: [procedural], rows: 50, max_new_tokens: 48}

What waits for what is read from the recipes: a stage that tunes another stage's model waits for it, one that uses
another's tokenizer waits for that. Every stage is prepared, trained and evaluated; jobs are in jobs.py.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flan_tune import strict_yaml
from flan_tune.checks.preflight import check_recipe
from flan_tune.cli.jobs import Job, run_jobs
from flan_tune.errors import RecipeError, did_you_mean
from flan_tune.evaluation.results import merge_results
from flan_tune.packing.store import write_json
from flan_tune.recipe import Recipe
from flan_tune.reports.inputs import ReportInputs, StageFiles
from flan_tune.reports.report import write_report
from flan_tune.reports.table import comparison_table

_KEYS = ("title", "output_dir", "launch", "parallel", "stages", "evaluate")
_EVALUATE_KEYS = ("suites", "rows", "max_new_tokens", "shots")
MODEL_FOLDER = "model"


@dataclass(frozen=True)
class Stage:
    """One training stage: its name, its recipe's path, and the recipe."""

    name: str
    path: Path
    recipe: Recipe

    @property
    def output_dir(self) -> Path:
        return Path(self.recipe.training.output_dir)

    @property
    def model_dir(self) -> Path:
        return self.output_dir / MODEL_FOLDER


@dataclass(frozen=True)
class Pipeline:
    """A pipeline file as plain values."""

    path: Path
    title: str
    output_dir: Path
    launch: str
    parallel: int
    stages: tuple[Stage, ...]
    evaluate: dict[str, Any] = field(default_factory=dict)

    def stage_of(self, path: str | None) -> Stage | None:
        """The stage that makes the model in folder `path`, if one does."""
        return next((s for s in self.stages if path is not None and Path(path) == s.model_dir), None)


def load_pipeline(path: Path) -> Pipeline:
    """Reads a pipeline and checks every recipe of it. Raises: RecipeError with all faults of all files."""
    document = strict_yaml.read_file(path)
    faults = list(document.faults)
    data = document.data if isinstance(document.data, dict) else {}
    for known, place, address in ((_KEYS, data, ()), (_EVALUATE_KEYS, data.get("evaluate") or {}, ("evaluate",))):
        for name in place:
            if name not in known:
                faults.append(f"{document.at(*address, name)}: unknown key {name!r}.{did_you_mean(name, known)}")
    for name in ("output_dir", "launch", "stages"):
        if name not in data and not document.faults:
            faults.append(f"{path}: the key {name!r} is missing.")
    stages = []
    for number, entry in enumerate(data.get("stages") or []):
        if not isinstance(entry, dict) or set(entry) != {"name", "recipe"}:
            faults.append(f"{document.at('stages', number)}: a stage is {{name: ..., recipe: ...}}, found {entry!r}.")
            continue
        checked = check_recipe(path.parent / entry["recipe"])
        faults += checked.faults
        if checked.recipe is not None:
            stages.append(Stage(str(entry["name"]), path.parent / entry["recipe"], checked.recipe))
    if faults:
        raise RecipeError(*faults)
    return Pipeline(
        path=path,
        title=str(data.get("title", path.stem)),
        output_dir=Path(data["output_dir"]),
        launch=str(data["launch"]),
        parallel=int(data.get("parallel", 1)),
        stages=tuple(stages),
        evaluate=dict(data.get("evaluate") or {}),
    )


def run_command(path: Path, *, as_json: bool) -> int:
    """Runs what is not done yet, then writes results.json and report.html; the exit code."""
    pipeline = load_pipeline(path)
    code, timings = run_jobs(make_jobs(pipeline), pipeline.output_dir, pipeline.parallel)
    if code:
        return code
    results = collect_results(pipeline)
    write_json(pipeline.output_dir / "results.json", results)
    report_path = write_report(report_inputs(pipeline, results), pipeline.output_dir / "report.html")
    if as_json:
        print(json.dumps(results))
        return 0
    print()
    print(comparison_table(results))
    print("\nwhere the time went (jobs run side by side):")
    for name, seconds in timings.items():
        print(f"  {name:24s} {seconds:7.1f} s")
    print(f"\nresults  {pipeline.output_dir / 'results.json'}\nreport   {report_path}")
    return 0


def report_command(path: Path, output: Path | None) -> None:
    """Writes the report of a pipeline whose results are there, or of what there is."""
    pipeline = load_pipeline(path)
    target = output or pipeline.output_dir / "report.html"
    print(write_report(report_inputs(pipeline, _read(pipeline.output_dir / "results.json")), target))


def make_jobs(pipeline: Pipeline) -> list[Job]:
    """Three jobs a stage: prepare, train, evaluate."""
    jobs: list[Job] = []
    tokenizer_maker: dict[str, str] = {}
    for stage in pipeline.stages:
        prepare, train = f"prepare {stage.name}", f"train {stage.name}"
        upstream = pipeline.stage_of(stage.recipe.model.model_name_or_path)
        tokenizer = stage.recipe.tokenizer_path
        maker = pipeline.stage_of(tokenizer)
        waits = {f"train {maker.name}"} if maker else {tokenizer_maker.get(tokenizer, "")} - {""}
        if stage.recipe.tokenizer.train is not None:
            tokenizer_maker.setdefault(tokenizer, prepare)
        content = stage.recipe.model_dump_json() + Path(stage.recipe.data.mixture).read_text(encoding="utf-8")
        # prepare always runs: it checks its packs itself, which is quick when nothing is missing
        jobs.append(Job(prepare, _flan_tune("prepare", str(stage.path)), waits, content=content))
        waits = {prepare} | ({f"train {upstream.name}"} if upstream else set())
        status = stage.output_dir / "status.json"
        jobs.append(Job(train, _launch(pipeline, stage), waits, _train_done(stage), status))
    everything = {job.name for job in jobs if job.name.startswith("prepare")}
    for stage in pipeline.stages if pipeline.evaluate else ():
        waits = everything | {f"train {stage.name}"}
        jobs.append(Job(f"evaluate {stage.name}", _evaluate(pipeline, stage), waits, _evaluation(stage)))
    return jobs


def _flan_tune(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "flan_tune.cli.main", *arguments]


def _launch(pipeline: Pipeline, stage: Stage) -> list[str]:
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", pipeline.launch]
    return [*launcher, "-m", "flan_tune.train", str(stage.path)]


def _evaluate(pipeline: Pipeline, stage: Stage) -> list[str]:
    options = pipeline.evaluate
    command = ["evaluate", str(stage.model_dir), "--suites", ",".join(options.get("suites", ["procedural"]))]
    for name in ("rows", "shots", "max_new_tokens"):
        if name in options:
            command += [f"--{name.replace('_', '-')}", str(options[name])]
    for other in pipeline.stages:
        command += ["--seen-by", str(other.path)]
    return _flan_tune(*command, "--output", str(_evaluation(stage).parent))


def _train_done(stage: Stage) -> Path:
    return stage.model_dir / "flan_tune.json"


def _evaluation(stage: Stage) -> Path:
    return stage.output_dir / "evaluation" / "results.json"


def collect_results(pipeline: Pipeline) -> dict[str, Any]:
    """The evaluated stages' results as one."""
    found = {stage.name: _read(_evaluation(stage)) for stage in pipeline.stages}
    return merge_results({name: result for name, result in found.items() if result})


def report_inputs(pipeline: Pipeline, results: dict[str, Any]) -> ReportInputs:
    """What the report of a pipeline shows, from the files its stages left."""
    stages = [
        StageFiles(
            stage.name,
            metrics_jsonl=stage.output_dir / "metrics.jsonl",
            recipe_text=stage.path.read_text(encoding="utf-8"),
            manifest_json=stage.recipe.packs_dir / "manifest.json",
            status_json=stage.output_dir / "status.json",
        )
        for stage in pipeline.stages
    ]
    samples = {stage.name: _samples(_evaluation(stage).parent) for stage in pipeline.stages}
    models: dict[str, Any] = results.get("models") or {}
    versions: dict[str, str] = next((result.get("versions", {}) for result in models.values()), {})
    timings = _read(pipeline.output_dir / "timings.json")
    return ReportInputs(pipeline.title, results, stages, samples, timings, versions)


def _samples(folder: Path) -> list[dict[str, Any]]:
    lines = [line for path in sorted(folder.glob("*/samples.jsonl")) for line in path.open(encoding="utf-8")]
    return [json.loads(line) for line in lines]


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return data
