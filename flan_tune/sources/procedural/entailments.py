"""Does a sentence follow from another one: possession and place. The three labels are drawn equally often."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flan_tune.rng import Draws
from flan_tune.sources.procedural import words

_YES, _NO, _UNKNOWN = LABELS = ("yes", "no", "it is not possible to tell")


def entailment_facts(draws: Draws) -> dict[str, Any]:
    """entailment: 'Mia has a red hat.' / 'Mia has a hat.' -> 'yes'."""
    name, other_name = words.distinct(draws, words.NAMES, 2)
    thing, other_thing = words.distinct(draws, words.THINGS, 2)
    colour, other_colour = words.distinct(draws, words.COLOURS, 2)
    hypotheses = {
        _YES: (
            (f"{name} has a {thing}.", f"A {colour} {thing} is a {thing}."),
            (f"The {thing} of {name} is {colour}.", f"The {thing} is said to be {colour}."),
        ),
        _NO: (
            (f"{name} has no {thing}.", f"A {colour} {thing} is a {thing}, and {name} has it."),
            (f"The {thing} of {name} is {other_colour}.", f"The {thing} is {colour}, not {other_colour}."),
        ),
        _UNKNOWN: (
            (f"{name} has a {other_thing}.", f"Nothing is said about a {other_thing}."),
            (f"{other_name} has a {thing}.", f"Nothing is said about {other_name}."),
        ),
    }
    return _row(draws, f"{name} has a {colour} {thing}.", hypotheses)


def entailment_places(draws: Draws) -> dict[str, Any]:
    """entailment: 'The key is in the red box.' / 'The key is in a bag.' -> 'no'."""
    thing, other_thing = words.distinct(draws, words.THINGS, 2)
    place, other_place = words.distinct(draws, words.CONTAINERS, 2)
    colour, other_colour = words.distinct(draws, words.COLOURS, 2)
    hypotheses = {
        _YES: (
            (f"The {thing} is in a {place}.", f"A {colour} {place} is a {place}."),
            (f"The {place} is {colour}.", f"The {place} is said to be {colour}."),
        ),
        _NO: (
            (f"The {thing} is in a {other_place}.", f"The {thing} is in a {place}, not in a {other_place}."),
            (f"The {place} is {other_colour}.", f"The {place} is {colour}, not {other_colour}."),
        ),
        _UNKNOWN: (
            (f"The {other_thing} is in a {place}.", f"Nothing is said about the {other_thing}."),
            (f"The {thing} is {colour}.", f"Nothing is said about the colour of the {thing}."),
        ),
    }
    return _row(draws, f"The {thing} is in the {colour} {place}.", hypotheses)


def _row(draws: Draws, premise: str, hypotheses: Mapping[str, tuple[tuple[str, str], ...]]) -> dict[str, Any]:
    answer = draws.choice(LABELS)
    hypothesis, rationale = draws.choice(hypotheses[answer])
    return {
        "premise": premise,
        "hypothesis": hypothesis,
        "options": list(LABELS),
        "answer": answer,
        "rationale": rationale,
    }
