"""Packs rendered texts as TRL does on its faster path; prints one line of JSON. Run by prepare.py, by any Python.

One batched `datasets.map` tokenises, then `trl.pack_dataset(strategy="bfd")` packs. Where TRL is not installed a plain
copy of its packing takes its place: best-fit-decreasing within each batch of 1,000 rows.

    python benchmarks/peers/trl_bfd.py TEXTS.json TOKENIZER_FOLDER LENGTH ROUNDS
"""

from __future__ import annotations

import bisect
import json
import os
import sys
import time
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAYON_NUM_THREADS"] = "1"

import datasets
from transformers import AutoTokenizer

try:
    import trl
except ImportError:
    trl = None


def best_fit(batch: dict[str, list[list[int]]], length: int) -> dict[str, list[list[int]]]:
    rows = sorted((ids[:length] for ids in batch["input_ids"]), key=len, reverse=True)
    spaces: list[tuple[int, int]] = []  # (space left, bin), ascending
    packs: list[list[int]] = []
    seq_lengths: list[list[int]] = []
    for ids in rows:
        place = bisect.bisect_left(spaces, (len(ids), -1))
        space, number = spaces.pop(place) if place < len(spaces) else (length, len(packs))
        if number == len(packs):
            packs.append([])
            seq_lengths.append([])
        packs[number] = packs[number] + ids
        seq_lengths[number].append(len(ids))
        bisect.insort(spaces, (space - len(ids), number))
    return {"input_ids": packs, "seq_lengths": seq_lengths}


def pack(tokenised: Any, length: int) -> Any:
    if trl is not None:
        return trl.pack_dataset(tokenised, seq_length=length, strategy="bfd")
    return tokenised.map(
        best_fit,
        batched=True,
        fn_kwargs={"length": length},
        remove_columns=tokenised.column_names,
        load_from_cache_file=False,
    )


def main() -> None:
    path, folder, length, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    datasets.disable_progress_bars()
    with open(path, encoding="utf-8") as file:
        texts = json.load(file)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = datasets.Dataset.from_dict({"text": texts})

    def tokenise(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        found = tokenizer(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]
        return {"input_ids": [[*ids, tokenizer.eos_token_id] for ids in found]}

    rates = []
    for _ in range(rounds):
        started = time.process_time()
        tokenised = rows.map(tokenise, batched=True, remove_columns=["text"], load_from_cache_file=False)
        packed = pack(tokenised, length)
        rates.append(len(texts) / (time.process_time() - started))
    tokens = sum(len(ids) for ids in packed["input_ids"])
    name = f"trl {trl.__version__}" if trl is not None else "a plain copy of TRL's packing"
    print(json.dumps({"name": name, "rates": rates, "fill": tokens / (len(packed) * length)}))


if __name__ == "__main__":
    main()
