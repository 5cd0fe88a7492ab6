"""Stories of a few sentences with a question: who has it, where is it, what is left. All are `reading` rows."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from flan_tune.rng import Draws
from flan_tune.sources.procedural import words

_NOTES = (10, 20, 50)


def who_has_it(draws: Draws, *, min_moves: int = 1, max_moves: int = 2) -> dict[str, Any]:
    """reading: 'Mia has the key. Tom gets it from Mia.' Who has the key now? -> 'Tom'."""
    thing, people, context = _handed_on(draws, min_moves, max_moves)
    return {
        "context": context,
        "question": f"Who has the {thing} now?",
        "answer": people[-1],
        "rationale": f"The {thing} goes from {' to '.join(people)}.",
    }


def who_gave_it_last(draws: Draws, *, min_moves: int = 2, max_moves: int = 2) -> dict[str, Any]:
    """reading: the same stories, but who gave the thing away last?"""
    thing, people, context = _handed_on(draws, min_moves, max_moves)
    return {
        "context": context,
        "question": f"Who was the last to give the {thing} away?",
        "answer": people[-2],
        "rationale": f"The {thing} goes from {' to '.join(people)}.",
    }


def where_is_it(draws: Draws) -> dict[str, Any]:
    """reading: two things in two places, one is moved. Where is one of them? -> 'jar'."""
    things = words.distinct(draws, words.THINGS, 2)
    first, second, third = words.distinct(draws, words.CONTAINERS, 3)
    moved, asked = draws.below(2), draws.below(2)
    places = [first, second]
    if asked == moved:
        rationale = f"The {things[asked]} was in the {places[asked]}, then it was put in the {third}."
    else:
        rationale = f"The {things[asked]} was in the {places[asked]}, and it was not moved."
    return {
        "context": f"The {things[0]} is in the {first}. The {things[1]} is in the {second}. "
        f"{draws.choice(words.NAMES)} puts the {things[moved]} in the {third}.",
        "question": f"Where is the {things[asked]}?",
        "answer": third if asked == moved else places[asked],
        "rationale": rationale,
    }


def make_change(draws: Draws) -> dict[str, Any]:
    """reading: 'A hat costs 7 coins. Mia pays 20 coins.' How many come back? -> '13'."""
    name, thing = draws.choice(words.NAMES), draws.choice(words.GROUPS["clothes"])
    paid = draws.choice(_NOTES)
    price = draws.integer(1, paid - 1)
    return {
        "context": f"A {thing} costs {price} coins. {name} pays {paid} coins.",
        "question": f"How many coins does {name} get back?",
        "answer": str(paid - price),
        "rationale": f"{name} paid {paid}, the price is {price}, and {paid} - {price} = {paid - price}.",
    }


def how_many_more(draws: Draws, *, largest: int = 30) -> dict[str, Any]:
    """reading: 'Mia has 12 hens. Tom has 7 hens.' How many more has Mia? -> '5'."""
    richer, poorer = words.distinct(draws, words.NAMES, 2)
    fewer, more = sorted(words.distinct(draws, range(2, largest + 1), 2))
    kind = draws.choice(words.THINGS)
    sentences = [f"{richer} has {more} {kind}s.", f"{poorer} has {fewer} {kind}s."]
    draws.shuffle(sentences)
    return {
        "context": " ".join(sentences),
        "question": f"How many more {kind}s does {richer} have than {poorer}?",
        "answer": str(more - fewer),
        "rationale": f"{richer} has {more}, {poorer} has {fewer}, and {more} - {fewer} = {more - fewer}.",
    }


def _handed_on(draws: Draws, min_moves: int, max_moves: int) -> tuple[str, list[str], str]:
    """The thing, the people in the order they held it, and the story.

    Who receives stands first in some sentences and last in others: the last name alone does not give the answer.
    """
    thing = draws.choice(words.THINGS)
    people = words.distinct(draws, words.NAMES, 1 + draws.integer(min_moves, max_moves))
    sentences = [f"{people[0]} has the {thing}."]
    for giver, taker in pairwise(people):
        sentences.append(draws.choice((f"{giver} gives it to {taker}.", f"{taker} gets it from {giver}.")))
    return thing, people, " ".join(sentences)
