"""Plain language modelling: every token is a target. Long documents are cut here, never truncated."""

from __future__ import annotations

from flan_tune.errors import RecipeError, RowError
from flan_tune.objectives.segment import Ids, Segment, joined_ids

_LEAST_LENGTH = 3


def causal(tokens: Ids, *, bos_id: int | None, eos_id: int) -> Segment:
    """[BOS] tokens EOS, no prefix. Without BOS the first token has nothing before it and is not a target.

    >>> segment = causal(np.array([8, 9]), bos_id=1, eos_id=2)
    >>> segment.input_ids.tolist(), segment.prefix_length, segment.num_targets
    ([1, 8, 9, 2], 0, 3)

    Raises: RowError "empty target" if there is no token.
    """
    if len(tokens) == 0:
        raise RowError("empty target", "the text has no tokens, so there is nothing to learn; drop the row")
    return Segment(joined_ids(bos_id, tokens, eos_id), 0, "causal")


def cut_causal(tokens: Ids, max_length: int, bos_id: int | None, eos_id: int) -> list[Segment]:
    """The document cut left to right into segments of at most `max_length`: every token once, in order.

    Each cut begins with BOS if there is one; only the last ends with EOS, which tells the end of the document.
    EOS never stands alone: where it alone would be left over, the last cut takes one token from the one before.
    No tokens give no segments.

    >>> [s.input_ids.tolist() for s in cut_causal(np.array([5, 6, 7, 8, 9]), max_length=4, bos_id=1, eos_id=2)]
    [[1, 5, 6, 7], [1, 8, 9, 2]]
    >>> [s.input_ids.tolist() for s in cut_causal(np.array([5, 6, 7]), max_length=4, bos_id=1, eos_id=2)]
    [[1, 5, 6], [1, 7, 2]]

    Raises: RecipeError if `max_length` is below 3: BOS, a token and EOS, or without BOS a token to start from, one to
    predict, and EOS.
    """
    if max_length < _LEAST_LENGTH:
        raise RecipeError(
            f"max_length {max_length} is too small to cut text into; raise it to {_LEAST_LENGTH} or more."
        )
    room = max_length - (bos_id is not None)
    segments: list[Segment] = []
    start = 0
    while start < len(tokens):
        left = len(tokens) - start
        is_last = left < room
        end = len(tokens) if is_last else start + min(room, left - 1)
        ids = joined_ids(bos_id, tokens[start:end], eos_id if is_last else None)
        segments.append(Segment(ids, 0, "causal", cut=len(segments)))
        start = end
    return segments
