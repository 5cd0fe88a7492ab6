"""Scores of infilling, and two models compared: no model is needed."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("lm_eval")

from flan_tune.evaluation.infilling import (
    EXACT,
    F1,
    NATS,
    NO_MODE,
    Infilling,
    compare_infilling,
    mean_and_error,
    token_f1,
)
from flan_tune.evaluation.statistics import standard_error


def test_f1_counts_tokens_as_bags() -> None:
    assert token_f1([5], [5]) == 1
    assert token_f1([6], [5]) == 0
    assert token_f1([5, 5, 6], [5, 7, 8]) == pytest.approx(1 / 3)
    assert token_f1([5, 6], [6, 5]) == 1


@given(st.lists(st.booleans(), min_size=2))
def test_the_error_of_right_and_wrong_is_that_of_a_share(right: list[bool]) -> None:
    mean, error = mean_and_error([float(one) for one in right])
    assert mean == pytest.approx(sum(right) / len(right))
    assert error == pytest.approx(standard_error([float(one) for one in right]))


def test_one_value_has_no_error() -> None:
    assert mean_and_error([2.5]) == (2.5, None)


def infilling(native: str, exact: dict[str, list[float]]) -> Infilling:
    """A model with one task of each number of blanks; F1 as exact match, nats the other way round."""
    tasks = {"infilling_1x1": "infilling, one blank", "infilling_3x1": "infilling, 3 blanks"}
    values = {
        name: {form: {EXACT: one, F1: one, NATS: [1 - value for value in one]} for form, one in exact.items()}
        for name in tasks
    }
    result = {"tasks": {name: {"group": group} for name, group in tasks.items()}}
    return Infilling(values, dict.fromkeys(tasks, native), {NO_MODE: [2.0, 3.0, 4.0, 5.0]}, result)


def test_models_are_compared_passage_by_passage() -> None:
    base = infilling("left", {"left": [0.0, 0.0, 1.0, 0.0], "prompt": [1.0, 1.0, 1.0, 1.0]})
    other = infilling("sentinels", {"left": [0.0] * 4, "sentinels": [1.0, 1.0, 1.0, 1.0]})
    found = compare_infilling(base, other)
    assert list(found["tasks"]["infilling_1x1"]) == ["left", "prompt"]
    against_left = found["tasks"]["infilling_1x1"]["left"]
    assert (against_left[EXACT]["difference"], against_left[EXACT]["n"]) == (75, 4)
    assert against_left[NATS]["difference"] == -0.75
    assert found["tasks"]["infilling_1x1"]["prompt"][EXACT]["difference"] == 0
    assert found["means"]["infilling, 3 blanks"]["left"][F1]["difference"] == 75
    assert found["causal_text"][NO_MODE]["difference"] == 0
    assert json.loads(json.dumps(found)) == found
