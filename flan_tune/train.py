"""The thin entry of training: checks the recipe, refuses packs that do not match it, then starts the loop.

    accelerate launch --config_file recipes/accelerate/zero3.yaml -m flan_tune.train RECIPE [key=value ...]

Everything that can be wrong is found before torch is imported. Exit codes: 0 done, 1 the input is wrong,
2 wrong usage, 75 asked to be requeued; `<output_dir>/status.json` says the same, since launchers keep their own.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flan_tune.errors import EXIT_WRONG_INPUT, EXIT_WRONG_USAGE, FlanTuneError, RecipeError, StreamError, disk_fault

if TYPE_CHECKING:
    from flan_tune.packing.settings import PackSettings
    from flan_tune.packing.store import PackReader
    from flan_tune.recipe import Recipe
    from flan_tune.tokens.tokenizer import Tokenizer
    from flan_tune.training.settings import TrainSettings


def main(arguments: list[str] | None = None) -> int:
    """Trains; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else EXIT_WRONG_USAGE
    path, *overrides = arguments
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of libraries; our own progress is a line per logging step
    is_main = int(os.environ.get("RANK", "0")) == 0
    try:
        recipe, settings, tokenizer, packs = _open(path, overrides, is_main)
        return _run(recipe, settings, tokenizer, packs)
    except FlanTuneError as error:
        message = str(error)
    except OSError as error:
        full = disk_fault(error)
        if full is None:
            raise
        message = full
    if is_main:
        print(message, file=sys.stderr, flush=True)
    return EXIT_WRONG_INPUT


def _open(path: str, overrides: list[str], is_main: bool) -> tuple[Recipe, PackSettings, Tokenizer, PackReader]:
    """Everything a run reads. What is wrong here goes to status.json too; the trainer writes its own from there on."""
    from flan_tune.checks.preflight import check_recipe, pack_settings
    from flan_tune.packing.compile import open_tokenizer
    from flan_tune.training.tracking import write_status

    checked = check_recipe(path, overrides)
    try:
        recipe = checked.require()
        settings = pack_settings(recipe)
        words = shlex.join([path, *overrides])
        _require_packs(settings, words)  # before the tokenizer, which may be trained by the same command
        tokenizer = open_tokenizer(settings)
        return recipe, settings, tokenizer, matching_packs(settings, tokenizer, words)
    except FlanTuneError as error:
        if is_main and checked.recipe is not None:
            # a job script must not read what an earlier attempt left there
            write_status(Path(checked.recipe.training.output_dir), "wrong_input", 0, str(error))
        raise


def matching_packs(settings: PackSettings, tokenizer: Tokenizer, recipe_words: str) -> PackReader:
    """The sealed packs of a recipe. Raises StreamError with the command that makes them."""
    from flan_tune.packing.fingerprint import changed_parts, fingerprint_parts, join_parts
    from flan_tune.packing.store import open_packs

    _require_packs(settings, recipe_words)
    command = f"flan-tune prepare {recipe_words}"
    packs = open_packs(settings.packs_dir)
    parts = fingerprint_parts(settings, tokenizer.fingerprint)
    if packs.manifest["fingerprint"] != join_parts(parts):
        changed = ", ".join(changed_parts(packs.manifest["fingerprint_parts"], parts))
        raise StreamError(
            f"{settings.packs_dir}: these packs do not match the recipe; changed: {changed}. "
            f"Delete the folder and make them anew:\n  {command}"
        )
    if packs.num_packs < settings.num_packs:
        raise StreamError(
            f"{settings.packs_dir}: the recipe needs {settings.num_packs} packs, {packs.num_packs} are there. "
            f"Make the rest:\n  {command}"
        )
    return packs


def _require_packs(settings: PackSettings, recipe_words: str) -> None:
    if not (Path(settings.packs_dir) / "manifest.json").exists():
        raise StreamError(
            f"{settings.packs_dir}: there are no packs for this recipe. Make them first:\n"
            f"  flan-tune prepare {recipe_words}"
        )


def _run(recipe: Recipe, settings: PackSettings, tokenizer: Tokenizer, packs: PackReader) -> int:
    import yaml

    from flan_tune.models.export import export
    from flan_tune.models.load import create_model, load_model
    from flan_tune.training.loop import train

    model = recipe.model

    def build(engine: Any) -> Any:
        common = {
            "vocab_size": tokenizer.vocab_size,
            "seed": recipe.training.seed,
            "attn_implementation": model.attn_implementation,
            "dtype": engine.weight_dtype,
            "compute_dtype": engine.compute_dtype,
            "dropout": model.dropout,
            "building": engine.building,
            "gathering": engine.gathering,
        }
        if model.config is not None:
            return create_model(model.config, **common)
        check_layout(recipe)
        return load_model(str(model.model_name_or_path), revision=model.model_revision, **common)

    def write(state_dict: Any, trained: Any, directory: Path) -> None:
        extra = {"packs_fingerprint": packs.manifest["fingerprint"], "objective": recipe.objective.kind}
        export(
            state_dict,
            trained,
            tokenizer,
            directory,
            attention=model.attention,
            separator="" if settings.layout == "encoder_decoder" else settings.separator,
            layout=settings.layout,
            mode_token=recipe.objective.mode_token,
            extra=extra,
        )

    resolved = yaml.safe_dump(recipe.model_dump(exclude_none=True), sort_keys=False)
    if int(os.environ.get("RANK", "0")) == 0:
        print(resolved, flush=True)
    how = _train_settings(recipe)
    result = train(how, packs, build, write, resolved_recipe=resolved, pad_id=tokenizer.pad_id)
    return int(result.exit_code)


def check_layout(recipe: Recipe) -> None:
    """Raises RecipeError if the recipe takes the model it tunes for an encoder-decoder that is none, or the other way
    round. The preflight asks the config of a local model; that of one on the hub is read here, before its weights.
    """
    from flan_tune.models.export import read_export_info
    from flan_tune.recipe import layout_fault

    info = read_export_info(str(recipe.model.model_name_or_path), recipe.model.model_revision)
    fault = layout_fault(info["layout"] == "encoder_decoder", recipe.data.max_target_length)
    if fault:
        raise RecipeError(f"{recipe.model.model_name_or_path}: {fault}")


def _train_settings(recipe: Recipe) -> TrainSettings:
    from flan_tune.training.settings import TrainSettings

    values = recipe.training.model_dump()
    values["output_dir"] = Path(values["output_dir"])
    values["report_to"] = tuple(values["report_to"])
    return TrainSettings(
        **values,
        attention=recipe.model.attention,
        attn_implementation=recipe.model.attn_implementation,
        loss_normalization=recipe.objective.loss_normalization,
        z_loss=recipe.objective.z_loss,
        torch_compile=recipe.model.torch_compile,
    )


if __name__ == "__main__":
    sys.exit(main())
