"""Which generators there are, and the rows they give: unlimited, made on the spot, addressed by number.

A generator is a pure function of keyed draws and its difficulty parameters to the fields of one shape. Which
shape and which wordings belong to it is said by its card (tasks/cards/procedural/).
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from flan_tune import rng
from flan_tune.errors import CardError, did_you_mean
from flan_tune.sources.procedural import (
    arithmetic,
    dates,
    descriptions,
    entailments,
    letters,
    lists,
    logic,
    meaning,
    stories,
    words,
)

Generator = Callable[..., dict[str, Any]]

GENERATORS: Mapping[str, Generator] = {
    "add": arithmetic.add,
    "and_or_facts": logic.and_or_facts,
    "compare_numbers": arithmetic.compare_numbers,
    "contains_item": lists.contains_item,
    "count_items": lists.count_items,
    "count_letter": letters.count_letter,
    "describe_pet": descriptions.describe_pet,
    "entailment_facts": entailments.entailment_facts,
    "entailment_places": entailments.entailment_places,
    "even_or_odd": arithmetic.even_or_odd,
    "even_or_odd_sum": arithmetic.even_or_odd_sum,
    "first_letter": letters.first_letter,
    "follows_rule": logic.follows_rule,
    "how_many_more": stories.how_many_more,
    "last_item": lists.last_item,
    "last_letter": letters.last_letter,
    "longest_item": lists.longest_item,
    "make_change": stories.make_change,
    "next_in_sequence": arithmetic.next_in_sequence,
    "odd_one_out": meaning.odd_one_out,
    "remove_vowels": letters.remove_vowels,
    "reverse_list": lists.reverse_list,
    "reverse_word": letters.reverse_word,
    "same_meaning": meaning.same_meaning,
    "second_item": lists.second_item,
    "second_letter": letters.second_letter,
    "sentiment": meaning.sentiment,
    "shortest_item": lists.shortest_item,
    "sort_numbers": lists.sort_numbers,
    "subtract": arithmetic.subtract,
    "topic": meaning.topic,
    "transitive_comparison": logic.transitive_comparison,
    "true_sum": logic.true_sum,
    "uppercase": letters.uppercase,
    "weekday_after": dates.weekday_after,
    "where_is_it": stories.where_is_it,
    "who_gave_it_last": stories.who_gave_it_last,
    "who_has_it": stories.who_has_it,
}


class ProceduralRows:
    """The rows of one generator for one split, each a pure function of its number.

    `parameters` are the difficulty parameters of the generator, `split` is any name: it only keys the draws.
    `length` is nominal: there is no end of rows, but an epoch needs one.

    Raises: CardError for a generator or parameter that is not there, or a value that makes no row.

    >>> ProceduralRows("reverse_word", {"max_letters": 4}, "train")[0]["answer"]  # its text is 'nul'
    'lun'
    """

    def __init__(
        self, name: str, parameters: Mapping[str, Any], split: str, seed: int = 0, length: int = 1_000_000
    ) -> None:
        _check_parameters(name, parameters)
        self.name = name
        self.parameters = dict(parameters)
        self.split = split
        self.seed = seed
        self.length = length
        self._check_first_row()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> dict[str, Any]:
        """The fields of row `number`, in [0, length). Raises: IndexError outside, so that a loop over rows ends."""
        if not 0 <= number < self.length:
            raise IndexError(f"row {number} of generator {self.name!r}: rows are 0 to {self.length - 1}")
        return self._row(number)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that change with anything the rows depend on, the text of the generator's module included."""
        module = sys.modules[GENERATORS[self.name].__module__]
        parts = [self.name, json.dumps(self.parameters, sort_keys=True), self.split, str(self.seed)]
        parts += [_source(module), _source(words)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]

    def _row(self, number: int) -> dict[str, Any]:
        draws = rng.Draws(rng.key(self.seed, "procedural", self.name, self.split, number))
        return GENERATORS[self.name](draws, **self.parameters)

    def _check_first_row(self) -> None:
        try:
            self._row(0)
        except (ValueError, IndexError) as error:
            raise CardError(
                f"generator {self.name!r} makes no row with {self.parameters}: {error}. Correct the parameters."
            ) from None


def _check_parameters(name: str, parameters: Mapping[str, Any]) -> None:
    if name not in GENERATORS:
        raise CardError(
            f"there is no generator {name!r}.{did_you_mean(name, GENERATORS)} "
            "Correct `source.procedural`; generators are listed in flan_tune/sources/procedural/registry.py."
        )
    known = {
        parameter.name: parameter.default
        for parameter in inspect.signature(GENERATORS[name]).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    faults = [fault for key, value in parameters.items() if (fault := _parameter_fault(name, key, value, known))]
    if faults:
        raise CardError(*faults)


def _parameter_fault(name: str, key: str, value: Any, known: Mapping[str, Any]) -> str:
    if key not in known:
        has = f"It has {sorted(known)}." if known else "It has none."
        return f"generator {name!r} has no parameter {key!r}.{did_you_mean(key, known)} {has}"
    if type(value) is not type(known[key]):  # True is an int to isinstance
        wanted = type(known[key]).__name__
        return f"generator {name!r}: {key} is {value!r}, a value of type {wanted} is wanted, such as {known[key]!r}."
    return ""


def _source(module: ModuleType) -> str:
    return inspect.getsource(module)
