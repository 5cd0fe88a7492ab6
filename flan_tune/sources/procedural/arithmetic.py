"""Small whole numbers: sums, differences, comparison, sequences, parity. Word problems are in stories.py."""

from __future__ import annotations

from typing import Any

from flan_tune.rng import Draws
from flan_tune.sources.procedural import words


def add(draws: Draws, *, largest: int = 80) -> dict[str, Any]:
    """question_answer: '14 + 37' -> '51', by tens and ones."""
    first, second = draws.integer(1, largest), draws.integer(1, largest)
    tens = first // 10 * 10 + second // 10 * 10
    ones = first % 10 + second % 10
    return {
        "question": f"{first} + {second}",
        "answer": str(first + second),
        "rationale": f"{first // 10 * 10} + {second // 10 * 10} = {tens}, {first % 10} + {second % 10} = {ones}, "
        f"{tens} + {ones} = {first + second}.",
    }


def subtract(draws: Draws, *, largest: int = 120) -> dict[str, Any]:
    """question_answer: '61 - 37' -> '24', first the tens, then the ones. Never below zero."""
    second, first = sorted(words.distinct(draws, range(1, largest + 1), 2))
    less_tens = first - second // 10 * 10
    return {
        "question": f"{first} - {second}",
        "answer": str(first - second),
        "rationale": f"{first} - {second // 10 * 10} = {less_tens}, {less_tens} - {second % 10} = {first - second}.",
    }


def compare_numbers(draws: Draws, *, largest: int = 99) -> dict[str, Any]:
    """multiple_choice: '57 or 34' -> '57', the larger one."""
    first, second = words.distinct(draws, range(1, largest + 1), 2)
    larger, smaller = max(first, second), min(first, second)
    return {
        "question": f"{first} or {second}",
        "options": [str(first), str(second)],
        "answer": str(larger),
        "rationale": f"{larger} - {smaller} = {larger - smaller}, so {larger} is {larger - smaller} more.",
    }


def next_in_sequence(draws: Draws, *, largest_start: int = 150, largest_step: int = 12) -> dict[str, Any]:
    """completion: '4, 7, 10' -> '13'. Three or four numbers are shown, rising or falling, none below zero."""
    shown = draws.integer(3, 4)
    step = draws.integer(1, largest_step)
    start = draws.integer(0, largest_start)
    rising = draws.below(2) == 0
    numbers = [start + step * position for position in range(shown + 1)]
    if not rising:
        numbers.reverse()
    word, sign = ("more", "+") if rising else ("less", "-")
    return {
        "context": ", ".join(map(str, numbers[:-1])),
        "answer": str(numbers[-1]),
        "rationale": f"Each number is {step} {word}: {numbers[-2]} {sign} {step} = {numbers[-1]}.",
    }


def even_or_odd(draws: Draws, *, largest: int = 9999) -> dict[str, Any]:
    """classification: '348' -> 'even'."""
    number = draws.integer(10, largest)
    digit = number % 10
    return {
        "text": str(number),
        "options": ["even", "odd"],
        "answer": _parity(number),
        "rationale": f"{number} ends in {digit}, and {digit} is {_parity(digit)}.",
    }


def even_or_odd_sum(draws: Draws, *, largest: int = 99) -> dict[str, Any]:
    """classification: '34 + 57' -> 'odd'."""
    first, second = draws.integer(10, largest), draws.integer(10, largest)
    digits = first % 10 + second % 10
    return {
        "text": f"{first} + {second}",
        "options": ["even", "odd"],
        "answer": _parity(first + second),
        "rationale": f"The last digits: {first % 10} + {second % 10} = {digits}, and {digits} is {_parity(digits)}.",
    }


def _parity(number: int) -> str:
    return "odd" if number % 2 else "even"
