"""Reading answers, accuracy above chance, and statistics: known values and laws."""

from __future__ import annotations

import math
import statistics as python_statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flan_tune.errors import ScoreError
from flan_tune.evaluation.normalize import normalized_error, normalized_score
from flan_tune.evaluation.scoring import (
    METRICS,
    after_the_answer_is,
    judge,
    last_number,
    normalize_answer,
    option_number,
)
from flan_tune.evaluation.statistics import (
    error_of_mean,
    paired_difference,
    standard_error,
    wilson_interval,
)
from flan_tune.evaluation.suites.suite import Item

answers = st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=60)
percents = st.floats(0, 100)
chances = st.floats(0, 99)


def item(targets: str, options: list[str] | None = None, references: list[str] | None = None) -> Item:
    return Item("0", "t", "?", targets, options, references)


@pytest.mark.parametrize(
    ("output", "target", "correct"),
    [
        (" Yes.\n", "yes", True),
        ("the  cat\nsat", "The cat sat.", True),
        ("yes, it is", "yes", False),
        ("yes..", "yes", False),  # one period is forgiven, not two
        ("", "yes", False),
    ],
)
def test_plain_answers(output: str, target: str, correct: bool) -> None:
    assert judge("answer", output, item(target)).correct is correct


def test_further_references_are_right_too() -> None:
    assert judge("answer", "Bombay", item("Mumbai", references=["Bombay"])).correct
    assert not judge("answer", "Delhi", item("Mumbai", references=["Bombay"])).correct


@pytest.mark.parametrize(
    ("output", "extracted"),
    [
        ("2 + 2 is 4, so the answer is 4.", "4."),
        ("The answer is 3. No: the answer is (B)\nand so on", "(B)"),
        ("The answer is: blue.", "blue."),
        ("It is 4.", None),
        ("so the answer is", None),
        ("the answer isn't 4", None),
    ],
)
def test_the_last_the_answer_is(output: str, extracted: str | None) -> None:
    assert after_the_answer_is(output) == extracted


def test_reasoned_answers_need_the_phrase_in_the_output_only() -> None:
    target = item("Two and two. The answer is 4.")
    assert judge("reasoned_answer", "I think the answer is 4", target).correct
    assert judge("reasoned_answer", "I think the answer is 4", item("4")).correct
    unread = judge("reasoned_answer", "4", target)
    assert (unread.extracted, unread.correct) == (None, False)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 1,234.", "1234"),
        ("$18.00", "18"),
        ("5-3", "3"),
        ("it is -3", "-3"),
        ("0.50 of it", "0.5"),
        ("1,2345", "2345"),
        ("1, 2, 3", "3"),
        ("1,2,3", "3"),
        ("-0", "0"),
        ("1200", "1200"),
        ("16 - 3 = 13 eggs", "13"),
        ("উত্তর হল ১২", "12"),
        ("none", None),
    ],
)
def test_last_number(text: str, number: str | None) -> None:
    assert last_number(text) == number


@given(st.integers(-(10**12), 10**12), st.text("abc ", max_size=5))
def test_any_written_number_is_read_back(value: int, before: str) -> None:
    assert last_number(f"{before} {value:,}.") == str(value)
    assert last_number(f"{before} {value}.00 eggs") == str(value)


def test_a_target_without_a_number_is_our_mistake() -> None:
    with pytest.raises(ScoreError, match="holds no number"):
        judge("number", "4", item("four"))


@pytest.mark.parametrize(
    ("output", "number"),
    [
        ("(B)", 1),
        ("b)", None),
        ("B", 1),
        ("B.", 1),
        ("(b) a dog", 1),
        ("A dog.", 1),
        ("A dog barks", None),
        ("(D)", None),
    ],
)
def test_options_are_named_by_text_or_letter(output: str, number: int | None) -> None:
    assert option_number(output, ["a cat", "a dog"]) == number


def test_option_metric_takes_what_follows_the_answer_is() -> None:
    assert judge("option", "Dogs bark. So the answer is (B).", item("a dog", ["a cat", "a dog"])).correct
    with pytest.raises(ScoreError, match="none of the options"):
        judge("option", "x", item("a bird", ["a cat", "a dog"]))


def test_unknown_metric_names_the_near_one() -> None:
    with pytest.raises(ScoreError, match="Did you mean 'number'"):
        judge("numbers", "4", item("4"))


def is_an_answer(text: str) -> bool:
    """Blank is none; and in 'the answer is: 4' the colon belongs to the phrase, so no answer begins with one."""
    return normalize_answer(text) != "" and not text.strip().startswith(":")


@given(st.text(max_size=40).filter(is_an_answer))
def test_the_target_itself_is_always_right(text: str) -> None:
    assert judge("answer", text, item(text)).correct
    assert judge("reasoned_answer", f"so the answer is {' '.join(text.split())}", item(" ".join(text.split()))).correct


@given(st.sampled_from(sorted(METRICS)), st.text(max_size=60))
def test_no_output_breaks_a_metric(metric: str, output: str) -> None:
    judgement = judge(metric, output, item("7", ["7", "8"]))
    assert not (judgement.correct and judgement.extracted is None)


@given(percents, chances)
def test_normalising_keeps_chance_at_0_and_100_at_100(score: float, chance: float) -> None:
    assert normalized_score(chance, chance) == 0
    assert normalized_score(100, chance) == pytest.approx(100)
    assert (normalized_score(score, chance) >= 0) == (score >= chance)


def test_normalising_known_values() -> None:
    assert normalized_score(62.5, 25) == 50
    assert normalized_score(0, 50) == -100
    assert normalized_error(3, 25) == 4
    assert normalized_error(None, 25) is None
    with pytest.raises(ScoreError, match="chance is 100"):
        normalized_score(100, 100)


@given(answers)
def test_standard_error_is_that_of_a_sample_mean(correct: list[float]) -> None:
    expected = python_statistics.stdev(correct) / math.sqrt(len(correct))
    assert standard_error(correct) == pytest.approx(expected, abs=1e-12)


def test_errors_that_cannot_be_known_are_none() -> None:
    assert standard_error([1.0]) is None
    assert error_of_mean([1.0, None]) is None
    assert error_of_mean([]) is None
    assert error_of_mean([3.0, 4.0]) == 2.5


@given(st.integers(1, 500), st.data())
def test_wilson_interval_holds_the_share_and_mirrors(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    low, high = wilson_interval(right, n)
    assert 0 <= low <= right / n <= high <= 1
    mirrored = wilson_interval(n - right, n)
    assert (1 - mirrored[1], 1 - mirrored[0]) == (pytest.approx(low, abs=1e-9), pytest.approx(high, abs=1e-9))


def test_wilson_known_value() -> None:
    # Newcombe 1998, table I, method 3: 81 of 263 gives 0.2553 to 0.3662.
    assert wilson_interval(81, 263) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))
    with pytest.raises(ScoreError):
        wilson_interval(3, 2)


def test_paired_difference_known_values() -> None:
    a, b = [1.0] * 60 + [0.0] * 40, [1.0] * 40 + [0.0] * 60
    found = paired_difference(a, b)
    assert found.difference == pytest.approx(0.2)
    error = np.std(np.array(a) - np.array(b)) / 10  # of a mean of 100
    assert (found.low, found.high) == (
        pytest.approx(0.2 - 1.96 * error, abs=0.015),
        pytest.approx(0.2 + 1.96 * error, abs=0.015),
    )
    assert found.p_value < 0.001
    assert paired_difference(a, b) == found


@given(answers)
def test_a_model_does_not_differ_from_itself(correct: list[float]) -> None:
    found = paired_difference(correct, correct)
    assert (found.difference, found.low, found.high, found.p_value) == (0, 0, 0, 1)


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0, 0.0]), ([], [])])
def test_pairs_must_be_pairs(a: list[float], b: list[float]) -> None:
    with pytest.raises(ScoreError, match="same items"):
        paired_difference(a, b)


def test_large_samples_are_drawn_in_pieces() -> None:
    values = np.tile([1.0, 0.0], 1500)
    found = paired_difference(values.tolist(), np.zeros(3000).tolist())
    assert found.low < 0.5 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(3000), rel=0.1)
