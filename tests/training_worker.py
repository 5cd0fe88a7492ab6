"""A training run small enough for tests: packs made in memory, a two-layer llama or T5, started by any launcher.

    python training_worker.py OUTPUT_DIR [setting=value ...] [dropout=0.1] [kill_after_step=N] [kill_in_save=N]
                              [signal_at_step=N] [infinite_loss_at=N] [num_packs=N] [encoder_decoder=1]

The tests import `tiny_run` to run it in their own process.
"""

from __future__ import annotations

import ast
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flan_tune import rng
from flan_tune.packing.store import Pack, count_targets
from flan_tune.training import checkpoint, deepspeed_engine, tally
from flan_tune.training.loop import TrainSettings, train

MAX_LENGTH = 24
MAX_TARGET_LENGTH = 22  # three segments of 8 tokens, of which an encoder has one at least, and one to spare
VOCABULARY = 64
FAMILIES = ("muffin", "niv2", "cot")


class TinyPacks:
    """Packs with uneven segments and target counts, each a function of its number."""

    def __init__(self, num_packs: int, encoder_decoder: bool = False) -> None:
        self.num_packs = num_packs
        self.manifest: dict[str, Any] = {
            "fingerprint": "f" * 64,
            "max_length": MAX_LENGTH,
            "max_target_length": MAX_TARGET_LENGTH if encoder_decoder else None,
            "pad_id": 0,
            "tasks": [{"name": f"task_{i}", "family": FAMILIES[i % 3]} for i in range(5)],
        }
        self._packs = [tiny_pack(n, 1 if encoder_decoder else 0) for n in range(num_packs)]
        self.target_tokens = np.array([p.target_tokens for p in self._packs], dtype=np.int32)
        self.num_segments = np.array([len(p.task) for p in self._packs], dtype=np.int32)

    def pack(self, number: int) -> Pack:
        return self._packs[number]


def tiny_pack(number: int, least_prefix: int = 0) -> Pack:
    draws = rng.Draws(rng.key(1, "tiny pack", number))
    lengths = [draws.integer(3, 8) for _ in range(draws.integer(1, 3))]
    prefixes = [max(draws.integer(0, length - 1), least_prefix) for length in lengths]
    length_S, prefix_S = np.array(lengths, dtype=np.int32), np.array(prefixes, dtype=np.int32)
    ids = [3 + draws.below(VOCABULARY - 3) for _ in range(sum(lengths))]
    count = len(lengths)
    return Pack(
        input_ids=np.array(ids, dtype=np.int32),
        segment_lengths=length_S,
        prefix_lengths=prefix_S,
        task=np.array([draws.below(5) for _ in lengths], dtype=np.int32),
        kind=["supervised"] * count,
        row=np.zeros(count, dtype=np.int64),
        epoch=np.zeros(count, dtype=np.int32),
        template=[""] * count,
        presentation=[""] * count,
        shots=np.zeros(count, dtype=np.int8),
        cut=np.zeros(count, dtype=np.int32),
        replaced=np.zeros(count, dtype=np.int8),
        target_tokens=count_targets(length_S, prefix_S),
    )


def build_tiny_t5(dropout: float) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_decoder_layers=3,
        num_heads=4,
        dropout_rate=dropout,
        decoder_start_token_id=0,
    )
    config._attn_implementation = "sdpa"
    torch.manual_seed(5)
    return T5ForConditionalGeneration(config)


def build_tiny_model(dropout: float) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        attention_dropout=dropout,
    )
    config._attn_implementation = "eager" if dropout else "sdpa"
    torch.manual_seed(5)
    return LlamaForCausalLM(config)


def export_tiny(state_dict: Mapping[str, torch.Tensor], model: Any, directory: Path) -> None:
    from safetensors.torch import save_file

    directory.mkdir(parents=True, exist_ok=True)
    save_file({name: value.clone() for name, value in state_dict.items()}, directory / "model.safetensors")
    del model


@dataclass
class AtStep:
    """A hook that does something once, after step `step`."""

    step: int
    action: str
    every_steps: int = 1

    def __call__(self, model: Any, step: int) -> dict[str, float]:
        if step == self.step:
            os.kill(os.getpid(), signal.SIGKILL if self.action == "kill" else signal.SIGUSR1)
        return {}


def kill_in_save(step: int) -> None:
    """From now on, the process dies in the checkpoint of `step`, when files are there but COMPLETE.json is not."""
    complete = checkpoint._complete

    def half(staging: Path, stamp: checkpoint.Stamp, files: Any) -> None:
        if stamp.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        complete(staging, stamp, files)

    checkpoint._complete = half


def infinite_loss_at(step: int, micro_steps: int) -> None:
    """From now on, rank 0's first loss of step number `step` (counted from 0) is infinite; its gradients are not."""
    add = tally.StepSums.add
    calls = iter(range(10**6))

    def infinite(self: Any, loss_sum: torch.Tensor, token_losses: torch.Tensor, family: torch.Tensor) -> None:
        is_hit = next(calls) == step * micro_steps and os.environ.get("RANK", "0") == "0"
        add(self, loss_sum * float("inf") if is_hit else loss_sum, token_losses, family)

    tally.StepSums.add = infinite  # type: ignore[method-assign]


def tiny_run(output_dir: str | Path, **options: Any) -> Any:
    """Trains; `options` are TrainSettings fields and the extras named on top."""
    torch.set_num_threads(1)  # threads cost more than they bring for matrices this small
    names = ("dropout", "kill_after_step", "signal_at_step", "num_packs", "encoder_decoder", "packs")
    extras = {name: options.pop(name, 0) for name in names}
    build = build_tiny_t5 if extras["encoder_decoder"] else build_tiny_model
    defaults = {"max_steps": 6, "global_batch_size": 4, "learning_rate": 3e-3, "logging_steps": 1, "save_steps": 2}
    settings = TrainSettings(output_dir=Path(output_dir), **(defaults | options))
    hooks = [AtStep(extras["kill_after_step"], "kill")] if extras["kill_after_step"] else []
    hooks += [AtStep(extras["signal_at_step"], "signal")] if extras["signal_at_step"] else []
    count = extras["num_packs"] or settings.max_steps * settings.global_batch_size
    return train(
        settings,
        extras["packs"] or TinyPacks(count, bool(extras["encoder_decoder"])),
        lambda engine: build(extras["dropout"]),
        export_tiny,
        resolved_recipe="name: tiny\n",
        pad_id=0,
        hooks=hooks,
    )


def main() -> None:
    output_dir, *rest = sys.argv[1:]
    options = {}
    for argument in rest:
        name, value = argument.split("=", 1)
        try:
            options[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[name] = value
    if os.environ.get("ACCELERATE_USE_DEEPSPEED"):
        # Parameters as small as these would never be partitioned otherwise.
        deepspeed_engine._ZERO3_DEFAULTS["stage3_param_persistence_threshold"] = 0
    if step := options.pop("kill_in_save", 0):
        kill_in_save(step)
    if (step := options.pop("infinite_loss_at", None)) is not None:
        infinite_loss_at(step, 4 // int(os.environ.get("WORLD_SIZE", "1")))
    sys.exit(tiny_run(output_dir, **options).exit_code)


if __name__ == "__main__":
    main()
