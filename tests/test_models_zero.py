"""Two real ZeRO-3 processes on CPUs load, extend, create and run models as one process without sharding does."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_models_attention import CONFIGS, SEGMENTS
from test_models_encoder_decoder import FAMILIES, UNTIED, sides_of, with_own_head
from test_models_loss import rows_of

from flan_tune.models.collate import NO_LABEL, Batch
from flan_tune.models.load import create_model, load_model
from flan_tune.models.loss import TargetLoss
from flan_tune.models.probe import leak_probe

OLD, NEW = 61, 70
Z_LOSS = 1e-2
LOADED = {
    "llama": CONFIGS["llama"],
    "tied": CONFIGS["llama"] | {"tie_word_embeddings": True},
    "gpt_neox": CONFIGS["gpt_neox"],
    "phi": {k: v for k, v in CONFIGS["gpt_neox"].items() if k != "model_type"} | {"model_type": "phi"},  # head bias
    "t5": FAMILIES["t5"],
    "mt5": FAMILIES["mt5"],  # with a head of its own, as its checkpoints have
}
GPT2 = {"n_embd": 32, "n_layer": 1, "n_head": 4, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
CREATED = {"new": CONFIGS["llama"], "new_tied": LOADED["tied"], "new_gpt2": GPT2 | {"model_type": "gpt2"}}
CREATED["new_t5"] = FAMILIES["t5"]


@pytest.mark.long
def test_two_processes_have_the_model_of_one(tmp_path: Path):
    for name, config in LOADED.items():
        model = create_model(config, OLD, seed=1)
        if name in UNTIED:
            with_own_head(model, torch.Generator().manual_seed(1))
        model.save_pretrained(tmp_path / name)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    # DeepSpeed builds its CPU communication with ninja, which lies beside the interpreter.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "PATH": path}
    done = subprocess.run([*command, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for name in (*LOADED, *CREATED):
        whole = make(name, tmp_path)
        for rank in (0, 1):
            found = torch.load(tmp_path / f"{name}.{rank}.pt")
            assert found["faults"] == []
            assert found["losses"][1] < found["losses"][0] or rank == 1
            assert found["parameters"].keys() == dict(whole.named_parameters()).keys()
            for parameter_name, parameter in whole.named_parameters():
                assert torch.equal(found["parameters"][parameter_name], parameter), (name, rank, parameter_name)
            # Rank 1 has no targets, and gradients are averaged over the two.
            TargetLoss(whole, Z_LOSS)(batch_for(name)).loss_sum.div(2).backward()
            for parameter_name, parameter in whole.named_parameters():
                gradient = found["gradients"][parameter_name]
                torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-5)
            whole.zero_grad()


def make(name: str, directory: Path, **options):
    if name in CREATED:
        return create_model(CREATED[name], NEW, seed=5, **options)
    return load_model(str(directory / name), vocab_size=NEW, seed=3, **options)


def batch_for(name: str) -> Batch:
    return sides_of() if "t5" in name else rows_of(SEGMENTS)


def worker(directory: Path) -> None:
    """One of the processes."""
    import deepspeed
    from deepspeed.utils import safe_get_full_grad
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    deepspeed.init_distributed(dist_backend="gloo")
    rank = torch.distributed.get_rank()
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
        "zero_allow_untested_optimizer": True,
    }
    keeps_zero3_on = HfDeepSpeedConfig(settings)  # transformers holds it by a weak reference
    torch.manual_seed(rank)  # what a process has drawn before must not matter

    def own_batch(name: str) -> Batch:
        batch = batch_for(name)
        if rank == 0:
            return batch
        # A process without a single target takes part in everything.
        none, zero = torch.full_like(batch.labels, NO_LABEL), torch.zeros_like(batch.loss_weights)
        return replace(batch, labels=none, loss_weights=zero, target_positions=batch.target_positions[:0])

    def gathering(parameters):
        return deepspeed.zero.GatheredParameters(parameters, modifier_rank=0)

    for name in (*LOADED, *CREATED):
        model = make(name, directory, gathering=gathering)
        loss = TargetLoss(model, Z_LOSS)
        optimizer = torch.optim.AdamW(loss.parameters(), lr=1e-3)
        engine = deepspeed.initialize(model=loss, optimizer=optimizer, config=settings)[0]
        attention = "causal" if "t5" in name else "prefix_lm"
        found = {"faults": leak_probe(model, attention, "sdpa", NEW), "losses": []}
        with deepspeed.zero.GatheredParameters(list(model.parameters())):
            found["parameters"] = {n: p.detach().clone() for n, p in model.named_parameters()}
        for _ in range(2):
            output = engine(own_batch(name))
            engine.backward(output.loss_sum)
            if not found["losses"]:
                found["gradients"] = {n: safe_get_full_grad(p) for n, p in model.named_parameters()}
            engine.step()
            found["losses"].append(output.loss_sum.item())
        torch.save(found, directory / f"{name}.{rank}.pt")
    del keeps_zero3_on


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
