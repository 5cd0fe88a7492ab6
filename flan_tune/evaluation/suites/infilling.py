"""Infilling: spans are taken out of held-out documents, and the model is asked for them.

    passage     192 tokens in a row, out of a document drawn by key; each from another document
    question    the passage with 1 or 3 blanks of L tokens each, L = 1, 2, 4, 8, 16 or 32, placed by key

Every passage is asked in all twelve ways; where passages are short, in those that fit. What is drawn depends on the
documents, the tokenizer's ids and the seed, not on the model: a model and one that was trained on from it, with
sentinels added, are asked for the same spans.
U-PaLM shows infilling by examples only (arXiv:2210.11399, section 4.1); this measure is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flan_tune import rng
from flan_tune.errors import ScoreError
from flan_tune.objectives.segment import Ids
from flan_tune.tokens.tokenizer import Tokenizer

SPLIT = "validation"
PASSAGE_TOKENS = 192
SPAN_LENGTHS = (1, 2, 4, 8, 16, 32)
BLANK_COUNTS = (1, 3)
_CLEAN_LEFT, _CLEAN_BETWEEN, _CLEAN_RIGHT = 16, 4, 8  # tokens that are always shown around blanks


class Documents(Protocol):
    """Rows {"text": ...} by number, as sources.rows gives them."""

    def __len__(self) -> int: ...
    def __getitem__(self, number: int) -> Mapping[str, Any]: ...


@dataclass(frozen=True, eq=False)  # eq: comparing arrays gives an array, not a truth
class Passage:
    """Tokens `start`, `start` + 1, ... of document number `document`."""

    document: int
    start: int
    ids: Ids


@dataclass(frozen=True, eq=False)
class Question:
    """A passage with blanks, which begin at `starts` (ascending) and have `length` tokens each.

    >>> question = Question(Passage(7, 0, np.arange(10, 20)), starts=(2, 6), length=2)
    >>> question.id, [span.tolist() for span in question.spans], [part.tolist() for part in question.shown]
    ('7/2x2', [[12, 13], [16, 17]], [[10, 11], [14, 15], [18, 19]])
    """

    passage: Passage
    starts: tuple[int, ...]
    length: int

    @property
    def id(self) -> str:
        """Document, blanks and their length: the same for every model."""
        return f"{self.passage.document}/{len(self.starts)}x{self.length}"

    @property
    def spans(self) -> list[Ids]:
        """The tokens that were taken out, blank by blank."""
        return [self.passage.ids[start : start + self.length] for start in self.starts]

    @property
    def shown(self) -> list[Ids]:
        """What is left before, between and behind the blanks: one part more than there are blanks."""
        begins = [0, *(start + self.length for start in self.starts)]
        ends = [*self.starts, len(self.passage.ids)]
        return [self.passage.ids[begin:end] for begin, end in zip(begins, ends, strict=True)]

    @property
    def mask(self) -> npt.NDArray[np.bool_]:
        """True where a token was taken out."""
        mask = np.zeros(len(self.passage.ids), dtype=bool)
        for start in self.starts:
            mask[start : start + self.length] = True
        return mask


def draw_passages(
    documents: Documents, tokenizer: Tokenizer, n: int, *, length: int = PASSAGE_TOKENS, seed: int = 0
) -> list[Passage]:
    """`n` passages of `length` tokens, each from another document, in keyed order and at a keyed place.

    Raises: ScoreError if fewer than `n` documents are long enough.
    """
    passages: list[Passage] = []
    for number in rng.permutation(len(documents), rng.key(seed, "infilling documents")).tolist():
        if len(passages) == n:
            break
        ids = tokenizer.encode_batch([documents[number]["text"]])[0]
        if len(ids) >= length:
            start = int(rng.below(len(ids) - length + 1, rng.key(seed, "infilling passage", number))[0])
            passages.append(Passage(number, start, ids[start : start + length]))
    if len(passages) < n:
        raise ScoreError(
            f"suite 'infilling': {n} passages are asked for, the {SPLIT!r} split has {len(passages)} documents of at "
            f"least {length} tokens. Ask for fewer (--rows)."
        )
    return passages


def least_passage(count: int, length: int) -> int:
    """Tokens of the shortest passage that `count` blanks of `length` tokens leave enough of.

    >>> least_passage(1, 1), least_passage(3, 32)
    (25, 128)
    """
    return count * length + _CLEAN_LEFT + (count - 1) * _CLEAN_BETWEEN + _CLEAN_RIGHT


def place_blanks(passage: Passage, count: int, length: int, *, seed: int = 0) -> Question:
    """`passage` with `count` blanks of `length` tokens, all ways to place them equally likely.

    At least 16 tokens are shown before the first blank, 4 between two, 8 behind the last.
    Raises: ScoreError if the passage is too short for that.
    """
    taken = least_passage(count, length)
    free = len(passage.ids) - taken
    if free < 0:
        raise ScoreError(
            f"{count} blanks of {length} tokens need a passage of {taken} tokens, this one has {len(passage.ids)}. "
            "Take longer passages."
        )
    # Blank k has chosen[k] - k of the free tokens before it: a multiset of places, as a set of larger numbers.
    drawn = rng.permutation(free + count, rng.key(seed, "infilling blanks", passage.document, count, length))[:count]
    step = length + _CLEAN_BETWEEN
    starts = tuple(_CLEAN_LEFT + int(place) - k + k * step for k, place in enumerate(np.sort(drawn)))
    return Question(passage, starts, length)


def infilling_questions(passages: Sequence[Passage], *, seed: int = 0) -> dict[str, list[Question]]:
    """Task name -> its questions, one a passage, in the order of `passages`: 'infilling_1x4' asks for 1 span of 4.

    Blanks for which one of the passages is too short are not asked for.
    """
    shortest = min(len(one.ids) for one in passages)
    return {
        f"infilling_{count}x{length}": [place_blanks(one, count, length, seed=seed) for one in passages]
        for count in BLANK_COUNTS
        for length in SPAN_LENGTHS
        if least_passage(count, length) <= shortest
    }


def same_passages(a: Sequence[Passage], b: Sequence[Passage]) -> bool:
    """Whether two lists of passages hold the same ids: they do if both tokenizers split text alike."""
    return len(a) == len(b) and all(np.array_equal(one.ids, other.ids) for one, other in zip(a, b, strict=True))
