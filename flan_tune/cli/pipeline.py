"""`run` and `report`: the stages of a pipeline file, each started as a command of its own.

What waits for what is read from the recipes: a stage that tunes another stage's model waits for it, one that uses
another's tokenizer waits for that. Every stage is prepared, trained and evaluated; the file is read in
pipeline_file.py, jobs are run in jobs.py.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flan_tune import strict_yaml
from flan_tune.cli.jobs import Job, run_jobs
from flan_tune.cli.pipeline_file import Pipeline, Stage, load_pipeline
from flan_tune.evaluation.results import merge_results
from flan_tune.packing.store import read_json, write_json
from flan_tune.reports.inputs import ReportInputs, StageFiles
from flan_tune.reports.report import write_report
from flan_tune.reports.table import comparison_table
from flan_tune.training.tracking import METRICS_FILE, STATUS_FILE


def run_command(path: Path, *, as_json: bool) -> int:
    """Runs what is not done yet, then writes results.json and report.html; the exit code."""
    pipeline = load_pipeline(path)
    out = sys.stderr if as_json else sys.stdout
    code, timings = run_jobs(make_jobs(pipeline), pipeline.output_dir, pipeline.parallel, out)
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
    print(write_report(report_inputs(pipeline, read_json(pipeline.output_dir / "results.json")), target))


def make_jobs(pipeline: Pipeline) -> list[Job]:
    """Three jobs a stage: prepare, train, evaluate."""
    jobs = [job for stage in pipeline.stages for job in _stage_jobs(pipeline, stage)]
    _keep_cores_free(jobs)
    everything = {f"prepare {stage.name}" for stage in pipeline.stages}
    for stage in pipeline.stages if pipeline.evaluate else ():
        waits = everything | {f"train {stage.name}"}
        jobs.append(Job(f"evaluate {stage.name}", _evaluate(pipeline, stage), waits, _evaluation(stage)))
    return jobs


def _stage_jobs(pipeline: Pipeline, stage: Stage) -> Iterator[Job]:
    """`prepare` always runs: it checks its packs itself, which is quick when nothing is missing."""
    recipe = stage.recipe
    prepare = f"prepare {stage.name}"
    mixture = strict_yaml.read_file(recipe.data.mixture).data  # not its text: comments change nothing
    content = recipe.model_dump_json() + json.dumps(mixture, default=str)
    yield Job(prepare, _flan_tune("prepare", str(stage.path)), _tokenizer_makers(pipeline, stage), content=content)
    upstream = pipeline.stage_of(recipe.model.model_name_or_path)
    waits = {prepare} | ({f"train {upstream.name}"} if upstream else set())
    yield Job(
        name=f"train {stage.name}",
        command=_launch(pipeline, stage),
        waits=waits,
        makes=_train_done(stage),
        status=stage.output_dir / STATUS_FILE,
        threads=stage.threads,
        folder=stage.output_dir,
    )


def _tokenizer_makers(pipeline: Pipeline, stage: Stage) -> set[str]:
    """The job that makes the stage's tokenizer, if it is one of the pipeline's and not the stage's own `prepare`."""
    tokenizer = stage.recipe.tokenizer_path
    maker = pipeline.stage_of(tokenizer)
    if maker is not None:
        return {f"train {maker.name}"}
    trained_by = [s for s in pipeline.stages if s.recipe.tokenizer.train and s.recipe.tokenizer_path == tokenizer]
    return {f"prepare {trained_by[0].name}"} - {f"prepare {stage.name}"} if trained_by else set()


def _keep_cores_free(jobs: list[Job]) -> None:
    """A job with several threads waits for what would otherwise run beside it: barriers spin on shared cores."""
    early = {job.name for job in jobs if not any(name.startswith("train") for name in job.waits)}
    for job in jobs:
        if job.threads > 1:
            job.after.update(name for name in early if name.startswith("prepare"))


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
    for folder in dict.fromkeys(path for other in pipeline.stages for path in other.recipe.data.task_paths):
        command += ["--task-path", str(folder)]
    return _flan_tune(*command, "--output", str(_evaluation(stage).parent))


def _train_done(stage: Stage) -> Path:
    return stage.model_dir / "flan_tune.json"


def _evaluation(stage: Stage) -> Path:
    return stage.output_dir / "evaluation" / "results.json"


def collect_results(pipeline: Pipeline) -> dict[str, Any]:
    """The evaluated stages' results as one."""
    found = {stage.name: read_json(_evaluation(stage)) for stage in pipeline.stages}
    return merge_results({name: result for name, result in found.items() if result})


def report_inputs(pipeline: Pipeline, results: dict[str, Any]) -> ReportInputs:
    """What the report of a pipeline shows, from the files its stages left."""
    stages = [
        StageFiles(
            stage.name,
            metrics_jsonl=stage.output_dir / METRICS_FILE,
            recipe_text=stage.path.read_text(encoding="utf-8"),
            manifest_json=stage.recipe.packs_dir / "manifest.json",
            status_json=stage.output_dir / STATUS_FILE,
        )
        for stage in pipeline.stages
    ]
    samples = {stage.name: _samples(_evaluation(stage).parent) for stage in pipeline.stages}
    models: dict[str, Any] = results.get("models") or {}
    versions: dict[str, str] = next((result.get("versions", {}) for result in models.values()), {})
    timings = read_json(pipeline.output_dir / "timings.json")
    return ReportInputs(pipeline.title, results, stages, samples, timings, versions)


def _samples(folder: Path) -> list[dict[str, Any]]:
    texts = (path.read_text(encoding="utf-8") for path in sorted(folder.glob("*/samples.jsonl")))
    return [json.loads(line) for text in texts for line in text.split("\n") if line]
