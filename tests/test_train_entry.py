"""The entry of training, up to where torch would be imported: packs that are missing, stale or too few; status.json."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from small_packs import edit, small_recipe, small_settings

from flan_tune.errors import RecipeError, StreamError
from flan_tune.packing.compile import open_tokenizer
from flan_tune.packing.prepare import prepare
from flan_tune.packing.settings import PackSettings
from flan_tune.recipe import load_recipe
from flan_tune.train import check_layout, main, matching_packs


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return small_recipe(tmp_path)


def settings_of(recipe: Path) -> PackSettings:
    folder = recipe.parent
    return small_settings(folder, packs_dir=str(folder / "run" / "packs"))


def status(recipe: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads((recipe.parent / "run" / "status.json").read_text())
    return found


def test_without_arguments_it_says_how_it_is_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "accelerate launch" in capsys.readouterr().out


def test_without_packs_it_prints_the_command_that_makes_them(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(recipe), "training.seed=3", "data.separator= -> "]) == 1
    message = capsys.readouterr().err
    assert message == (
        f"{recipe.parent / 'run' / 'packs'}: there are no packs for this recipe. Make them first:\n"
        f"  flan-tune prepare {recipe} training.seed=3 'data.separator= -> '\n"
    )
    written = status(recipe)
    assert written.pop("time")  # as in every status the trainer writes
    assert written == {"state": "wrong_input", "step": 0, "message": message.strip()}


def test_the_tokenizer_may_be_made_by_the_same_command(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(recipe, "tokenizer}", "trained, train: {vocab_size: 300}}")
    assert main([str(recipe)]) == 1
    assert "there are no packs for this recipe. Make them first:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("data.data_seed=1", "data_seed"),
        ("data.max_length=100", "lengths"),
        ("objective.kind=causal", "objective"),
        ("data.separator=eos", "separator"),
    ],
)
def test_packs_of_another_recipe_are_refused_with_what_changed(
    recipe: Path, capsys: pytest.CaptureFixture[str], override: str, part: str
) -> None:
    prepare(settings_of(recipe))
    assert main([str(recipe), override]) == 1
    message = capsys.readouterr().err
    assert f"these packs do not match the recipe; changed: {part}. Delete the folder and make them anew:" in message
    assert f"  flan-tune prepare {recipe} {override}\n" in message


def test_too_few_packs_are_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = prepare(settings_of(recipe))["packs"]
    assert main([str(recipe), "training.max_steps=1000"]) == 1
    message = capsys.readouterr().err
    assert f"the recipe needs 4000 packs, {made} are there. Make the rest:\n  flan-tune prepare {recipe}" in message


def test_packs_that_match_are_opened(recipe: Path) -> None:
    settings = settings_of(recipe)
    prepare(settings)
    packs = matching_packs(settings, open_tokenizer(settings), "recipe.yaml")
    assert packs.num_packs >= settings.num_packs
    special = open_tokenizer(settings).with_special_tokens(sentinels="new", num_sentinels=5, mode_tokens=True)
    with pytest.raises(StreamError, match="changed: tokenizer"):
        matching_packs(settings, special, "recipe.yaml")


def test_what_changes_nothing_about_packs_is_no_reason_to_refuse(recipe: Path) -> None:
    settings = settings_of(recipe)
    prepare(settings)
    mixture = Path(settings.mixture)
    mixture.write_text("# looked at again\n" + mixture.read_text())
    assert matching_packs(settings, open_tokenizer(settings), "recipe.yaml").num_packs


def test_all_faults_are_told_and_noted(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(recipe.parent / "mixture.yaml", "[add,", "[ad,")
    assert main([str(recipe)]) == 1
    message = capsys.readouterr().err
    assert "there is no task 'ad'. Did you mean 'add'?" in message
    assert status(recipe)["message"] == message.strip()


def test_one_rank_speaks(recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main([str(recipe)]) == 1
    assert capsys.readouterr() == ("", "")
    assert not (recipe.parent / "run").exists()


def test_a_job_script_does_not_read_what_an_earlier_run_left(recipe: Path) -> None:
    path = recipe.parent / "run" / "status.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"state": "done", "step": 5, "message": ""}))
    assert main([str(recipe)]) == 1
    assert status(recipe)["state"] == "wrong_input"


def test_torch_is_not_imported_for_packs_that_do_not_match(recipe: Path) -> None:
    prepare(settings_of(recipe))
    script = f"""
import sys
from flan_tune.train import main
assert main([{str(recipe)!r}, "data.data_seed=7"]) == 1
print([name for name in ("torch", "transformers", "accelerate", "deepspeed") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_a_model_of_the_other_layout_is_refused(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A local one before anything is opened, one of the hub before its weights are read."""
    model = recipe.parent / "t5"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}')
    edit(recipe, "config: {model_type: llama, hidden_size: 32}", f"model_name_or_path: {model}")
    assert main([str(recipe)]) == 1
    message = "the model is an encoder-decoder; give data.max_target_length"
    assert message in capsys.readouterr().err
    with pytest.raises(RecipeError, match=message):
        check_layout(load_recipe(recipe))
    check_layout(load_recipe(recipe, ["data.max_target_length=64"]))
