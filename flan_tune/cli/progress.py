"""How far `prepare` is: a line per window in a pipe, one line that stays in its place in a terminal."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from flan_tune.packing.losses import in_words

_RECENT = 33  # speed is that of the last so many windows: opening the sources is soon forgotten


class Progress:
    """Says after each window how fast it goes, how long the rest takes, and what has been drawn so far."""

    def __init__(self) -> None:
        self.by_family: Counter[str] = Counter()
        self._so_far = (time.monotonic(), 0, 0, 0)  # seconds, windows, rows, tokens
        self._recent = deque([self._so_far], maxlen=_RECENT)

    def __call__(self, summary: dict[str, Any], done: int, planned: int) -> None:
        _, windows, rows, tokens = self._so_far
        self._so_far = time.monotonic(), windows + 1, rows + summary["examples"], tokens + summary["tokens"]
        self._recent.append(self._so_far)
        self.by_family.update(summary["examples_by_family"])
        self.show(f"window {summary['window']}: {summary['packs']} packs", done, planned)

    def speed(self, left: int) -> str:
        """'1,024 rows/s, 65,536 tokens/s, ETA 0:01:30; cot 512, muffin 512', with `left` windows to go."""
        seconds, windows, rows, tokens = (now - then for now, then in zip(self._so_far, self._recent[0], strict=True))
        seconds = max(seconds, 1e-6)
        eta = timedelta(seconds=round(left * seconds / max(windows, 1)))
        return f"{rows / seconds:,.0f} rows/s, {tokens / seconds:,.0f} tokens/s, ETA {eta}; {in_words(self.by_family)}"

    def show(self, what: str, done: int, planned: int) -> None:
        print(f"{what}; {done}/{planned} windows, {self.speed(planned - done)}", flush=True)

    def say(self, line: str) -> None:
        """A line for a person, which stays."""
        print(line, flush=True)


class _TerminalProgress(Progress):
    def __init__(self, live: Any, one_line: Callable[[str], Any]) -> None:
        super().__init__()
        self.live, self.one_line = live, one_line

    def show(self, what: str, done: int, planned: int) -> None:
        line = f"{done}/{planned} windows, {self.speed(planned - done)}"
        self.live.update(self.one_line(line))

    def say(self, line: str) -> None:
        self.live.console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def show_progress() -> Iterator[Progress]:
    """A Progress that suits where standard output goes."""
    if not sys.stdout.isatty():
        yield Progress()
        return
    from rich.console import Console
    from rich.text import Text

    with Console(highlight=False).status("opening the sources") as live:
        yield _TerminalProgress(live, lambda line: Text(line, no_wrap=True, overflow="ellipsis"))
