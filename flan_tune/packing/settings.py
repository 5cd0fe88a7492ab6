"""What decides packs, as plain values: the packing room's view of a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flan_tune.objectives.mixture_of_denoisers import RateUnit
from flan_tune.objectives.segment import Layout
from flan_tune.objectives.span_sampler import Sampler


@dataclass(frozen=True)
class PackSettings:
    """Everything that decides packs. The recipe documents each key.

    `num_packs` and the shares of draws that may fail are not in the fingerprint: they decide no bytes of a pack.

    special_tokens: arguments of Tokenizer.with_special_tokens, or None.
    denoisers: a recipe's own list, each {name, kind, rate, mean_span, mode, share}.
    """

    mixture: str
    tokenizer_path: str
    packs_dir: str
    max_length: int
    num_packs: int
    objective: str
    data_seed: int = 0
    task_paths: tuple[str, ...] = ()
    data_root: str | None = None
    window_examples: int = 10_000
    too_long: str = "truncate_input"
    max_segments_per_pack: int = 256
    packing: bool = True
    separator: str = "\n"
    special_tokens: dict[str, Any] | None = None
    preset: str | None = None
    denoisers: tuple[dict[str, Any], ...] | None = None
    rates: RateUnit = "per_example"
    span_sampler: Sampler = "t5"
    cut_lengths: tuple[int, int] | None = None
    mode_token: str | None = None
    max_target_length: int | None = None
    max_failed_share: float = 0.01
    max_failed_share_of_task: float = 0.2

    @property
    def layout(self) -> Layout:
        """How segments are laid out: with a budget of their own for targets, or one for both."""
        return "decoder_only" if self.max_target_length is None else "encoder_decoder"
