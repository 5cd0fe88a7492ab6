"""Letters of one word: pick one, count them, turn them round, change them. Words and draws are in words.py."""

from __future__ import annotations

from typing import Any

from flan_tune.rng import Draws
from flan_tune.sources.procedural import words


def first_letter(draws: Draws, *, min_letters: int = 3, max_letters: int = 6) -> dict[str, Any]:
    """transform: 'mako' -> 'm'."""
    text = words.letters_word(draws, min_letters, max_letters)
    return {"text": text, "answer": text[0], "rationale": _spelled(text)}


def second_letter(draws: Draws, *, min_letters: int = 3, max_letters: int = 6) -> dict[str, Any]:
    """transform: 'mako' -> 'a'."""
    text = words.letters_word(draws, min_letters, max_letters)
    return {"text": text, "answer": text[1], "rationale": _spelled(text)}


def last_letter(draws: Draws, *, min_letters: int = 3, max_letters: int = 6) -> dict[str, Any]:
    """transform: 'mako' -> 'o'."""
    text = words.letters_word(draws, min_letters, max_letters)
    return {"text": text, "answer": text[-1], "rationale": _spelled(text)}


def reverse_word(draws: Draws, *, min_letters: int = 3, max_letters: int = 5) -> dict[str, Any]:
    """transform: 'mako' -> 'okam'."""
    text = words.letters_word(draws, min_letters, max_letters)
    answer = text[::-1]
    return {"text": text, "answer": answer, "rationale": f"{_spelled(text)} From the end: {' '.join(answer)}."}


def count_letter(draws: Draws, *, min_letters: int = 3, max_letters: int = 6) -> dict[str, Any]:
    """instruction: how often a letter is in 'banana', 0 one time in four."""
    text = words.letters_word(draws, min_letters, max_letters)
    absent = [letter for letter in words.VOWELS + words.CONSONANTS if letter not in text]
    letter = draws.choice(absent) if draws.below(4) == 0 else draws.choice(text)
    return {
        "definition": f"Count how often the letter {letter} is in the word.",
        "input": text,
        "answer": str(text.count(letter)),
    }


def uppercase(draws: Draws, *, min_letters: int = 3, max_letters: int = 6) -> dict[str, Any]:
    """transform: 'mako' -> 'MAKO'."""
    text = words.letters_word(draws, min_letters, max_letters)
    return {"text": text, "answer": text.upper()}


def remove_vowels(draws: Draws, *, min_letters: int = 4, max_letters: int = 6) -> dict[str, Any]:
    """transform: 'mako' -> 'mk'. No word of the list is all vowels."""
    text = words.letters_word(draws, min_letters, max_letters)
    return {"text": text, "answer": "".join(letter for letter in text if letter not in words.VOWELS)}


def _spelled(text: str) -> str:
    return f"{text} is spelled {' '.join(text)}."
