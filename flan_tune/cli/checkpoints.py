"""`checkpoint list` and `checkpoint verify`: what a run could resume from."""

from __future__ import annotations

import json
from pathlib import Path

from flan_tune.errors import EXIT_WRONG_INPUT


def list_command(output_dir: Path, *, as_json: bool) -> None:
    """Prints the checkpoints of a run, newest first."""
    from flan_tune.training.checkpoint import list_checkpoints
    from flan_tune.training.loop import CHECKPOINTS_FOLDER

    found, faults = list_checkpoints(output_dir / CHECKPOINTS_FOLDER)
    if as_json:
        records = [{"step": c.stamp.step, "path": str(c.directory), "bytes": c.num_bytes} for c in found]
        print(json.dumps({"checkpoints": records, "faults": faults}))
        return
    for checkpoint in found:
        print(f"step {checkpoint.stamp.step:>8d}  {checkpoint.num_bytes / 1e6:10.1f} MB  {checkpoint.directory}")
    for fault in faults:
        print(fault)
    if not found:
        print(f"{output_dir}: no complete checkpoint.")


def verify_command(output_dir: Path) -> int:
    """Compares every checkpoint with its hashes; the exit code."""
    from flan_tune.training.checkpoint import list_checkpoints, verify
    from flan_tune.training.loop import CHECKPOINTS_FOLDER

    found, faults = list_checkpoints(output_dir / CHECKPOINTS_FOLDER)
    for checkpoint in found:
        wrong = verify(checkpoint)
        faults += wrong
        print(f"step {checkpoint.stamp.step}: {'not as written' if wrong else 'verified'}")
    for fault in faults:
        print(fault)
    return EXIT_WRONG_INPUT if faults else 0
