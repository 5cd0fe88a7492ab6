"""Data to a sentence: a few named values become plain English."""

from __future__ import annotations

from typing import Any

from flan_tune.rng import Draws
from flan_tune.sources.procedural import words


def describe_pet(draws: Draws) -> dict[str, Any]:
    """data_to_text: 'name: Rex, kind: dog, colour: black' -> 'Rex is a black dog.' The order of the values varies."""
    name, kind = draws.choice(words.NAMES), draws.choice(words.GROUPS["animals"])
    colour = draws.choice(words.COLOURS)
    values = [f"name: {name}", f"kind: {kind}", f"colour: {colour}"]
    draws.shuffle(values)
    return {"data": ", ".join(values), "answer": f"{name} is a {colour} {kind}."}
