"""What words mean: same or other, good or bad, what they are about, which one does not belong."""

from __future__ import annotations

from typing import Any

from flan_tune.rng import Draws
from flan_tune.sources.procedural import words

# (word, word of the same meaning, word of another meaning)
_SENSES = (
    ("big", "large", "small"),
    ("small", "little", "big"),
    ("fast", "quick", "slow"),
    ("glad", "happy", "sad"),
    ("tired", "sleepy", "fresh"),
    ("smart", "clever", "dull"),
    ("scared", "afraid", "brave"),
    ("sick", "ill", "well"),
    ("calm", "peaceful", "angry"),
    ("wet", "soaked", "dry"),
    ("loud", "noisy", "quiet"),
    ("strange", "odd", "normal"),
)
_FEELINGS = {
    "positive": tuple("good great lovely fine superb nice fun sweet bright brilliant charming perfect".split()),
    "negative": tuple("bad awful dull poor nasty boring ugly weak horrid dreadful gloomy rotten".split()),
}
_JUDGED = tuple(
    "film book song meal play show hotel room trip game city park team shop class dinner story party dance".split()
)
_STRENGTHS = ("", "very ", "really ", "so ")


def same_meaning(draws: Draws) -> dict[str, Any]:
    """text_pair: 'Mia saw a dog that was big.' / 'Mia saw a dog that was large.' -> 'yes'."""
    word, synonym, opposite = draws.choice(_SENSES)
    answer = draws.choice(("yes", "no"))
    other = synonym if answer == "yes" else opposite
    pair = [word, other]
    draws.shuffle(pair)
    seen = f"{draws.choice(words.NAMES)} saw a {draws.choice(words.GROUPS['animals'])} that was"
    says = "are much the same" if answer == "yes" else "are different things"
    return {
        "text_1": f"{seen} {pair[0]}.",
        "text_2": f"{seen} {pair[1]}.",
        "options": ["yes", "no"],
        "answer": answer,
        "rationale": f"To be {pair[0]} and to be {pair[1]} {says}.",
    }


def sentiment(draws: Draws) -> dict[str, Any]:
    """classification: 'Mia said the film was very dull.' -> 'negative'."""
    answer = draws.choice(tuple(_FEELINGS))
    word = draws.choice(_FEELINGS[answer])
    judged = f"{draws.choice(_JUDGED)} was {draws.choice(_STRENGTHS)}{word}."
    opening = draws.choice(("The", "I think the", f"{draws.choice(words.NAMES)} said the"))
    return {
        "text": f"{opening} {judged}",
        "options": list(_FEELINGS),
        "answer": answer,
        "rationale": f"The word {word} is {'praise' if answer == 'positive' else 'blame'}.",
    }


def topic(draws: Draws) -> dict[str, Any]:
    """classification: 'Mia talks about cats and hens.' -> 'animals'. Three of the five groups are offered."""
    options = words.distinct(draws, tuple(words.GROUPS), 3)
    answer = draws.choice(options)
    first, second = words.distinct(draws, words.GROUPS[answer], 2)
    verb = draws.choice(("talks about", "reads about", "draws", "dreams of", "asks about"))
    return {
        "text": f"{draws.choice(words.NAMES)} {verb} {first}s and {second}s.",
        "options": options,
        "answer": answer,
        "rationale": f"The text names {first}s and {second}s, which are both {answer}.",
    }


def odd_one_out(draws: Draws, *, num_words: int = 4) -> dict[str, Any]:
    """multiple_choice: 'cat, hat, hen or dog' -> 'hat'."""
    group, other_group = words.distinct(draws, tuple(words.GROUPS), 2)
    members = words.distinct(draws, words.GROUPS[group], num_words - 1)
    answer = draws.choice(words.GROUPS[other_group])
    options = [*members, answer]
    draws.shuffle(options)
    plurals = words.joined([f"{member}s" for member in members], "and")
    return {
        "question": words.joined(options, "or"),
        "options": options,
        "answer": answer,
        "rationale": f"{plurals.capitalize()} are {group}, {answer}s are {other_group}.",
    }
