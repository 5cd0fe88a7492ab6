"""A checkpoint counts if and only if every byte of it is there."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flan_tune.errors import CheckpointError
from flan_tune.training import checkpoint
from flan_tune.training.checkpoint import Stamp, check_fits, list_checkpoints, newest_that_verifies, verify
from flan_tune.training.process_group import ProcessGroup

ALONE = ProcessGroup()


def stamp(step: int) -> Stamp:
    return Stamp(step, 4 * step, "f" * 64, 1, "single", 4)


def write_engine(folder: Path) -> None:
    (folder / "state.pt").write_bytes(b"weights of some length")
    (folder / "inner").mkdir()
    (folder / "inner" / "zero_pp_rank_3_mp_rank_00_optim_states.pt").write_bytes(b"moments")


def save(
    root: Path,
    step: int,
    keep: int | None = None,
    write: Callable[[Path], None] = write_engine,
    bytes_expected: int = 0,
) -> checkpoint.Checkpoint:
    return checkpoint.save(root, stamp(step), {"note": step}, write, ALONE, bytes_expected=bytes_expected, keep=keep)


def test_what_was_saved_is_listed_and_verifies(tmp_path: Path) -> None:
    for step in (2, 10, 4):
        save(tmp_path, step)
    found, faults = list_checkpoints(tmp_path)
    assert ([c.stamp.step for c in found], faults) == ([10, 4, 2], [])
    assert all(verify(c) == [] for c in found)
    assert found[0].trainer_state() == {"note": 10}
    assert sorted(found[0].files) == [
        "engine/inner/zero_pp_rank_3_mp_rank_00_optim_states.pt",
        "engine/state.pt",
        "trainer.json",
    ]
    assert found[0].num_bytes == sum((found[0].directory / name).stat().st_size for name in found[0].files)
    assert not list(tmp_path.glob("*.tmp"))


def test_no_folder_and_no_checkpoint_is_a_new_run(tmp_path: Path) -> None:
    assert newest_that_verifies(tmp_path / "none", ALONE) == (None, [])
    assert newest_that_verifies(tmp_path, ALONE) == (None, [])


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from(["engine/state.pt", "trainer.json"]), st.integers(1, 255))
def test_any_changed_byte_is_found_and_the_older_one_used(position: int, name: str, change: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        save(root, 2)
        path = save(root, 4).directory / name
        content = bytearray(path.read_bytes())
        content[position % len(content)] ^= change
        path.write_bytes(bytes(content))
        found, faults = newest_that_verifies(root, ALONE)
        assert found is not None
        assert found.stamp.step == 2
        assert faults == [f"{path}: the file's SHA-256 is not the one that was written"]


def cut_short(directory: Path) -> None:
    (directory / "engine" / "state.pt").write_bytes(b"weights")


def lose_a_file(directory: Path) -> None:
    (directory / "engine" / "state.pt").unlink()


def lose_complete(directory: Path) -> None:
    (directory / "COMPLETE.json").unlink()


def halve_complete(directory: Path) -> None:
    (directory / "COMPLETE.json").write_text('{"format": 1, "stamp": {')


def later_format(directory: Path) -> None:
    (directory / "COMPLETE.json").write_text('{"format": 2}')


@pytest.mark.parametrize("damage", [cut_short, lose_a_file, lose_complete, halve_complete, later_format])
def test_a_damaged_checkpoint_is_not_used_and_said_why(damage: Callable[[Path], None], tmp_path: Path) -> None:
    save(tmp_path, 2)
    newest = save(tmp_path, 4)
    damage(newest.directory)
    found, faults = newest_that_verifies(tmp_path, ALONE)
    assert found is not None
    assert found.stamp.step == 2
    assert len(faults) == 1
    assert str(newest.directory) in faults[0]


def test_checkpoints_of_which_none_verifies_are_an_error(tmp_path: Path) -> None:
    cut_short(save(tmp_path, 2).directory)
    with pytest.raises(CheckpointError, match="no checkpoint here can be trusted"):
        newest_that_verifies(tmp_path, ALONE)


def test_a_checkpoint_that_did_not_verify_is_replaced(tmp_path: Path) -> None:
    save(tmp_path, 2)
    cut_short(save(tmp_path, 4).directory)
    again = save(tmp_path, 4)
    assert newest_that_verifies(tmp_path, ALONE) == (again, [])


def test_a_half_written_one_is_ignored_and_removed_at_the_next_save(tmp_path: Path) -> None:
    save(tmp_path, 2)
    (tmp_path / "step-4.tmp" / "engine").mkdir(parents=True)
    found, faults = newest_that_verifies(tmp_path, ALONE)
    assert found is not None
    assert (found.stamp.step, faults) == (2, [])
    save(tmp_path, 6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-2", "step-6"]


def test_old_ones_beyond_the_limit_go(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8):
        save(tmp_path, step, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-6", "step-8"]


def test_a_full_disk_is_found_before_anything_is_written(tmp_path: Path) -> None:
    save(tmp_path, 2, keep=1)
    with pytest.raises(CheckpointError, match=r"needs about 100,000\.0 TB, .* are free"):
        save(tmp_path, 4, keep=1, bytes_expected=10**17)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-2"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 576 vs 534")])
def test_a_write_that_fails_keeps_the_older_ones(error: Exception, tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "state.pt").write_bytes(b"half")
        raise error

    save(tmp_path, 2, keep=1)
    with pytest.raises(CheckpointError, match=r"could not be written: .*Older checkpoints are kept"):
        save(tmp_path, 4, keep=1, write=fail)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-2"]


def test_another_run_is_refused_with_what_to_do(tmp_path: Path) -> None:
    found = save(tmp_path, 2)
    check_fits(found, stamp(0), can_change_world_size=False)
    with pytest.raises(CheckpointError, match="Use another output_dir, or the same packs"):
        check_fits(found, replace(stamp(0), fingerprint="e" * 64), True)
    with pytest.raises(CheckpointError, match="global_batch_size 4, the recipe says 8"):
        check_fits(found, replace(stamp(0), global_batch_size=8), True)
    with pytest.raises(CheckpointError, match="'single', this run uses 'deepspeed'"):
        check_fits(found, replace(stamp(0), engine="deepspeed"), False)


def test_only_deepspeed_is_bound_to_its_number_of_processes(tmp_path: Path) -> None:
    found = save(tmp_path, 2)
    check_fits(found, replace(stamp(0), world_size=2, engine="ddp"), can_change_world_size=True)
    sharded = replace(found, stamp=replace(found.stamp, engine="deepspeed", world_size=2))
    with pytest.raises(CheckpointError, match=r"written by 2 processes, now there are 4.* start 2 processes"):
        check_fits(sharded, replace(stamp(0), engine="deepspeed", world_size=4), can_change_world_size=False)


@given(st.integers(1, 5))
def test_ranks_share_the_work_of_verifying(parts: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        saved = save(Path(folder), 2)
        for name in saved.files:
            (saved.directory / name).unlink()
        found = [fault for part in range(parts) for fault in verify(saved, part, parts)]
        assert sorted(found) == sorted(f"{saved.directory / name}: the file is missing" for name in saved.files)
