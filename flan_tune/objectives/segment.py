"""The segment: one example's tokens as a model sees them, inputs first, then targets.

Every objective of this room returns segments. How segments become packs is in flan_tune/packing, how a pack
becomes a mask and labels in flan_tune/models.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.integer[Any]]  # token ids as they come: any integer width


@dataclass(frozen=True, eq=False)  # eq: comparing arrays gives an array, not a truth
class Segment:
    """Inputs and targets in one row of ids.

    input_ids: int32 [inputs + targets], BOS first if the tokenizer has one.
    prefix_length: positions below it are the inputs (no loss; seen in both directions under prefix-LM).
    kind: "supervised", "causal", or the name of a denoiser ("R", "S", "X1", ...).
    cut: number of the cut within its piece of text, 0 where nothing was cut.

    >>> Segment(np.array([1, 8, 9, 5, 2], dtype=np.int32), prefix_length=3, kind="supervised").num_targets
    2
    """

    input_ids: npt.NDArray[np.int32]
    prefix_length: int
    kind: str
    cut: int = 0

    @property
    def num_targets(self) -> int:
        """Number of predicted positions. Position 0 has nothing before it and is never one of them."""
        return len(self.input_ids) - max(self.prefix_length, 1)


def joined_ids(*parts: Ids | int | None) -> npt.NDArray[np.int32]:
    """All parts one after the other as int32; a single id is a part, None is no part.

    >>> joined_ids(1, np.array([8, 9]), None, 2)
    array([1, 8, 9, 2], dtype=int32)
    """
    present = [np.atleast_1d(np.asarray(part, dtype=np.int32)) for part in parts if part is not None]
    return np.concatenate(present) if present else np.zeros(0, dtype=np.int32)
