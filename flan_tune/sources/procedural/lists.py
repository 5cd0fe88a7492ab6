"""Short lists: which item, how many, in what order. The lists are text: words with commas, numbers with spaces."""

from __future__ import annotations

from typing import Any

from flan_tune.rng import Draws
from flan_tune.sources.procedural import words


def last_item(draws: Draws, *, min_items: int = 3, max_items: int = 4) -> dict[str, Any]:
    """transform: 'cat, lake, pen' -> 'pen'."""
    items = _items(draws, min_items, max_items)
    return {"text": ", ".join(items), "answer": items[-1]}


def second_item(draws: Draws, *, min_items: int = 3, max_items: int = 4) -> dict[str, Any]:
    """transform: 'cat, lake, pen' -> 'lake'."""
    items = _items(draws, min_items, max_items)
    return {"text": ", ".join(items), "answer": items[1]}


def reverse_list(draws: Draws, *, min_items: int = 2, max_items: int = 3) -> dict[str, Any]:
    """transform: 'cat, lake, pen' -> 'pen, lake, cat'."""
    items = _items(draws, min_items, max_items)
    return {"text": ", ".join(items), "answer": ", ".join(reversed(items))}


def longest_item(draws: Draws, *, num_items: int = 3) -> dict[str, Any]:
    """transform: 'cat, lake, window' -> 'window'. No two items have the same length."""
    items = _items_of_different_lengths(draws, num_items)
    return {"text": ", ".join(items), "answer": max(items, key=len), "rationale": _lengths(items)}


def shortest_item(draws: Draws, *, num_items: int = 3) -> dict[str, Any]:
    """transform: 'cat, lake, window' -> 'cat'. No two items have the same length."""
    items = _items_of_different_lengths(draws, num_items)
    return {"text": ", ".join(items), "answer": min(items, key=len), "rationale": _lengths(items)}


def sort_numbers(draws: Draws, *, num_items: int = 3, largest: int = 60) -> dict[str, Any]:
    """transform: '31 7 12' -> '7 12 31'. The numbers differ."""
    numbers = words.distinct(draws, range(1, largest + 1), num_items)
    ordered = [str(number) for number in sorted(numbers)]
    return {
        "text": " ".join(map(str, numbers)),
        "answer": " ".join(ordered),
        "rationale": f"The smallest is {', then '.join(ordered)}.",
    }


def count_items(draws: Draws, *, min_items: int = 2, max_items: int = 5) -> dict[str, Any]:
    """transform: 'cat, lake, pen' -> '3'."""
    items = _items(draws, min_items, max_items)
    counted = ", ".join(f"{number} {item}" for number, item in enumerate(items, start=1))
    return {"text": ", ".join(items), "answer": str(len(items)), "rationale": f"Counting: {counted}."}


def contains_item(draws: Draws, *, min_items: int = 2, max_items: int = 4) -> dict[str, Any]:
    """text_pair: is the word text_1 in the list text_2, 'yes' in half of the rows."""
    items = _items(draws, min_items + 1, max_items + 1)
    others = items[1:]
    answer = draws.choice(("yes", "no"))
    wanted = draws.choice(others) if answer == "yes" else items[0]
    place = f"{wanted} is item {others.index(wanted) + 1}." if wanted in others else f"{wanted} is none of them."
    return {
        "text_1": wanted,
        "text_2": ", ".join(others),
        "options": ["yes", "no"],
        "answer": answer,
        "rationale": f"The items are {', '.join(others)}. {place}",
    }


def _items(draws: Draws, min_items: int, max_items: int) -> list[str]:
    return words.distinct(draws, words.WORDS, draws.integer(min_items, max_items))


def _items_of_different_lengths(draws: Draws, count: int) -> list[str]:
    if not 1 <= count <= 5:  # the words have 3 to 7 letters
        raise ValueError(f"num_items is {count}, it must be from 1 to 5")
    lengths = words.distinct(draws, range(3, 8), count)
    return [draws.choice([word for word in words.WORDS if len(word) == length]) for length in lengths]


def _lengths(items: list[str]) -> str:
    return f"{', '.join(f'{item} has {len(item)} letters' for item in items)}."
