"""Denoising: which tokens are hidden, what the corrupted text and its targets look like, and how to undo it.

Pure functions of (tokens, key). Each comes for one example and, under a plural name, for a batch; both agree bit
for bit. Which denoiser a text gets, mode tokens and EOS are in mixture_of_denoisers.py.

The spans follow T5 (Raffel et al. 2020, arXiv:1910.10683, section 3.1.4; t5/data/preprocessors.py at e081111,
`random_spans_helper` and `random_spans_noise_mask`). We differ from that code in four places, all of them faults:
  - the number of spans is at least 1 and at most min(noise, clean) everywhere, also where lengths are planned;
    T5 plans with none where the mean span is above twice the noise, and is one token too long then;
  - rate * length is rounded in float64 (half to even) in both places; T5 masks in float32 (190 tokens at 0.15);
  - sentinel k of the targets is span k, counted by noise; T5 counts clean spans, off by one if noise comes first;
  - spans beyond the sentinel pool are an error; T5 goes on with ordinary words.

Shape suffixes: R rows (examples), S spans of all rows one after the other, T tokens likewise.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple, get_args

import numpy as np
import numpy.typing as npt

from flan_tune import rng as keyed
from flan_tune.errors import RecipeError, RowError
from flan_tune.objectives.segment import Ids, Layout
from flan_tune.objectives.span_sampler import I64, Bools, Sampler, Spans, draw_spans, mask_of

_HIGHEST_RATE = 1 - 1e-6  # above it the raw text of an encoder would have no useful end


class RawLength(NamedTuple):
    """What one example of a denoiser is made of, in tokens (`spans`: their number)."""

    raw: int  # tokens of text
    noise: int  # of these, hidden ones
    spans: int  # runs of hidden tokens, one sentinel each
    target: int  # noise + one sentinel a span + EOS


def span_counts(length: npt.ArrayLike, rate: npt.ArrayLike, mean_span: npt.ArrayLike) -> tuple[I64, I64]:
    """(noise tokens, spans) of texts of `length` >= 2 tokens.

    Noise is in [1, length - 1], spans in [1, min(noise, clean)]. Products are float64, halves go to the even
    neighbour. All arguments broadcast.

    >>> [counts.tolist() for counts in span_counts([512, 2], 0.15, 3.0)]
    [[77, 1], [26, 1]]
    """
    length_R = np.asarray(length, dtype=np.int64)
    noise_R = np.clip(np.rint(length_R * np.asarray(rate, dtype=np.float64)), 1, length_R - 1).astype(np.int64)
    # A mean below 1 asks for more spans than noise, as 1 does already.
    wanted_R = np.rint(noise_R / np.maximum(np.asarray(mean_span, dtype=np.float64), 1.0))
    return noise_R, np.clip(wanted_R.astype(np.int64), 1, np.minimum(noise_R, length_R - noise_R))


def raw_length(budget: int, mean_span: float, rate: float, layout: Layout) -> RawLength:
    """The greatest number of raw tokens whose corrupted form fits `budget`, and what it is made of.

    "encoder_decoder": clean tokens + one sentinel a span + EOS fit the budget, which is the length of the inputs; the
      targets are separate. A mode token is not counted (with one, pass budget - 1). At rate 0.5 exactly the targets are
      kept from being longer than the inputs, as T5 does.
    "decoder_only": raw + two sentinels a span + one mode token + EOS fit the budget, inputs and targets together
      (without mode tokens, pass budget + 1).

    >>> raw_length(512, 3.0, 0.15, "encoder_decoder")
    RawLength(raw=568, noise=85, spans=28, target=114)
    >>> raw_length(2048, 3.0, 0.15, "decoder_only")
    RawLength(raw=1860, noise=279, spans=93, target=373)

    Raises: RecipeError if not even two tokens fit, or for a rate outside [0, 1] or a mean span not above 0.
    Source: T5 `random_spans_helper`; the decoder-only form is ours (UL2 gives none).
    """
    _check_span_settings(rate, mean_span)
    if layout not in get_args(Layout):
        raise RecipeError(f"layout is {layout!r}; choose one of {', '.join(get_args(Layout))}.")

    def needed(raw: int) -> int:
        return int(_needed(raw, mean_span, rate, layout))

    most = budget if layout == "decoder_only" else _most_raw_tokens(budget, rate)
    raw = 1 + bisect.bisect_right(range(2, max(most, 1) + 1), budget, key=needed)
    if raw < 2:
        raise RecipeError(
            f"a budget of {budget} tokens ({layout}) cannot hold a text of two tokens with one of them hidden, "
            f"which takes {needed(2)}. Raise the length."
        )
    result = _described(raw, rate, mean_span)
    if layout == "encoder_decoder" and rate == 0.5 and result.target > needed(raw):
        result = _described(raw - 1, rate, mean_span)
    return result


def raw_lengths(budgets: I64, mean_span: float, rate: float, layout: Layout) -> I64:
    """`raw_length(budget, ...).raw` of each of many budgets, [any number], in one go; 0 where it would raise.

    >>> raw_lengths(np.array([1, 512, 2048]), 3.0, 0.15, "decoder_only").tolist()
    [0, 464, 1860]
    """
    greatest = int(budgets.max(initial=0))
    most = greatest if layout == "decoder_only" else _most_raw_tokens(greatest, rate)
    needed_R = _needed(np.arange(2, max(most, 1) + 1), mean_span, rate, layout)
    raw: I64 = 1 + np.searchsorted(needed_R, budgets, side="right")
    raw[raw < 2] = 0
    if layout == "encoder_decoder" and rate == 0.5:
        noise, spans = span_counts(raw, rate, mean_span)
        raw -= (raw > 0) & (noise + spans + 1 > _needed(raw, mean_span, rate, layout))
    return raw


def _needed(raw: npt.ArrayLike, mean_span: float, rate: float, layout: Layout) -> I64:
    """What corrupted forms of `raw` tokens take of the budget."""
    raw_R = np.asarray(raw, dtype=np.int64)
    noise_R, spans_R = span_counts(raw_R, rate, mean_span)
    return raw_R - noise_R + spans_R + 1 if layout == "encoder_decoder" else raw_R + 2 * spans_R + 2


def _most_raw_tokens(inputs_length: int, rate: float) -> int:
    """A bound on the raw tokens of an encoder: their clean share alone must fit."""
    if rate > _HIGHEST_RATE:
        raise RecipeError(f"rate {rate} hides nearly every token, so no text is long enough for the inputs. Lower it.")
    return int((inputs_length + 1) / (1.0 - rate)) + 1


def _described(raw: int, rate: float, mean_span: float) -> RawLength:
    noise, spans = (int(count) for count in span_counts(raw, rate, mean_span))
    return RawLength(raw, noise, spans, noise + spans + 1)


def _check_span_settings(rate: npt.ArrayLike, mean_span: npt.ArrayLike) -> None:
    # Written so that NaN fails too.
    if not np.all((np.asarray(rate) >= 0) & (np.asarray(rate) <= 1)):
        raise RecipeError(f"a corruption rate is {rate!r}; it is the share of hidden tokens, from 0 to 1.")
    if not np.all(np.asarray(mean_span) > 0):
        raise RecipeError(f"a mean span length is {mean_span!r}; it is a number of tokens above 0.")


def example_key(rng: np.random.Generator) -> int:
    """One 64-bit key: all that is ever taken from a Generator here. The draws themselves are flan_tune.rng's."""
    return int(rng.integers(0, 2**64 - 1, dtype=np.uint64, endpoint=True))


def random_spans_mask(length: int, rate: float, mean_span: float, rng: np.random.Generator) -> Bools:
    """T5's random spans: bool [length], True = noise (hidden).

    Noise and clean tokens are each split into the same number of runs, all splits equally likely, and the runs are
    interleaved, clean first. So position 0 is never hidden, the last token always is, and a single span is always the
    end of the text (300 tokens at rate 0.15, mean span 64): T5's law, kept as it is. `uniform_spans_mask` has no such
    bias. Texts of 0 and 1 tokens have no noise. 6 tokens at rate 0.5 and mean span 1.5 have 3 hidden tokens in 2 spans:
    one of FTTFFT, FFTTFT, FTFFTT, FFTFTT, each with probability 1/4.

    rng: one 64-bit example key is drawn from it, nothing else.
    Raises: RecipeError for a rate outside [0, 1] or a mean span not above 0. Rate 0 still
    hides one token (T5's mask none, and its example has nothing to learn).
    """
    return random_spans_mask_keyed(length, rate, mean_span, example_key(rng))


def uniform_spans_mask(length: int, rate: float, mean_span: float, rng: np.random.Generator) -> Bools:
    """Random spans without tail bias: as `random_spans_mask`, but the text may begin with noise and end clean.

    Span lengths are drawn as in T5; the gaps before the first and after the last span may be empty, and all ways to
    place the spans without touching are equally likely. Ours, after the suggestion in T5's issue 905.
    """
    return random_spans_mask_keyed(length, rate, mean_span, example_key(rng), "uniform")


def random_spans_mask_keyed(
    length: int, rate: float, mean_span: float, base_key: int, sampler: Sampler = "t5"
) -> Bools:
    """`random_spans_mask` (sampler "t5") or `uniform_spans_mask` (sampler "uniform") under a key of rng.py.

    >>> random_spans_mask_keyed(6, 0.5, 1.5, keyed.key("doc", 0)).astype(int).tolist()
    [0, 0, 1, 1, 0, 1]
    """
    return random_spans_masks([length], rate, mean_span, [base_key], sampler)[0]


def random_spans_masks(
    lengths: npt.ArrayLike,
    rate: npt.ArrayLike,
    mean_span: npt.ArrayLike,
    keys: npt.ArrayLike,
    sampler: Sampler = "t5",
) -> list[Bools]:
    """One mask for each (length, key); `rate` and `mean_span` may be one number or one for each mask."""
    length_R = np.asarray(lengths, dtype=np.int64)
    spans = _drawn_spans(length_R, rate, mean_span, np.asarray(keys, dtype=np.uint64), sampler)
    return _rows(mask_of(spans, int(length_R.sum())), length_R)


def _drawn_spans(
    length_R: I64, rate: npt.ArrayLike, mean_span: npt.ArrayLike, key_R: keyed.U64, sampler: Sampler
) -> Spans:
    _check_span_settings(rate, mean_span)
    if sampler not in get_args(Sampler):
        raise RecipeError(f"the span sampler is {sampler!r}; choose one of {', '.join(get_args(Sampler))}.")
    if key_R.shape != length_R.shape:
        raise ValueError(f"{len(length_R)} lengths need as many keys, got {len(key_R)}")
    noise_R, num_R = span_counts(np.maximum(length_R, 2), rate, mean_span)
    has_noise_R = length_R >= 2
    if has_noise_R.all():
        return draw_spans(noise_R, length_R - noise_R, num_R, key_R, sampler)
    # Drawn as if the others were not there, and then moved to where they stand between them.
    kept = np.flatnonzero(has_noise_R)
    drawn = draw_spans(noise_R[kept], (length_R - noise_R)[kept], num_R[kept], key_R[kept], sampler)
    num_others_R = np.cumsum(np.where(has_noise_R, 0, length_R))
    return Spans(
        drawn.start_S + np.repeat(num_others_R[kept], drawn.num_R), drawn.length_S, np.where(has_noise_R, num_R, 0)
    )


def _rows(flat: npt.NDArray[Any], length_R: I64) -> list[npt.NDArray[Any]]:
    ends = np.cumsum(length_R).tolist()
    return [flat[start:end] for start, end in pairwise([0, *ends])]


def corrupt(tokens: Ids, mask: Bools, sentinels: Sequence[int] | Ids) -> tuple[Ids, Ids]:
    """(inputs, targets), without EOS: a sentinel stands for each hidden span, and introduces it in the targets.

    The k-th span of the text has sentinel k on both sides, also where the text begins with noise. No sentinel closes
    the targets. A mask without noise gives the text itself and no targets.

    tokens: [length], values apart from the sentinels (else `restore` cannot undo it).
    mask: [length], True = hidden. Neighbouring hidden tokens are one span.
    sentinels: ids in order of use. Results are int32 (int64 if tokens are).

    >>> tokens = np.array([10, 11, 12, 13, 14, 15])
    >>> inputs, targets = corrupt(tokens, np.array([False, True, True, False, False, True]), [99, 98])
    >>> inputs.tolist(), targets.tolist()
    ([10, 99, 13, 14, 98], [99, 11, 12, 98, 15])

    Raises: RecipeError if there are more spans than sentinels.
    """
    return corrupt_batch([tokens], [mask], sentinels)[0]


def corrupt_batch(
    tokens: Sequence[Ids], masks: Sequence[Bools], sentinels: Sequence[int] | Ids
) -> list[tuple[Ids, Ids]]:
    """`corrupt` for each text with its mask; sentinels begin anew in each."""
    length_R = np.array([len(row) for row in tokens], dtype=np.int64)
    if length_R.tolist() != [len(mask) for mask in masks]:
        raise ValueError("each text needs a mask of its own length")
    return _corrupted(tokens, length_R, _spans_of(masks, length_R), sentinels)


def corrupt_spans(
    tokens: Sequence[Ids],
    rate: npt.ArrayLike,
    mean_span: npt.ArrayLike,
    keys: npt.ArrayLike,
    sentinels: Sequence[int] | Ids,
    sampler: Sampler = "t5",
) -> list[tuple[Ids, Ids]]:
    """`corrupt_batch` of texts under their `random_spans_masks`, without making the masks: the same, sooner."""
    length_R = np.array([len(row) for row in tokens], dtype=np.int64)
    spans = _drawn_spans(length_R, rate, mean_span, np.asarray(keys, dtype=np.uint64), sampler)
    return _corrupted(tokens, length_R, spans, sentinels)


def _spans_of(masks: Sequence[Bools], length_R: I64) -> Spans:
    """The spans of masks; a clean token is put before, between and after them, so that no span runs on."""
    clean = np.zeros(1, dtype=bool)
    hidden = np.concatenate([clean, *(part for mask in masks for part in (np.asarray(mask, dtype=bool), clean))])
    change = np.flatnonzero(hidden[1:] != hidden[:-1])
    start_S, length_S = change[0::2], change[1::2] - change[0::2]
    row_R = np.arange(len(length_R) + 1)  # also how many clean tokens were put in before the row's own
    num_R = np.diff(np.searchsorted(start_S, _with_zero(np.cumsum(length_R)) + row_R))
    return Spans(start_S - np.repeat(row_R[:-1], num_R), length_S, num_R)


def _corrupted(
    tokens: Sequence[Ids], length_R: I64, spans: Spans, sentinels: Sequence[int] | Ids
) -> list[tuple[Ids, Ids]]:
    if not length_R.sum():
        return [(np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int32)) for _ in tokens]
    token_T = _as_ids(np.concatenate(tokens))
    sentinel_S = _numbered_sentinels(spans.num_R, sentinels).astype(token_T.dtype)
    input_T, target_T = _inputs(token_T, spans, sentinel_S), _targets(token_T, spans, sentinel_S)
    noise_R = np.diff(_with_zero(np.cumsum(spans.length_S))[_with_zero(np.cumsum(spans.num_R))])
    inputs, targets = _rows(input_T, length_R - noise_R + spans.num_R), _rows(target_T, noise_R + spans.num_R)
    return list(zip(inputs, targets, strict=True))


def _as_ids(tokens: Ids) -> Ids:
    """At least int32 and signed: a sentinel above 65,535 must not wrap round in a uint16 shard."""
    return tokens.astype(np.int32 if np.can_cast(tokens.dtype, np.int32) else np.int64, copy=False)


def _with_zero(counts: I64) -> I64:
    return np.concatenate((np.zeros(1, dtype=np.int64), counts))


def _numbered_sentinels(num_spans_R: I64, sentinels: Sequence[int] | Ids) -> I64:
    """The sentinel of every span: 0, 1, 2, ... within each row."""
    most = int(num_spans_R.max())
    if most > len(sentinels):
        row = int(num_spans_R.argmax())
        raise RecipeError(
            f"text {row} of the batch has {most} hidden spans, the pool has {len(sentinels)} sentinels. "
            f"Raise the pool to {most}, or take shorter texts or longer spans."
        )
    first_R = np.cumsum(num_spans_R) - num_spans_R
    number_S = np.arange(num_spans_R.sum()) - np.repeat(first_R, num_spans_R)
    sentinel_S: I64 = np.asarray(sentinels, dtype=np.int64)[number_S]
    return sentinel_S


def _inputs(token_T: Ids, spans: Spans, sentinel_S: Ids) -> Ids:
    """Clean run 0, sentinel 0, clean run 1, ...: a sentinel stands in the place of its span's first token."""
    begin_S = np.cumsum(_gaps(spans) + 1)  # of the run behind each sentinel
    step = np.ones(len(token_T) - int((spans.length_S - 1).sum()) + 1, dtype=np.int64)
    step[0] = 0
    step[begin_S] = spans.length_S
    out = _walked(token_T, step[:-1])
    out[begin_S - 1] = sentinel_S
    return out


def _targets(token_T: Ids, spans: Spans, sentinel_S: Ids) -> Ids:
    """Sentinel 0, span 0, sentinel 1, span 1, ...: a sentinel stands in the place of the token before its span."""
    size_S = spans.length_S + 1
    at_S = np.cumsum(size_S) - size_S
    step = np.ones(int(size_S.sum()), dtype=np.int64)
    step[at_S] = _gaps(spans)
    step[:1] -= 1
    out = _walked(token_T, step)
    out[at_S] = sentinel_S
    return out


def _gaps(spans: Spans) -> I64:
    """The number of tokens between each span and the one before."""
    gap_S: I64 = spans.start_S - _with_zero(spans.start_S + spans.length_S)[:-1]
    return gap_S


def _walked(token_T: Ids, step: I64) -> Ids:
    """The tokens at the places that are reached by one step after the other, from 0. `step` is used up.

    Clipping is what makes `take` fast, and takes a first place of -1 for 0.
    """
    out: Ids = token_T.take(np.cumsum(step, out=step), mode="clip")
    return out


def restore(inputs: Ids, targets: Ids, sentinels: Sequence[int] | Ids) -> Ids:
    """The text that `corrupt` was given: every sentinel of the inputs replaced by its span from the targets.

    >>> restore(np.array([10, 99, 13, 14, 98]), np.array([99, 11, 12, 98, 15]), [99, 98]).tolist()
    [10, 11, 12, 13, 14, 15]

    Raises: RowError "sentinels do not match" if inputs and targets do not hold the same sentinels in the same order,
    or the targets do not begin with one.
    """
    inputs, targets, pool = _as_array(inputs), _as_array(targets), np.asarray(sentinels, dtype=np.int64)
    is_sentinel, is_target_sentinel = np.isin(inputs, pool), np.isin(targets, pool)
    wanted, found = inputs[is_sentinel], targets[is_target_sentinel]
    if not np.array_equal(wanted, found) or (len(targets) and not is_target_sentinel[0]):
        raise RowError(
            "sentinels do not match",
            f"the inputs hold {wanted.tolist()}, the targets {found.tolist()} and begin with {targets[:1].tolist()}",
        )
    length_S = np.diff(np.append(np.flatnonzero(is_target_sentinel), len(targets))) - 1
    at_S = np.flatnonzero(is_sentinel) - np.arange(len(wanted))
    restored: Ids = np.insert(inputs[~is_sentinel], np.repeat(at_S, length_S), targets[~is_target_sentinel])
    return restored


def _as_array(ids: Sequence[int] | Ids) -> Ids:
    """Arrays as they are; an empty list would be read as floats."""
    return np.asarray(ids, dtype=getattr(ids, "dtype", np.int64))


def count_collisions(tokens: Sequence[Ids], sentinels: Sequence[int] | Ids) -> int:
    """How many tokens of the texts are ids that also serve as sentinels: `restore` takes them for sentinels.

    Never with new sentinels. With reused sub-words (U-PaLM) it happens wherever the text holds one of them, with T5's
    own where the text spells "<extra_id_0>". Such tokens stay in the text.

    >>> count_collisions([np.array([5, 99, 7]), np.array([98, 98])], [99, 98])
    3
    """
    filled = [row for row in tokens if len(row)]
    return int(np.isin(np.concatenate(filled), np.asarray(sentinels)).sum()) if filled else 0


def prefix_split(length: int, rate: float, rng: np.random.Generator) -> int:
    """The length of the prefix of a prefix-LM example of `length` tokens; the rest is its target.

    Uniform on [low, length - 1] with low = max(1, round((1 - 2 * rate) * (length - 1))), so that about `rate` of the
    text is target: 100 tokens have a prefix of 50..99 at rate 0.25 (74.5 on average), of 1..99 at rate 0.5.
    Texts of 0 and 1 tokens have no prefix: 0.

    rate: in [0, 0.5]; U-PaLM's S has 0.5, UL2's Table 1 has 0.25. rng: one 64-bit example key is drawn from it.
    Raises: RecipeError for another rate: the formula has no answer above 0.5.
    Source: T5 `random_prefix_noise_mask` (where the *prefix* is called noise).
    """
    return prefix_split_keyed(length, rate, example_key(rng))


def prefix_split_keyed(length: int, rate: float, base_key: int) -> int:
    """`prefix_split` under a key of rng.py.

    >>> prefix_split_keyed(100, 0.25, keyed.key("doc", 0))
    64
    """
    return int(prefix_splits([length], rate, [base_key])[0])


def prefix_splits(lengths: npt.ArrayLike, rate: npt.ArrayLike, keys: npt.ArrayLike) -> I64:
    """One prefix length for each (length, key), int64; `rate` may be one number or one for each."""
    low_R = least_prefix(lengths, rate)
    most_R = np.maximum(np.asarray(lengths, dtype=np.int64) - 1, 0)
    prefix_R: I64 = low_R + keyed.below(most_R - low_R + 1, np.asarray(keys, dtype=np.uint64))
    return prefix_R


def least_prefix(length: npt.ArrayLike, rate: npt.ArrayLike) -> I64:
    """The shortest prefix that `prefix_split` draws, int64; the longest is length - 1.

    >>> least_prefix([100, 100, 1], [0.25, 0.5, 0.5])
    array([50,  1,  0])
    """
    share_R = np.asarray(rate, dtype=np.float64)
    if not np.all((share_R >= 0) & (share_R <= 0.5)):
        raise RecipeError(f"a prefix denoiser has rate {rate!r}; it is the mean share of targets, from 0 to 0.5.")
    most_R = np.maximum(np.asarray(length, dtype=np.int64) - 1, 0)
    low_R: I64 = np.minimum(most_R, np.maximum(1, np.rint((1.0 - 2.0 * share_R) * most_R).astype(np.int64)))
    return low_R
