"""Training steps of UL2R beside causal ones: seconds per position of a row, on the CPU, with the same shapes.

Packs of both objectives are prepared from the same text, the English Wikipedia of a data root; a small model is trained
on one step of either in turn, UL2R with the prefix mask. A row has the same number of positions whatever stands in it.

    FLAN_TUNE_DATA=<data root> python benchmarks/objectives.py [--max-length 512] [--rounds 15]
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from flan_tune.models.collate import Batch, collate
from flan_tune.models.load import create_model
from flan_tune.models.loss import TargetLoss
from flan_tune.packing.compile import Compiler, open_stream
from flan_tune.packing.settings import PackSettings
from flan_tune.packing.stream import StreamCounts
from flan_tune.tokens.sentencepiece_training import train_sentencepiece

VOCABULARY, ROWS, EXAMPLES, TOKENIZER_EXAMPLES, WARM_UP = 4096, 8, 200, 400, 2
MIXTURE = Path(__file__).parent.parent / "data_mixtures" / "mirror_text.yaml"
ATTENTION = {"causal": "causal", "ul2r": "prefix_lm"}
MODEL = {
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 688,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
}


def settings_of(objective: str, tokenizer: Path, max_length: int) -> PackSettings:
    changes: dict[str, Any] = {"objective": "causal"}
    if objective == "ul2r":
        special = {"sentinels": "new", "num_sentinels": 256, "mode_tokens": True}
        changes = {"objective": "mixture_of_denoisers", "preset": "ul2r", "special_tokens": special}
    return PackSettings(
        mixture=str(MIXTURE),
        tokenizer_path=str(tokenizer),
        packs_dir="",
        max_length=max_length,
        num_packs=1,
        window_examples=EXAMPLES,
        **changes,
    )


def train_tokenizer(folder: Path) -> None:
    stream = open_stream(settings_of("causal", folder, 512))
    texts = [example.text()[1] for example in stream.examples(0, TOKENIZER_EXAMPLES, StreamCounts())]
    train_sentencepiece(texts, folder, vocab_size=VOCABULARY)


def made(objective: str, tokenizer: Path, max_length: int) -> tuple[TargetLoss, Batch]:
    """A new model with its loss, and a batch of ROWS packs."""
    compiler = Compiler(settings_of(objective, tokenizer, max_length))
    packs, _ = compiler.window(0)
    model = create_model(MODEL, compiler.tokenizer.vocab_size, seed=0, attn_implementation="sdpa")
    batch = collate(
        packs[:ROWS],
        max_length=max_length,
        pad_id=compiler.tokenizer.pad_id,
        attention=ATTENTION[objective],
        loss_normalization="token",
    )
    return TargetLoss(model), batch


def step_seconds(loss: TargetLoss, batch: Batch) -> float:
    started = time.process_time()
    loss(batch).loss_sum.backward()
    loss.zero_grad()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        train_tokenizer(Path(name))
        runs = {objective: made(objective, Path(name), given.max_length) for objective in ATTENTION}
    seconds: dict[str, list[float]] = {objective: [] for objective in runs}
    for _ in range(WARM_UP + given.rounds):
        for objective, run in runs.items():
            seconds[objective].append(step_seconds(*run))
    positions = ROWS * given.max_length
    median = {objective: statistics.median(times[WARM_UP:]) for objective, times in seconds.items()}
    for objective, (_, batch) in runs.items():
        tokens, targets = int((batch.spec.segment_ids > 0).sum()), len(batch.target_positions)
        print(
            f"{objective:6s} {positions / median[objective]:8,.0f} positions/s; "
            f"{tokens / positions:.3f} of them hold tokens, {targets / positions:.3f} targets"
        )
    print(f"a step of UL2R takes {median['ul2r'] / median['causal']:.3f} of a causal one")


if __name__ == "__main__":
    main()
