"""Which rows are shown as exemplars: others of the same task, never the row itself nor a copy of it."""

from __future__ import annotations

from collections.abc import Callable

from flan_tune.rng import Draws

Pair = tuple[str, str]

_TRIES_PER_SHOT = 4


def draw_exemplars(
    draws: Draws, *, row: int, query: Pair, num_rows: int, shots: int, show: Callable[[int], Pair | None]
) -> list[tuple[int, Pair]]:
    """Up to `shots` different rows of `num_rows`, each with its (input, target) as `show` gives it.

    A drawn row that is `row`, was drawn before, asks exactly what `query` or an exemplar already there asks, or for
    which `show` gives None (it lacks a field) is passed over. The answer does not count: a copy of the row with
    another of its accepted answers would give the answer away. After four draws per wanted exemplar the list is
    returned as it is: a task with few rows gives fewer exemplars rather than none.
    """
    taken = {row}
    asked = {_asked(query)}
    found: list[tuple[int, Pair]] = []
    for _ in range(shots * _TRIES_PER_SHOT):
        if len(found) == shots:
            break
        candidate = draws.below(num_rows)
        if candidate in taken:
            continue
        taken.add(candidate)
        pair = show(candidate)
        if pair is not None and _asked(pair) not in asked:
            asked.add(_asked(pair))
            found.append((candidate, pair))
    return found


def _asked(pair: Pair) -> str:
    """What a pair asks; a statement has no input and is its own text."""
    return pair[0] or pair[1]
