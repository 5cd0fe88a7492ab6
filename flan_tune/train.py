"""The thin entry of training: checks the recipe, refuses packs that do not match it, then starts the loop.

    accelerate launch --config_file recipes/accelerate/zero3.yaml -m flan_tune.train RECIPE [key=value ...]

Everything that can be wrong is found before torch is imported. Exit codes: 0 done, 1 the input is wrong,
2 wrong usage, 75 asked to be requeued; `<output_dir>/status.json` says the same, since launchers keep their own.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flan_tune.errors import EXIT_WRONG_INPUT, EXIT_WRONG_USAGE, FlanTuneError, StreamError

if TYPE_CHECKING:
    from flan_tune.packing.settings import PackSettings
    from flan_tune.packing.store import PackReader
    from flan_tune.recipe import Recipe
    from flan_tune.tokens.tokenizer import Tokenizer


def main(arguments: list[str] | None = None) -> int:
    """Trains; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else EXIT_WRONG_USAGE
    path, *overrides = arguments
    os.environ.setdefault("TQDM_DISABLE", "1")  # bars of libraries; our own progress is a line per logging step
    output_dir: list[str] = []
    try:
        return _train(path, overrides, output_dir)
    except FlanTuneError as error:
        if int(os.environ.get("RANK", "0")) == 0:
            print(str(error), file=sys.stderr, flush=True)
            for folder in output_dir:
                _note_wrong_input(Path(folder), str(error))
        return EXIT_WRONG_INPUT


def _train(path: str, overrides: list[str], output_dir: list[str]) -> int:
    from flan_tune.checks.preflight import check_recipe, pack_settings
    from flan_tune.packing.compile import open_tokenizer

    checked = check_recipe(path, overrides)
    if checked.recipe is not None:
        output_dir.append(checked.recipe.training.output_dir)
    recipe = checked.require()
    settings = pack_settings(recipe)
    words = shlex.join([path, *overrides])
    _require_packs(settings, words)  # before the tokenizer, which may be trained by the same command
    tokenizer = open_tokenizer(settings)
    packs = matching_packs(settings, tokenizer, words)
    return _run(recipe, settings, tokenizer, packs)


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
    from flan_tune.training.settings import TrainSettings

    model = recipe.model

    def build(engine: Any) -> Any:
        common = {
            "vocab_size": tokenizer.vocab_size,
            "seed": recipe.training.seed,
            "attn_implementation": model.attn_implementation,
            "dtype": engine.weight_dtype,
            "building": engine.building,
            "gathering": engine.gathering,
        }
        if model.config is not None:
            return create_model(model.config, **common)
        return load_model(str(model.model_name_or_path), revision=model.model_revision, **common)

    def write(state_dict: Any, trained: Any, directory: Path) -> None:
        extra = {"packs_fingerprint": packs.manifest["fingerprint"], "objective": recipe.objective.kind}
        export(
            state_dict,
            trained,
            tokenizer,
            directory,
            attention=model.attention,
            separator=settings.separator,
            extra=extra,
        )

    values = recipe.training.model_dump()
    values["output_dir"] = Path(values["output_dir"])
    values["report_to"] = tuple(values["report_to"])
    train_settings = TrainSettings(
        **values,
        attention=model.attention,
        attn_implementation=model.attn_implementation,
        loss_normalization=recipe.objective.loss_normalization,
    )
    resolved = yaml.safe_dump(recipe.model_dump(exclude_none=True), sort_keys=False)
    if int(os.environ.get("RANK", "0")) == 0:
        print(resolved, flush=True)
    result = train(train_settings, packs, build, write, resolved_recipe=resolved, pad_id=tokenizer.pad_id)
    return int(result.exit_code)


def _note_wrong_input(output_dir: Path, message: str) -> None:
    """status.json, as the trainer writes it; never over one that a run of the trainer wrote."""
    path = output_dir / "status.json"
    if path.exists() and json.loads(path.read_text(encoding="utf-8")).get("state") not in ("wrong_input", "failed"):
        return
    output_dir.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"state": "wrong_input", "step": 0, "message": message}) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
