"""Rows judged before a mixture is opened, by all processes and with a word about how far it is.

To open a mixture one has to know of every row whether it can be used, about 25 microseconds each. The verdicts lie in
the cache of sources (sources/cache.py) and serve every later opening; so this is done once, and where nothing can be
cached it is left to the opening itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from flan_tune.errors import FlanTuneError
from flan_tune.packing.settings import PackSettings
from flan_tune.packing.stream import open_mixture
from flan_tune.packing.work import Summary, in_processes
from flan_tune.sources.cache import cache_key, keep, kept
from flan_tune.sources.rows import open_task

_KIND = "judged"
_ALONE_SECONDS = 5.0  # other processes need about half of that to begin
_WORD_SECONDS = 10.0
_IF_KILLED = "Run the same command again, with a smaller --num-proc; what was judged is kept."


class _Judging:
    """Judges the rows of a mixture's tasks by their number."""

    def __init__(self, settings: PackSettings) -> None:
        self._mixture, self._root = open_mixture(settings)
        self.tasks = self._mixture.tasks()

    def __call__(self, number: int) -> Summary:
        try:
            return {"rows": len(open_task(self.tasks[number], self._mixture.split, self._root))}
        except FlanTuneError:
            return {"rows": 0}  # is told when the mixture is opened, with all others


def judge_rows(
    settings: PackSettings,
    parts: Mapping[str, str],
    num_proc: int,
    shard: tuple[int, int],
    say: Callable[[str], None],
) -> None:
    """Judges all rows of the mixture, unless that was done before.

    parts: of the fingerprint; "sources" and "cards" say what the verdicts depend on.
    num_proc: processes; others than this one begin only if it takes longer than a few seconds.
    shard: (i, n) begins at another task for each i: array jobs that start together find each other's verdicts.
    say: called with a line now and then.
    """
    key = cache_key(parts["sources"], parts["cards"])
    keep(_KIND, probe := cache_key("probe"), {})
    if kept(_KIND, key) is not None or kept(_KIND, probe) is None:
        return
    judging = _Judging(settings)
    index, count = shard
    first = len(judging.tasks) * index // count
    numbers = [*range(first, len(judging.tasks)), *range(first)]
    rows, started = 0, time.monotonic()
    told = started
    for done, summary in enumerate(_summaries(judging, settings, numbers, num_proc), 1):
        rows += summary["rows"]
        if time.monotonic() - told > _WORD_SECONDS:
            told = time.monotonic()
            say(f"looking at all rows once: {done:,} of {len(numbers):,} tasks, {rows:,} rows can be used so far")
    keep(_KIND, key, {})


def _summaries(judging: _Judging, settings: PackSettings, numbers: Sequence[int], num_proc: int) -> Iterator[Summary]:
    started = time.monotonic()
    for place, number in enumerate(numbers):
        if num_proc > 1 and time.monotonic() - started > _ALONE_SECONDS:
            opening = partial(_Judging, settings)
            yield from in_processes(opening, numbers[place:], num_proc, here=judging, if_killed=_IF_KILLED)
            return
        yield judging(number)
