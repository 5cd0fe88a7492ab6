"""The whole way as a user walks it: prepare, two ranks of ZeRO-3, one process, export, evaluate, generate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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


def launch(config: str, *words: str) -> None:
    config_file = f"recipes/accelerate/{config}.yaml"
    call("accelerate.commands.launch", "--config_file", config_file, "-m", "flan_tune.train", RECIPE, *words)


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
