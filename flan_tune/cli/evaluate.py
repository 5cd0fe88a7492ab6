"""`evaluate`: a model on suites, by lm-evaluation-harness. Rows and wordings are joined with the suites here."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flan_tune.checks.preflight import check_recipe, pack_settings
from flan_tune.checks.training_content import content_key, drawn_content
from flan_tune.cli.infilling import names_of, open_infilling
from flan_tune.errors import CardError, RecipeError, SourceError, did_you_mean
from flan_tune.evaluation.infilling_table import infilling_table
from flan_tune.evaluation.results import join_suites, merge_results
from flan_tune.evaluation.suites.gsm8k import gsm8k_suite
from flan_tune.evaluation.suites.infilling import PASSAGE_TOKENS
from flan_tune.evaluation.suites.mmlu import mmlu_suite
from flan_tune.evaluation.suites.own_tasks import SPLITS, OwnTask, own_tasks_suite
from flan_tune.evaluation.suites.own_tasks import SUITE as OWN_TASKS
from flan_tune.evaluation.suites.procedural import RenderedRow, procedural_suite
from flan_tune.evaluation.suites.suite import Suite
from flan_tune.packing.store import write_json
from flan_tune.prompts.present import Presenter, can_show
from flan_tune.prompts.template import load_templates
from flan_tune.reports.table import comparison_table
from flan_tune.sources.rows import TaskRows, find_data_root, open_rows, open_task
from flan_tune.tasks.catalog import Catalog, load_catalog
from flan_tune.tasks.task import Task

INFILLING = "infilling"
SUITES = ("procedural", "gsm8k", "mmlu", OWN_TASKS, INFILLING)


def evaluate_command(
    model: str,
    suites: Sequence[str],
    *,
    rows: int,
    shots: int,
    max_new_tokens: int,
    batch_size: int,
    seen_by: Sequence[Path],
    data_root: str | None,
    output: Path | None,
    as_json: bool,
    mode_token: str | None = None,
    task_paths: Sequence[str] = (),
    corpus: str = "text:wikipedia_en",
    passage_tokens: int = PASSAGE_TOKENS,
    compare: Sequence[str] = (),
) -> None:
    """Writes results.json and samples.jsonl into `output` and prints the scores.

    mode_token: as FlanTuneLM takes it. task_paths: folders with a user's own cards, which the suite 'tasks' asks.
    corpus: where the suite 'infilling' has its text from, in passages of `passage_tokens` tokens. compare: further
    models that it asks for the same spans; what they do is written into comparison.json.
    """
    for name in suites:
        if name not in SUITES:
            raise RecipeError(f"there is no suite {name!r}.{did_you_mean(name, SUITES)} They are {', '.join(SUITES)}.")
    if compare and INFILLING not in suites:
        raise RecipeError("--compare belongs to the suite 'infilling': add it to --suites.")
    if bool(task_paths) != (OWN_TASKS in suites):
        raise RecipeError("the suite 'tasks' asks the cards of --task-path FOLDER: give both, or neither.")
    folder = output or _beside(model)
    # Wrong input is found before torch is loaded.
    infilling = (
        open_infilling(corpus, rows, passage_tokens, data_root, folder / INFILLING) if INFILLING in suites else None
    )
    built = [_suite(name, rows, shots, seen_by, data_root, task_paths) for name in suites if name != INFILLING]
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1" if Path(model).exists() else "0")
    from flan_tune.evaluation.lm import FlanTuneLM
    from flan_tune.evaluation.run import evaluate_model

    lm = FlanTuneLM.from_folder(model, batch_size=batch_size, mode_token=mode_token)
    results = []
    for suite, removed in built:
        work_dir = folder / suite.name
        work_dir.mkdir(parents=True, exist_ok=True)
        result = evaluate_model(lm, suite, work_dir=work_dir, max_new_tokens=max_new_tokens)
        results.append({**result, "removed_rows": removed})
    if infilling is not None:
        infilled = infilling.measure(lm)
        results.append({**infilled.result, "removed_rows": {}})
    whole = join_suites(results)
    whole["removed_rows"] = {task: n for result in results for task, n in result["removed_rows"].items()}
    tables = [comparison_table(merge_results({Path(model).parent.name or model: whole}))] if built else []
    compared: dict[str, Any] = {}
    if infilling is not None:
        whole[INFILLING] = infilling.about(infilled)
        (name, _), *others = names_of([model, *compare]).items()
        found = infilling.compare(infilled, lm, dict(others))
        tables.append(infilling_table({name: infilled.result, **found["models"]}, found["differences"]))
        compared = {"comparison": {"base": name, **found}} if compare else {}
    write_json(folder / "results.json", whole)
    if compared:
        write_json(folder / "comparison.json", compared["comparison"])
    if as_json:
        print(json.dumps({**whole, **compared}))
    else:
        print("\n\n".join(tables))
        print(f"results and samples are in {folder}")


def _beside(model: str) -> Path:
    """Results of a local model go beside its folder, not into it; a hub model's into ./evaluation."""
    return Path(model).parent / "evaluation" if Path(model).exists() else Path("evaluation") / model.replace("/", "--")


def _suite(
    name: str, rows: int, shots: int, seen_by: Sequence[Path], data_root: str | None, task_paths: Sequence[str]
) -> tuple[Suite, dict[str, int]]:
    catalog = load_catalog()
    if name == "procedural":
        return _procedural(catalog, rows, seen_by)
    if name == OWN_TASKS:
        return _own_tasks(catalog, rows, seen_by, find_data_root(data_root), task_paths)
    read = _raw_rows(catalog, name, data_root)
    if name == "gsm8k":
        return gsm8k_suite(read, n=rows, shots=shots), {}
    return mmlu_suite(read, n=rows, shots=shots), {}


def _raw_rows(catalog: Catalog, task: str, data_root: str | None) -> Callable[[str], Iterable[Mapping[str, Any]]]:
    root = find_data_root(data_root)

    def read(split: str) -> Iterable[Mapping[str, Any]]:
        rows = open_rows(catalog[task], split, root)
        return (rows[number] for number in range(len(rows)))

    return read


_OPTION_FORMS = ("dashes", "letters")  # answers are scored as text, so no list asks for the marker


def _procedural(catalog: Catalog, rows: int, seen_by: Sequence[Path]) -> tuple[Suite, dict[str, int]]:
    tasks = catalog.select("family:procedural")
    renders = {task.name: _renderer(task, open_task(task, "test", None)) for task in tasks}
    return procedural_suite(tasks, lambda task, row: renders[task](row), rows, _seen(seen_by))


def _own_tasks(
    shipped: Catalog, rows: int, seen_by: Sequence[Path], root: Path | None, task_paths: Sequence[str]
) -> tuple[Suite, dict[str, int]]:
    own = [task for name, task in load_catalog(task_paths).items() if name not in shipped]
    if not own:
        raise CardError(f"there are no cards in {', '.join(task_paths)}. Give the folder they lie in.")
    asked = []
    for task in own:
        split, held_back = _held_back(task, root)
        asked.append(OwnTask(task.name, split, len(held_back), _renderer(task, held_back, task_paths)))
    return own_tasks_suite(asked, rows, _seen(seen_by))


def _held_back(task: Task, root: Path | None) -> tuple[str, TaskRows]:
    """The rows of a task that are asked, and the name of their split."""
    *others, last = SPLITS
    for split in others:
        try:
            return split, open_task(task, split, root)
        except SourceError:
            continue
    return last, open_task(task, last, root)


def _renderer(task: Task, rows: TaskRows, task_paths: Sequence[str] = ()) -> Callable[[int], RenderedRow]:
    """Rows of a task as zero-shot questions."""
    templates = load_templates(task, task_paths)
    if not can_show(task, templates, "zero_shot"):
        raise CardError(f"{task.where}: task {task.name!r} has no wording that asks for an answer, so it has no score.")
    presenter = Presenter(rows, templates, seed=0, option_forms=_OPTION_FORMS)

    def render(row: int) -> RenderedRow:
        fields = presenter.rows.fields(row)
        inputs, targets = presenter.example(row, 0, "zero_shot").text()
        key = content_key(task.name, fields)
        return RenderedRow(inputs, targets, fields.get("options"), key, fields.get("references"))

    return render


def _seen(recipes: Sequence[Path]) -> set[int]:
    """Content keys of all rows that the packs of `recipes` were made of."""
    return {key for recipe in recipes for key in drawn_content(pack_settings(check_recipe(recipe).require()))}
