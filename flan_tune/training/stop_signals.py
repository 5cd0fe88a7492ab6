"""Being asked to stop: SIGUSR1 (SLURM, early), SIGTERM (late) and Ctrl-C become a wish that the loop fulfils.

The loop looks at it between steps, saves, and leaves with the status `requeue`. Nothing is done inside the handler.
"""

from __future__ import annotations

import signal
import time
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)

# Ctrl-C reaches a worker twice: from the terminal, and at once again from the launcher, which passes it on.
_SAME_WISH_SECONDS = 2.0


class StopSignals:
    """A context in which the three signals only leave a note; a second Ctrl-C ends the process at once."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._first_time = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        now = time.monotonic()
        if self.received is None:
            self.received, self._first_time = signal.Signals(number).name, now
        elif number == signal.SIGINT and now - self._first_time > _SAME_WISH_SECONDS:
            raise KeyboardInterrupt
