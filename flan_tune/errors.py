"""Every error flan_tune raises on purpose, as one tree.

    FlanTuneError            a message for a person: what is wrong, where, what to do
      CardError              a card, template or index file is wrong    (author of the card)
      RecipeError            a recipe, mixture or pipeline is wrong     (author of the run)
      SourceError            rows cannot be opened                      (the data root)
      RowError               a row breaks the contract of its shape     (the data)
      StreamError            packs, resume or sharding do not fit       (us, or a changed mixture)
      CheckpointError        a checkpoint or export cannot be trusted
      ScoreError             an answer could not be read, a suite is incomplete

Commands print the message and exit with code 1; anything else that escapes is a bug and shows its traceback.
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable

EXIT_WRONG_INPUT = 1
EXIT_WRONG_USAGE = 2
EXIT_REQUEUE = 75


class FlanTuneError(Exception):
    """One or more faults, each a full sentence: where it is, what was found, what to do.

    >>> print(CardError("a.yaml:3: unknown key 'metric'.", "a.yaml:9: no answer."))
    a.yaml:3: unknown key 'metric'.
    a.yaml:9: no answer.
    """

    def __init__(self, *faults: str) -> None:
        super().__init__(*faults)
        self.faults: tuple[str, ...] = faults

    def __str__(self) -> str:
        return "\n".join(self.faults)


class CardError(FlanTuneError):
    """A card, template or index file is wrong."""


class RecipeError(FlanTuneError):
    """A recipe, mixture or pipeline is wrong."""


class SourceError(FlanTuneError):
    """Rows cannot be opened."""


class RowError(FlanTuneError):
    """A row breaks the contract of its shape. `reason` is the short name drops are counted under."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[RowError], tuple[str, str]]:
        return type(self), (self.reason, self.detail)  # from its args alone the sentence would become the reason


class StreamError(FlanTuneError):
    """Packs, resume or sharding do not fit together."""


class CheckpointError(FlanTuneError):
    """A checkpoint or export cannot be trusted."""


class ScoreError(FlanTuneError):
    """An answer could not be read, or a suite is incomplete."""


def disk_fault(error: OSError) -> str | None:
    """What to tell a user whose disk is full (or whose quota is), or who may not read or write a place; None for any
    other error.

    >>> disk_fault(PermissionError(errno.EACCES, "Permission denied", "runs/packs"))
    'runs/packs: Permission denied. Choose another place in the recipe or the command, or get access to this one.'
    """
    place = error.filename or "writing"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{place}: {error.strerror}. Free some space and run the command again; finished work is kept."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and error.filename:
        what = "Choose another place in the recipe or the command, or get access to this one."
        return f"{place}: {error.strerror}. {what}"
    return None


def did_you_mean(name: str, candidates: Iterable[str]) -> str:
    """A sentence with up to three near names, or an empty string.

    >>> did_you_mean("gsm8", ["gsm8k", "rte"])
    " Did you mean 'gsm8k'?"
    """
    near = difflib.get_close_matches(name, list(candidates), n=3, cutoff=0.6)
    if not near:
        return ""
    return f" Did you mean {' or '.join(repr(n) for n in near)}?"
