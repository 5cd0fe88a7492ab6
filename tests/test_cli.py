"""The commands as a user meets them: exit codes, one message without a traceback, output to read and to parse."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import FlanTune, Outcome
from small_packs import ROOT, TASKS, edit, small_recipe

HEAVY = ("torch", "transformers", "accelerate", "deepspeed", "lm_eval", "datasets")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe with its packs, which no test changes."""
    recipe = small_recipe(tmp_path_factory.mktemp("prepared"))
    run_python("-m", "flan_tune.cli.main", "prepare", str(recipe))
    return recipe


def run_python(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("FLAN_TUNE_DATA", None)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done
    return done


# Exit codes and messages


def test_help_is_no_error(flan_tune: FlanTune) -> None:
    outcome = flan_tune("--help")
    assert outcome.code == 0
    for command in ("check", "prepare", "inspect", "run", "generate", "evaluate", "report", "tasks", "mixture"):
        assert command in outcome.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("check",),
        ("prepare", "recipe.yaml", "--num-proc", "0"),
        ("inspect", "recipe.yaml", "--pack", "-1"),
        ("tasks", "show", "add", "--index", "many"),
        ("tasks", "list", "--nonsense"),
    ],
)
def test_wrong_usage_is_exit_code_2(flan_tune: FlanTune, arguments: tuple[str, ...]) -> None:
    outcome = flan_tune(*arguments)
    assert outcome.code == 2
    assert outcome.out == ""


WRONG_INPUT = {
    ("check", "none.yaml"): "none.yaml: there is no such file. Check the path.",
    ("prepare", "none.yaml"): "none.yaml: there is no such file. Check the path.",
    ("inspect", "none.yaml"): "none.yaml: there is no such file. Check the path.",
    ("run", "none.yaml"): "none.yaml: there is no such file. Check the path.",
    ("report", "none.yaml"): "none.yaml: there is no such file. Check the path.",
    ("mixture", "show", "none.yaml"): "none.yaml: there is no such file. Check the path.",
    ("tasks", "show", "ad"): "there is no task 'ad'. Did you mean 'add'?",
    ("tasks", "show", "add", "--style", "fewshot"): "there is no presentation 'fewshot'. Did you mean 'few_shot'",
    ("tasks", "show", "add", "--style", "cot", "--no-options"): "there is no presentation 'cot_no_options'",
    ("tasks", "show", "add", "--template", "x"): "there is no template 'x' for this. They are ['procedural/",
    ("tasks", "show", "add", "--shots", "2"): "'zero-shot' shows no exemplars",
    ("tasks", "show", "add", "--index", "1000000"): "has 1000000 rows in 'train'; there is no row 1000000",
    ("tasks", "show", "describe_pet", "--style", "cot"): "has no wordings for 'cot'; it supports ['zero_shot', ",
    ("tasks", "show", "task001_quoref_question_generation"): "set FLAN_TUNE_DATA",
    ("tasks", "list", "--family", "procedurl"): "there is no family 'procedurl'. Did you mean 'procedural'?",
    ("tasks", "list", "--data-root", "/not/there"): "data_root of the recipe is '/not/there'",
    ("evaluate", "model", "--suites", "gsm8"): "there is no suite 'gsm8'. Did you mean 'gsm8k'?",
}


@pytest.mark.parametrize(("arguments", "message"), WRONG_INPUT.items(), ids=lambda value: " ".join(value)[:60])
def test_wrong_input_is_one_message_and_exit_code_1(
    flan_tune: FlanTune, arguments: tuple[str, ...], message: str
) -> None:
    outcome = flan_tune(*arguments)
    assert outcome.code == 1
    assert message in outcome.err
    assert outcome.out == ""
    assert len(outcome.err.splitlines()) == 1


def test_wrong_input_is_found_without_torch() -> None:
    """All of them, and the entry of training, in one process that would show what was imported."""
    commands = [list(arguments) for arguments in WRONG_INPUT]
    script = f"""
import sys
from flan_tune.cli.main import main
from flan_tune.train import main as train
for arguments in {commands!r}:
    sys.argv = ["flan-tune", *arguments]
    try:
        main()
    except SystemExit as ending:
        assert ending.code == 1, arguments
assert train(["none.yaml"]) == 1
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    done = run_python("-c", script)
    assert done.stdout == "[]\n"
    assert "Traceback" not in done.stderr


def test_help_imports_next_to_nothing() -> None:
    script = """
import sys
from flan_tune.cli.main import main
sys.argv = ["flan-tune", "--help"]
try:
    main()
finally:
    print([name for name in ("torch", "numpy", "pyarrow", "pydantic", "jinja2") if name in sys.modules])
"""
    assert run_python("-c", script).stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("entry", ["check", "train"])
def test_two_typos_and_an_unknown_task_are_one_message(tmp_path: Path, entry: str) -> None:
    recipe = small_recipe(tmp_path)
    edit(recipe, "max_steps", "max_step")
    edit(recipe, "objective: {kind: supervised}", "objective: {kind: supervised, los_normalization: token}")
    edit(tmp_path / "mixture.yaml", "sentiment", "sentment")
    arguments = ("-m", "flan_tune.cli.main", "check") if entry == "check" else ("-m", "flan_tune.train")
    done = run_python(*arguments, str(recipe), code=1)
    assert done.stdout == ""
    faults = done.stderr.splitlines()
    assert len(faults) == 4
    for place, message in (
        (f"{recipe}:11: ", "unknown key 'training.max_step'. Did you mean 'max_steps'"),
        (f"{recipe}:9: ", "the key 'training.max_steps' is missing. Steps to train."),
        (f"{recipe}:8: ", "unknown key 'objective.los_normalization'. Did you mean 'loss_normalization'"),
        (f"{tmp_path / 'mixture.yaml'}:2: ", "there is no task 'sentment'. Did you mean 'sentiment'"),
    ):
        assert any(fault.startswith(place + message) for fault in faults), (place, message, faults)


# What commands print


def test_check(flan_tune: FlanTune, prepared: Path) -> None:
    assert flan_tune("check", prepared) == Outcome(0, f"{prepared}: no faults.\n", "")
    assert flan_tune.json("check", prepared) == {"faults": [], "notes": []}


def test_check_tells_faults_as_json_too(flan_tune: FlanTune, prepared: Path) -> None:
    outcome = flan_tune("check", prepared, "training.sed=1", "--json")
    assert outcome.code == 1
    assert "unknown key 'training.sed'" in json.loads(outcome.out)["faults"][0]


def test_prepare_prints_what_was_made_and_what_was_lost(flan_tune: FlanTune, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    outcome = flan_tune("prepare", recipe)
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    speed = r"[\d,]+ rows/s, [\d,]+ tokens/s, ETA \d+:\d\d:\d\d"
    assert re.fullmatch(rf"window 0: \d+ packs; 1/2 windows, {speed}; procedural 60", lines[0])
    assert lines[1].endswith("ETA 0:00:00; procedural 120")
    titles = [line.split()[0] for line in lines[2:]]
    assert titles == ["packs", "tokens", "examples", "lost", "hash"]
    assert str(tmp_path / "run" / "packs") in lines[2]


def test_prepare_as_json_prints_nothing_else(flan_tune: FlanTune, tmp_path: Path) -> None:
    made = flan_tune.json("prepare", small_recipe(tmp_path), "--packs", tmp_path / "elsewhere")
    manifest = json.loads((tmp_path / "elsewhere" / "manifest.json").read_text())
    assert made["content_hash"] == manifest["content_hash"]
    assert made["packs"] == manifest["packs"] >= 40


def test_prepare_refuses_a_folder_of_other_packs(flan_tune: FlanTune, prepared: Path) -> None:
    outcome = flan_tune("prepare", prepared, "data.data_seed=9", "data.separator=eos")
    assert outcome.code == 1
    assert "changed: data_seed, separator. Delete the folder" in outcome.err


@pytest.mark.slow
def test_prepare_trains_the_tokenizer_a_recipe_asks_for(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    shutil.rmtree(tmp_path / "tokenizer")
    edit(recipe, "tokenizer}", "tokenizer, train: {vocab_size: 400, num_examples: 200}}")
    noted = run_python("-m", "flan_tune.cli.main", "check", str(recipe)).stdout
    assert noted.startswith(f"note: the tokenizer will be trained into {tmp_path / 'tokenizer'}.")
    done = run_python("-m", "flan_tune.cli.main", "prepare", str(recipe), "--json")
    first = json.loads(done.stdout)
    shutil.rmtree(tmp_path / "run")
    assert json.loads(run_python("-m", "flan_tune.cli.main", "prepare", str(recipe), "--json").stdout)["packs"] >= 40
    assert not (tmp_path / "tokenizer.tmp").exists()
    assert first["packs"] >= 40


def test_prepare_names_a_tokenizer_that_no_stage_has_made_yet(flan_tune: FlanTune, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    edit(recipe, "tokenizer}", "base/model}")
    outcome = flan_tune("prepare", recipe)
    assert outcome.code == 1
    assert outcome.err.startswith(f"{tmp_path / 'base' / 'model'}: there is no tokenizer here yet.")


def test_inspect_shows_inputs_and_targets_apart(flan_tune: FlanTune, prepared: Path) -> None:
    outcome = flan_tune("inspect", prepared, "--pack", 1)
    assert outcome.code == 0
    assert outcome.err == ""
    first, *rest = outcome.out.splitlines()
    assert re.fullmatch(r"pack 1: \d+ of 192 tokens, \d+ targets, \d+ segments?", first)
    assert rest[1].startswith("- seen from behind only   > target")
    headers = [line for line in rest if line.startswith("[")]
    shown = r"\[\d+\] \w+ row \d+ epoch 0: supervised, \w+, template procedural/\S+, \d shots?, "
    assert all(re.fullmatch(shown + r"\d+ tokens, \d+ targets?", line) for line in headers)
    assert len(headers) == outcome.out.count("\n-> ")


def test_inspect_as_json_agrees_with_the_packs(flan_tune: FlanTune, prepared: Path) -> None:
    (one,) = flan_tune.json("inspect", prepared)
    assert one["pack"] == 0
    assert one["tokens"] == sum(segment["tokens"] for segment in one["segments"])
    assert all(segment["targets"] for segment in one["segments"])
    of_step = flan_tune.json("inspect", prepared, "--step", 3)
    assert [pack["pack"] for pack in of_step] == [12, 13, 14, 15]
    (of_task,) = flan_tune.json("inspect", prepared, "--task", "true_sum")
    tasks = [segment["task"] for segment in of_task["segments"]]
    shown = flan_tune("inspect", prepared, "--task", "true_sum").out
    assert shown.count("\n[") == len(tasks) > shown.count("\n-> ") == tasks.count("true_sum") > 0


def test_inspect_writes_out_sentinels_and_mode_tokens(flan_tune: FlanTune, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    edit(recipe, "kind: supervised", "kind: mixture_of_denoisers, preset: ul2r")
    edit(recipe, "/tokenizer}", "/tokenizer, special_tokens: {num_sentinels: 64}}")
    (tmp_path / "mixture.yaml").write_text("members: [{tasks: [add]}]\npresentations: {statement: 1}\nshots: [5, 5]\n")
    assert flan_tune("prepare", recipe).code == 0
    segments = [s for number in range(20) for s in flan_tune.json("inspect", recipe, "--pack", number)[0]["segments"]]
    modes = {"S": "[S2S]", "R": "[NLU]", "X1": "[NLG]", "X2": "[NLG]"}
    assert {segment["kind"] for segment in segments} == set(modes)
    for segment in segments:
        assert segment["inputs"].startswith(modes[segment["kind"]])
        sentinels = re.findall(r"<\d+>", segment["inputs"])
        assert sentinels == [f"<{number}>" for number in range(len(sentinels))]
        assert segment["kind"] == "S" or segment["targets"].startswith("<0>")


def test_inspect_tells_what_may_be_seen(flan_tune: FlanTune, prepared: Path) -> None:
    for attention in ("prefix_lm", "causal"):
        (one,) = flan_tune.json("inspect", prepared, f"model.attention={attention}")
        for segment in one["segments"]:
            seen_both_ways = segment["input_tokens"] if attention == "prefix_lm" else 0
            assert segment["bidirectional_tokens"] == seen_both_ways
            assert segment["causal_tokens"] == segment["tokens"] - seen_both_ways
            assert segment["target_tokens"] == segment["tokens"] - segment["input_tokens"]
        lines = flan_tune("inspect", prepared, f"model.attention={attention}").out.splitlines()
        assert set(lines[1]) - set(".") == set("|=>" if attention == "prefix_lm" else "|->")
        assert lines[1].strip(".").count("|") == len(one["segments"]) + 1
        first = one["segments"][0]
        both = f"{first['bidirectional_tokens']} tokens bidirectional prefix, " if attention == "prefix_lm" else ""
        targets = f"{'' if both else 'tokens '}causal; {first['target_tokens']} targets"
        assert f"mask: {both}{first['causal_tokens']} {targets}" in lines


def test_inspect_shows_both_sides_of_an_encoder_decoder(flan_tune: FlanTune, tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    edit(recipe, "model_type: llama", "model_type: t5")
    edit(recipe, "max_length: 192", "max_length: 128\n  max_target_length: 48")
    assert flan_tune("prepare", recipe).code == 0
    (one,) = flan_tune.json("inspect", recipe)
    assert (one["layout"], one["max_length"], one["max_target_length"]) == ("encoder_decoder", 128, 48)
    segments = one["segments"]
    assert all(s["bidirectional_tokens"] == s["input_tokens"] for s in segments)
    assert sum(s["target_tokens"] for s in segments) == one["target_tokens"]
    first, encoder, decoder, *rest = flan_tune("inspect", recipe).out.splitlines()
    sizes = f"{one['tokens'] - one['target_tokens']} of 128 encoder tokens, {one['target_tokens']} of 48 decoder tokens"
    assert first == f"pack 0: {sizes}, {len(segments)} segment{'s' * (len(segments) > 1)}"
    assert set(encoder) - set(".") == set("|=")
    assert set(decoder) - set(".") == set("|>")
    assert f"mask: {segments[0]['input_tokens']} tokens in the encoder" in "\n".join(rest)


def test_inspect_of_a_step_has_a_line_per_segment(flan_tune: FlanTune, prepared: Path) -> None:
    lines = flan_tune("inspect", prepared, "--step", 0).out.splitlines()
    packs = [line for line in lines if line.startswith("pack ")]
    assert [line.split(":")[0] for line in packs] == ["pack 0", "pack 1", "pack 2", "pack 3"]
    segments = sum(int(line.split(" segment")[0].split()[-1]) for line in packs)
    assert sum(line.startswith("  [") for line in lines) == segments == len(lines) - 2 * len(packs)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--pack", 10_000), "there is no pack 10000; the store holds packs 0 to "),
        (("--step", 10_000), "there is no step 10000; the packs are for steps 0 to "),
        (("--task", "sentment"), "no pack holds the task 'sentment'. Did you mean 'sentiment'?"),
        (("--task", "add", "--pack", 1), "give one of --pack, --step and --task, not several."),
        (("--packs", "/not/there"), "there are no sealed packs here"),
    ],
)
def test_inspect_of_what_is_not_there(
    flan_tune: FlanTune, prepared: Path, arguments: tuple[object, ...], message: str
) -> None:
    outcome = flan_tune("inspect", prepared, *arguments)
    assert outcome.code == 1
    assert message in outcome.err


def test_inspect_says_when_packs_are_of_another_recipe(flan_tune: FlanTune, prepared: Path) -> None:
    outcome = flan_tune("inspect", prepared, "data.data_seed=4")
    assert outcome.code == 0
    assert outcome.err == "note: these packs were made by another recipe than today's; changed: data_seed.\n"


def test_the_shares_of_a_mixture_are_those_of_its_packs(flan_tune: FlanTune, prepared: Path) -> None:
    shown = flan_tune.json("mixture", "show", prepared.parent / "mixture.yaml")
    assert {record["name"]: record["share"] for record in shown["tasks"]} == dict.fromkeys(TASKS, 0.25)


def test_checkpoint_list_of_a_run_without_any(flan_tune: FlanTune, tmp_path: Path) -> None:
    assert flan_tune.json("checkpoint", "list", tmp_path) == {"checkpoints": [], "faults": []}
    assert "no complete checkpoint" in flan_tune("checkpoint", "list", tmp_path).out
