"""Generating and scoring text ids with a causal model, a prefix-LM or an encoder-decoder, in batches.

`transformers.generate` has no switch for a bidirectional prompt, so this is our own loop: the prompt is read in one
forward under the mask it was trained with, then one token at a time with a cache (decoding.py). A model built for a
back-end that cannot decode (varlen, flex_attention) does so with sdpa, or eager. Ids in, ids out: text, separators,
mode tokens, and the end-of-sequence token after what an encoder reads are the caller's.

Shapes: B rows, N targets, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from flan_tune import rng
from flan_tune.errors import FlanTuneError
from flan_tune.models.attention import check_attention, check_length
from flan_tune.models.collate import BarePack, Batch, DecoderShape, collate
from flan_tune.models.decoding import reader_of
from flan_tune.models.forward import (
    attending_by,
    choose_positions,
    dense_implementation,
    evaluating,
    head_logits,
    hidden_states,
    is_encoder_decoder,
)
from flan_tune.models.load import decoder_start_id_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_EMPTY = (
    "nothing predicts a first token. Begin it with the tokenizer's beginning-of-sequence token, or with its "
    "end-of-sequence token if it has none."
)
_EMPTY_FOR_ENCODER = "an encoder reads one token at least. End it with the tokenizer's end-of-sequence token."

Stop = Callable[[list[int]], bool]
Guide = Callable[[list[int]], int | None]
T = TypeVar("T")
F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class _Choice:
    """How the next token is chosen."""

    temperature: float
    top_k: int
    seed: int
    excluded_ids: list[int]
    guide: Guide | None


@dataclass
class _Running:
    """One prompt on its way."""

    number: int  # among all prompts
    prompt: list[int]
    generated: list[int] = field(default_factory=list)
    done: bool = False

    def take(self, token: int, eos_id: int, max_new_tokens: int, stop: Stop | None) -> None:
        if token == eos_id:
            self.done = True
            return
        self.generated.append(token)
        self.done = len(self.generated) >= max_new_tokens or (stop is not None and stop(self.generated))


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    attention: str,
    eos_id: int,
    pad_id: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int = 0,
    seed: int = 0,
    stop: Stop | None = None,
    excluded_ids: Sequence[int] = (),
    guide: Guide | None = None,
    batch_size: int = 16,
) -> list[list[int]]:
    """The tokens generated after each prompt, in the order of `prompts`, without the end-of-sequence token.

    prompts: of an encoder-decoder, all that its encoder reads.
    attention: "prefix_lm" reads the prompt bidirectionally, as every encoder does; what is generated is causal.
    temperature: 0 takes the likeliest token; above, tokens are drawn from softmax(logits / temperature).
    top_k: draws among the k likeliest tokens only; 0 = among all.
    seed: a draw is keyed by (seed, number of the prompt, position), so batch size and neighbours do not shift it.
    stop: called with a row's tokens after each new one; the row ends when it returns True.
    excluded_ids: never chosen by the model.
    guide: called with a row's tokens before each new one; an id that it returns is taken, not the model's choice.

    A row that has ended stays in its batch, fed with padding, until all have.
    Raises: FlanTuneError for an empty prompt, or one for which the model's positions do not suffice.
    """
    check_attention(attention)
    rows = [_Running(number, list(map(int, prompt))) for number, prompt in enumerate(prompts)]
    _check_prompts(model, [row.prompt for row in rows], [max_new_tokens] * len(rows))
    choice = _Choice(temperature, top_k, seed, list(excluded_ids), guide)
    # Like lengths together, for little padding; the largest batch first, to run out of memory at once if at all.
    order = sorted(rows, key=lambda row: -len(row.prompt)) if max_new_tokens > 0 else []
    with evaluating(model), attending_by(model, dense_implementation(model)):
        for batch in _batches(order, batch_size):
            for token_B in _decode(model, batch, attention, pad_id, choice):
                for row, token in zip(batch, token_B, strict=True):
                    if not row.done:
                        row.take(token, eos_id, max_new_tokens, stop)
                if all(row.done for row in batch):
                    break
    return [row.generated for row in rows]


def _decode(
    model: PreTrainedModel, batch: list[_Running], attention: str, pad_id: int, choice: _Choice
) -> Iterator[list[int]]:
    """The next token of each row, for ever; the caller stops asking. Rows that are done get padding."""
    reader = reader_of(model, [row.prompt for row in batch], attention, pad_id)
    while True:
        logits_BV = head_logits(model, reader.hidden_BD)
        logits_BV[:, choice.excluded_ids] = -torch.inf
        chosen = _guided(_choose(logits_BV, batch, choice), batch, choice.guide)
        yield chosen
        next_B = [pad_id if row.done else token for row, token in zip(batch, chosen, strict=True)]
        reader.read(torch.tensor(next_B)[:, None])


def _choose(logits_BV: Tensor, batch: list[_Running], choice: _Choice) -> list[int]:
    if choice.temperature <= 0:
        greedy: list[int] = logits_BV.argmax(-1).tolist()
        return greedy
    scaled_BV = logits_BV.double() / choice.temperature
    if 0 < choice.top_k < scaled_BV.shape[-1]:
        # The k-th largest value is the bar, so tokens that tie with it all stay.
        bar_B1 = scaled_BV.topk(choice.top_k, dim=-1).values[:, -1:]
        scaled_BV = scaled_BV.masked_fill(scaled_BV < bar_B1, -torch.inf)
    cumulative_BV = scaled_BV.softmax(-1).cumsum(-1)
    drawn_B1 = torch.tensor([[_uniform(choice.seed, row)] for row in batch], dtype=torch.float64).to(scaled_BV.device)
    # The first token whose cumulative probability exceeds the draw; scaled by the sum, which may round below 1.
    chosen_B1 = torch.searchsorted(cumulative_BV, drawn_B1 * cumulative_BV[:, -1:], right=True)
    tokens: list[int] = chosen_B1[:, 0].clamp(max=scaled_BV.shape[-1] - 1).tolist()
    return tokens


def _guided(chosen: list[int], batch: list[_Running], guide: Guide | None) -> list[int]:
    if guide is None:
        return chosen
    wanted_B = (None if row.done else guide(row.generated) for row in batch)
    return [token if wanted is None else wanted for token, wanted in zip(chosen, wanted_B, strict=True)]


def _uniform(seed: int, row: _Running) -> float:
    return float(rng.uniform(rng.key(seed, "generate", row.number), len(row.generated))[0])


class _Scored(NamedTuple):
    """Of each token of a continuation: its log-likelihood in nats, and whether it is the likeliest one there."""

    log_likelihoods: F64
    are_best: Bools


def score(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    attention: str,
    pad_id: int = 0,
    batch_size: int = 16,
) -> list[tuple[float, bool]]:
    """For each pair: log-likelihood of the continuation after the prompt in nats, summed over its tokens, and
    whether each of its tokens is the likeliest one where it stands.

    The mask is that of training: under "prefix_lm" the prompt is the bidirectional prefix, and of an encoder-decoder it
    is what the encoder reads. An empty continuation gives (0.0, True).
    Raises: FlanTuneError for an empty prompt, or a pair longer than the model's positions.
    """
    scored = _scored(model, prompts, continuations, attention, pad_id, batch_size)
    return [(float(one.log_likelihoods.sum()), bool(one.are_best.all())) for one in scored]


def token_log_likelihoods(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    attention: str,
    pad_id: int = 0,
    batch_size: int = 16,
    excluded_ids: Sequence[int] = (),
) -> list[F64]:
    """As `score`, for each token of each continuation: arrays of the lengths of the continuations, in nats.

    excluded_ids: taken out of the distributions, as if the model knew that none of them comes next. One that stands in
        a continuation has -inf there.
    """
    scored = _scored(model, prompts, continuations, attention, pad_id, batch_size, list(excluded_ids))
    return [one.log_likelihoods for one in scored]


def _scored(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    attention: str,
    pad_id: int,
    batch_size: int,
    excluded_ids: Sequence[int] = (),
) -> list[_Scored]:
    check_attention(attention)
    _check_prompts(model, prompts, [len(rest) for rest in continuations])
    results = [_Scored(np.zeros(0), np.zeros(0, dtype=bool))] * len(prompts)
    lengths = [len(prompt) + len(rest) for prompt, rest in zip(prompts, continuations, strict=True)]
    order = sorted((n for n, rest in enumerate(continuations) if len(rest)), key=lambda n: -lengths[n])
    with evaluating(model), attending_by(model, dense_implementation(model)):
        for numbers in _batches(order, batch_size):
            packs = [_as_pack(prompts[n], continuations[n]) for n in numbers]
            batch = _batch_of(model, packs, attention, pad_id)
            for number, result in zip(numbers, _score_batch(model, batch, excluded_ids), strict=True):
                results[number] = result
    return results


def _as_pack(prompt: Sequence[int], continuation: Sequence[int]) -> BarePack:
    """One segment whose prefix is the prompt."""
    ids = np.array([*prompt, *continuation], dtype=np.int32)
    return BarePack(ids, np.array([len(ids)], dtype=np.int32), np.array([len(prompt)], dtype=np.int32))


def _score_batch(model: PreTrainedModel, batch: Batch, excluded_ids: Sequence[int]) -> list[_Scored]:
    hidden_BLD = hidden_states(model, batch)
    logits_NV = head_logits(model, choose_positions(hidden_BLD, batch.target_positions)).float()
    logits_NV[:, excluded_ids] = -torch.inf
    labels_N = batch.labels.flatten()[batch.target_positions]
    likelihood_N = logits_NV.log_softmax(-1).gather(-1, labels_N[:, None])[:, 0].double().cpu().numpy()
    is_best_N = (logits_NV.argmax(-1) == labels_N).cpu().numpy()
    row_N = (batch.target_positions // batch.labels.shape[1]).cpu().numpy()  # rows follow one another
    ends = np.searchsorted(row_N, np.arange(1, len(batch.labels)))
    return [_Scored(*both) for both in zip(np.split(likelihood_N, ends), np.split(is_best_N, ends), strict=True)]


def _batch_of(model: PreTrainedModel, packs: list[BarePack], attention: str, pad_id: int) -> Batch:
    """The batch of packs of one segment, as narrow as it can be."""
    decoder, width = None, max(len(pack.input_ids) for pack in packs)
    if is_encoder_decoder(model):
        prompts = [int(pack.prefix_lengths[0]) for pack in packs]
        most = max(len(pack.input_ids) - prompt for pack, prompt in zip(packs, prompts, strict=True))
        decoder, width = DecoderShape(most, decoder_start_id_of(model)), max(prompts)
    batch = collate(
        packs, max_length=width, pad_id=pad_id, attention=attention, loss_normalization="token", decoder=decoder
    )
    return batch.to(model.get_input_embeddings().weight.device)


def _check_prompts(model: PreTrainedModel, prompts: Sequence[Sequence[int]], more: Sequence[int]) -> None:
    """more: tokens after each prompt, which share its row unless they are a decoder's and the prompt its encoder's."""
    is_apart = is_encoder_decoder(model)
    needed = [max(len(p), new) if is_apart else len(p) + new for p, new in zip(prompts, more, strict=True)]
    check_length(model.config, max(needed, default=0))
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise FlanTuneError(f"prompt {number} is empty: {_EMPTY_FOR_ENCODER if is_apart else _EMPTY}")
        if limit is not None and needed[number] > limit:
            raise FlanTuneError(
                f"prompt {number} needs {len(prompt)} + {more[number]} positions, the model has {limit}. "
                "Shorten the prompt, or lower max_new_tokens."
            )


def _batches(items: list[T], batch_size: int) -> Iterator[list[T]]:
    for start in range(0, len(items), batch_size):
        yield items[start : start + batch_size]
