"""`flan-tune verify`: does this model, on this machine, train on these packs as it should?

    back-end          which attention runs, and why no better one
    leak probe        perturbed tokens move the logits they may move, and no others
    plain row         a causal row as the model's own code computes it, longer than its shortest window
    packed = alone    losses and gradients of a pack and of its segments, each in a row of its own
    accumulation      losses and gradients of one step, whatever processes, micro-steps and packs at once
    mask audit        the masks that the back-end is given for one pack, against brute force; drawn. An
                      encoder-decoder has three: in the encoder, in the decoder, and from the decoder to the encoder

All of it runs on the real model and packs in one process; torch is imported when it begins. What is measured, and how,
is in models/subject.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from flan_tune.errors import FlanTuneError

if TYPE_CHECKING:
    from flan_tune.models.subject import Subject
    from flan_tune.packing.store import Pack, PackReader
    from flan_tune.recipe import Recipe
    from flan_tune.tokens.tokenizer import Tokenizer

Bools = npt.NDArray[np.bool_]

PACKS_OF_A_STEP = 4
_LOOKED_AT = 32  # packs, for one with many segments
CELLS = 36  # rows and columns of a drawn mask
CROSS = "cross"  # the mask between two rows of tokens, as models/subject.py names it


@dataclass(frozen=True)
class Check:
    """One line of the table. `found` says what was measured, or what is wrong."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True)
class Drawn:
    """One mask, as it is drawn.

    name: what it is for. pairs: of query and key that may meet; share: of all pairs of the row.
    kept: CELLS x CELLS shares of the pairs of each cell that may meet; ahead: whether some look to a later token.
    """

    name: str
    pairs: int
    share: float
    kept: list[list[float]]
    ahead: list[list[bool]]


@dataclass(frozen=True)
class Audit:
    """One pack's masks as the back-end got them: of a decoder that of the layers that see farthest, else all three.

    max_target_length: of an encoder-decoder, else None; `max_length` is then its encoder's.
    segments: (tokens, prefix tokens), in order; padding is not among them.
    """

    pack: int
    tokens: int
    max_length: int
    max_target_length: int | None
    segments: list[tuple[int, int]]
    drawn: list[Drawn]


@dataclass
class Verification:
    """All checks of a recipe, in the order of the module's table."""

    checks: list[Check] = field(default_factory=list)
    audit: Audit | None = None

    @property
    def passed(self) -> bool:
        """Whether every check passed."""
        return all(check.passed for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        audit = None if self.audit is None else asdict(self.audit)
        return {"passed": self.passed, "checks": [asdict(check) for check in self.checks], "audit": audit}


def verify(recipe: Recipe, tokenizer: Tokenizer, packs: PackReader, pack_number: int | None = None) -> Verification:
    """Every check; a check that cannot run fails with the reason, and the others run all the same.

    pack_number: of the pack that is audited and drawn, and of the first of those that are compared; None takes one with
        many segments. The one with the most of them is compared with its segments alone.
    Raises: RecipeError if the model cannot be made; StreamError if there is no such pack.
    """
    if pack_number is None:
        pack_number = int(np.argmax(packs.num_segments[:_LOOKED_AT]))
    numbers = [
        pack_number,
        *((pack_number + n) % packs.num_packs for n in range(1, min(PACKS_OF_A_STEP, packs.num_packs))),
    ]
    chosen = [packs.pack(number) for number in numbers]
    crowded = max(chosen, key=lambda pack: len(pack.segment_lengths))  # a segment alone in its pack proves nothing
    subject = _subject(recipe, tokenizer)
    found = Verification()
    name: str
    check: Callable[[], tuple[bool, str]]
    for name, check in (
        ("back-end", subject.back_end),
        ("leak probe", subject.leak_probe),
        ("plain row", subject.plain_row),
        ("packed = alone", lambda: subject.packed_against_alone([crowded])),
        ("accumulation", lambda: subject.accumulation(chosen)),
        ("mask audit", lambda: subject.mask_audit(chosen[0])),
    ):
        try:
            passed, text = check()
        except FlanTuneError as error:
            passed, text = False, str(error)
        except Exception as error:
            if found.passed:
                raise
            passed, text = False, f"{type(error).__name__}: {error}"  # of a model that failed before
        found.checks.append(Check(name, passed, text))
    found.audit = _audit(subject, chosen[0], pack_number)
    return found


def _subject(recipe: Recipe, tokenizer: Tokenizer) -> Subject:
    from flan_tune.models.subject import Subject

    model = recipe.model
    return Subject(
        model.config if model.config is not None else str(model.model_name_or_path),
        revision=model.model_revision,
        vocab_size=tokenizer.vocab_size,
        seed=recipe.training.seed,
        attention=model.attention,
        attn_implementation=model.attn_implementation,
        dropout=model.dropout,
        bf16=recipe.training.bf16,
        z_loss=recipe.objective.z_loss,
        max_length=recipe.data.max_length,
        max_target_length=recipe.data.max_target_length,
        pad_id=tokenizer.pad_id,
    )


def _audit(subject: Subject, pack: Pack, number: int) -> Audit:
    masks = {name: mask.numpy() for name, mask in subject.masks(pack).items()}
    if subject.decoder is None:
        farthest = max(masks, key=lambda name: int(masks[name].sum()))
        masks = {farthest: masks[farthest]}
    segments = list(zip(pack.segment_lengths.tolist(), pack.prefix_lengths.tolist(), strict=True))
    most = None if subject.decoder is None else subject.decoder.max_target_length
    drawn = [_drawn(name, visible) for name, visible in masks.items()]
    return Audit(number, len(pack.input_ids), subject.max_length, most, segments, drawn)


def _drawn(name: str, visible: Bools) -> Drawn:
    # Between two rows of tokens none is later than another.
    ahead = np.zeros_like(visible) if name == CROSS else np.triu(visible, 1)
    edges = [np.linspace(0, size, min(CELLS, size) + 1).astype(int) for size in visible.shape]
    sizes = np.outer(*map(np.diff, edges))
    kept = _sums(visible, edges) / sizes
    pairs = int(visible.sum())
    return Drawn(name, pairs, pairs / visible.size, kept.tolist(), (_sums(ahead, edges) > 0).tolist())


def _sums(pairs: Bools, edges: Sequence[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    by_row = np.add.reduceat(pairs.astype(np.int64), edges[0][:-1], axis=0)
    return np.add.reduceat(by_row, edges[1][:-1], axis=1)
