"""The whole way as a user walks it: prepare, train, export, evaluate, generate.

A decoder by its own commands, on two ranks of ZeRO-3 and on one process; an encoder-decoder in the test's process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command_line import FlanTune
from small_packs import MIXTURE

from flan_tune.train import main as train

ROOT = Path(__file__).parent.parent
RECIPE = "recipes/real_small/flan.yaml"


def call(*command: str, **environment: str) -> str:
    """Runs a command in the repository root; its output. A failing command fails the test with what it said."""
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def launch(config: str, *words: str, recipe: str = RECIPE) -> None:
    config_file = f"recipes/accelerate/{config}.yaml"
    call("accelerate.commands.launch", "--config_file", config_file, "-m", "flan_tune.train", recipe, *words)


def losses(output_dir: Path) -> list[float]:
    lines = (output_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.mirror
@pytest.mark.slow
def test_real_rows_on_two_ranks_are_those_of_one(mirror: Path, tmp_path: Path) -> None:
    common = [f"tokenizer.name_or_path={tmp_path}/tokenizer", f"data.packs_dir={tmp_path}/packs"]
    common += ["data.window_examples=150", "tokenizer.train.num_examples=600", "tokenizer.train.vocab_size=1024"]
    common += ["training.max_steps=5", "training.warmup_steps=1", "training.report_to=[]"]
    call("flan_tune.cli.main", "prepare", RECIPE, *common)
    two, one = tmp_path / "two", tmp_path / "one"
    launch("zero3_cpu", *common, f"training.output_dir={two}")
    launch("single_cpu", *common, f"training.output_dir={one}")
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    assert losses(two)[-1] < losses(two)[0]
    assert json.loads((two / "status.json").read_text())["state"] == "done"
    loaded = "from transformers import AutoModelForCausalLM as M; print(M.from_pretrained(r'%s').num_parameters())"
    told = subprocess.run([sys.executable, "-c", loaded % (two / "model")], capture_output=True, text=True, check=True)
    assert int(told.stdout) > 700_000
    results = call("flan_tune.cli.main", "evaluate", f"{two}/model", "--suites", "gsm8k,mmlu", "--rows", "4", "--json")
    tasks = json.loads(results.splitlines()[-1])["tasks"]
    assert {name: task["n"] for name, task in tasks.items()} == {"gsm8k": 4, "mmlu": 4}
    answered = call("flan_tune.cli.main", "generate", f"{two}/model", "--prompt", "Is ice cold?", "--json")
    assert json.loads(answered.splitlines()[-1])["prompt"] == "Is ice cold?"


TEXT = "members: [{tasks: add}, {tasks: sentiment}]\npresentations: {statement: 1}\nshots: [3, 9]\n"
MODELS = {
    "t5": "{model_type: t5, feed_forward_proj: relu, decoder_start_token_id: 0, %s}",
    "mt5": "{model_type: mt5, feed_forward_proj: gated-gelu, tie_word_embeddings: false, %s}",
}
SIZE = "dropout_rate: 0.0, d_model: 32, d_kv: 8, d_ff: 64, num_layers: 2, num_decoder_layers: 1, num_heads: 4"


def stages(folder: Path, family: str, attn_implementation: str) -> tuple[Path, Path]:
    """Recipes of UL2R from nothing, and of Flan on what it exports."""
    (folder / "text.yaml").write_text(TEXT)
    (folder / "flan.yaml").write_text(MIXTURE)
    common = "window_examples: 60, max_length: 96"
    how = "global_batch_size: 4, per_device_train_batch_size: 2, logging_steps: 1"
    ul2r, flan = folder / "ul2r_recipe.yaml", folder / "flan_recipe.yaml"
    ul2r.write_text(
        f"""model: {{config: {MODELS[family] % SIZE}, attn_implementation: {attn_implementation}}}
tokenizer:
  name_or_path: {folder}/tokenizer
  train: {{vocab_size: 340, num_examples: 200}}
  special_tokens: {{sentinels: new, num_sentinels: 60, mode_tokens: true}}
data: {{mixture: {folder}/text.yaml, {common}, max_target_length: 96}}
objective: {{kind: mixture_of_denoisers, preset: ul2r}}
training: {{output_dir: {folder}/ul2r, max_steps: 12, learning_rate: 1e-2, {how}}}
"""
    )
    flan.write_text(
        f"""model: {{model_name_or_path: {folder}/ul2r/model, attn_implementation: {attn_implementation}}}
data: {{mixture: {folder}/flan.yaml, {common}, max_target_length: 48}}
objective: {{kind: supervised, mode_token: "[S2S]", loss_normalization: example}}
training: {{output_dir: {folder}/flan, max_steps: 4, learning_rate: 3e-3, {how}}}
"""
    )
    return ul2r, flan


def walk(folder: Path, flan_tune: FlanTune, family: str, attn_implementation: str) -> Path:
    """Both stages; the last model."""
    for recipe in stages(folder, family, attn_implementation):
        assert flan_tune("check", recipe).code == 0
        assert flan_tune("prepare", recipe).code == 0
        assert train([str(recipe)]) == 0
    return folder / "flan" / "model"


@pytest.mark.parametrize(
    ("family", "attn_implementation"),
    [("t5", "auto"), *(pytest.param("mt5", name, marks=pytest.mark.long) for name in ("sdpa", "eager"))],
)
def test_an_encoder_decoder_from_nothing_to_answers(
    family: str, attn_implementation: str, flan_tune: FlanTune, tmp_path: Path
) -> None:
    pytest.importorskip("lm_eval")
    from transformers import AutoModelForSeq2SeqLM

    from flan_tune.evaluation.lm import FlanTuneLM
    from flan_tune.tokens.tokenizer import load_tokenizer

    model = walk(tmp_path, flan_tune, family, attn_implementation)
    assert losses(tmp_path / "ul2r")[-1] < losses(tmp_path / "ul2r")[0]
    info = json.loads((model / "flan_tune.json").read_text())
    assert (info["layout"], info["mode_token"], info["separator"]) == ("encoder_decoder", "[S2S]", "")

    flan_tune.capsys.readouterr()
    question = "What is 2 + 3?"
    answers = flan_tune.json("generate", model, "--prompt", question, "--max-new-tokens", "5")
    tokenizer = load_tokenizer(model)
    head = [tokenizer.bos_id, tokenizer.mode_ids["[S2S]"]]
    prompt = torch.tensor([[*head, *tokenizer.encode_batch([question])[0].tolist(), tokenizer.eos_id]])
    plain = AutoModelForSeq2SeqLM.from_pretrained(model).eval()
    own = plain.generate(prompt, do_sample=False, max_new_tokens=5)[0, 1:].tolist()
    assert answers["answer"] == tokenizer.decode(token for token in own if token != tokenizer.eos_id)

    lm = FlanTuneLM.from_folder(model, device="cpu")
    target = tokenizer.encode_batch(["5, and no more"])[0].tolist()
    ((total, _),) = lm.loglikelihood([SimpleNamespace(args=(question, "5, and no more"))])
    with torch.no_grad():
        likelihood = plain(input_ids=prompt, labels=torch.tensor([target])).logits[0].log_softmax(-1)
    assert total == pytest.approx(sum(float(likelihood[t, token]) for t, token in enumerate(target)), abs=1e-4)

    results = flan_tune.json("evaluate", model, "--rows", "1", "--max-new-tokens", "2")
    assert results["model"]["layout"] == "encoder_decoder"
    assert results["model"]["mode_token"] == "[S2S]"
    assert {task["n"] for task in results["tasks"].values()} == {1}
    assert results["truncated"] == 0


@pytest.mark.long
def test_an_encoder_decoder_on_two_ranks_is_that_of_one(flan_tune: FlanTune, tmp_path: Path) -> None:
    """Created under ZeRO-3, and loaded with rows for new tokens."""
    for recipe in stages(tmp_path, "mt5", "auto"):
        words = [f"data.packs_dir={tmp_path}/packs_{recipe.stem}"]
        assert flan_tune("prepare", recipe, *words).code == 0
        two, one = tmp_path / recipe.stem.removesuffix("_recipe"), tmp_path / f"one_{recipe.stem}"
        launch("zero3_cpu", *words, "training.per_device_train_batch_size=1", recipe=str(recipe))
        assert train([str(recipe), *words, f"training.output_dir={one}"]) == 0
        assert losses(two) == pytest.approx(losses(one), abs=1e-3)
        for name in ("config.json", "generation_config.json", "flan_tune.json"):
            told = [json.loads((folder / "model" / name).read_text()) for folder in (one, two)]
            assert told[0] == told[1]
