"""The loss: the same number as Hugging Face's where both apply, and the same however a batch is cut or packed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_models_attention import CONFIGS, SEGMENTS, VOCAB, attentions, backends, batch_of, families, model_of

from flan_tune.errors import RecipeError
from flan_tune.models.collate import NO_LABEL, BarePack, Batch, collate
from flan_tune.models.forward import checkpoint_activations, full_logits
from flan_tune.models.load import create_model
from flan_tune.models.loss import TargetLoss, cross_entropy


def rows_of(*packs: list[tuple[list[int], int]], normalization: str = "token") -> Batch:
    made = []
    for segments in packs:
        arrays = ([t for ids, _ in segments for t in ids], [len(ids) for ids, _ in segments], [p for _, p in segments])
        made.append(BarePack(*(np.array(values, dtype=np.int32) for values in arrays)))
    return collate(made, max_length=24, pad_id=0, attention="prefix_lm", loss_normalization=normalization)


@families
@backends
def test_equals_the_loss_of_transformers(family: str, backend: str):
    """A plain causal row: every token but the first is a target."""
    model = model_of(family, backend)
    ids = list(range(3, 19))
    output = TargetLoss(model)(batch_of([(ids, 0)], "causal", max_length=len(ids)))
    tensor = torch.tensor([ids])
    expected = model(input_ids=tensor, labels=tensor, use_cache=False).loss
    torch.testing.assert_close(output.loss_sum / 15, expected)
    assert output.loss_sum.dtype == torch.float32


@families
@attentions
def test_packed_loss_is_the_sum_of_the_losses_alone(family: str, attention: str):
    loss = TargetLoss(model_of(family))
    together = loss(batch_of(SEGMENTS, attention))
    alone = [loss(batch_of([segment], attention, max_length=24)) for segment in SEGMENTS]
    torch.testing.assert_close(together.loss_sum, sum(one.loss_sum for one in alone), rtol=1e-5, atol=1e-5)
    each = torch.cat([one.token_losses_N for one in alone])
    torch.testing.assert_close(together.token_losses_N, each, rtol=1e-4, atol=1e-5)
    assert not together.token_losses_N.requires_grad


def test_the_sum_does_not_depend_on_how_the_batch_is_cut():
    loss = TargetLoss(model_of("llama"))
    packs = [SEGMENTS[:2], SEGMENTS[1:], SEGMENTS[2:], SEGMENTS]
    whole = loss(rows_of(*packs, normalization="example"))
    parts = [loss(rows_of(*packs[:1], normalization="example")), loss(rows_of(*packs[1:], normalization="example"))]
    torch.testing.assert_close(whole.loss_sum, parts[0].loss_sum + parts[1].loss_sum, rtol=1e-6, atol=1e-6)


def test_weights_weigh():
    loss = TargetLoss(model_of("qwen2"))
    by_token, by_example = (loss(rows_of(SEGMENTS, normalization=n)) for n in ("token", "example"))
    assert torch.equal(by_token.token_losses_N, by_example.token_losses_N)
    segment_of_target = rows_of(SEGMENTS).spec.segment_ids.flatten()[by_token.positions_N]
    means = [by_token.token_losses_N[segment_of_target == number].mean() for number in (1, 2, 3, 4)]
    torch.testing.assert_close(by_example.loss_sum.detach(), sum(means))


@families
def test_gradients_equal_those_of_full_logits(family: str):
    model = create_model(CONFIGS[family], VOCAB, seed=1, dtype=torch.float64)
    batch = rows_of(SEGMENTS, SEGMENTS[2:], normalization="example")
    logits = full_logits(model, batch.input_ids, batch.spec)
    # Ours is in float32 from the logits on, whatever the model's dtype; so is the reference.
    every = F.cross_entropy(
        logits.float().flatten(0, 1), batch.labels.flatten(), reduction="none", ignore_index=NO_LABEL
    )
    (every * batch.loss_weights.flatten()).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    TargetLoss(model)(batch).loss_sum.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-7)


def test_chunks_change_neither_values_nor_gradients():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(23, VOCAB, generator=generator, dtype=torch.bfloat16)
    labels = torch.randint(VOCAB, (23,), generator=generator)
    results = []
    for chunk in (100, 23, 5, 1):
        leaf = logits.clone().requires_grad_()
        losses = cross_entropy(leaf, labels, chunk)
        losses.sum().backward()
        results.append((losses.detach(), leaf.grad))
    assert results[0][0].dtype == torch.float32
    for losses, gradient in results[1:]:
        assert torch.equal(losses, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_batch_without_targets_gives_a_zero_with_gradients(checkpointing: bool):
    model = model_of("llama").train()
    if checkpointing:
        checkpoint_activations(model)
    batch = rows_of(SEGMENTS)
    empty = Batch(
        batch.input_ids,
        batch.spec,
        torch.full_like(batch.labels, NO_LABEL),
        torch.zeros_like(batch.loss_weights),
        batch.target_positions[:0],
    )
    output = TargetLoss(model)(empty)
    assert output.loss_sum.item() == 0
    output.loss_sum.backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_gradient_checkpointing_changes_nothing():
    batch, gradients = rows_of(SEGMENTS), []
    for checkpointing in (False, True):
        model = model_of("qwen2").train()
        if checkpointing:
            checkpoint_activations(model)
        TargetLoss(model)(batch).loss_sum.backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_rows_longer_than_a_window_are_refused():
    model = create_model(CONFIGS["llama"] | {"model_type": "mistral", "sliding_window": 8}, VOCAB, seed=0)
    with pytest.raises(RecipeError, match="window of 8 tokens"):
        TargetLoss(model)(rows_of(SEGMENTS))
