"""The learning rate as a function, and which parameters decay."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flan_tune.errors import RecipeError
from flan_tune.training.optim import SCHEDULES, create_optimizer, learning_rate


def test_the_example_in_the_docstring() -> None:
    rates = [learning_rate(s, peak=1.0, schedule="linear", warmup_steps=2, max_steps=6) for s in range(6)]
    assert rates == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]


def test_cosine_is_halfway_in_the_middle() -> None:
    assert learning_rate(5, peak=2.0, schedule="cosine", warmup_steps=0, max_steps=10) == pytest.approx(1.0)


@given(
    schedule=st.sampled_from(SCHEDULES),
    warmup=st.integers(0, 20),
    after=st.integers(1, 50),
    ratio=st.floats(0, 1),
)
def test_rises_to_the_peak_then_falls_to_its_final_ratio(schedule: str, warmup: int, after: int, ratio: float) -> None:
    options = {"peak": 3.0, "schedule": schedule, "warmup_steps": warmup, "max_steps": warmup + after}
    rates = [learning_rate(s, final_ratio=ratio, **options) for s in range(warmup + after + 1)]
    assert all(0 < rate <= 3.0 for rate in rates[:warmup])
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup] == pytest.approx(3.0)
    assert all(a >= b - 1e-12 for a, b in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    assert rates[-1] == pytest.approx(3.0 if schedule == "constant" else 3.0 * ratio)


def test_an_unknown_schedule_or_optimizer_names_the_near_one() -> None:
    with pytest.raises(RecipeError, match="Did you mean 'cosine'"):
        learning_rate(5, peak=1.0, schedule="cosin", warmup_steps=0, max_steps=10)
    with pytest.raises(RecipeError, match="Did you mean 'adafactor'"):
        create_optimizer(nn.Linear(2, 2), optim="adafacto", learning_rate=1.0, weight_decay=0.0)


def test_norms_and_biases_do_not_decay() -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    optimizer = create_optimizer(model, optim="adamw_torch", learning_rate=1.0, weight_decay=0.1)
    decay_of = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: decay_of[id(p)] for name, p in model.named_parameters()} == {
        "0.weight": 0.1,
        "1.weight": 0.0,
        "1.bias": 0.0,
        "2.weight": 0.1,
        "2.bias": 0.0,
    }


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Linear(4, 3)
    model.bias.requires_grad_(False)
    optimizer = create_optimizer(model, optim="adamw_torch", learning_rate=1.0, weight_decay=0.1)
    assert [p for group in optimizer.param_groups for p in group["params"]] == [model.weight]


def test_adafactor_steps_and_warns_where_it_cannot_factor() -> None:
    model = nn.Linear(4, 3)
    optimizer = create_optimizer(model, optim="adafactor", learning_rate=0.1, weight_decay=0.0)
    before = model.weight.detach().clone()
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    assert not torch.equal(before, model.weight)
    with pytest.warns(UserWarning, match="flat partitions"):
        create_optimizer(model, optim="adafactor", learning_rate=0.1, weight_decay=0.0, is_partitioned=True)
