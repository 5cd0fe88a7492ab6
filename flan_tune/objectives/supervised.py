"""Supervised tuning: the inputs are given, the targets are learnt. Nothing is masked and nothing is cut here."""

from __future__ import annotations

from flan_tune.errors import RowError
from flan_tune.objectives.segment import Ids, Segment, joined_ids


def supervised(inputs: Ids, targets: Ids, *, bos_id: int | None, eos_id: int) -> Segment:
    """[BOS] inputs | targets EOS; the bar is at `prefix_length`, and only what follows it is learnt.

    The separator between inputs and targets, if the recipe has one, is the caller's: it belongs to `inputs`.

    >>> segment = supervised(np.array([8, 9]), np.array([5]), bos_id=1, eos_id=2)
    >>> segment.input_ids.tolist(), segment.prefix_length, segment.num_targets
    ([1, 8, 9, 5, 2], 3, 2)

    Raises: RowError "empty target" if `targets` holds no token: EOS alone would teach silence.
    """
    if len(targets) == 0:
        raise RowError(
            "empty target", "the target has no tokens, so there is nothing to learn; correct or drop the row"
        )
    prefix_length = len(inputs) + (bos_id is not None)
    return Segment(joined_ids(bos_id, inputs, targets, eos_id), prefix_length, "supervised")
