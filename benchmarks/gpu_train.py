"""Training steps of a model of about 1B parameters on packs of Flan-like lengths: one table for all back-ends.

    python benchmarks/gpu_train.py                        # on a GPU: 1.2B parameters, rows of 2,048 and 8,192 tokens
    python benchmarks/gpu_train.py --size tiny            # anywhere, in seconds; the default without a GPU
    python benchmarks/gpu_train.py --cases varlen sdpa --lengths 8192 --markdown table.md

A step is what training does: the batch goes to the device, forward and backward under bfloat16 autocast over float32
weights, clipping, fused AdamW. All cases draw their examples from one list of lengths.

    tokens/s     of examples; padding does not count. target/s: of those, the ones that are predicted
    MFU          6 FLOPs per parameter and token, the head for targets only, 12 x layers x width per pair of query and
                 key that the mask lets meet: what a kernel computes and throws away is not work. Of the dense peak of
                 the data sheet, at bfloat16
    peak GiB     of allocated memory
    padded       every example in a row of its own, filled up to the longest of the batch
    trl          TRL's SFTTrainer with packing (bfd), causal, where it is installed
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flan_tune.errors import FlanTuneError
from flan_tune.models.collate import BarePack, Batch, collate
from flan_tune.models.forward import checkpoint_activations, compile_layers
from flan_tune.models.load import create_model
from flan_tune.models.loss import TargetLoss
from flan_tune.models.lowering import lowering_of
from flan_tune.packing.bins import pack_bins
from flan_tune.training.flops import Work, flop_cost

SIZES: dict[str, dict[str, Any]] = {
    "1b": {  # the shape of Llama-3.2-1B
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131_072,
    },
    "tiny": {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 176,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
    },
}
CASES = ("varlen", "flex_attention", "sdpa", "padded", "trl")
BATCHES = 8  # different ones, taken in turn


@dataclass(frozen=True)
class Row:
    """One line of the table; `note` instead of numbers where a case cannot run."""

    case: str
    length: int
    compiled: bool
    note: str = ""
    seconds: float = 0.0
    tokens: float = 0.0
    targets: float = 0.0
    fill: float = 0.0
    mfu: float | None = None
    peak_bytes: int = 0

    def cells(self) -> list[str]:
        """What the table shows."""
        head = [self.case, f"{self.length:,}", "yes" if self.compiled else "no"]
        if self.note:
            return [*head, *["-"] * 5, self.note]
        return [
            *head,
            f"{self.tokens / self.seconds:,.0f}",
            f"{self.targets / self.seconds:,.0f}",
            f"{self.mfu:.1%}" if self.mfu is not None else "-",
            f"{self.peak_bytes / 2**30:.1f}" if self.peak_bytes else "-",
            f"{self.fill:.1%}",
            f"{self.seconds * 1e3:,.0f} ms a step",
        ]


HEADER = ["case", "length", "compiled", "tokens/s", "target/s", "MFU", "peak GiB", "fill", ""]


def example_lengths(count: int, longest: int) -> list[tuple[int, int]]:
    """(tokens, prefix tokens) of examples: half zero-shot, half few-shot; about one token in six is a target."""
    rng = np.random.default_rng(0)
    drawn = np.where(rng.random(count) < 0.5, rng.lognormal(4.6, 0.9, count), rng.lognormal(5.9, 0.7, count))
    tokens = np.clip(drawn.astype(int), 8, longest)
    targets = np.clip(rng.lognormal(3.2, 0.9, count).astype(int), 1, tokens // 2)
    return [(int(n), int(n - t)) for n, t in zip(tokens, targets, strict=True)]


def pack_of(examples: Sequence[tuple[int, int]], vocab_size: int, seed: int) -> BarePack:
    """A pack of examples of these lengths, random tokens."""
    lengths, prefixes = (np.array(column, dtype=np.int32) for column in zip(*examples, strict=True))
    ids = np.random.default_rng(seed).integers(3, vocab_size, int(lengths.sum()), dtype=np.int32)
    return BarePack(ids, lengths, prefixes)


def packed(length: int, rows: int, vocab_size: int) -> Iterator[list[BarePack]]:
    """Batches of `rows` packs."""
    examples = example_lengths(40 * BATCHES * rows * max(length // 2048, 1), length)
    bins = pack_bins(np.array([n for n, _ in examples]), length)
    order = np.random.default_rng(1).permutation(len(bins))
    packs = [pack_of([examples[i] for i in bins[b]], vocab_size, int(b)) for b in order]
    for start in range(0, BATCHES * rows, rows):
        yield packs[start : start + rows]


def padded(length: int, rows: int, vocab_size: int) -> Iterator[list[BarePack]]:
    """Batches of examples, each in a row of its own, of about as many positions as the packed ones."""
    examples = iter(example_lengths(40 * BATCHES * rows, length))
    for number in range(BATCHES):
        chosen: list[tuple[int, int]] = []
        for example in examples:
            chosen.append(example)
            if max(n for n, _ in chosen) * len(chosen) >= length * rows:
                break
        yield [pack_of([one], vocab_size, 1000 * number + i) for i, one in enumerate(chosen)]


def pairs_of(pack: BarePack, attention: str) -> float:
    """Pairs of query and key that the mask lets meet."""
    lengths, prefixes = pack.segment_lengths.astype(float), pack.prefix_lengths.astype(float)
    ahead = prefixes * (prefixes - 1) / 2 if attention == "prefix_lm" else 0.0
    return float((lengths * (lengths + 1) / 2 + ahead).sum())


@dataclass(frozen=True)
class Load:
    """A batch and what it counts."""

    batch: Batch
    tokens: int
    targets: int
    pairs: float


def loads(model: Any, options: argparse.Namespace, case: str, length: int) -> list[Load]:
    """The batches of a case, on the CPU, masks made as far as they are beforehand."""
    rows = max(options.tokens // length, 1)
    make = padded if case == "padded" else packed
    made = []
    for packs in make(length, rows, model.config.vocab_size):
        width = length if case != "padded" else max(len(pack.input_ids) for pack in packs)
        batch = collate(
            packs,
            max_length=width,
            pad_id=0,
            attention=options.attention,
            loss_normalization="token",
            lowering=lowering_of(model),
        )
        tokens = sum(len(pack.input_ids) for pack in packs)
        pairs = sum(pairs_of(pack, options.attention) for pack in packs)
        made.append(Load(batch, tokens, len(batch.target_positions), pairs))
    return made


def measure(case: str, length: int, compiled: bool, options: argparse.Namespace) -> Row:
    """One line: warm-up, then the median step."""
    device = options.device
    implementation = "sdpa" if case == "padded" else case
    model = new_model(options, implementation)
    if options.gradient_checkpointing:
        checkpoint_activations(model)
    if compiled:
        compile_layers(model)
    loss = TargetLoss(model.to(device).train())
    optimizer = torch.optim.AdamW(loss.parameters(), lr=1e-5, fused=device == "cuda")
    batches = loads(model, options, case, length)
    warm_up = len(batches) if case == "padded" else 3  # padded rows have other lengths in every batch
    taken, counted = [], []
    for number in range(warm_up + options.steps):
        load = batches[number % len(batches)]
        if number == warm_up and device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        seconds = timed_step(loss, optimizer, load, device)
        if number >= warm_up:
            taken.append(seconds)
            counted.append(load)
    return line(case, length, compiled, model, taken, counted, device)


def new_model(options: argparse.Namespace, implementation: str) -> Any:
    """The model of the chosen size, made where it runs."""
    values = dict(SIZES[options.size])
    return create_model(
        {"model_type": "llama", "tie_word_embeddings": True} | values,
        values["vocab_size"],
        seed=0,
        attn_implementation=implementation,
        compute_dtype=torch.bfloat16,
        building=lambda: torch.device(options.device),
    )


def timed_step(loss: TargetLoss, optimizer: torch.optim.Optimizer, load: Load, device: str) -> float:
    """Seconds of one update."""
    synchronize(device)
    started = time.perf_counter()
    with torch.autocast(device, torch.bfloat16):
        output = loss(load.batch.to(device))
    (output.loss_sum / load.targets).backward()
    torch.nn.utils.clip_grad_norm_(loss.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    synchronize(device)
    return time.perf_counter() - started


def line(
    case: str, length: int, compiled: bool, model: Any, taken: list[float], counted: list[Load], device: str
) -> Row:
    """The table's line of measured steps."""
    seconds = statistics.median(taken)
    tokens, targets, pairs = (
        statistics.mean(getattr(load, name) for load in counted) for name in ("tokens", "targets", "pairs")
    )
    cost = flop_cost(model, torch.device(device))
    mfu = None
    if cost is not None and cost.peak_per_second is not None:
        mfu = cost.of(Work(tokens, targets, pairs)) / seconds / cost.peak_per_second
    positions = statistics.mean(load.batch.input_ids.numel() for load in counted)
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    return Row(case, length, compiled, "", seconds, tokens, targets, tokens / positions, mfu, peak)


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def measure_trl(length: int, options: argparse.Namespace) -> Row:
    """TRL's SFTTrainer on the same examples, packed by itself; causal, since it knows no prefix-LM."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    has_flash = options.device == "cuda" and _has("flash_attn")
    model = new_model(options, "sdpa")
    model.config._attn_implementation = "flash_attention_2" if has_flash else "sdpa"
    rows = max(options.tokens // length, 1)
    examples = [
        one for packs in packed(length, rows, model.config.vocab_size) for pack in packs for one in _parts(pack)
    ]
    dataset = Dataset.from_list(examples * max(1, options.steps // BATCHES + 2))

    class Clock(TrainerCallback):
        """Seconds of every step."""

        def __init__(self) -> None:
            self.taken: list[float] = []

        def on_step_begin(self, *arguments: Any, **named: Any) -> None:
            synchronize(options.device)
            self.started = time.perf_counter()

        def on_step_end(self, *arguments: Any, **named: Any) -> None:
            synchronize(options.device)
            self.taken.append(time.perf_counter() - self.started)

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            output_dir=folder,
            max_length=length,
            packing=True,
            packing_strategy="bfd",
            per_device_train_batch_size=rows,
            max_steps=3 + options.steps,
            learning_rate=1e-5,
            optim="adamw_torch_fused" if options.device == "cuda" else "adamw_torch",
            bf16=options.device == "cuda",
            use_cpu=options.device != "cuda",
            gradient_checkpointing=options.gradient_checkpointing,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            completion_only_loss=True,
        )
        trainer = SFTTrainer(
            model=model,
            args=config,
            train_dataset=dataset,
            processing_class=_tokenizer(),
            callbacks=[clock],
        )
        if options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        trainer.train()
        fill = float(np.mean([len(ids) for ids in trainer.train_dataset["input_ids"]])) / length
    tokens, share = fill * length * rows, _target_share(examples)
    taken = clock.taken[3:]
    seconds = statistics.median(taken)
    pairs = statistics.mean(load.pairs for load in loads_for_pairs(model, options, length))
    cost = flop_cost(model, torch.device(options.device))
    mfu = None
    if cost is not None and cost.peak_per_second is not None:
        mfu = cost.of(Work(tokens, tokens * share, pairs)) / seconds / cost.peak_per_second
    peak = torch.cuda.max_memory_allocated() if options.device == "cuda" else 0
    name = f"trl ({model.config._attn_implementation})"
    return Row(name, length, False, "", seconds, tokens, tokens * share, fill, mfu, peak)


def loads_for_pairs(model: Any, options: argparse.Namespace, length: int) -> list[Load]:
    """Our own packs of the same examples: as many pairs, causal."""
    causal = argparse.Namespace(**vars(options) | {"attention": "causal"})
    model.config._attn_implementation = "sdpa"
    return loads(model, causal, "sdpa", length)


def _parts(pack: BarePack) -> Iterator[dict[str, list[int]]]:
    start = 0
    for length, prefix in zip(pack.segment_lengths.tolist(), pack.prefix_lengths.tolist(), strict=True):
        ids = pack.input_ids[start : start + length].tolist()
        yield {"input_ids": ids, "completion_mask": [0] * prefix + [1] * (length - prefix)}
        start += length


def _target_share(examples: list[dict[str, list[int]]]) -> float:
    return sum(sum(e["completion_mask"]) for e in examples) / sum(len(e["input_ids"]) for e in examples)


def _tokenizer() -> Any:
    """Any: the examples are tokens already, but the trainer wants one."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "<unk>": 2}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>")


def _has(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


def attempt(case: str, length: int, compiled: bool, options: argparse.Namespace) -> Row:
    """`measure`, or the reason why there is nothing to measure."""
    if case == "trl" and not _has("trl"):
        return Row(case, length, compiled, "not installed")
    try:
        return measure_trl(length, options) if case == "trl" else measure(case, length, compiled, options)
    except torch.OutOfMemoryError:
        return Row(case, length, compiled, "out of memory")
    except FlanTuneError as error:
        return Row(case, length, compiled, error.faults[0])
    finally:
        gc.collect()
        torch._dynamo.reset()
        if options.device == "cuda":
            torch.cuda.empty_cache()


def environment(options: argparse.Namespace) -> str:
    """What was measured on what."""
    import transformers

    where = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    parameters = sum(p.numel() for p in create_meta(options).parameters())
    return (
        f"{where}, torch {torch.__version__}, transformers {transformers.__version__}, {time.strftime('%Y-%m-%d')}: "
        f"{parameters / 1e9:.2f}B parameters, {options.tokens:,} positions a step, {options.attention}, "
        f"gradient checkpointing {'on' if options.gradient_checkpointing else 'off'}"
    )


def create_meta(options: argparse.Namespace) -> Any:
    """The model without memory, to count it."""
    return new_model(argparse.Namespace(**vars(options) | {"device": "meta"}), "sdpa")


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    is_small = device == "cpu"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="tiny" if is_small else "1b")
    parser.add_argument("--lengths", type=int, nargs="+", default=[128, 256] if is_small else [2048, 8192])
    parser.add_argument("--cases", choices=CASES, nargs="+", default=list(CASES))
    parser.add_argument("--compile", choices=["no", "yes", "both"], default="no" if is_small else "both")
    parser.add_argument("--tokens", type=int, default=512 if is_small else 16_384, help="positions of a step")
    parser.add_argument("--steps", type=int, default=BATCHES if is_small else 3 * BATCHES, help="steps measured")
    parser.add_argument("--attention", choices=["prefix_lm", "causal"], default="prefix_lm")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--markdown", type=Path, help="also write the table there")
    options = parser.parse_args(arguments)
    options.device = device
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parsed(arguments)
    title = environment(options)
    print(title, flush=True)
    widths = [16, 8, 9, 11, 10, 7, 9, 7, 0]
    shown = [HEADER]
    print("".join(cell.ljust(width) for cell, width in zip(HEADER, widths, strict=True)), flush=True)
    for length in options.lengths:
        for case in options.cases:
            for compiled in {"no": [False], "yes": [True], "both": [False, True]}[options.compile]:
                if compiled and case in ("trl", "padded"):
                    continue  # TRL is taken as it comes; padded rows have another shape in every batch
                cells = attempt(case, length, compiled, options).cells()
                shown.append(cells)
                print("".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), flush=True)
    if options.markdown:
        lines = ["| " + " | ".join(cells) + " |" for cells in shown]
        lines.insert(1, "|---" * len(HEADER) + "|")
        options.markdown.write_text("\n".join([title, "", *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
