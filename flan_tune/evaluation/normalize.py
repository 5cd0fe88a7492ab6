"""Accuracy above chance: 0 is guessing, 100 is perfect."""

from __future__ import annotations

from flan_tune.errors import ScoreError


def normalized_score(score: float, chance: float) -> float:
    """100 * (score - chance) / (100 - chance), all three in percent; below 0 means worse than guessing.

    Each task is normalised first and the results are averaged then, unweighted.
    Source: Chung et al. 2022 (arXiv:2210.11416), footnote 5. That the order is task first, mean second, is not
    said there: it reproduces their Table 5 to 0.05, the other order is up to 1.3 off.

    >>> normalized_score(62.5, 25)
    50.0
    """
    if not 0 <= chance < 100:
        raise ScoreError(f"chance is {chance} percent, a number in [0, 100) is wanted.")
    return 100 * (score - chance) / (100 - chance)


def normalized_error(error: float | None, chance: float) -> float | None:
    """A standard error of a score, in percent, carried over to the normalised score.

    >>> normalized_error(3.0, 25)
    4.0
    """
    return None if error is None else 100 * error / (100 - chance)
