"""A small data root in every layout a mirror may have; all rows are made up here. `build(root)` writes it.

toy/entailment/plain_text/{train_r1,dev_r1}.parquet       a named configuration; labels 0, 1, and -1 for none
toy/sharded/default/train-0000N.jsonl.gz, validation.jsonl    shards, and two kinds of file for two splits
toy/hub_shards/default/train-0000N-of-00002.parquet       the hub's own names
toy/only/main/{train,test}.jsonl                          one configuration, which may be left unnamed
word/first/train.jsonl, word/second/train.jsonl           a hub id of one word with two configurations
natural-instructions/tasks/task001_toy_sums.json          the upstream format
text/tales/train-0000N.jsonl.gz, validation.jsonl         documents in shards
text/notes/train.parquet                                  documents with other columns beside the text
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = Mapping[str, Any]

ENTAILMENT: Sequence[Row] = [
    {"premise": f"Ann has {n} nuts.", "hypothesis": f"Ann has {m} nuts.", "label": label, "turn": n}
    for n, m, label in [(3, 3, 0), (4, 5, 1), (5, 5, -1), (6, 6, 0), (7, 9, 1), (8, 8, 0)]
]
SUMS: Sequence[Row] = [{"question": f"{n} + {n}?", "answer": str(2 * n)} for n in range(10)]
TALES: Sequence[Row] = [{"text": f"Tale {n}.\n\n" + "Once more. " * n} for n in range(5)]
NOTES: Sequence[Row] = [{"text": "A note.", "title": "first"}, {"text": "Another.\n\nLonger.", "title": "second"}]
INSTRUCTIONS: Row = {
    "Definition": ["Add the two numbers. "],
    "Positive Examples": [{"input": "1 and 2", "output": "3", "explanation": "One and two make three."}],
    "Negative Examples": [],
    "Instances": [
        {"id": "task001-a", "input": "2 and 2", "output": ["4", "four"]},
        {"id": "task001-b", "input": "2 and 3", "output": "5"},
        {"input": "0 and 1", "output": ["1"]},
    ],
}


def write(path: Path, rows: Sequence[Row]) -> Path:
    """Writes rows to a .parquet, .jsonl or .jsonl.gz file, whose folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    else:
        path.write_bytes(gzip.compress(lines, mtime=0) if path.suffix == ".gz" else lines)
    return path


def build(root: Path) -> Path:
    """The data root drawn above, in `root`."""
    write(root / "toy/entailment/plain_text/train_r1.parquet", ENTAILMENT)
    write(root / "toy/entailment/plain_text/dev_r1.parquet", ENTAILMENT[:2])
    write(root / "toy/sharded/default/train-00000.jsonl.gz", SUMS[:6])
    write(root / "toy/sharded/default/train-00001.jsonl.gz", SUMS[6:8])
    write(root / "toy/sharded/default/validation.jsonl", SUMS[8:])
    write(root / "toy/hub_shards/default/train-00000-of-00002.parquet", SUMS[:7])
    write(root / "toy/hub_shards/default/train-00001-of-00002.parquet", SUMS[7:])
    write(root / "toy/only/main/train.jsonl", SUMS[:4])
    write(root / "toy/only/main/test.jsonl", SUMS[4:])
    write(root / "word/first/train.jsonl", SUMS[:1])
    write(root / "word/second/train.jsonl", SUMS[1:3])
    instructions = root / "natural-instructions/tasks/task001_toy_sums.json"
    instructions.parent.mkdir(parents=True)
    instructions.write_text(json.dumps(INSTRUCTIONS), encoding="utf-8")
    write(root / "text/tales/train-00000.jsonl.gz", TALES[:2])
    write(root / "text/tales/train-00001.jsonl.gz", TALES[2:])
    write(root / "text/tales/validation.jsonl", TALES[:1])
    write(root / "text/notes/train.parquet", NOTES)
    return root
