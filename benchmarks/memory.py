"""Memory and opening time of `flan-tune prepare` on Flan 2022, with data for every one of its tasks.

The data is made up: the rows of the cards' own checks, repeated with a number in them, in the hub's layout, and task
files of Natural Instructions. What is printed is the largest resident set that each process ever had, and that of all
together, which counts the code that they share once for each. Seconds are of processor time.

    python benchmarks/memory.py [--rows 4000] [--instances 600] [--format parquet|jsonl.gz|jsonl]
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from flan_tune import strict_yaml
from flan_tune.mixtures.mixture import load_mixture
from flan_tune.prompts.present import PRESENTATIONS
from flan_tune.sources.rows import source_split
from flan_tune.tasks.catalog import CARDS_FOLDER, load_catalog, read_card
from flan_tune.tasks.task import Task
from flan_tune.tokens.sentencepiece_training import train_sentencepiece

MIXTURE = "data_mixtures/flan2022.yaml"
WINDOW, FEW, MANY = 10_000, 5, 50
MARGIN = 1.02  # more windows than are needed by the first, as packing/prepare.py plans
RECIPE = """\
model:
  config: {{model_type: llama, hidden_size: 64, intermediate_size: 128, num_hidden_layers: 1, num_attention_heads: 2}}
tokenizer: {{name_or_path: {folder}/tokenizer}}
data: {{mixture: {mixture}, data_root: {folder}/data, max_length: 2048}}
objective: {{kind: supervised}}
training: {{output_dir: {folder}/run, max_steps: 1, global_batch_size: 1, per_device_train_batch_size: 1,
  learning_rate: 1.0e-3}}
"""
OPEN = """
import sys, time
from flan_tune.packing.compile import open_stream
from flan_tune.packing.settings import PackSettings
started = time.process_time()
stream = open_stream(PackSettings(sys.argv[1], "", "", 2048, 1, "supervised", data_root=sys.argv[2]))
print(len(stream.entries), sum(len(one.presenter.rows) for one in stream.entries), time.process_time() - started)
"""


# Data for every task.


def checks_of_cards() -> Iterator[tuple[Task, Mapping[str, Any]]]:
    """Every task, with each row that its card is checked by."""
    for path in sorted(CARDS_FOLDER.rglob("*.yaml")):
        tasks = read_card(path)[0]
        for entry in strict_yaml.read_file(path).data.get("check") or []:
            about = entry.get("answers", [entry["task"]] if "task" in entry else None)
            yield from ((task, entry["row"]) for task in tasks if about is None or task.name in about)


def varied(row: Mapping[str, Any], number: int) -> dict[str, Any]:
    """The row with a number after its longer texts, which labels are not."""
    return {
        key: f"{value} {number}" if number and isinstance(value, str) and len(value) > 30 else value
        for key, value in row.items()
    }


def write_rows(file: Path, rows: Sequence[Mapping[str, Any]], count: int, kind: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    made = [varied(rows[number % len(rows)], number // len(rows)) for number in range(max(count, len(rows)))]
    if kind == "parquet":
        try:
            pq.write_table(pa.Table.from_pylist(made), f"{file}.parquet", row_group_size=1000)  # as `datasets` does
            return
        except (pa.ArrowInvalid, pa.ArrowTypeError):  # some checks show the same column in two forms
            kind = "jsonl.gz"
    text = "".join(json.dumps(row) + "\n" for row in made).encode()
    Path(f"{file}.{kind}").write_bytes(gzip.compress(text, 1) if kind == "jsonl.gz" else text)


def write_instructions(file: Path, number: int, count: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    examples = [
        {"input": f"How many are {n} and {n}?", "output": str(2 * n), "explanation": "Both are put together."}
        for n in range(3)
    ]
    instances = [
        {
            "id": f"task{number}-{n}",
            "input": f"In the basket are {n} apples and {number} pears. " * (1 + n % 5) + "How many are there?",
            "output": [str(n + number)],
        }
        for n in range(count)
    ]
    data = {"Definition": [f"Count what is there, way {number}."], "Positive Examples": examples}
    file.write_text(json.dumps({**data, "Negative Examples": [], "Instances": instances}, indent=1), encoding="utf-8")


def write_data(root: Path, tasks: Sequence[Task], rows: int, instances: int, kind: str) -> None:
    """Files for every task, each with so many rows."""
    wanted = {task.name: task for task in tasks}
    files: dict[Path, dict[str, Mapping[str, Any]]] = {}
    first: dict[Path, int] = {}  # of the rows that a card takes
    for task, row in checks_of_cards():
        if task.name in wanted and task.source.kind in ("hub", "data_root"):
            split, part = source_split(task, "train")
            file = root / task.source.name / (task.source.config or "default") / split
            files.setdefault(file, {})[json.dumps(row)] = row
            first[file] = max(first.get(file, 0), part.start or 0 if part else 0)
    for file, found in files.items():
        write_rows(file, list(found.values()), first[file] + rows, kind)
    for number, task in enumerate(tasks):
        if task.source.kind == "natural_instructions":
            file = root / "natural-instructions" / "tasks" / f"{task.source.name}.json"
            write_instructions(file, number, instances // 2 + number % instances)


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


# Measuring.


def tree(process: int) -> list[int]:
    """A process and all that it started."""
    children = Path(f"/proc/{process}/task/{process}/children")
    try:
        return [process, *(one for child in children.read_text().split() for one in tree(int(child)))]
    except OSError:
        return []


def memory(process: int) -> tuple[int, int]:
    """(MiB resident now, at most)."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0, 0
    found = {line.partition(":")[0]: line.split()[1] for line in lines if line.startswith(("VmRSS", "VmHWM"))}
    return int(found.get("VmRSS", 0)) >> 10, int(found.get("VmHWM", 0)) >> 10


def run(command: Sequence[str], environment: Mapping[str, str]) -> tuple[str, float, int, list[int]]:
    """(what it printed, seconds of processor time, MiB of all processes at one time, most MiB of each large one)."""
    started = processor_time()
    total, most = 0, dict[int, int]()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            found = {one: memory(one) for one in tree(process.pid)}
            total = max(total, sum(now for now, _ in found.values()))
            most.update({one: max(peak, most.get(one, 0)) for one, (_, peak) in found.items()})
            time.sleep(0.05)
        assert process.stdout is not None
        said = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}.")
    return said, processor_time() - started, total, sorted((one for one in most.values() if one > 50), reverse=True)


def processor_time() -> float:
    """Of all that was started and has ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def prepare(recipe: Path, environment: Mapping[str, str], packs: str, *more: str) -> dict[str, Any]:
    """Runs `flan-tune prepare` and prints what it took; gives the line that it ends with."""
    command = [sys.executable, "-m", "flan_tune.cli.main", "prepare", str(recipe), "--json"]
    command += ["--packs", str(recipe.parent / packs), f"data.window_examples={WINDOW}", *more]
    said, seconds, total, most = run(command, environment)
    made: dict[str, Any] = json.loads(said.splitlines()[-1])
    each = ", ".join(map(str, most))
    work = f"{made['windows']} windows of {WINDOW:,d} {' '.join(more)}"
    print(f"{work:70s} {seconds:6.1f} s, {total:5d} MiB in all, at most {each}", flush=True)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4000, help="rows of each file in the hub's layout")
    parser.add_argument("--instances", type=int, default=600, help="instances of a task of Natural Instructions")
    parser.add_argument("--format", default="parquet", choices=("parquet", "jsonl.gz", "jsonl"))
    given = parser.parse_args()
    tasks = load_mixture(MIXTURE, load_catalog(), PRESENTATIONS).tasks()
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_data(folder / "data", tasks, given.rows, given.instances, given.format)
        texts = [line for file in sorted(Path("docs").glob("*.md")) for line in file.read_text("utf-8").splitlines()]
        train_sentencepiece(texts, folder / "tokenizer", vocab_size=4000)
        recipe = folder / "recipe.yaml"
        recipe.write_text(RECIPE.format(folder=folder, mixture=Path(MIXTURE).resolve()), encoding="utf-8")
        environment = {**os.environ, "FLAN_TUNE_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        print(f"{len(tasks)} tasks, {size_of(folder / 'data') / 1e9:.2f} GB of {given.format} and JSON", flush=True)
        for cache in ("cold", "warm"):
            command = [sys.executable, "-c", OPEN, MIXTURE, str(folder / "data")]
            said, _, total, _ = run(command, environment)
            entries, rows, seconds = said.split()
            opened = f"{entries} entries opened, {int(rows):,d} usable rows, {cache} cache"
            print(f"{opened:70s} {float(seconds):6.1f} s, {total:5d} MiB", flush=True)
        print(f"the cache has {size_of(folder / 'cache') / 1e9:.2f} GB", flush=True)
        first = prepare(recipe, environment, "first")["packs"]
        for windows, processes in ((FEW, 1), (FEW, 2), (MANY, 2)):
            more = (f"data.num_packs={int(first * windows / MARGIN)}", "--num-proc", str(processes))
            prepare(recipe, environment, f"{windows} by {processes}", *more)


if __name__ == "__main__":
    main()
