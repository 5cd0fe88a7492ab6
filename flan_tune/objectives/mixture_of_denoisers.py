"""UL2 and UL2R: a long text is cut left to right, and each cut is denoised by a denoiser drawn for it.

Sources: UL2 (Tay et al. 2022, arXiv:2205.05131, section 3.1.2, Table 1) and U-PaLM (Tay et al. 2022,
arXiv:2210.11399, section 2.3). A cut becomes, with | at prefix_length,

    [BOS] [mode token] inputs | targets EOS              decoder-only: one budget for both
    [BOS] [mode token] inputs EOS | targets EOS          encoder-decoder: a budget for either side

R and X denoisers hide spans (denoise.py), S splits the cut into a prefix and its continuation, without sentinels.
Rates are per example, as in the papers: the chance that a cut gets the denoiser. Denoisers take cuts of different
lengths, so their shares of the tokens differ (`ul2r` at 2,048: X2 gets 12.5 % of the cuts, 9.9 % of the tokens).
Or they are per token: each denoiser gets its rate of the tokens of text, whatever the lengths of the texts.

Cuts fill the budget, as in T5; then the number of inputs tells how much is hidden, and a model learns to fill blanks in
texts of that length only. With `cut_lengths` every cut draws a budget of its own (ours, docs/infilling.md).

Shape suffixes: P pieces, C cuts (of all pieces one after the other), D denoisers, B budgets.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from flan_tune import rng
from flan_tune.errors import RecipeError
from flan_tune.objectives.denoise import (
    RawLength,
    corrupt_spans,
    count_collisions,
    least_prefix,
    prefix_splits,
    raw_length,
    raw_lengths,
)
from flan_tune.objectives.segment import Ids, Layout, Segment, joined_ids
from flan_tune.objectives.span_sampler import Sampler

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Kind = Literal["span", "prefix"]
RateUnit = Literal["per_example", "per_token"]
_LEAST_TOKENS = 2  # one to be given, one to be predicted
_CUTS_AT_ONCE = 64  # bounds memory; 64 cuts of 2,048 tokens are fast on a core's cache, more gain little


@dataclass(frozen=True)
class Denoiser:
    """One denoising task.

    mean_span: mean length of a hidden span in tokens, above 0; None for a prefix denoiser.
    rate: share of the text that is target; in (0, 1) for spans, in (0, 0.5] for a prefix (its mean).
    mode: the mode token put before the inputs ("[NLU]", "[NLG]", "[S2S]"), or "" for none.

    Raises: RecipeError for values outside these ranges.
    """

    name: str
    mean_span: float | None
    rate: float
    mode: str
    kind: Kind = "span"

    def __post_init__(self) -> None:
        faults = list(self._faults())
        if faults:
            raise RecipeError(*faults)

    def _faults(self) -> list[str]:
        faults = []
        highest, wanted = (1.0, "in (0, 1)") if self.kind == "span" else (0.5, "in (0, 0.5] for a prefix")
        if self.kind not in get_args(Kind):
            faults.append(f"denoiser {self.name!r}: kind is {self.kind!r}; choose one of {', '.join(get_args(Kind))}.")
        if not 0 < self.rate <= highest or self.rate == 1:
            faults.append(f"denoiser {self.name!r}: rate is {self.rate!r}; it must be {wanted}.")
        if (self.mean_span is None) != (self.kind == "prefix"):
            faults.append(
                f"denoiser {self.name!r}: mean_span is {self.mean_span!r} with kind {self.kind!r}; "
                "a span denoiser needs one, a prefix denoiser has none."
            )
        if self.mean_span is not None and not self.mean_span > 0:
            faults.append(f"denoiser {self.name!r}: mean_span is {self.mean_span!r}; it must be above 0.")
        return faults

    def lengths(self, budget: int, layout: Layout = "decoder_only") -> RawLength:
        """What a full cut is made of; `budget` as in `raw_length`. A prefix denoiser's noise is the most it can be.

        >>> PRESETS["ul2r"].denoisers[1].lengths(2048)
        RawLength(raw=1860, noise=279, spans=93, target=373)
        >>> PRESETS["ul2r"].denoisers[0].lengths(511, "encoder_decoder")
        RawLength(raw=510, noise=509, spans=0, target=510)

        Raises: RecipeError if not even two tokens fit.
        """
        if self.mean_span is not None:
            return raw_length(budget, self.mean_span, self.rate, layout)
        raw = budget - (1 if layout == "encoder_decoder" else 2)
        if raw < _LEAST_TOKENS:
            more = "" if layout == "encoder_decoder" else "a mode token and "
            raise RecipeError(f"a budget of {budget} tokens cannot hold a prefix, a target, {more}EOS.")
        noise = raw - int(least_prefix(raw, self.rate))
        return RawLength(raw, noise, 0, noise + 1)

    def raw_lengths(self, budgets: I64, layout: Layout) -> I64:
        """`lengths(budget, layout).raw` of each budget; 0 or less where not even two tokens fit."""
        if self.mean_span is not None:
            return raw_lengths(budgets, self.mean_span, self.rate, layout)
        return budgets - (1 if layout == "encoder_decoder" else 2)


class Preset(NamedTuple):
    """Denoisers and the chance of each."""

    denoisers: tuple[Denoiser, ...]
    rates: tuple[float, ...]


# Our reading of two open points. U-PaLM says of X "mean length of 32 or a corruption rate of up to 50 %": two halves,
# (32, 0.15) and (3, 0.5). Its S splits uniformly (rate 0.5); Table 1 of UL2 gives S 25 % (its mean span of L/4, once).
PRESETS: Mapping[str, Preset] = {
    "ul2": Preset(
        (
            Denoiser("R1", 3.0, 0.15, "[NLU]"),
            Denoiser("R2", 8.0, 0.15, "[NLU]"),
            Denoiser("S", None, 0.25, "[S2S]", "prefix"),
            Denoiser("X1", 3.0, 0.5, "[NLG]"),
            Denoiser("X2", 8.0, 0.5, "[NLG]"),
            Denoiser("X3", 64.0, 0.15, "[NLG]"),
            Denoiser("X4", 64.0, 0.5, "[NLG]"),
        ),
        (1 / 7,) * 7,
    ),
    "ul2r": Preset(
        (
            Denoiser("S", None, 0.5, "[S2S]", "prefix"),
            Denoiser("R", 3.0, 0.15, "[NLU]"),
            Denoiser("X1", 32.0, 0.15, "[NLG]"),
            Denoiser("X2", 3.0, 0.5, "[NLG]"),
        ),
        (0.5, 0.25, 0.125, 0.125),
    ),
}


class _Room(NamedTuple):
    """The budgets of a segment. Without `max_target_length` inputs and targets share `max_length` (decoder-only)."""

    max_length: int
    max_target_length: int | None
    has_bos: bool

    @property
    def layout(self) -> Layout:
        return "decoder_only" if self.max_target_length is None else "encoder_decoder"

    def lengths(self, denoiser: Denoiser, has_mode: bool) -> RawLength:
        """The lengths of a full cut."""
        return denoiser.lengths(self.max_length - self._special(has_mode), self.layout)

    def raw_lengths(self, denoiser: Denoiser, has_mode: bool, least: int) -> I64:
        """Raw tokens of a full cut for each `max_length` from `least` up to this one."""
        return denoiser.raw_lengths(np.arange(least, self.max_length + 1) - self._special(has_mode), self.layout)

    def _special(self, has_mode: bool) -> int:
        """BOS and mode token; `raw_length` counts the latter itself where inputs and targets are one."""
        return int(self.has_bos) + (int(has_mode) if self.layout == "encoder_decoder" else int(has_mode) - 1)


def check_budget(
    denoisers: Sequence[Denoiser],
    rates: Sequence[float],
    max_length: int,
    *,
    num_sentinels: int,
    mode_names: Sequence[str],
    has_bos: bool,
    max_target_length: int | None = None,
    cut_lengths: Sequence[int] | None = None,
) -> list[str]:
    """All faults of a mixture, each a full sentence; empty if it can run. Needs no data and no tokenizer.

    num_sentinels: size of the pool. mode_names: the mode tokens of the tokenizer, empty = mode tokens off.
    max_target_length: of an encoder-decoder, whose `max_length` is that of its inputs.
    cut_lengths: [least, most] budget of a cut; None = always `max_length`.

    >>> print(check_budget(*PRESETS["ul2r"], 2048, num_sentinels=100, mode_names=[], has_bos=True)[0])
    ... # doctest: +NORMALIZE_WHITESPACE
    denoiser 'X2' (mean span 3.0, rate 0.5) needs 256 sentinels at max_length 2048, the pool has 100.
    Raise the pool to 256, lower max_length to 806, or raise its mean_span.
    """
    faults = _rate_faults(denoisers, rates)
    least, most = cut_lengths or (max_length, max_length)
    if not 1 <= least <= most <= max_length:
        return [
            *faults,
            f"cut_lengths is {[least, most]}; from the least to the most, at most max_length {max_length}.",
        ]
    room = _Room(most, max_target_length, has_bos)
    for denoiser, rate in zip(denoisers, rates, strict=False):
        if mode_names and denoiser.mode and denoiser.mode not in mode_names:
            faults.append(
                f"denoiser {denoiser.name!r} wants the mode token {denoiser.mode!r}, the tokenizer has "
                f"{', '.join(map(repr, mode_names))}. Add it to the tokenizer, or switch mode tokens off."
            )
        if rate > 0:
            has_mode = bool(mode_names and denoiser.mode)
            faults += _length_faults(denoiser, room, has_mode, num_sentinels) or _least_faults(
                denoiser, room._replace(max_length=least), has_mode
            )
    return faults


def _rate_faults(denoisers: Sequence[Denoiser], rates: Sequence[float]) -> list[str]:
    faults = []
    names = [denoiser.name for denoiser in denoisers]
    if len(names) != len(rates):
        faults.append(f"{len(names)} denoisers have {len(rates)} rates; give each denoiser one.")
    if len(set(names)) != len(names):
        faults.append(f"two denoisers have the same name: {', '.join(names)}. Rename one of them.")
    if not all(math.isfinite(rate) and rate >= 0 for rate in rates) or not sum(rates) > 0:
        faults.append(f"the rates of the denoisers are {list(rates)}; none may be negative, one must be above 0.")
    return faults


def _length_faults(denoiser: Denoiser, room: _Room, has_mode: bool, num_sentinels: int) -> list[str]:
    try:
        needed = room.lengths(denoiser, has_mode)
    except RecipeError as error:
        return [f"denoiser {denoiser.name!r} at max_length {room.max_length}: {fault}" for fault in error.faults]
    faults = []
    if needed.spans > num_sentinels:
        lower = _lower_length(denoiser, room, has_mode, lambda length: length.spans <= num_sentinels)
        faults.append(
            f"denoiser {denoiser.name!r} (mean span {denoiser.mean_span}, rate {denoiser.rate}) needs {needed.spans} "
            f"sentinels at max_length {room.max_length}, the pool has {num_sentinels}. "
            f"Raise the pool to {needed.spans}, {lower}or raise its mean_span."
        )
    most = room.max_target_length
    if most is not None and needed.target > most:
        lower = _lower_length(denoiser, room, has_mode, lambda length: length.target <= most)
        faults.append(
            f"denoiser {denoiser.name!r} has up to {needed.target} targets at max_length {room.max_length}, "
            f"max_target_length is {most}. Raise it to {needed.target}, {lower}or lower its rate."
        )
    return faults


def _least_faults(denoiser: Denoiser, room: _Room, has_mode: bool) -> list[str]:
    """Whether the shortest cuts hold anything. What is true of the longest ones, but for that, is true of them."""
    try:
        room.lengths(denoiser, has_mode)
    except RecipeError as error:
        return [f"denoiser {denoiser.name!r}, cut_lengths from {room.max_length}: {fault}" for fault in error.faults]
    return []


def _lower_length(denoiser: Denoiser, room: _Room, has_mode: bool, fits: Callable[[RawLength], bool]) -> str:
    """Advice with the greatest max_length at which `fits` holds, or none. Lengths grow with max_length."""

    def is_too_much(max_length: int) -> bool:
        try:
            return not fits(room._replace(max_length=max_length).lengths(denoiser, has_mode))
        except RecipeError:
            return False  # too short to hold anything

    fitting = bisect.bisect_left(range(room.max_length), True, key=is_too_much) - 1
    try:
        room._replace(max_length=fitting).lengths(denoiser, has_mode)
    except RecipeError:
        return ""
    return f"lower max_length to {fitting}, "


class _Cut(NamedTuple):
    """A stretch of a piece and what will be done to it."""

    tokens: Ids
    denoiser: int
    mask_key: int
    number: int


class MixtureOfDenoisers:
    """Turns pieces of text into segments under a mixture of denoisers; holds settings only, no state.

    denoisers, rates: a preset's, or a recipe's own (rates need not sum to 1; 0 = never).
    max_length: no segment is longer, and a full cut is as long as fits.
    sentinel_ids: in order of use. mode_ids: name -> id, empty = mode tokens off. bos_id: None = no BOS.
    sampler: "t5" or "uniform", see denoise.py.
    rate_unit: what the rates are shares of: "per_example" = of the cuts, "per_token" = of the tokens of text.
    max_target_length: of an encoder-decoder; `max_length` is then that of its inputs.
    cut_lengths: [least, most] budget of a cut, each in between equally likely; None = always `max_length`.

    Raises: RecipeError with all faults `check_budget` finds, or if special ids coincide.
    """

    def __init__(
        self,
        denoisers: Sequence[Denoiser],
        rates: Sequence[float],
        max_length: int,
        sentinel_ids: Sequence[int],
        mode_ids: Mapping[str, int],
        bos_id: int | None,
        eos_id: int,
        sampler: Sampler = "t5",
        *,
        rate_unit: RateUnit = "per_example",
        max_target_length: int | None = None,
        cut_lengths: Sequence[int] | None = None,
    ) -> None:
        faults = check_budget(
            denoisers,
            rates,
            max_length,
            num_sentinels=len(sentinel_ids),
            mode_names=list(mode_ids),
            has_bos=bos_id is not None,
            max_target_length=max_target_length,
            cut_lengths=cut_lengths,
        )
        faults += _id_faults([*sentinel_ids, *mode_ids.values(), eos_id])
        if rate_unit not in get_args(RateUnit):
            faults.append(f"rates are {rate_unit!r}; choose one of {', '.join(get_args(RateUnit))}.")
        if faults:
            raise RecipeError(*faults)
        room = _Room(max_length, max_target_length, bos_id is not None)
        self.denoisers, self.max_length, self.sampler, self.layout = tuple(denoisers), max_length, sampler, room.layout
        self.rate_unit = rate_unit
        self.sentinel_ids = np.asarray(sentinel_ids, dtype=np.int32)
        self.bos_id, self.eos_id = bos_id, eos_id
        self._mode_id_D = [mode_ids.get(denoiser.mode) for denoiser in denoisers]
        self._rate_D = np.array([denoiser.rate for denoiser in denoisers])
        self._mean_span_D = np.array([denoiser.mean_span or np.nan for denoiser in denoisers])
        self._share_D = np.asarray(rates, dtype=np.float64)
        least, most = cut_lengths or (max_length, max_length)
        # One with a rate of 0 is never drawn, and perhaps has no length that fits.
        raw_DB = [
            room._replace(max_length=most).raw_lengths(denoiser, mode_id is not None, least)
            if rate > 0
            else np.full(most - least + 1, max_length)
            for denoiser, mode_id, rate in zip(denoisers, self._mode_id_D, rates, strict=True)
        ]
        self._raw_BD = np.stack(raw_DB, axis=1)
        self._last_possible = int(np.flatnonzero(self._share_D > 0)[-1])

    def segments(self, tokens: Ids, key: int) -> tuple[list[Segment], int]:
        """(segments, skipped tokens) of one piece: every token is in exactly one segment or skipped, in order.

        Cut c draws its denoiser by `rng.key(key, "denoiser", c)`, its mask by `rng.key(key, "mask", c)` and, if there
        are several, its budget by `rng.key(key, "length", c)`. It takes as many tokens as its denoiser fits into that
        budget; the last cut takes what is left. A last cut of one token has no room for a target: it is skipped and
        counted (so the count is 0 or 1).

        tokens: [length], without special ids. key: 64 bits, the piece's own (seed, purpose, task, epoch, row).

        >>> x = Denoiser("X", 1.5, 0.5, "[NLG]")
        >>> ids = dict(sentinel_ids=[99, 98], mode_ids={"[NLG]": 90}, bos_id=1, eos_id=2)
        >>> segments, skipped = MixtureOfDenoisers([x], [1.0], 13, **ids).segments(np.arange(10, 21), key=0)
        >>> [(s.input_ids.tolist(), s.prefix_length) for s in segments], skipped
        ([([1, 90, 10, 11, 99, 13, 98, 99, 12, 98, 14, 15, 2], 7), ([1, 90, 16, 17, 18, 99, 99, 19, 20, 2], 6)], 0)
        """
        return self.segments_batch([tokens], [key])[0]

    def segments_batch(self, pieces: Sequence[Ids], keys: Sequence[int]) -> list[tuple[list[Segment], int]]:
        """`segments` of each piece, all cuts denoised together: the same result, sooner for short pieces."""
        cuts_P = self._cuts_of_pieces(pieces, keys)
        cuts_C = [cut for cuts in cuts_P for cut in cuts]
        batches = (cuts_C[start : start + _CUTS_AT_ONCE] for start in range(0, len(cuts_C), _CUTS_AT_ONCE))
        bodies = (body for batch in batches for body in self._bodies(batch))
        results = []
        for tokens, cuts in zip(pieces, cuts_P, strict=True):
            segments = [self._segment(cut, *next(bodies)) for cut in cuts]
            results.append((segments, len(tokens) - sum(len(cut.tokens) for cut in cuts)))
        return results

    def _cuts_of_pieces(self, pieces: Sequence[Ids], keys: Sequence[int]) -> list[list[_Cut]]:
        """The cuts of each piece; draws are made for as many as there could be, all pieces together."""
        most_P = np.array([-(-len(tokens) // int(self._raw_BD.min())) for tokens in pieces], dtype=np.int64)
        end_P = np.cumsum(most_P)
        number_C = np.arange(most_P.sum()) - np.repeat(end_P - most_P, most_P)

        def keys_of_cuts(purpose: str) -> rng.U64:
            key_P = np.array([rng.key(key, purpose) for key in keys], dtype=np.uint64)
            return rng.keys(np.repeat(key_P, most_P), number_C)

        raw_CD = self._raw_BD[self._budgets(keys_of_cuts) if len(self._raw_BD) > 1 else 0 * number_C]
        draws = rng.uniform(keys_of_cuts("denoiser"))
        denoiser_C = self._chosen(draws, raw_CD)
        mask_keys = keys_of_cuts("mask").tolist()
        return [
            self._cuts(tokens, draws[start:end], raw_CD[start:end], denoiser_C[start:end], mask_keys[start:end])
            for tokens, (start, end) in zip(pieces, pairwise([0, *end_P.tolist()]), strict=True)
        ]

    def _budgets(self, keys_of_cuts: Callable[[str], rng.U64]) -> I64:
        """Rows of the table of raw lengths, one for each cut."""
        budget_C: I64 = (rng.uniform(keys_of_cuts("length")) * len(self._raw_BD)).astype(np.int64)
        return budget_C

    def _cuts(self, tokens: Ids, draw_C: F64, raw_CD: I64, denoiser_C: I64, mask_keys: list[int]) -> list[_Cut]:
        """The cuts of one piece. `denoiser_C` are those that the draws choose where there is text enough for any."""
        cuts: list[_Cut] = []
        enough_C = (raw_CD.max(1) if self.rate_unit == "per_token" else np.zeros(len(raw_CD), dtype=np.int64)).tolist()
        raws = raw_CD[np.arange(len(raw_CD)), denoiser_C].tolist()
        start = 0
        for number, (denoiser, raw) in enumerate(zip(denoiser_C.tolist(), raws, strict=True)):
            left = len(tokens) - start
            if left < _LEAST_TOKENS:
                break
            if left < enough_C[number]:
                denoiser = int(self._chosen(draw_C[number], np.minimum(raw_CD[number], left)))
                raw = int(raw_CD[number, denoiser])
            cut = _Cut(tokens[start : start + raw], denoiser, mask_keys[number], number)
            cuts.append(cut)
            start += len(cut.tokens)
        return cuts

    def _chosen(self, draw_C: npt.ArrayLike, raw_CD: I64) -> I64:
        """The denoisers that draws from [0, 1) choose for cuts in which they would take `raw_CD` tokens.

        Per token, one that takes twice the tokens is half as likely: every cut then has, on the mean, tokens of each
        denoiser in proportion to the rates, the last and shorter cuts of a piece too.
        """
        weight_CD = self._share_D / raw_CD if self.rate_unit == "per_token" else self._share_D
        cumulative_CD = np.cumsum(weight_CD, axis=-1)
        bar_C = np.asarray(draw_C) * cumulative_CD[..., -1]
        denoiser_C: I64 = (cumulative_CD <= bar_C[..., None]).sum(-1)
        # Rounding may put a draw at the very end, where a denoiser of rate 0 could stand.
        return np.minimum(denoiser_C, self._last_possible)

    def _bodies(self, cuts: list[_Cut]) -> list[tuple[Ids, Ids]]:
        """(inputs, targets) of each cut, spans and prefixes each in one batch."""
        bodies: dict[int, tuple[Ids, Ids]] = {}
        for kind, body_batch in (("span", self._span_bodies), ("prefix", self._prefix_bodies)):
            places = [place for place, cut in enumerate(cuts) if self.denoisers[cut.denoiser].kind == kind]
            if places:
                bodies.update(zip(places, body_batch([cuts[place] for place in places]), strict=True))
        return [bodies[place] for place in range(len(cuts))]

    def _span_bodies(self, cuts: list[_Cut]) -> list[tuple[Ids, Ids]]:
        denoiser_C, _, key_C = _columns(cuts)
        rate_C, mean_span_C = self._rate_D[denoiser_C], self._mean_span_D[denoiser_C]
        tokens = [cut.tokens for cut in cuts]
        return corrupt_spans(tokens, rate_C, mean_span_C, key_C, self.sentinel_ids, self.sampler)

    def _prefix_bodies(self, cuts: list[_Cut]) -> list[tuple[Ids, Ids]]:
        denoiser_C, length_C, key_C = _columns(cuts)
        split_C = prefix_splits(length_C, self._rate_D[denoiser_C], key_C)
        return [(cut.tokens[:split], cut.tokens[split:]) for cut, split in zip(cuts, split_C.tolist(), strict=True)]

    def _segment(self, cut: _Cut, inputs: Ids, targets: Ids) -> Segment:
        mode_id = self._mode_id_D[cut.denoiser]
        end = self.eos_id if self.layout == "encoder_decoder" else None
        ids = joined_ids(self.bos_id, mode_id, inputs, end, targets, self.eos_id)
        prefix_length = len(inputs) + sum(special is not None for special in (self.bos_id, mode_id, end))
        return Segment(ids, prefix_length, self.denoisers[cut.denoiser].name, cut.number, self.layout)

    def collisions(self, pieces: Sequence[Ids]) -> int:
        """Tokens of the pieces that are ids of sentinels too, see `count_collisions`."""
        return count_collisions(pieces, self.sentinel_ids)


def _columns(cuts: list[_Cut]) -> tuple[I64, I64, rng.U64]:
    """(denoiser, length, mask key) of the cuts."""
    return (
        np.array([cut.denoiser for cut in cuts], dtype=np.int64),
        np.array([len(cut.tokens) for cut in cuts], dtype=np.int64),
        np.array([cut.mask_key for cut in cuts], dtype=np.uint64),
    )


def _id_faults(special_ids: list[int]) -> list[str]:
    repeated = sorted({one for one in special_ids if special_ids.count(one) > 1})
    if not repeated:
        return []
    return [f"sentinels, mode tokens and EOS share the ids {', '.join(map(str, repeated))}. Give each its own."]
