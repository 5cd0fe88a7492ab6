"""What a batch costs: by a small example, and against torch's own count of what its forward multiplies."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flan_tune.models.collate import BarePack, DecoderShape, collate
from flan_tune.models.load import create_model
from flan_tune.models.loss import TargetLoss
from flan_tune.training.flops import FlopCost, Work, flop_cost
from flan_tune.training.process_group import ProcessGroup
from flan_tune.training.tally import Tally

INPUTS, TARGETS, VOCABULARY = 60, 40, 96
T5 = {"d_model": 32, "d_kv": 12, "d_ff": 80, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4}
CONFIGS = {
    "llama": {"model_type": "llama", "hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2}
    | {"num_attention_heads": 4, "num_key_value_heads": 2},
    "t5": {"model_type": "t5", "decoder_start_token_id": 0, **T5},
    "mt5": {"model_type": "mt5", "decoder_start_token_id": 0, "feed_forward_proj": "gated-gelu", **T5},
}


def test_flops_of_a_batch() -> None:
    # 100 body parameters x 10 tokens, 50 head parameters x 2 targets, 6 FLOPs each; 7 pairs of 12 FLOPs.
    cost = FlopCost(body=100, head=50, attention=12.0, peak_per_second=None)
    assert cost.of(Work(10, 2, 7)) == 6 * 1000 + 6 * 100 + 84
    # An encoder of 30 parameters, 4 tokens, 16 pairs of 2 FLOPs.
    both = FlopCost(100, 50, 12.0, None, encoder_body=30, encoder_attention=2.0)
    assert both.of(Work(10, 2, 7, 4, 16)) == 6 * 1000 + 6 * 100 + 84 + 6 * 120 + 32


def test_mfu_is_the_work_done_over_what_the_devices_could_do() -> None:
    tally = Tally(("muffin",), ProcessGroup(0, 1, torch.device("cpu")))
    for flops in (200.0, 400.0):
        tally.count(tokens=10, flops=flops, targets=4, seconds=1.5, waited_seconds=0.5)
    line = tally.line(positions=20, peak_per_second=1000.0)
    assert line["mfu"] == pytest.approx(600 / 3 / 1000)
    assert (line["fill"], line["tokens_per_second"]) == (0.5, pytest.approx(20 / 3))
    tally.count(tokens=10, flops=200.0, targets=4, seconds=1.5, waited_seconds=0.5)
    assert "mfu" not in tally.line(positions=20, peak_per_second=None)


@pytest.mark.parametrize("family", CONFIGS)
def test_the_cost_is_what_torch_counts(family: str) -> None:
    """A segment in rows without padding, by eager attention, which computes every pair, also those it masks."""
    model = create_model(CONFIGS[family], VOCABULARY, seed=0, attn_implementation="eager").eval()
    ids = np.arange(INPUTS + TARGETS, dtype=np.int32) % (VOCABULARY - 3) + 3
    pack = BarePack(ids, np.array([len(ids)], dtype=np.int32), np.array([INPUTS], dtype=np.int32))
    if family == "llama":
        decoder, length = None, INPUTS + TARGETS
        work = Work(length, TARGETS, length**2)
    else:
        decoder, length = DecoderShape(TARGETS, 0), INPUTS
        work = Work(TARGETS, TARGETS, TARGETS**2 + TARGETS * INPUTS, INPUTS, INPUTS**2)
    batch = collate(
        [pack], max_length=length, pad_id=0, attention="causal", loss_normalization="token", decoder=decoder
    )
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        TargetLoss(model)(batch)
    cost = flop_cost(model, torch.device("cpu"))
    assert cost is not None
    # A backward pass costs twice its forward. Norms and position biases are parameters that multiply no matrix.
    assert cost.of(work) == pytest.approx(3 * counter.get_total_flops(), rel=0.01)
