"""Counting days of the week. Clock times and calendar dates are not here."""

from __future__ import annotations

from typing import Any

from flan_tune.rng import Draws
from flan_tune.sources.procedural import words

_EVENTS = tuple("party trip game test concert dinner race lesson wedding match picnic talk".split())


def weekday_after(draws: Draws, *, most_days: int = 5) -> dict[str, Any]:
    """reading: 'Today is Monday. The party of Mia is in 3 days.' On which day is it? -> 'Thursday'."""
    event, name = draws.choice(_EVENTS), draws.choice(words.NAMES)
    today, days = draws.below(7), draws.integer(1, most_days)
    passed = [words.WEEKDAYS[(today + day) % 7] for day in range(1, days + 1)]
    unit = "day" if days == 1 else "days"
    return {
        "context": f"Today is {words.WEEKDAYS[today]}. The {event} of {name} is in {days} {unit}.",
        "question": f"On which day is the {event}?",
        "answer": passed[-1],
        "rationale": f"Counting {days} from {words.WEEKDAYS[today]}: {', '.join(passed)}.",
    }
