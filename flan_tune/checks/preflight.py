"""Preflight: everything about a recipe that can be wrong before any row is rendered or any GPU is touched.

`check_recipe` collects the faults of the recipe, of its mixture and cards, of the sources that cannot be opened and
of denoisers that do not fit, and returns them together. `flan-tune check`, `prepare` and the trainer run it first.
`pack_settings` is where a recipe becomes the plain values the packing room takes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flan_tune.errors import CardError, FlanTuneError, RecipeError, SourceError
from flan_tune.mixtures.mixture import Mixture, read_mixture
from flan_tune.objectives.mixture_of_denoisers import check_budget
from flan_tune.packing.compile import chosen_denoisers
from flan_tune.packing.settings import PackSettings
from flan_tune.packing.store import read_json
from flan_tune.packing.stream import missing_message, unshowable_message
from flan_tune.prompts.present import PRESENTATIONS, can_show
from flan_tune.prompts.template import load_templates
from flan_tune.recipe import Recipe, RecipeSource, check_source, is_encoder_decoder, layout_fault, read_source
from flan_tune.sources.rows import find_data_root, open_rows
from flan_tune.tasks.catalog import Catalog, load_catalog
from flan_tune.tokens.stages import known_choice, stage_faults
from flan_tune.tokens.tokenizer import MODE_TOKENS


@dataclass(frozen=True)
class Checked:
    """What the preflight found. `recipe` is None if the file itself is wrong; `notes` are not faults."""

    recipe: Recipe | None
    faults: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def require(self) -> Recipe:
        """The recipe. Raises: RecipeError with all faults if there are any."""
        if self.faults or self.recipe is None:
            raise RecipeError(*self.faults)
        return self.recipe


def check_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Checked:
    """All faults of a recipe and of what it names; opens no rows, imports no torch."""
    source = read_source(path, overrides)
    recipe, faults = check_source(source)
    notes: list[str] = []
    catalog = _read_catalog(source, faults)
    mixture = _read_mixture(source, catalog, faults) if catalog is not None else None
    if mixture is not None:
        _check_sources(source, mixture, faults, notes)
        faults += _wording_faults(source, mixture)
    if recipe is None:
        return Checked(None, tuple(faults))
    faults += _model_faults(recipe, source)
    faults += _objective_faults(recipe, source)
    return Checked(recipe, tuple(faults), (*notes, *_notes(recipe)))


def _data_value(source: RecipeSource, key: str) -> object:
    data = source.data.get("data")
    return data.get(key) if isinstance(data, dict) else None


def _read_catalog(source: RecipeSource, faults: list[str]) -> Catalog | None:
    paths = _data_value(source, "task_paths")
    try:
        return load_catalog([str(p) for p in paths] if isinstance(paths, list) else [])
    except CardError as error:
        faults += error.faults
        return None


def _read_mixture(source: RecipeSource, catalog: Catalog, faults: list[str]) -> Mixture | None:
    path = _data_value(source, "mixture")
    if not isinstance(path, str):
        return None  # the recipe's own check says so
    if not Path(path).exists():
        faults.append(f"{source.at('data', 'mixture')}: there is no mixture file {path!r}. Check the path.")
        return None
    mixture, found = read_mixture(path, catalog, PRESENTATIONS)
    faults += found
    return mixture


def _check_sources(source: RecipeSource, mixture: Mixture, faults: list[str], notes: list[str]) -> None:
    root_value = _data_value(source, "data_root")
    try:
        root = find_data_root(root_value if isinstance(root_value, str) else None)
    except SourceError as error:
        where = f"{source.at('data', 'data_root')}: " if root_value else ""
        faults += [where + fault for fault in error.faults]
        return
    missing = {}
    for task in mixture.tasks():
        if root is None and task.source.kind == "hub":
            continue  # finding out would download; prepare says what it cannot load
        try:
            open_rows(task, mixture.split, root)
        except FlanTuneError as error:
            missing[task.name] = str(error)
    if not missing:
        return
    if mixture.missing == "error" or len(missing) == len(mixture.tasks()):
        faults += missing_message(missing)
    else:
        notes.append(f"{len(missing)} tasks of the mixture have no data here and are left out (missing: drop).")


def _wording_faults(source: RecipeSource, mixture: Mixture) -> list[str]:
    paths = _data_value(source, "task_paths")
    task_paths = [str(p) for p in paths] if isinstance(paths, list) else []
    faults: dict[str, None] = {}  # in order, each once: many tasks share a set
    for member in mixture:
        shares = member.presentations or mixture.presentations
        for task in member.tasks:
            try:
                templates = load_templates(task, task_paths)
            except CardError as error:
                faults.update(dict.fromkeys(error.faults))
                continue
            if not any(can_show(task, templates, name) for name, share in shares.items() if share > 0):
                faults[unshowable_message(task, shares)] = None
    return list(faults)


def _model_faults(recipe: Recipe, source: RecipeSource) -> list[str]:
    """What the model's own config file contradicts; nothing where it is on the hub or yet to be made."""
    path = Path(recipe.model.model_name_or_path or "") / "config.json"
    if recipe.model.model_name_or_path is None or not path.is_file():
        return []
    try:
        config = read_json(path)
    except ValueError as error:
        return [f"{path}: this is no config of a model ({error})."]
    fault = layout_fault(is_encoder_decoder(config), recipe.data.max_target_length)
    return [f"{source.at('data')}: {fault}"] if fault else []


def _objective_faults(recipe: Recipe, source: RecipeSource) -> list[str]:
    """Special tokens against those of earlier stages, and denoisers against lengths and sentinels."""
    special = recipe.tokenizer.special_tokens.model_dump() if recipe.tokenizer.special_tokens else None
    path, mode_token = recipe.tokenizer_path, recipe.objective.mode_token
    is_new = recipe.tokenizer.train is not None and not Path(path).exists()
    try:
        model_path = recipe.model.model_name_or_path
        found = stage_faults(path, special, is_new=is_new, model_path=model_path, mode_token=mode_token)
        known = known_choice(path, special, is_new=is_new)  # None: an earlier stage or the hub decides
    except RecipeError as error:
        return list(error.faults)  # a damaged file, which the message names
    faults = [f"{source.at('tokenizer')}: {fault}" for fault in found]
    if recipe.objective.kind != "mixture_of_denoisers":
        return faults
    try:
        denoisers, rates = chosen_denoisers(pack_settings(recipe))
    except RecipeError as error:
        return faults + [f"{source.at('objective', 'denoisers')}: {fault}" for fault in error.faults]
    if known is None:
        return faults  # prepare checks against the tokenizer, before it opens any source
    found = check_budget(
        denoisers,
        rates,
        recipe.data.max_length,
        num_sentinels=known["num_sentinels"],
        mode_names=MODE_TOKENS if known["mode_tokens"] else (),
        has_bos=True,
        max_target_length=recipe.data.max_target_length,
        cut_lengths=recipe.objective.cut_lengths,
    )
    return faults + [f"{source.at('objective')}: {fault}" for fault in found]


def _notes(recipe: Recipe) -> list[str]:
    notes = []
    tokenizer = recipe.tokenizer_path
    if recipe.tokenizer.train is not None and not Path(tokenizer).exists():
        notes.append(f"the tokenizer will be trained into {tokenizer}.")
    elif is_missing_folder(tokenizer):
        notes.append(f"the tokenizer {tokenizer} is not there yet; an earlier stage must make it.")
    model = recipe.model.model_name_or_path
    if model and is_missing_folder(model):
        notes.append(f"the model {model} is not there yet; an earlier stage must make it.")
    return notes


def is_missing_folder(name_or_path: str) -> bool:
    """Whether this is the path of a folder that is not there, and not a hub id (a name, or owner/name).

    >>> is_missing_folder("gpt2"), is_missing_folder("owner/name"), is_missing_folder("not/there/model")
    (False, False, True)
    """
    looks_local = name_or_path.startswith(("runs/", ".", "/", "~")) or name_or_path.count("/") > 1
    return looks_local and not Path(name_or_path).exists()


def pack_settings(recipe: Recipe, packs_dir: str | None = None) -> PackSettings:
    """What decides the packs of a recipe. `packs_dir` replaces the recipe's own."""
    data, objective = recipe.data, recipe.objective
    special = recipe.tokenizer.special_tokens
    return PackSettings(
        mixture=data.mixture,
        tokenizer_path=recipe.tokenizer_path,
        packs_dir=str(packs_dir or recipe.packs_dir),
        max_length=data.max_length,
        num_packs=recipe.num_packs,
        objective=objective.kind,
        data_seed=data.data_seed,
        task_paths=tuple(data.task_paths),
        data_root=data.data_root,
        window_examples=data.window_examples,
        too_long=data.too_long,
        max_segments_per_pack=data.max_segments_per_pack,
        packing=data.packing,
        separator=data.separator,
        special_tokens=special.model_dump() if special else None,
        preset=objective.preset,
        denoisers=tuple(d.model_dump() for d in objective.denoisers) if objective.denoisers else None,
        rates=objective.rates,
        span_sampler=objective.span_sampler,
        cut_lengths=(objective.cut_lengths[0], objective.cut_lengths[1]) if objective.cut_lengths else None,
        mode_token=objective.mode_token,
        max_target_length=data.max_target_length,
        max_failed_share=data.max_failed_share,
        max_failed_share_of_task=data.max_failed_share_of_task,
    )
