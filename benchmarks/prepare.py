"""Examples prepared per second (rendered, tokenised, packed, written), beside TRL's faster path, which renders nothing.

20,000 chain-of-thought examples of the mirror at 2,048 tokens, in one process. TRL is given our rendered texts; it
tokenises them in one batched `map` and packs them with "bfd". Ours is the median of the second half of the rounds,
and that of the first. With --peer-python it is that of another environment,
otherwise a plain copy of its packing (peers/trl_bfd.py). Seconds are of processor time, but for two processes.

    FLAN_TUNE_DATA=<data root> python benchmarks/prepare.py [--peer-python PYTHON] [--rounds 7]
"""

from __future__ import annotations

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from flan_tune.packing.compile import Compiler, compile_window, open_stream
from flan_tune.packing.prepare import prepare
from flan_tune.packing.settings import PackSettings
from flan_tune.packing.stream import StreamCounts
from flan_tune.tokens.sentencepiece_training import train_sentencepiece

TASKS = "cot_gsm8k, cot_qasc, flan_cot_gsm8k, flan_cot_creak, flan_cot_ecqa, flan_cot_strategyqa"
EXAMPLES, WINDOW, LENGTH, VOCABULARY = 20_000, 10_000, 2048, 32_000
PUBLISHED = {"zero-shot": 2_100, "five-shot": 1_200}  # seqio 0.0.20, prefix-LM, on two cores of the same kind
PRESENTATIONS = {"zero-shot": "cot", "five-shot": "cot_few_shot"}
PEER = Path(__file__).parent / "peers" / "trl_bfd.py"


def settings_of(folder: Path, shown: str, tokenizer: str, packs: str = "packs", **changes: Any) -> PackSettings:
    mixture = folder / f"{shown}.yaml"
    mixture.write_text(
        f"members:\n  - {{tasks: [{TASKS}]}}\npresentations: {{{PRESENTATIONS[shown]}: 1.0}}\n"
        "shots: [5, 5]\nmissing: drop\n"
    )
    values = {
        "mixture": str(mixture),
        "tokenizer_path": str(folder / tokenizer),
        "packs_dir": str(folder / packs),
        "max_length": LENGTH,
        "num_packs": 1,
        "objective": "supervised",
        "window_examples": WINDOW,
    }
    return PackSettings(**{**values, **changes})


def train_byte_level(texts: Iterable[str], folder: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(str(folder))


def ours(settings: PackSettings, rounds: int) -> tuple[list[float], dict[str, Any]]:
    """Examples per second of processor time in each round, sources and tokenizer being open; what the last gave.

    Every round makes the next 20,000 examples, so that none is made twice; words and rows may have been seen before.
    The first rounds are slower: wordings are compiled and words are learnt.
    """
    compiler = Compiler(settings)
    rates, summaries = [], []
    windows = EXAMPLES // WINDOW
    for number in range(rounds):
        shutil.rmtree(settings.packs_dir, ignore_errors=True)
        Path(settings.packs_dir).mkdir(parents=True)
        started = time.process_time()
        summaries = [compile_window(compiler, "", number * windows + n) for n in range(windows)]
        rates.append(EXAMPLES / (time.process_time() - started))
    tokens, packs = (sum(summary[name] for summary in summaries) for name in ("tokens", "packs"))
    return rates, {"fill": tokens / (packs * LENGTH), "tokens": tokens}


def theirs(python: str, texts: Path, tokenizer: Path, rounds: int) -> dict[str, Any]:
    command = [python, str(PEER), str(texts), str(tokenizer), str(LENGTH), str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def by_processes(settings: PackSettings, windows: int) -> dict[int, float]:
    """Seconds on the clock to prepare `windows` windows with one process and with two, everything included."""
    compiler = Compiler(settings)
    Path(settings.packs_dir).mkdir(parents=True, exist_ok=True)
    packs = compile_window(compiler, "", 0)["packs"]
    seconds = {}
    for processes in (1, 2):
        shutil.rmtree(settings.packs_dir)
        started = time.perf_counter()
        prepare(PackSettings(**{**vars(settings), "num_packs": int(packs * windows / 1.03)}), num_proc=processes)
        seconds[processes] = time.perf_counter() - started
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--windows", type=int, default=100, help="windows of 10,000 examples for two processes; 0 for none"
    )
    given = parser.parse_args()
    with TemporaryDirectory() as name:
        folder = Path(name)
        stream = open_stream(settings_of(folder, "zero-shot", "byte_level"))
        pairs = [example.text() for example in stream.examples(0, EXAMPLES, StreamCounts())]
        texts = folder / "texts.json"
        texts.write_text(json.dumps([f"{shown}\n{target}" for shown, target in pairs]), encoding="utf-8")
        every = [text for pair in pairs for text in pair]
        train_byte_level(every, folder / "byte_level")
        for kind, size in (("bpe", VOCABULARY), ("unigram", 24_000)):  # these texts fill no larger unigram model
            train_sentencepiece(every, folder / f"sentencepiece {kind}", vocab_size=size, model_type=kind)
        peer = theirs(given.peer_python, texts, folder / "byte_level", given.rounds)
        rate = statistics.median(peer["rates"])
        print(f"{peer['name']}: {rate:,.0f} examples/s, fill {peer['fill']:.4f} (byte-level BPE, zero-shot)")
        for tokenizer in ("byte_level", "sentencepiece bpe", "sentencepiece unigram"):
            for shown, published in PUBLISHED.items():
                rates, made = ours(settings_of(folder, shown, tokenizer), given.rounds)
                mine = statistics.median(rates[len(rates) // 2 :])
                beside = f", {mine / rate:.2f} of the peer's" if shown == "zero-shot" else ""
                print(
                    f"{tokenizer:22s} {shown}  {mine:7,.0f} examples/s (the first 20,000: {rates[0]:,.0f}){beside}, "
                    f"{mine / published:.2f} of seqio's {published:,}; "
                    f"{mine * made['tokens'] / EXAMPLES / 1e6:.2f}M tokens/s, fill {made['fill']:.4f}"
                )
        if given.windows:
            seconds = by_processes(settings_of(folder, "zero-shot", "byte_level", "two"), given.windows)
            print(
                f"one process {seconds[1]:.1f} s, two {seconds[2]:.1f} s: {seconds[1] / seconds[2]:.2f} times as fast"
            )


if __name__ == "__main__":
    main()
