"""Truth, rules and order: is a claim true, is a rule kept, who comes first. Entailment is in entailments.py."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from flan_tune.rng import Draws
from flan_tune.sources.procedural import words

_LARGEST_ERROR = 9
# (adjective in comparison, the one at the top, the one at the bottom)
_ORDERS = (
    ("taller", "tallest", "shortest"),
    ("older", "oldest", "youngest"),
    ("faster", "fastest", "slowest"),
    ("stronger", "strongest", "weakest"),
    ("richer", "richest", "poorest"),
)
_RULES = (("begin", "begins", 0), ("end", "ends", -1))


def true_sum(draws: Draws, *, largest: int = 60) -> dict[str, Any]:
    """fact_check: '14 plus 5 is 19.' -> 'true'. A false claim is off by at most 9."""
    first, second = draws.integer(1, largest), draws.integer(1, largest)
    total = claimed = first + second
    answer = draws.choice(("true", "false"))
    if answer == "false":
        claimed = total + draws.choice((-1, 1)) * draws.integer(1, min(_LARGEST_ERROR, total))
    return {
        "claim": f"{first} plus {second} is {claimed}.",
        "options": ["true", "false"],
        "answer": answer,
        "rationale": f"{first} + {second} = {total}, and the claim says {claimed}.",
    }


def and_or_facts(draws: Draws) -> dict[str, Any]:
    """fact_check: 'Cats are animals and hats are tools.' -> 'false'."""
    connective = draws.choice(("and", "or"))
    answer = draws.choice(("true", "false"))
    first, second = draws.choice(_truths(connective, answer))
    left, right = _fact(draws, first), _fact(draws, second)
    needs = "needs both" if connective == "and" else "needs one"
    return {
        "claim": f"{left.capitalize()} {connective} {right}.",
        "options": ["true", "false"],
        "answer": answer,
        "rationale": f"The first part is {_as_word(first)}, the second part is {_as_word(second)}. "
        f"The word {connective} {needs}.",
    }


def transitive_comparison(draws: Draws, *, num_people: int = 3) -> dict[str, Any]:
    """reading: 'Mia is taller than Tom. Tom is taller than Ann.' Who is the shortest? -> 'Ann'."""
    people = words.distinct(draws, words.NAMES, num_people)
    comparison, top, bottom = draws.choice(_ORDERS)
    sentences = [f"{upper} is {comparison} than {lower}." for upper, lower in pairwise(people)]
    draws.shuffle(sentences)
    asked = draws.choice((top, bottom))
    options = list(people)
    draws.shuffle(options)
    return {
        "context": " ".join(sentences),
        "question": f"Who is the {asked}?",
        "options": options,
        "answer": people[0] if asked == top else people[-1],
        "rationale": f"The {top} comes first: {', '.join(people)}.",
    }


def follows_rule(draws: Draws, *, min_letters: int = 3, max_letters: int = 6) -> dict[str, Any]:
    """text_pair: does the word text_2 keep the rule text_1 ('Words must begin with m.')."""
    text = words.letters_word(draws, min_letters, max_letters)
    verb, verb_of_one, place = draws.choice(_RULES)
    answer = draws.choice(("yes", "no"))
    others = [letter for letter in words.VOWELS + words.CONSONANTS + text if letter != text[place]]
    wanted = text[place] if answer == "yes" else draws.choice(others)
    return {
        "text_1": f"Words must {verb} with {wanted}.",
        "text_2": text,
        "options": ["yes", "no"],
        "answer": answer,
        "rationale": f"The rule wants {wanted}, {text} {verb_of_one} with {text[place]}.",
    }


def _truths(connective: str, answer: str) -> list[tuple[bool, bool]]:
    """The pairs of truth values for which the joined claim has this answer."""
    together = all if connective == "and" else any
    pairs = [(first, second) for first in (True, False) for second in (True, False)]
    return [pair for pair in pairs if together(pair) == (answer == "true")]


def _fact(draws: Draws, is_true: bool) -> str:
    group, claimed = words.distinct(draws, tuple(words.GROUPS), 2)
    return f"{draws.choice(words.GROUPS[group])}s are {group if is_true else claimed}"


def _as_word(is_true: bool) -> str:
    return "true" if is_true else "false"
