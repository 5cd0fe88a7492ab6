"""`flan-tune verify`: all checks pass on a sound recipe, and each kind of break shows in the check that is for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_packs import edit, small_recipe

from flan_tune.checks.verify import CELLS
from flan_tune.cli.main import app, main
from flan_tune.models import lowering

NAMES = ["back-end", "leak probe", "plain row", "packed = alone", "accumulation", "mask audit"]
LLAMA = (
    "{model_type: llama, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 2, num_attention_heads: 4, "
    "num_key_value_heads: 2, "
    "initializer_range: 0.2}"
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = small_recipe(tmp_path_factory.mktemp("verify"))
    edit(path, "  config: {model_type: llama, hidden_size: 32}", f"  attention: prefix_lm\n  config: {LLAMA}")
    assert run(["prepare", str(path)]) == 0
    return path


T5 = (
    "{model_type: t5, d_model: 32, d_kv: 8, d_ff: 48, num_layers: 2, num_heads: 4, decoder_start_token_id: 0, "
    "initializer_factor: 3.0}"
)


def run(arguments: list[str]) -> int:
    from unittest.mock import patch

    with patch("sys.argv", ["flan-tune", *arguments]):
        try:
            main()
        except SystemExit as ending:
            return int(ending.code or 0)
    return 0


def verified(recipe: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict]:
    capsys.readouterr()
    code = run(["verify", str(recipe), *arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("model.attn_implementation=varlen", "model.config.model_type=mistral", "model.config.sliding_window=20"),
        ("model.attention=causal", "training.bf16=true", "objective.z_loss=1e-3"),
    ],
)
def test_a_sound_recipe_passes(recipe: Path, capsys: pytest.CaptureFixture[str], overrides: tuple[str, ...]) -> None:
    code, found = verified(recipe, capsys, *overrides)
    assert [check["name"] for check in found["checks"]] == NAMES
    assert [check for check in found["checks"] if not check["passed"]] == []
    assert found["passed"]
    assert code == 0
    audit = found["audit"]
    assert audit["max_length"] == 192
    assert sum(tokens for tokens, _ in audit["segments"]) == audit["tokens"]
    (drawn,) = audit["drawn"]
    assert len(drawn["kept"]) == len(drawn["ahead"][0]) == CELLS
    assert any(map(any, drawn["ahead"])) == ("model.attention=causal" not in overrides)


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of an encoder-decoder."""
    path = small_recipe(tmp_path_factory.mktemp("sides"))
    edit(path, "{model_type: llama, hidden_size: 32}", T5)
    edit(path, "max_length: 192", "max_length: 160\n  max_target_length: 48")
    assert run(["prepare", str(path)]) == 0
    return path


def test_an_encoder_decoder_passes_and_shows_three_masks(sides: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = verified(sides, capsys)
    assert [check["name"] for check in found["checks"]] == NAMES
    assert [check for check in found["checks"] if not check["passed"]] == []
    assert code == 0
    audit = found["audit"]
    given = [prefix for _, prefix in audit["segments"]]
    wanted = [tokens - prefix for tokens, prefix in audit["segments"]]
    pairs = {drawn["name"]: drawn["pairs"] for drawn in audit["drawn"]}
    looks_ahead = {drawn["name"]: any(map(any, drawn["ahead"])) for drawn in audit["drawn"]}
    assert looks_ahead == {"encoder": True, "decoder": False, "cross": False}
    assert {len(drawn["kept"]) for drawn in audit["drawn"]} == {CELLS}
    padding = {"encoder": 160 - sum(given), "decoder": 48 - sum(wanted)}
    assert pairs["encoder"] >= sum(n * n for n in given)
    assert pairs["decoder"] >= sum(n * (n + 1) // 2 for n in wanted)
    assert padding["decoder"] or pairs["cross"] == sum(n * m for n, m in zip(given, wanted, strict=True))
    assert run(["verify", str(sides)]) == 0
    shown = capsys.readouterr().out
    assert len(given) > 1  # one alone in its pack would show little
    assert f"pack {audit['pack']}: {sum(given)} of 160 + {sum(wanted)} of 48 tokens" in shown
    assert all(f"{name}: {pairs[name]:,} pairs of query and key may meet" in shown for name in pairs)


def test_a_decoder_that_sees_another_segment_fails(
    sides: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaking(spec, encoder):
        return torch.ones(*spec.segment_ids.shape, encoder.segment_ids.shape[1]) > 0

    monkeypatch.setattr(lowering, "cross_allowed_BQK", leaking)
    code, found = verified(sides, capsys, "model.attn_implementation=sdpa")
    failed = {check["name"] for check in found["checks"] if not check["passed"]}
    assert code == 1
    assert failed == {"leak probe", "mask audit", "packed = alone"}


def test_the_table_and_the_drawn_mask(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(recipe), "--pack", "3"]) == 0
    shown = capsys.readouterr().out
    assert "pack 3: " in shown
    assert shown.count("█") > CELLS
    assert all(name in shown for name in NAMES)
    assert "FAILED" not in shown


def test_a_leaking_mask_fails(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def leaking(spec, window=None):
        rows, length = spec.segment_ids.shape
        return torch.ones(rows, length, length).tril() > 0

    monkeypatch.setattr(lowering, "allowed_BLL", leaking)
    code, found = verified(recipe, capsys, "model.attn_implementation=sdpa")
    assert code == 1
    failed = {check["name"]: check["found"] for check in found["checks"] if not check["passed"]}
    assert sorted(failed) == ["leak probe", "mask audit", "packed = alone"]
    assert "segments of a pack see each other" in failed["leak probe"]
    assert "pairs of query and key are not as the pack says" in failed["mask audit"]


def test_what_is_missing_is_said(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["verify", str(recipe), "data.max_length=128"]) == 1
    assert "these packs do not match the recipe" in capsys.readouterr().err
    assert run(["verify", str(recipe), "model.attn_implementation=flash_attention_2"]) == 1
    assert "attn_implementation" in capsys.readouterr().err
    assert run(["verify", str(recipe), "--pack", "100000"]) == 1
    assert "there is no pack 100000" in capsys.readouterr().err
    assert any(command.callback.__name__ == "verify" for command in app.registered_commands)
