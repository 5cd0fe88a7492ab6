"""A command in the background: its processes, its log, and whether anything of it is still alive.

A launcher may end before what it started, and hands on neither signals nor open files. What all of a command's
processes do share is the log they write to. It is locked when the command starts; the lock belongs to the open
file, so it lasts until the last of them is gone, whoever is their parent by then.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_POLL_SECONDS = 0.1


class Running:
    """A started command. Raises: OSError if it cannot be started."""

    def __init__(self, command: Sequence[str], log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        self.started = time.monotonic()
        with log.open("a", encoding="utf-8") as output:
            fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # a group of its own, so that a signal can reach all of it
            )

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.started

    def poll(self) -> int | None:
        """The exit code of the command itself, None while it runs."""
        return self._process.poll()

    def send(self, number: int) -> None:
        """Sends a signal to every process of the command."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def wait_until_gone(self) -> None:
        """Waits for the command and for everything it started."""
        self._process.wait()
        while is_written(self.log):
            time.sleep(_POLL_SECONDS)


def is_written(log: Path) -> bool:
    """Whether a process of a command, of this run or an earlier one, still has this log open."""
    if not log.exists():
        return False
    with log.open("a", encoding="utf-8") as other:
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
