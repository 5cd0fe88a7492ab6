"""Reading a pipeline file: its stages with their recipes, and every fault of all of them at once.

    title: The quickstart
    output_dir: runs/quickstart
    launch: recipes/accelerate/single_cpu.yaml      # how each training stage is launched
    parallel: 2                                     # jobs at once
    stages:
      - {name: base, recipe: base.yaml}             # relative to this file
      - {name: flan, recipe: flan.yaml, threads: 2} # OpenMP threads of its training
    evaluate: {suites: [procedural], rows: 50, max_new_tokens: 48}

What becomes of it is in pipeline.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flan_tune import strict_yaml
from flan_tune.checks.preflight import check_recipe
from flan_tune.cli.evaluate import SUITES
from flan_tune.errors import RecipeError, did_you_mean
from flan_tune.recipe import Recipe
from flan_tune.training.tracking import MODEL_FOLDER

_KEYS = ("title", "output_dir", "launch", "parallel", "stages", "evaluate")
_STAGE_KEYS = ("name", "recipe", "threads")
_EVALUATE_LEAST = {"rows": 1, "max_new_tokens": 1, "shots": 0}
_NAME = re.compile(r"[\w.+-]+")  # it becomes part of file names


@dataclass(frozen=True)
class Stage:
    """One training stage: its name, its recipe's path, the recipe, and the OpenMP threads of its training."""

    name: str
    path: Path
    recipe: Recipe
    threads: int = 1

    @property
    def output_dir(self) -> Path:
        """Where the stage's checkpoints, packs, metrics and model go."""
        return Path(self.recipe.training.output_dir)

    @property
    def model_dir(self) -> Path:
        """Where the stage's exported model goes."""
        folder: Path = self.output_dir / MODEL_FOLDER
        return folder


@dataclass(frozen=True)
class Pipeline:
    """A pipeline file as plain values. `evaluate` is empty if nothing is evaluated."""

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
    reader = _Reader(path)
    pipeline = reader.read()
    if reader.faults or pipeline is None:
        raise RecipeError(*dict.fromkeys(reader.faults))  # stages share mixtures, and their faults
    return pipeline


class _Reader:
    """Reads one pipeline file, collecting faults."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.document = strict_yaml.read_file(path)
        self.faults = list(self.document.faults)

    def fault(self, message: str, *address: str | int) -> None:
        self.faults.append(f"{self.document.at(*address)}: {message}")

    def read(self) -> Pipeline | None:
        data = self.document.data
        if not isinstance(data, dict):
            if not self.faults:
                self.fault(f"a pipeline is a mapping with the keys {list(_KEYS)}.")
            return None
        self._unknown(data, _KEYS)
        for name in ("output_dir", "launch", "stages"):
            if name not in data:
                self.fault(f"the key {name!r} is missing.")
        launch = self._text(data, "launch")
        if launch and not Path(launch).is_file():
            self.fault(f"launch is {launch!r}: there is no such accelerate config. Check the path.", "launch")
        return Pipeline(
            path=self.path,
            title=self._text(data, "title") or self.path.stem,
            output_dir=Path(self._text(data, "output_dir")),
            launch=launch,
            parallel=self._count(data, "parallel", 1, 1),
            stages=self._stages(data.get("stages", [])),
            evaluate=self._evaluate(data.get("evaluate") or {}),
        )

    def _unknown(self, data: Mapping[str, Any], known: Sequence[str], *address: str | int) -> None:
        for name in data:
            if name not in known:
                near = did_you_mean(name, known) or f" The keys here are {list(known)}."
                self.fault(f"unknown key {name!r}.{near}", *address, name)

    def _text(self, data: Mapping[str, Any], key: str, *address: str | int) -> str:
        value = data.get(key, "")
        if isinstance(value, str) and (value or key not in data):
            return value
        self.fault(f"{key} is {value!r}; text is wanted.", *address, key)
        return ""

    def _count(self, data: Mapping[str, Any], key: str, default: int, least: int, *address: str | int) -> int:
        value = data.get(key, default)
        if isinstance(value, int) and not isinstance(value, bool) and value >= least:
            return value
        self.fault(f"{key} is {value!r}; it is a whole number, {least} or more.", *address, key)
        return default

    def _stages(self, entries: Any) -> tuple[Stage, ...]:
        if not isinstance(entries, list) or not entries:
            if "stages" in self.document.data:
                self.fault("stages is a list of {name: ..., recipe: ...}, at least one.", "stages")
            return ()
        found = [self._stage(entry, number) for number, entry in enumerate(entries)]
        stages = [stage for stage in found if stage is not None]
        self._check_distinct([stage.name for stage in stages], "name")
        self._check_distinct([str(stage.output_dir) for stage in stages], "training.output_dir")
        return tuple(stages)

    def _check_distinct(self, values: Sequence[str], what: str) -> None:
        for value in sorted({value for value in values if values.count(value) > 1}):
            self.fault(f"{values.count(value)} stages have the {what} {value!r}; give each its own.", "stages")

    def _stage(self, entry: Any, number: int) -> Stage | None:
        address = ("stages", number)
        if not isinstance(entry, dict) or not {"name", "recipe"} <= set(entry):
            self.fault(f"a stage is {{name: ..., recipe: ...}}, found {entry!r}.", *address)
            return None
        self._unknown(entry, _STAGE_KEYS, *address)
        threads = self._count(entry, "threads", 1, 1, *address)
        name, recipe = self._text(entry, "name", *address), self._text(entry, "recipe", *address)
        if name and not _NAME.fullmatch(name):
            self.fault(f"the stage name {name!r} becomes part of file names; use letters, digits and _.+-", *address)
        if not recipe:
            return None
        checked = check_recipe(self.path.parent / recipe)
        self.faults += checked.faults
        return Stage(name, self.path.parent / recipe, checked.recipe, threads) if checked.recipe is not None else None

    def _evaluate(self, options: Any) -> dict[str, Any]:
        if not isinstance(options, dict):
            self.fault(f"evaluate is {options!r}; it is a mapping, for example {{suites: [procedural]}}.", "evaluate")
            return {}
        self._unknown(options, ("suites", *_EVALUATE_LEAST), "evaluate")
        for key, least in _EVALUATE_LEAST.items():
            if key in options:
                self._count(options, key, least, least, "evaluate")
        suites = options.get("suites", [])
        if not isinstance(suites, list):
            self.fault(f"suites is {suites!r}; it is a list of {list(SUITES)}.", "evaluate", "suites")
            return {}
        for place, suite in enumerate(suites):
            if suite not in SUITES:
                near = did_you_mean(str(suite), SUITES)
                self.fault(f"there is no suite {suite!r}.{near} They are {list(SUITES)}.", "evaluate", "suites", place)
        return dict(options)
