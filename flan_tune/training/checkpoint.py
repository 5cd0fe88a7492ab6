"""Checkpoints as transactions: either all of one is there and verifies, or it does not count.

    output_dir/checkpoints/
      step-20.tmp/        being written, or what a killed process left; removed at the next save
      step-20/
        engine/           parameters and optimizer state, as the engine writes them
        trainer.json      what the loop itself remembers
        COMPLETE.json     written last: step, next pack, fingerprint, world size, size and SHA-256 of every file

Writing: all ranks write into `.tmp`, each file is hashed and synced to disk by the rank that wrote it, barrier,
rank 0 writes COMPLETE.json, syncs the folder, renames it. Loading: the newest that verifies, and a word about those
that do not. The folder must be one that all ranks see. What is in the engine's files is the engine's affair.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flan_tune.errors import CheckpointError
from flan_tune.packing.store import file_hash, write_json
from flan_tune.training.process_group import ProcessGroup

CHECKPOINT_FORMAT = 1
COMPLETE_FILE = "COMPLETE.json"
TRAINER_FILE = "trainer.json"
ENGINE_FOLDER = "engine"

_NAME = re.compile(r"step-(\d+)")
_RANK_IN_NAME = re.compile(r"zero_pp_rank_(\d+)_")  # DeepSpeed's names for what each rank writes


@dataclass(frozen=True)
class Stamp:
    """What a checkpoint belongs to.

    step: updates done. next_pack: the first pack not yet consumed. fingerprint: of the packs.
    world_size, engine: who wrote it. global_batch_size: packs per step.
    """

    step: int
    next_pack: int
    fingerprint: str
    world_size: int
    engine: str
    global_batch_size: int


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk; not yet verified."""

    directory: Path
    stamp: Stamp
    files: dict[str, dict[str, Any]]

    @property
    def engine_folder(self) -> Path:
        """Where the engine's files are."""
        return self.directory / ENGINE_FOLDER

    def trainer_state(self) -> dict[str, Any]:
        """What the loop stored."""
        state: dict[str, Any] = json.loads((self.directory / TRAINER_FILE).read_text(encoding="utf-8"))
        return state

    @property
    def num_bytes(self) -> int:
        """Size of all its files."""
        return sum(int(entry["bytes"]) for entry in self.files.values())


def list_checkpoints(root: Path) -> tuple[list[Checkpoint], list[str]]:
    """Checkpoints in `root` with a readable COMPLETE.json, newest first, and a sentence for each folder without."""
    numbered = [(int(match[1]), path) for path in _folders(root) if (match := _NAME.fullmatch(path.name))]
    found, faults = [], []
    for _, path in sorted(numbered, reverse=True):
        try:
            found.append(_read(path))
        except (OSError, ValueError, KeyError, TypeError) as error:
            faults.append(f"{path}: {COMPLETE_FILE} cannot be read ({type(error).__name__}: {error})")
    return found, faults


def _folders(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []


def _read(directory: Path) -> Checkpoint:
    data = json.loads((directory / COMPLETE_FILE).read_text(encoding="utf-8"))
    if data["format"] != CHECKPOINT_FORMAT:
        raise ValueError(f"format {data['format']}, this version reads {CHECKPOINT_FORMAT}")
    return Checkpoint(directory, Stamp(**data["stamp"]), data["files"])


def verify(checkpoint: Checkpoint, part: int = 0, parts: int = 1) -> list[str]:
    """What is wrong with every `parts`-th file of a checkpoint from number `part` on; empty if nothing is."""
    faults = []
    for name, entry in sorted(checkpoint.files.items())[part::parts]:
        path = checkpoint.directory / name
        if not path.is_file():
            faults.append(f"{path}: the file is missing")
        elif path.stat().st_size != entry["bytes"]:
            faults.append(f"{path}: the file has {path.stat().st_size} bytes, {entry['bytes']} were written")
        elif file_hash(path) != entry["sha256"]:
            faults.append(f"{path}: the file's SHA-256 is not the one that was written")
    return faults


def newest_that_verifies(root: Path, group: ProcessGroup) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint in `root` that is whole, the same on all ranks, and why newer ones are not used.

    Collective: rank 0 lists, the ranks share the hashing of each candidate.
    Raises: CheckpointError if there are checkpoints but none of them verifies: starting over in silence is worse.
    """
    candidates, faults = group.broadcast(list_checkpoints(root))
    for checkpoint in candidates:
        wrong = [fault for each in group.gather(verify(checkpoint, group.rank, group.world_size)) for fault in each]
        if not wrong:
            return checkpoint, faults
        faults = [*faults, *wrong]
    if faults:
        raise CheckpointError(
            *(f"{fault}." for fault in faults),
            f"{root}: no checkpoint here can be trusted. Move the folder away to start over, or restore a good one.",
        )
    return None, []


def check_fits(checkpoint: Checkpoint, expected: Stamp, can_change_world_size: bool) -> None:
    """Raises CheckpointError unless a run described by `expected` may go on from `checkpoint`.

    `expected.step` and `expected.next_pack` are not compared.
    """
    found, where, faults = checkpoint.stamp, checkpoint.directory, []
    if found.fingerprint != expected.fingerprint:
        faults.append(
            f"{where}: was trained on packs with fingerprint {found.fingerprint[:12]}, the packs now are "
            f"{expected.fingerprint[:12]}: the data, the mixture or the tokenizer has changed. "
            "Use another output_dir, or the same packs."
        )
    if found.global_batch_size != expected.global_batch_size:
        faults.append(
            f"{where}: was trained with global_batch_size {found.global_batch_size}, the recipe says "
            f"{expected.global_batch_size}: steps would no longer be the same packs. Set it back, or use another "
            "output_dir."
        )
    if found.engine != expected.engine and "deepspeed" in (found.engine, expected.engine):
        faults.append(
            f"{where}: was written by engine {found.engine!r}, this run uses {expected.engine!r}. "
            "Start with the same Accelerate config."
        )
    elif found.world_size != expected.world_size and not can_change_world_size:
        faults.append(
            f"{where}: was written by {found.world_size} processes, now there are {expected.world_size}. A DeepSpeed "
            f"checkpoint fits only the same number: start {found.world_size} processes."
        )
    if faults:
        raise CheckpointError(*faults)


def save(
    root: Path,
    stamp: Stamp,
    trainer_state: dict[str, Any],
    write_engine: Callable[[Path], None],
    group: ProcessGroup,
    *,
    bytes_expected: int,
    keep: int | None,
) -> Checkpoint:
    """Writes the checkpoint `root/step-N` and removes old ones beyond the newest `keep` (None: keeps all).

    Collective. bytes_expected: about how large it will be; the disk is asked first, so that a full one stops all
    ranks with one message and not some of them in the middle.
    Raises: CheckpointError if it cannot be written; older checkpoints are left as they are.
    """
    staging = root / f"step-{stamp.step}.tmp"
    _prepare_staging(root, staging, bytes_expected, group)
    failure = None
    try:
        write_engine(staging / ENGINE_FOLDER)
        if group.is_main:
            write_json(staging / TRAINER_FILE, trainer_state)
        group.barrier()
        files = _seal_files(staging, group)
        if group.is_main:
            _complete(staging, stamp, files)
    # A full disk is a RuntimeError in torch.save, which does not even mention space.
    except (OSError, RuntimeError) as error:
        failure = (str(error) or type(error).__name__).splitlines()[0]
        traceback.clear_frames(error.__traceback__)  # they hold the half-written file open, and so its room on disk
    if failure is not None:
        raise CheckpointError(_cannot_write(staging, bytes_expected, failure))
    checkpoint = Checkpoint(root / f"step-{stamp.step}", stamp, files)
    if group.is_main:
        _remove_old(root, keep, newest=checkpoint)
    group.barrier()
    return checkpoint


def _prepare_staging(root: Path, staging: Path, bytes_expected: int, group: ProcessGroup) -> None:
    fault = None
    if group.is_main:
        root.mkdir(parents=True, exist_ok=True)
        for leftover in root.glob("step-*.tmp"):
            shutil.rmtree(leftover)
        needed = max([bytes_expected, *(older.num_bytes for older in list_checkpoints(root)[0])])
        free = shutil.disk_usage(root).free
        if free < needed:
            fault = _full_disk(root, needed, free)
        else:
            (staging / ENGINE_FOLDER).mkdir(parents=True)
    fault = group.broadcast(fault)
    if fault is not None:
        raise CheckpointError(fault)


def _full_disk(root: Path, needed: int, free: int) -> str:
    return (
        f"{root}: a checkpoint needs about {_size(needed)}, {_size(free)} are free. Older checkpoints are "
        "kept. Make room (or lower save_total_limit) and start again: the run goes on from the newest."
    )


def _cannot_write(staging: Path, needed: int, failure: str) -> str:
    free = shutil.disk_usage(staging.parent).free
    shutil.rmtree(staging, ignore_errors=True)  # gives the room back; it could not be used anyway
    return (
        f"{staging}: the checkpoint could not be written: {failure} (it needs about {_size(needed)}; {_size(free)} "
        "were free when writing failed). Older checkpoints are kept. Make room and start again."
    )


def _size(num_bytes: float) -> str:
    """A size for people: 1,234,000 is '1.2 MB'."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"


def _seal_files(staging: Path, group: ProcessGroup) -> dict[str, dict[str, Any]]:
    """Hashes and syncs this rank's files, and gathers everyone's: name -> {sha256, bytes}."""
    mine = {}
    for path in sorted(staging.rglob("*")):
        if path.is_file() and _writer(path.name) % group.world_size == group.rank:
            _sync(path)
            name = path.relative_to(staging).as_posix()
            mine[name] = {"sha256": file_hash(path), "bytes": path.stat().st_size}
    return {name: entry for each in group.gather(mine) for name, entry in each.items()}


def _writer(name: str) -> int:
    match = _RANK_IN_NAME.search(name)
    return int(match[1]) if match else 0


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _complete(staging: Path, stamp: Stamp, files: dict[str, dict[str, Any]]) -> None:
    write_json(staging / COMPLETE_FILE, {"format": CHECKPOINT_FORMAT, "stamp": asdict(stamp), "files": files})
    _sync(staging / COMPLETE_FILE)
    for folder in [staging, *(path for path in staging.rglob("*") if path.is_dir())]:
        _sync(folder)
    final = staging.with_suffix("")
    if final.exists():  # only a checkpoint that did not verify can be here: a good one would have been resumed from
        shutil.rmtree(final)
    staging.rename(final)
    _sync(final.parent)


def _remove_old(root: Path, keep: int | None, newest: Checkpoint) -> None:
    if keep is None:
        return
    wrong = [name for name, entry in newest.files.items() if not _has_size(newest.directory / name, entry["bytes"])]
    if wrong:
        raise CheckpointError(f"{newest.directory}: {wrong} changed after writing. Older checkpoints are kept.")
    for old in list_checkpoints(root)[0][max(keep, 1) :]:
        shutil.rmtree(old.directory)


def _has_size(path: Path, num_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == num_bytes
