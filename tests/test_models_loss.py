"""The loss: the same number as Hugging Face's where both apply, and the same however a batch is cut or packed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_models_attention import CONFIGS, SEGMENTS, VOCAB, attentions, backends, batch_of, families, model_of, pack_of

from flan_tune.errors import RecipeError
from flan_tune.models.collate import NO_LABEL, Batch, collate
from flan_tune.models.forward import checkpoint_activations, choose_positions, full_logits, hidden_states
from flan_tune.models.load import create_model
from flan_tune.models.logits import Finish
from flan_tune.models.loss import TargetLoss, head_loss


def rows_of(*packs: list[tuple[list[int], int]], normalization: str = "token") -> Batch:
    made = [pack_of(segments) for segments in packs]
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
    logits = full_logits(model, batch)
    every = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="none", ignore_index=NO_LABEL)
    (every * batch.loss_weights.flatten()).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    TargetLoss(model)(batch).loss_sum.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-5, atol=1e-7)


FINISHED = {
    "gemma2": {"head_dim": 8, "final_logit_softcapping": 1.5},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.25},
    "phi": {},  # a head with a bias
    "llama": {},
}


@settings(max_examples=40, deadline=None)
@given(
    family=st.sampled_from(sorted(FINISHED)),
    targets=st.integers(0, 30),
    chunk=st.sampled_from([1, 7, 100]),
    z_loss=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 5),
)
def test_the_head_loss_is_the_formula(family: str, targets: int, chunk: int, z_loss: float, seed: int):
    """Values and gradients of weighted cross-entropy and z-loss, by torch's own functions on whole logits."""
    model = create_model(CONFIGS["llama"] | {"model_type": family} | FINISHED[family], VOCAB, seed=seed)
    head, generator = model.get_output_embeddings(), torch.Generator().manual_seed(seed)
    hidden = torch.randn(targets, 32, generator=generator, requires_grad=True)
    labels = torch.randint(VOCAB, (targets,), generator=generator)
    weights = torch.rand(targets, generator=generator)
    inputs = [hidden, *head.parameters()]

    ours = head_loss(model, hidden, labels, weights, z_loss, chunk)
    caps = {"gemma2": Finish(cap=1.5), "granite": Finish(scale=1 / 3), "cohere": Finish(scale=0.25)}
    logits = caps.get(family, Finish()).apply(F.linear(hidden, head.weight, head.bias))
    each = F.cross_entropy(logits, labels, reduction="none")
    penalty = z_loss * (weights * logits.logsumexp(-1) ** 2).sum()
    total = (weights * each).sum() + penalty
    torch.testing.assert_close(ours.total, total)
    torch.testing.assert_close(ours.token_losses_N, each)
    torch.testing.assert_close(ours.z_loss, penalty)
    assert not ours.token_losses_N.requires_grad
    factor = 0.37  # what the training loop divides by
    found = torch.autograd.grad(ours.total * factor, inputs)
    for one, other in zip(found, torch.autograd.grad(total * factor, inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_the_gradient_of_the_head_loss_by_finite_differences(z_loss: float):
    model = create_model(CONFIGS["llama"], 11, seed=0)
    labels, weights = torch.tensor([3, 5, 10]), torch.tensor([1.0, 0.5, 2.0])
    hidden = torch.randn(3, 32, generator=torch.Generator().manual_seed(0)).requires_grad_()
    head_loss(model, hidden, labels, weights, z_loss, chunk=2).total.backward()
    step = torch.zeros_like(hidden)
    for place in [(0, 0), (1, 7), (2, 31)]:
        step.zero_()[place] = 1e-2
        with torch.no_grad():
            up, down = (head_loss(model, hidden + s, labels, weights, z_loss).total for s in (step, -step))
        assert float(up - down) / 2e-2 == pytest.approx(float(hidden.grad[place]), rel=2e-2, abs=1e-3)


def test_chunks_and_dtypes():
    """bfloat16 weights or autocast: logits are computed in it, all after them in float32, whatever the chunks."""
    model = create_model(CONFIGS["llama"], VOCAB, seed=0, dtype=torch.bfloat16)
    labels = torch.randint(VOCAB, (23,), generator=torch.Generator().manual_seed(0))
    hidden = torch.randn(23, 32, generator=torch.Generator().manual_seed(1), dtype=torch.bfloat16)
    results = []
    for chunk in (100, 23, 5, 1):
        leaf = hidden.clone().requires_grad_()
        model.zero_grad()
        losses = head_loss(model, leaf, labels, torch.ones(23), chunk=chunk)
        losses.total.backward()
        results.append((losses.token_losses_N, leaf.grad, model.lm_head.weight.grad))
    assert results[0][0].dtype == torch.float32
    assert results[0][2].dtype == torch.bfloat16
    for losses, of_hidden, of_weight in results[1:]:
        torch.testing.assert_close(losses, results[0][0])
        torch.testing.assert_close(of_hidden, results[0][1])
        torch.testing.assert_close(of_weight, results[0][2], rtol=2e-2, atol=1e-2)

    full = create_model(CONFIGS["llama"], VOCAB, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        cast = head_loss(full, hidden.float(), labels, torch.ones(23))
    torch.testing.assert_close(cast.token_losses_N, results[0][0])
    cast.total.backward()
    assert full.lm_head.weight.grad.dtype == torch.float32


def test_a_loss_goes_backward_once():
    model = create_model(CONFIGS["llama"], VOCAB, seed=0)
    hidden = torch.randn(3, 32, requires_grad=True)
    total = head_loss(model, hidden, torch.tensor([1, 2, 3]), torch.ones(3)).total
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_only_targets_go_through_the_head_and_it_is_called_once():
    model, seen = model_of("llama"), []
    model.lm_head.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0].shape))
    batch = rows_of(SEGMENTS, SEGMENTS[2:])
    output = TargetLoss(model)(batch)
    assert seen == [(len(batch.target_positions), 32)]
    hidden = choose_positions(hidden_states(model, batch), batch.target_positions)
    assert model.lm_head(hidden).shape == (len(batch.target_positions), VOCAB)  # its forward is its own again
    assert torch.equal(output.positions_N, batch.target_positions)


def test_a_head_that_is_not_linear_is_refused():
    model = model_of("llama")
    model.lm_head = torch.nn.Sequential(model.lm_head)
    with pytest.raises(RecipeError, match="the head of model type 'llama' is a Sequential"):
        TargetLoss(model)(rows_of(SEGMENTS))


# Packs with many targets, with one, and of one segment only.
UNEVEN = [SEGMENTS, [([5, 6, 7, 8, 9, 10, 11, 12], 7)], [([21, 22], 0)], SEGMENTS[1:]]


def rank_gradients(loss: TargetLoss, packs: list, world_size: int, at_once: int, normalization: str) -> list:
    """What each of `world_size` ranks accumulates over its share of `packs`, scaled as the training loop does."""
    count = sum(len(p) if normalization == "example" else targets(p) for p in packs)
    ranks = []
    for rank in range(world_size):
        loss.zero_grad()
        for start in range(rank * at_once, len(packs), world_size * at_once):
            output = loss(rows_of(*packs[start : start + at_once], normalization=normalization))
            (output.loss_sum * (world_size / count)).backward()
        ranks.append([p.grad.clone() for p in loss.parameters()])
    return ranks


def targets(segments: list[tuple[list[int], int]]) -> int:
    return sum(len(ids) - max(prefix, 1) for ids, prefix in segments)


@pytest.mark.parametrize("normalization", ["token", "example"])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_accumulation_and_ranks_change_nothing(normalization: str, z_loss: float):
    """(world, accumulation) = (1, 4), (2, 2), (4, 1), (1, 2) with two packs at once: one gradient."""
    loss = TargetLoss(create_model(CONFIGS["llama"], VOCAB, seed=1, dtype=torch.float64), z_loss)
    results = []
    for world_size, at_once in ((1, 1), (2, 1), (4, 1), (1, 2), (2, 2), (1, 4)):
        ranks = rank_gradients(loss, UNEVEN, world_size, at_once, normalization)
        results.append([sum(parts) / world_size for parts in zip(*ranks, strict=True)])
    for result in results[1:]:
        for one, other in zip(result, results[0], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.long
@pytest.mark.parametrize("world_size", [2, 4])
def test_real_processes_change_nothing(world_size: int, tmp_path: Path):
    loss = TargetLoss(create_model(CONFIGS["llama"], VOCAB, seed=1))
    (expected,) = rank_gradients(loss, UNEVEN, 1, 1, "token")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={world_size}",
        __file__,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(world_size):
        for one, other in zip(torch.load(tmp_path / f"{rank}.pt"), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


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


def worker(directory: Path) -> None:
    """One process of several: its packs, one at a time, gradients averaged by DDP."""
    torch.distributed.init_process_group("gloo")
    rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    loss = TargetLoss(create_model(CONFIGS["llama"], VOCAB, seed=1))
    wrapped = torch.nn.parallel.DistributedDataParallel(loss)
    count, mine = sum(map(targets, UNEVEN)), UNEVEN[rank::world_size]
    for number, pack in enumerate(mine, start=1):
        wrapped.require_backward_grad_sync = number == len(mine)
        (wrapped(rows_of(pack)).loss_sum * (world_size / count)).backward()
    torch.save([p.grad for p in loss.parameters()], directory / f"{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    worker(Path(sys.argv[1]))
