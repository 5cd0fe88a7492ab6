"""The words that procedural rows are made of, and the few ways of drawing them.

Lists of short common words, names and invented words; no generator is here (they are in the modules named after
their theme). Every noun takes a plain `s` in the plural, and every thing, container, colour and animal begins
with a consonant, so that `a` is always the right article.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from flan_tune.rng import Draws

T = TypeVar("T")

NAMES = tuple(
    "Mia Tom Ann Ben Eva Leo Kim Sam Zoe Max Ida Jon Amy Dan Lea Rob Sue Tim Una Vic "
    "Ada Bob Cai Eli Fay Gus Hal Ivy Jan Ken Liz Meg Nat Ola Pia Ray Sid Tess Uma Wes".split()
)

GROUPS: Mapping[str, tuple[str, ...]] = {
    "animals": tuple(
        "cat dog cow pig hen goat duck frog lion bear seal crab mole swan toad crow hawk horse tiger zebra camel "
        "rabbit monkey parrot lizard".split()
    ),
    "fruits": tuple("apple pear plum lemon lime fig date grape melon mango banana kiwi olive papaya".split()),
    "tools": tuple("hammer saw drill file rake spade shovel chisel needle ladder bucket hoe spanner clamp".split()),
    "clothes": tuple("hat cap coat shirt sock shoe glove boot skirt belt jacket sweater sandal".split()),
    "vehicles": tuple("car van truck tram train boat ship plane tractor wagon cart sled bike scooter taxi".split()),
}

THINGS = tuple(
    "key coin ring cup book ball map lamp pen doll card stone shell button candle ribbon whistle clock kite".split()
)

CONTAINERS = tuple("box bag jar drawer basket pocket chest tin bowl sack crate pot".split())

COLOURS = tuple("red blue green black white brown pink grey yellow purple".split())

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

_OTHER_WORDS = tuple(
    "arm ant art bus day ear egg eye fan fox fun gas gum hut ice ink jam joy leg log mud net nut oak oil owl pan pie "
    "rug sea sky sun tea toe toy web zip bird bell cake cave city desk door drum farm fish flag game gate gold hand "
    "hill home jump king lake leaf milk moon nest note path pond quiz rain road rope sand seed snow song star tree "
    "wall wind wood yard yarn beach bread chair cloud dance earth field floor fruit glass grass green happy heart "
    "house juice knife light magic money month mouse music night ocean paint paper party piano plant quick quiet "
    "river salad school sheep smile space spoon stick storm story sugar summer table thunder tower water wheel window "
    "winter world write yellow young zero bridge butter castle corner cotton dinner doctor dragon engine family "
    "flower forest friend garden guitar hunter island kettle kitten market mirror nature number orange pepper "
    "pillow planet pocket potato puzzle rocket secret shadow silver spider spring square street sunset turtle".split()
)

WORDS: tuple[str, ...] = tuple(
    dict.fromkeys([*(word for group in GROUPS.values() for word in group), *THINGS, *CONTAINERS, *_OTHER_WORDS])
)

VOWELS = "aeiou"
CONSONANTS = "bdlmnrstvw"  # few and soft: what they spell can be said aloud, and is seldom a word
_REAL_SHARE = 4  # one word in four is a real one: they bring the letters that invented ones lack


def letters_word(draws: Draws, min_letters: int, max_letters: int) -> str:
    """A lower-case word of min_letters to max_letters letters, real one time in four, else invented.

    Real words alone would be learned by heart: there are a few hundred of them, and 25,000 invented ones of
    five letters.
    """
    length = draws.integer(min_letters, max_letters)
    real = [word for word in WORDS if len(word) == length]
    if real and draws.below(_REAL_SHARE) == 0:
        return draws.choice(real)
    return invented_word(draws, length)


def invented_word(draws: Draws, length: int) -> str:
    """A word of consonants and vowels in turn: 'mako', 'sidun'."""
    return "".join(draws.choice(VOWELS if position % 2 else CONSONANTS) for position in range(length))


def distinct(draws: Draws, items: Sequence[T], count: int) -> list[T]:
    """`count` different members of `items`, by drawing again: a shuffle of the whole list would be slower.

    Raises: ValueError if there are not that many.
    """
    if count > len(items):
        raise ValueError(f"{count} different items are wanted, there are {len(items)}")
    chosen: list[T] = []
    while len(chosen) < count:
        item = draws.choice(items)
        if item not in chosen:
            chosen.append(item)
    return chosen


def joined(items: Sequence[str], word: str) -> str:
    """The items as prose.

    >>> joined(["cat", "dog", "hat"], "or")
    'cat, dog or hat'
    """
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} {word} {items[-1]}"
