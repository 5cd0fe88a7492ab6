"""Compiling packs: a window of examples at a time, always the same bytes.

    draws -> examples -> tokens -> segments -> bins, permuted -> one Arrow shard and its summary

A window is a pure function of (settings, window number): any process may make any of them. How many windows there are,
who makes which, and what becomes of them is in prepare.py.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from flan_tune.errors import RecipeError
from flan_tune.objectives.mixture_of_denoisers import PRESETS, Denoiser, MixtureOfDenoisers
from flan_tune.objectives.segment import Segment
from flan_tune.packing.bins import Bins, pack_bins, pack_bins_2d
from flan_tune.packing.losses import plain_counts
from flan_tune.packing.segments import Causal, Cuts, Denoising, Encoded, Encoder, Objective, SegmentCounts, Supervised
from flan_tune.packing.settings import PackSettings
from flan_tune.packing.store import Pack, count_targets, write_shard
from flan_tune.packing.stream import ExampleStream, StreamCounts, open_mixture
from flan_tune.packing.work import Summary, Work
from flan_tune.rng import key, permutation
from flan_tune.tokens.tokenizer import Tokenizer, load_tokenizer


def open_stream(settings: PackSettings) -> ExampleStream:
    """The stream of examples that `settings` describe."""
    mixture, root = open_mixture(settings)
    return ExampleStream(mixture, seed=settings.data_seed, data_root=root, task_paths=settings.task_paths)


def open_tokenizer(settings: PackSettings) -> Tokenizer:
    """The tokenizer of the packs, with the special tokens the recipe asks for."""
    tokenizer = load_tokenizer(settings.tokenizer_path)
    if settings.special_tokens is None:
        return tokenizer
    return tokenizer.with_special_tokens(**settings.special_tokens)


def make_objective(settings: PackSettings, tokenizer: Tokenizer) -> Objective:
    """The objective of the packs. Raises RecipeError for what does not fit tokenizer, length or layout."""
    if settings.objective == "supervised":
        return Supervised(tokenizer, _mode_id(settings, tokenizer), settings.layout)
    if settings.objective == "causal":
        if settings.layout == "encoder_decoder":
            raise RecipeError("an encoder-decoder has no causal objective: its encoder needs inputs.")
        return Causal(tokenizer, settings.max_length)
    denoisers, rates = chosen_denoisers(settings)
    mixture = MixtureOfDenoisers(
        denoisers,
        rates,
        settings.max_length,
        tokenizer.sentinel_ids,
        tokenizer.mode_ids,
        tokenizer.bos_id,
        tokenizer.eos_id,
        settings.span_sampler,
        rate_unit=settings.rates,
        max_target_length=settings.max_target_length,
        cut_lengths=settings.cut_lengths,
    )
    return Denoising(mixture, settings.data_seed)


def _mode_id(settings: PackSettings, tokenizer: Tokenizer) -> int | None:
    name = settings.mode_token
    if name is not None and name not in tokenizer.mode_ids:
        raise RecipeError(
            f"mode_token {name!r} is to begin every input, the tokenizer {settings.tokenizer_path} does not have it. "
            "Leave objective.mode_token out, or tune a model that UL2R taught mode tokens."
        )
    return tokenizer.mode_ids[name] if name is not None else None


def chosen_denoisers(settings: PackSettings) -> tuple[Sequence[Denoiser], Sequence[float]]:
    """(denoisers, rates) of a preset, or of the recipe's own list. Raises: RecipeError with the faults of all."""
    if settings.preset:
        return PRESETS[settings.preset]
    denoisers: list[Denoiser] = []
    faults: list[str] = []
    for one in settings.denoisers or ():
        try:
            mode = "" if one["mode"] == "none" else one["mode"]
            denoisers.append(Denoiser(one["name"], one["mean_span"], one["rate"], mode, one["kind"]))
        except RecipeError as error:
            faults += error.faults
    if faults:
        raise RecipeError(*faults)
    return denoisers, [one["share"] for one in settings.denoisers or ()]


class _Placed(NamedTuple):
    """A segment with the example it came from."""

    segment: Segment
    source: Encoded


_CUTS: dict[str, Cuts] = {"supervised": "nothing", "causal": "text", "mixture_of_denoisers": "everything"}


class Compiler:
    """Compiles windows of one recipe. Opening it opens the tokenizer and every source of the mixture."""

    def __init__(self, settings: PackSettings) -> None:
        self.settings = settings
        self.tokenizer = open_tokenizer(settings)
        self.objective = make_objective(settings, self.tokenizer)  # what is wrong with it is told before sources open
        self.stream = open_stream(settings)
        is_apart = settings.layout == "encoder_decoder" and settings.objective == "supervised"
        self.encoder = Encoder(
            self.tokenizer,
            max_length=settings.max_length,
            separator="" if is_apart else settings.separator,
            too_long=settings.too_long,
            cuts=_CUTS[settings.objective],
            has_mode_token=settings.mode_token is not None,
            max_target_length=settings.max_target_length,
        )
        families = {entry.task.name: entry.task.family for entry in self.stream.entries}
        self.task_names = sorted(families)
        self.families = [families[name] for name in self.task_names]
        self._task_index = {name: index for index, name in enumerate(self.task_names)}

    def window(self, number: int) -> tuple[list[Pack], dict[str, Any]]:
        """The packs of window `number` and what was counted on the way."""
        settings = self.settings
        rows, lost = StreamCounts(), SegmentCounts()
        start = number * settings.window_examples
        examples = list(self.stream.examples(start, settings.window_examples, rows))
        encoded = self.encoder.encode(examples, lost)
        made = self.objective.segments(encoded, lost)
        placed = [_Placed(s, one) for one, group in zip(encoded, made, strict=True) for s in group]
        bins = self._bins([p.segment for p in placed])
        order = permutation(len(bins), key(settings.data_seed, "bins", number))
        groups = [bins[b].tolist() for b in order.tolist()]
        if not settings.packing:
            groups = [[one] for group in groups for one in group]
        packs = [self._pack([placed[i] for i in group]) for group in groups]
        return packs, self._summary(examples, placed, packs, rows, lost)

    def _bins(self, segments: Sequence[Segment]) -> Bins:
        settings = self.settings
        if settings.max_target_length is None:
            lengths = [len(segment.input_ids) for segment in segments]
            return pack_bins(lengths, settings.max_length, settings.max_segments_per_pack)
        sides = [(len(segment.encoder_ids), len(segment.decoder_ids)) for segment in segments]
        capacity = (settings.max_length, settings.max_target_length)
        return pack_bins_2d(sides, capacity, settings.max_segments_per_pack)

    def _pack(self, placed: Sequence[_Placed]) -> Pack:
        segments = [p.segment for p in placed]
        examples = [p.source.example for p in placed]
        lengths = np.array([len(s.input_ids) for s in segments], dtype=np.int32)
        prefixes = np.array([s.prefix_length for s in segments], dtype=np.int32)
        return Pack(
            input_ids=np.concatenate([s.input_ids for s in segments]).astype(np.int32),
            segment_lengths=lengths,
            prefix_lengths=prefixes,
            task=np.array([self._task_index[e.task] for e in examples], dtype=np.int32),
            kind=[s.kind for s in segments],
            row=np.array([e.row for e in examples], dtype=np.int64),
            epoch=np.array([e.epoch for e in examples], dtype=np.int32),
            template=[e.template for e in examples],
            presentation=[e.presentation for e in examples],
            shots=np.array([e.shots for e in examples], dtype=np.int8),
            cut=np.array([s.cut for s in segments], dtype=np.int32),
            replaced=np.array([e.replaced for e in examples], dtype=np.int8),
            target_tokens=count_targets(lengths, prefixes),
        )

    def _summary(
        self,
        examples: Sequence[Any],
        placed: Sequence[_Placed],
        packs: Sequence[Pack],
        rows: StreamCounts,
        lost: SegmentCounts,
    ) -> dict[str, Any]:
        by_task, by_family = self._by_task(examples, packs)
        return {
            "examples": len(examples),
            "segments": len(placed),
            "tokens": sum(len(pack.input_ids) for pack in packs),
            "target_tokens": sum(pack.target_tokens for pack in packs),
            "examples_by_family": by_family,
            "by_task": by_task,
            "segments_by_kind": dict(sorted(Counter(p.segment.kind for p in placed).items())),
            "presentations": dict(sorted(Counter(e.presentation for e in examples).items())),
            "shots_dropped": lost.shots_dropped,
            "truncated_examples": lost.truncated_examples,
            "truncated_tokens": lost.truncated_tokens,
            "skipped_tokens": lost.skipped_tokens,
            "sentinel_collisions": lost.sentinel_collisions,
            "shortened": plain_counts(lost.shortened),
            "drops": plain_counts(lost.drops),
            "replaced": plain_counts(rows.replaced),
        }

    def _by_task(self, examples: Sequence[Any], packs: Sequence[Pack]) -> tuple[dict[str, list[int]], dict[str, int]]:
        """(task -> [examples, tokens, target tokens], family -> examples) of a window, names in order."""
        size = len(self.task_names)
        drawn = np.bincount([self._task_index[e.task] for e in examples], minlength=size)
        tokens, targets = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
        for pack in packs:
            np.add.at(tokens, pack.task, pack.segment_lengths)
            np.add.at(targets, pack.task, pack.segment_lengths - np.maximum(pack.prefix_lengths, 1))
        by_task = {self.task_names[i]: [int(drawn[i]), int(tokens[i]), int(targets[i])] for i in np.flatnonzero(drawn)}
        by_family: Counter[str] = Counter()
        for name, (number, *_) in by_task.items():
            by_family[self.families[self._task_index[name]]] += number
        return by_task, dict(sorted(by_family.items()))


@contextmanager
def _no_collection() -> Iterator[None]:
    """Without looking for cycles: none are made, and the look at a window's hundred thousand objects takes a seventh of
    the time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def open_work(settings: PackSettings, fingerprint: str) -> Work:
    """What a worker process opens once: windows compiled and written by number."""
    return partial(compile_window, Compiler(settings), fingerprint)


def compile_window(compiler: Compiler, fingerprint: str, number: int) -> Summary:
    """Compiles window `number`, writes it to the folder of the packs, and returns its summary."""
    with _no_collection():
        packs, summary = compiler.window(number)
    return write_shard(Path(compiler.settings.packs_dir), number, packs, {"fingerprint": fingerprint, **summary})
