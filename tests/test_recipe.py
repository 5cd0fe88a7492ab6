"""Recipes: every key known, every fault told at once with its file and line; extending, overriding, contradictions."""

from __future__ import annotations

import doctest
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_packs import ROOT

from flan_tune import recipe as recipe_module
from flan_tune.errors import RecipeError
from flan_tune.recipe import Recipe, load_recipe, read_source

RECIPE = """\
model:
  config: {model_type: llama, hidden_size: 64}
tokenizer: {name_or_path: tokenizer}
data:
  mixture: mixture.yaml
  max_length: 256
objective: {kind: supervised}
training:
  output_dir: runs/x
  max_steps: 10
  global_batch_size: 4
  learning_rate: 1e-4
"""


def write(folder: Path, text: str, name: str = "recipe.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def faults_of(path: Path, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    return [fault.removeprefix(f"{path}:") for fault in caught.value.faults]


def test_the_examples_of_the_docstrings_are_true() -> None:
    assert doctest.testmod(recipe_module).failed == 0


def test_defaults_and_derived_values(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, RECIPE))
    assert recipe.num_packs == 40
    assert recipe.packs_dir == Path("runs/x/packs")
    assert recipe.tokenizer_path == "tokenizer"
    assert recipe.data.separator == "\n"


def test_a_number_that_yaml_reads_as_text_is_a_number(tmp_path: Path) -> None:
    """YAML 1.1 wants a dot and a sign: 1e-4 is text to it."""
    assert yaml.safe_load("1e-4") == "1e-4"
    path = write(tmp_path, RECIPE)
    assert load_recipe(path).training.learning_rate == 1e-4
    assert load_recipe(path, ["training.learning_rate=3e-5"]).training.learning_rate == 3e-5


# Faults


def test_all_faults_are_told_at_once_each_with_its_line(tmp_path: Path) -> None:
    text = """\
modell: {}
model: {config: {hidden_size: 64}, atention: causal}
tokenizer: {train: {vocab_size: 100}}
data: {mixture: 3, max_length: long, too_long: cut}
objective: {kind: supervised, denoisers: [{name: A, rate: 2}]}
training:
  output_dir: runs/x
  max_steps: 0
  global_batch_size: 4
  learning_rate: .inf
  save_step: 3
"""
    found = faults_of(write(tmp_path, text))
    expected = [
        "1: unknown key 'modell'. Did you mean 'model'?",
        "2: unknown key 'model.atention'. Did you mean 'attention'?",
        "3: tokenizer.train.vocab_size is 100: input should be greater than 260.",
        "4: data.mixture is 3: input should be a valid string.",
        "4: data.max_length is 'long': input should be a valid integer",
        "4: data.too_long is 'cut': input should be 'truncate_input' or 'drop'.",
        "5: objective.denoisers.0.rate is 2: input should be less than 1.",
        "8: training.max_steps is 0: input should be greater than 0.",
        "10: training.learning_rate is inf: input should be a finite number.",
        "11: unknown key 'training.save_step'. Did you mean 'save_steps'",
    ]
    for message in expected:
        assert any(fault.startswith(message) for fault in found), (message, found)
    assert len(found) == len(expected)


def test_a_fault_says_what_the_key_is_for(tmp_path: Path) -> None:
    path = write(tmp_path, RECIPE.replace("  max_steps: 10\n", "").replace("max_length: 256", "max_length: 3"))
    assert faults_of(path) == [
        "6: data.max_length is 3: input should be greater than 8. Tokens in a pack; of an encoder-decoder, those "
        "of its encoder.",
        "8: the key 'training.max_steps' is missing. Steps to train.",
    ]


def test_an_unknown_key_that_is_near_nothing_lists_the_keys(tmp_path: Path) -> None:
    (fault,) = faults_of(write(tmp_path, RECIPE.replace("objective: {", "objective: {zzz: 1, ")))
    assert fault == (
        "7: unknown key 'objective.zzz'. The keys here are ['cut_lengths', 'denoisers', 'kind', 'loss_normalization', "
        "'mode_token', 'preset', 'rates', 'span_sampler', 'z_loss']."
    )


def test_a_section_that_is_none(tmp_path: Path) -> None:
    (fault,) = faults_of(write(tmp_path, RECIPE.replace("objective: {kind: supervised}", "objective: supervised")))
    assert fault.startswith("7: objective is 'supervised'; it is a section with the keys ['kind', ")


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("config: {", "model_name_or_path: m\n  config: {", "1: give either model_name_or_path"),
        ("  config: {model_type: llama, hidden_size: 64}", "  attention: causal", "1: give either model_name_or_path"),
        ("model_type: llama, ", "", "2: config needs `model_type`"),
        ("{name_or_path: tokenizer}", "{}", "3: a new model needs tokenizer.name_or_path."),
        ("kind: supervised", "kind: mixture_of_denoisers", "7: mixture_of_denoisers needs either a preset"),
        ("kind: supervised", "kind: causal, preset: ul2", "7: preset and denoisers belong to mixture_of_denoisers"),
        (
            "kind: supervised",
            "kind: causal, rates: per_token",
            "7: rates, span_sampler and cut_lengths belong to mixture_of_denoisers",
        ),
        (
            "kind: supervised",
            "kind: supervised, span_sampler: uniform",
            "7: rates, span_sampler and cut_lengths belong to",
        ),
        (
            "kind: supervised",
            "kind: mixture_of_denoisers, preset: ul2r, mode_token: '[S2S]'",
            "7: mode_token belongs to supervised, the kind is 'mixture_of_denoisers': a denoiser has a mode of its",
        ),
        ("kind: supervised", "kind: causal, mode_token: '[S2S]'", "7: mode_token belongs to supervised"),
        ("max_steps: 10", "max_steps: 10\n  warmup_steps: 11", "11: warm-up (11) is longer than max_steps."),
        ("max_length: 256", "max_length: 256\n  num_packs: 39", "7: 39 packs are too few for 10 steps of 4."),
        (
            "global_batch_size: 4",
            "global_batch_size: 4\n  per_device_train_batch_size: 3",
            "11: global_batch_size 4 is no multiple of per_device_train_batch_size 3.",
        ),
    ],
)
def test_contradictions_between_keys(tmp_path: Path, old: str, new: str, fault: str) -> None:
    assert old in RECIPE
    found = faults_of(write(tmp_path, RECIPE.replace(old, new)))
    assert any(one.startswith(fault) for one in found), found


T5 = RECIPE.replace("llama", "t5").replace("max_length: 256", "max_length: 256\n  max_target_length: 64")


def test_an_encoder_decoder_has_two_lengths(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, T5))
    assert (recipe.data.max_length, recipe.data.max_target_length) == (256, 64)
    assert load_recipe(write(tmp_path, RECIPE)).data.max_target_length is None
    pretrained = T5.replace("config: {model_type: t5, hidden_size: 64}", "model_name_or_path: owner/name")
    assert load_recipe(write(tmp_path, pretrained)).data.max_target_length == 64, "what it is cannot be said here"


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("\n  max_target_length: 64", "", "4: the model is an encoder-decoder; give data.max_target_length"),
        ("model_type: t5", "model_type: llama", "4: max_target_length is for encoder-decoders, and the model is none."),
        ("max_target_length: 64", "max_target_length: 1", "7: data.max_target_length is 1: input should be greater"),
        ("kind: supervised", "kind: causal", "8: an encoder-decoder has no causal objective"),
        ("hidden_size: 64}", "hidden_size: 64}\n  attention: prefix_lm", "3: attention prefix_lm is for decoders"),
        (
            "hidden_size: 64}",
            "hidden_size: 64}\n  attn_implementation: flex_attention",
            "3: flex_attention is for decoders; an encoder-decoder runs on sdpa and eager.",
        ),
        ("mixture: mixture.yaml", "mixture: mixture.yaml\n  separator: eos", "6: an encoder-decoder reads inputs and"),
    ],
)
def test_what_an_encoder_decoder_cannot_have(tmp_path: Path, old: str, new: str, fault: str) -> None:
    assert old in T5
    (found,) = faults_of(write(tmp_path, T5.replace(old, new)))
    assert found.startswith(fault)


def test_denoising_joins_inputs_and_targets_of_an_encoder_decoder_too(tmp_path: Path) -> None:
    text = T5.replace("kind: supervised", "kind: mixture_of_denoisers, preset: ul2r")
    assert load_recipe(write(tmp_path, text), ["data.separator=eos"]).data.separator == "eos"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a recipe is a mapping with the sections ['model', "),
        ("- model\n", "a recipe is a mapping with the sections ['model', "),
        ("model: {\n", "this is not YAML"),
    ],
)
def test_files_that_are_no_recipes(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["training.seed=1"])
    assert len(caught.value.faults) == 1
    assert message in str(caught.value)


def test_a_missing_file_is_one_fault_even_with_overrides(tmp_path: Path) -> None:
    path = tmp_path / "none.yaml"
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, ["training.seed=1", "nonsense"])
    assert str(caught.value) == f"{path}: there is no such file. Check the path."


def test_a_key_given_twice_names_both_lines_and_the_other_faults(tmp_path: Path) -> None:
    path = write(tmp_path, RECIPE + "  max_steps: 20\n  sed: 1\n")
    found = faults_of(path)
    assert found[0] == "13: key 'max_steps' is given twice (first on line 10). Delete one of them."
    assert found[1].startswith("14: unknown key 'training.sed'. Did you mean 'seed'?")
    assert len(found) == 2


# Extending


def test_a_recipe_extends_another_key_by_key(tmp_path: Path) -> None:
    write(tmp_path, RECIPE, "base.yaml")
    top = "extends: base.yaml\ntraining: {output_dir: runs/y, seed: 3}\nmodel: {attention: prefix_lm}\n"
    recipe = load_recipe(write(tmp_path, top, "top.yaml"))
    assert recipe.training.output_dir == "runs/y"
    assert (recipe.training.max_steps, recipe.training.seed) == (10, 3)
    assert (recipe.model.attention, recipe.model.config) == ("prefix_lm", {"model_type": "llama", "hidden_size": 64})


def test_lists_are_replaced_not_merged(tmp_path: Path) -> None:
    write(tmp_path, RECIPE + "  report_to: [tensorboard]\n", "base.yaml")
    assert load_recipe(write(tmp_path, "extends: base.yaml\ntraining: {report_to: []}\n")).training.report_to == []


def test_faults_name_the_file_that_holds_the_key(tmp_path: Path) -> None:
    base = write(tmp_path, RECIPE.replace("max_steps: 10", "max_step: 10"), "base.yaml")
    top = write(tmp_path, "extends: base.yaml\ntraining: {sed: 1}\n", "top.yaml")
    with pytest.raises(RecipeError) as caught:
        load_recipe(top)
    faults = {fault.partition(": ")[0]: fault for fault in caught.value.faults}
    assert "unknown key 'training.max_step'. Did you mean 'max_steps'" in faults[f"{base}:10"]
    assert any("unknown key 'training.sed'" in fault for fault in caught.value.faults)
    assert any("the key 'training.max_steps' is missing" in fault for fault in caught.value.faults)
    assert len(caught.value.faults) == 3


def test_a_base_that_is_not_there_is_named_with_the_line_that_wants_it(tmp_path: Path) -> None:
    """What the base would have said is not told as missing; what is wrong in the file itself is."""
    found = faults_of(write(tmp_path, "extends: gone.yaml\ntraining: {sed: 1}\n"))
    assert found == [
        f"1: there is no recipe '{tmp_path / 'gone.yaml'}' to extend. Check the path.",
        "2: unknown key 'training.sed'. Did you mean 'seed'?",
    ]


@pytest.mark.parametrize("base", ["recipe.yaml", "middle.yaml"])
def test_a_base_may_not_extend_further(tmp_path: Path, base: str) -> None:
    write(tmp_path, f"extends: recipe.yaml\n{RECIPE}", "middle.yaml")
    path = write(tmp_path, f"extends: {base}\n{RECIPE}")
    with pytest.raises(RecipeError, match="a recipe may extend one other, which extends none itself"):
        load_recipe(path)


# Overriding


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.seed=7", 7),
        ("training.seed=0", 0),
        ("training.report_to=[wandb]", ["wandb"]),
        ("model.config.hidden_size=32", 32),
        ("data.separator=eos", "eos"),
        ("data.packs_dir=a=b", "a=b"),
        ("tokenizer.special_tokens.sentinels=new", "new"),
    ],
)
def test_overrides_reach_any_key(tmp_path: Path, override: str, value: Any) -> None:
    found: Any = load_recipe(write(tmp_path, RECIPE), [override]).model_dump()
    for part in override.partition("=")[0].split("."):
        found = found[part]
    assert found == value


def test_the_last_override_wins_over_the_file_and_its_base(tmp_path: Path) -> None:
    write(tmp_path, RECIPE, "base.yaml")
    path = write(tmp_path, "extends: base.yaml\ntraining: {max_steps: 20}\n")
    assert load_recipe(path, ["training.max_steps=30", "training.max_steps=40"]).training.max_steps == 40


def test_wrong_overrides_are_told_at_once_as_of_the_command_line(tmp_path: Path) -> None:
    found = faults_of(
        write(tmp_path, RECIPE), "nonsense", "training.lr=1", "training.seed=x", "model.config.a.b=1", "a..b=1"
    )
    assert found == [
        "command line: 'nonsense' is not of the form section.key=value.",
        "command line: 'a..b=1' is not of the form section.key=value.",
        *[fault for fault in found if fault.startswith("command line 'training.")],
    ]
    assert any("unknown key 'training.lr'" in fault for fault in found)
    assert any("training.seed is 'x': input should be a valid integer" in fault for fault in found)
    assert len(found) == 4


def test_an_override_may_not_turn_a_value_into_a_section(tmp_path: Path) -> None:
    found = faults_of(write(tmp_path, RECIPE), "training.seed.x=1", "training.max_steps.y=1")
    assert any("'max_steps' is not a section" in fault for fault in found)


# What is shipped


def test_every_key_is_documented() -> None:
    def undocumented(section: type, path: str) -> list[str]:
        found = []
        for name, field in section.model_fields.items():  # type: ignore[attr-defined]
            found += [] if field.description else [f"{path}.{name}"]
            for inner in recipe_module._sections_in(field.annotation):
                found += undocumented(inner, f"{path}.{name}")
        return found

    assert undocumented(Recipe, "recipe") == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "recipes").glob("*/*.yaml")), ids=lambda path: f"{path.parent.name}/{path.stem}"
)
def test_every_shipped_recipe_reads(path: Path) -> None:
    """Bases alone and other YAML files aside."""
    source = read_source(path)
    if {"model", "training"} <= source.data.keys():
        load_recipe(path)
