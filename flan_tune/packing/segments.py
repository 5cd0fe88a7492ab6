"""From examples to segments: tokens, what happens to examples that are too long, and the objective.

An example over the budget loses exemplars first (down to zero-shot), then tokens of its inputs from the left or
the whole example, as the recipe says. Targets are never cut. Everything lost is counted. A decoder has one budget for
inputs and targets together, an encoder-decoder has one for either.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import numpy as np

from flan_tune.objectives.causal import causal, cut_causal
from flan_tune.objectives.mixture_of_denoisers import MixtureOfDenoisers
from flan_tune.objectives.segment import Ids, Layout, Segment
from flan_tune.packing.losses import TARGET_TOO_LONG, TOO_LONG, TOO_SHORT
from flan_tune.prompts.present import Example
from flan_tune.rng import key
from flan_tune.tokens.tokenizer import Tokenizer

Cuts = Literal["nothing", "text", "everything"]


@dataclass
class SegmentCounts:
    """What was lost on the way from examples to segments.

    drops, shortened: per task and reason; what was shortened is still there, with fewer shots or tokens.
    """

    drops: dict[str, Counter[str]] = field(default_factory=dict)
    shortened: dict[str, Counter[str]] = field(default_factory=dict)
    shots_dropped: int = 0
    truncated_examples: int = 0
    truncated_tokens: int = 0
    skipped_tokens: int = 0
    sentinel_collisions: int = 0  # tokens of text that are sentinels too, where sub-words are reused as such

    def drop(self, task: str, reason: str) -> None:
        self.drops.setdefault(task, Counter())[reason] += 1

    def drop_shots(self, task: str, number: int) -> None:
        self.shots_dropped += number
        self.shortened.setdefault(task, Counter())["shots dropped"] += number

    def truncate(self, task: str, tokens: int) -> None:
        self.truncated_examples += 1
        self.truncated_tokens += tokens
        self.shortened.setdefault(task, Counter())["inputs truncated"] += 1


class Encoded(NamedTuple):
    """An example as tokens: inputs (separator included) and targets."""

    example: Example
    inputs: Ids
    targets: Ids


@dataclass
class _Search:
    """How many shots of an example fit: `least` do (or there are none), `most` do not. `best` has `least` of them."""

    whole: Encoded
    most: int
    least: int = 0
    best: Encoded | None = None


class Encoder:
    """Encodes examples and makes them fit `max_length`, with BOS, EOS and a mode token.

    separator: text put between inputs and targets, or 'eos' for the end-of-sequence token.
    cuts: which examples the objective cuts, so that they need not fit: 'text' is those without inputs.
    max_target_length: of an encoder-decoder; `max_length` is then that of its inputs.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        separator: str,
        too_long: str,
        cuts: Cuts = "text",
        has_mode_token: bool = False,
        max_target_length: int | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.separator = separator
        self.too_long = too_long
        self.cuts = cuts
        self.max_target_length = max_target_length
        # What inputs may take, together with the targets of a decoder.
        self.room = max_length - 1 - (tokenizer.bos_id is not None) - has_mode_token

    def encode(self, examples: Sequence[Example], counts: SegmentCounts) -> list[Encoded]:
        """Every example that fits, in order; the others are counted as dropped."""
        encoded = self._encode(examples)
        shortened = self._with_fewer_shots([one for one in encoded if one.example.shots and not self._fits(one)])
        fitting: list[Encoded] = []
        for one in encoded:
            kept = self._shorten(one, shortened.get(id(one), one), counts)
            if kept is not None:
                fitting.append(kept)
        return fitting

    def _encode(self, examples: Sequence[Example]) -> list[Encoded]:
        texts = [example.text() for example in examples]
        joint = "" if self.separator == "eos" else self.separator
        shown = [inputs + joint if inputs else "" for inputs, _ in texts]
        ids = self.tokenizer.encode_batch(shown + [answer for _, answer in texts])
        inputs, targets = ids[: len(texts)], ids[len(texts) :]
        if self.separator == "eos":
            end = np.array([self.tokenizer.eos_id], dtype=np.int32)
            inputs = [np.concatenate([one, end]) if len(one) else one for one in inputs]
        return list(map(Encoded, examples, inputs, targets))

    def _fits(self, one: Encoded) -> bool:
        if self.cuts == "everything" or (self.cuts == "text" and not len(one.inputs)):
            return True
        return len(one.inputs) <= self._room_of_inputs(one)

    def _room_of_inputs(self, one: Encoded) -> int:
        """How many tokens the inputs may have beside these targets; below 0 where the targets alone are too long."""
        if self.max_target_length is None:
            return self.room - len(one.targets)
        return self.room if len(one.targets) < self.max_target_length else -1  # EOS takes one

    def _with_fewer_shots(self, too_long: Sequence[Encoded]) -> dict[int, Encoded]:
        """Each example with the most shots that fit, or with none; by the identity of what was too long.

        Exemplars only make an example longer: the number is found by halving, for all examples at once.
        """
        searches = [_Search(one, most=one.example.shots) for one in too_long]
        open_ = searches
        while open_:
            shots = [(search.least + search.most) // 2 for search in open_]
            trials = self._encode([s.whole.example.with_shots(n) for s, n in zip(open_, shots, strict=True)])
            for search, number, trial in zip(open_, shots, trials, strict=True):
                if number == 0 or self._fits(trial):
                    search.least, search.best = number, trial
                else:
                    search.most = number
            open_ = [search for search in open_ if search.best is None or search.most - search.least > 1]
        return {id(search.whole): search.best for search in searches if search.best is not None}

    def _shorten(self, whole: Encoded, one: Encoded, counts: SegmentCounts) -> Encoded | None:
        """`one` is `whole` with as many shots as fit. What is still too long loses tokens of its inputs."""
        if one is whole and self._fits(one):
            return one
        if one.example.shots < whole.example.shots:
            counts.drop_shots(one.example.task, whole.example.shots - one.example.shots)
        room = self._room_of_inputs(one)
        over = len(one.inputs) - room
        if over <= 0:
            return one
        if room <= 0:
            counts.drop(one.example.task, TARGET_TOO_LONG)
            return None
        if self.too_long == "drop":
            counts.drop(one.example.task, TOO_LONG)
            return None
        counts.truncate(one.example.task, over)
        return Encoded(one.example, one.inputs[over:], one.targets)


class Objective(Protocol):
    """Encoded examples to segments, in order; an example may give several (cuts) or none."""

    def segments(self, encoded: Sequence[Encoded], counts: SegmentCounts) -> list[list[Segment]]: ...


@dataclass(frozen=True)
class Supervised:
    """Targets only. mode_id: a mode token that begins every input, or None."""

    tokenizer: Tokenizer
    mode_id: int | None = None
    layout: Layout = "decoder_only"

    def segments(self, encoded: Sequence[Encoded], counts: SegmentCounts) -> list[list[Segment]]:
        """The segments that `supervised` makes one by one, put together at once, which takes a third of the time."""
        before = _one_each(self.tokenizer.bos_id, self.mode_id)
        end = _one_each(self.tokenizer.eos_id)
        between = end if self.layout == "encoder_decoder" else _one_each()
        parts: list[Ids] = []
        for one in encoded:
            if len(one.targets):
                parts += (before, one.inputs, between, one.targets, end)
            else:
                counts.drop(one.example.task, "empty target")
        flat = np.concatenate([_one_each(), *parts]).astype(np.int32, copy=False)
        made: list[list[Segment]] = []
        begin = 0
        for one in encoded:
            if not len(one.targets):
                made.append([])
                continue
            prefix = len(before) + len(one.inputs) + len(between)
            stop = begin + prefix + len(one.targets) + 1
            made.append([Segment(flat[begin:stop], prefix, "supervised", layout=self.layout)])
            begin = stop
        return made


def _one_each(*ids: int | None) -> Ids:
    return np.array([one for one in ids if one is not None], dtype=np.int32)


@dataclass(frozen=True)
class Causal:
    """Every token, inputs too. Plain text is cut left to right; a prompt with its answer is never split."""

    tokenizer: Tokenizer
    max_length: int

    def segments(self, encoded: Sequence[Encoded], counts: SegmentCounts) -> list[list[Segment]]:
        bos, eos = self.tokenizer.bos_id, self.tokenizer.eos_id
        made: list[list[Segment]] = []
        for one in encoded:
            tokens = np.concatenate([one.inputs, one.targets])
            if not len(tokens):
                counts.drop(one.example.task, "empty text")
                made.append([])
            elif len(one.inputs):
                made.append([causal(tokens, bos_id=bos, eos_id=eos)])
            else:
                made.append(cut_causal(tokens, self.max_length, bos, eos))
        return made


@dataclass(frozen=True)
class Denoising:
    """UL2R: the whole text of an example, denoised cut by cut."""

    mixture: MixtureOfDenoisers
    seed: int

    def segments(self, encoded: Sequence[Encoded], counts: SegmentCounts) -> list[list[Segment]]:
        pieces = [np.concatenate([one.inputs, one.targets]) for one in encoded]
        keys = [key(self.seed, "denoising", o.example.task, o.example.epoch, o.example.row) for o in encoded]
        counts.sentinel_collisions += self.mixture.collisions(pieces)
        made: list[list[Segment]] = []
        for one, (segments, skipped) in zip(encoded, self.mixture.segments_batch(pieces, keys), strict=True):
            counts.skipped_tokens += skipped
            if not segments:
                counts.drop(one.example.task, TOO_SHORT)
            made.append(segments)
        return made
