"""The exception tree: drawn as it is, messages of several faults, and errors that cross processes unchanged."""

from __future__ import annotations

import doctest
import errno
import pickle

import pytest

from flan_tune import errors
from flan_tune.errors import CardError, FlanTuneError, RowError, did_you_mean, disk_fault


def test_the_examples_of_the_docstrings_are_true() -> None:
    result = doctest.testmod(errors)
    assert result.attempted > 0
    assert result.failed == 0


def test_the_tree_is_drawn_as_it_is() -> None:
    classes = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    drawn = [line.split()[0] for line in (errors.__doc__ or "").splitlines() if line.startswith("    ")]
    assert set(drawn) == classes
    assert all(issubclass(getattr(errors, name), FlanTuneError) for name in classes)


def test_a_message_is_its_faults_a_line_each() -> None:
    assert str(CardError("a.yaml:3: one.", "a.yaml:9: two.")) == "a.yaml:3: one.\na.yaml:9: two."
    assert CardError("one.", "two.").faults == ("one.", "two.")
    assert str(RowError("no label")) == "no label"
    assert str(RowError("no label", "it is -1")) == "no label: it is -1"


@pytest.mark.parametrize("error", [CardError("one.", "two."), RowError("no label", "it is -1"), RowError("no label")])
def test_an_error_crosses_processes_unchanged(error: FlanTuneError) -> None:
    """Drops are counted by their reason, wherever the row failed."""
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.faults, str(copy)) == (type(error), error.faults, str(error))
    assert getattr(copy, "reason", None) == getattr(error, "reason", None)


def test_at_most_three_near_names_are_offered() -> None:
    assert did_you_mean("task_1", [f"task_{n}" for n in range(9)]).count("'") == 6
    assert did_you_mean("zzz", ["gsm8k", "rte"]) == ""


def test_a_full_disk_is_told_in_one_line_and_other_errors_are_not_hidden() -> None:
    full = OSError(errno.ENOSPC, "No space left on device", "runs/x")
    assert disk_fault(full) == (
        "runs/x: No space left on device. Free some space and run the command again; finished work is kept."
    )
    assert disk_fault(OSError(errno.EACCES, "Permission denied")) is None  # nothing is known of where
    assert str(disk_fault(PermissionError(errno.EROFS, "Read-only file system", "/x"))).startswith("/x: Read-only")
    assert disk_fault(FileNotFoundError(errno.ENOENT, "No such file", "/x")) is None
