"""The fingerprint of packs: one hash over everything that decides their bytes, kept by part.

The trainer computes it from its recipe and refuses packs with another one; by its parts it can say what changed.
Computing it opens no rows: sources are known by the hashes of their files.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path

from flan_tune.packing.settings import PackSettings
from flan_tune.packing.store import STORE_FORMAT, read_vouched
from flan_tune.packing.stream import open_mixture, stream_fingerprint
from flan_tune.tasks import adapters

# Raised whenever the code draws, renders, cuts or packs the same data otherwise: then packs made before are not what
# today's code would make. The golden tests show when it has to be. 2: a task's rows come in the order of their epoch.
# 3: the whole registry's wordings and presentations, cheaper permutations and span masks, bins by groups.
# 4: a replaced row is shown by the presentation of its slot; long documents with CRLF are cut at their paragraphs.
STREAM_VERSION = 4

_OBJECTIVE = ("objective", "preset", "denoisers", "rates", "span_sampler", "cut_lengths", "mode_token")
_LENGTHS = ("max_length", "max_target_length", "window_examples", "too_long", "packing", "max_segments_per_pack")


def fingerprint_parts(settings: PackSettings, tokenizer_fingerprint: str) -> dict[str, str]:
    """Part name -> hash or plain value, for settings that can be opened.

    Raises: what loading the mixture or finding a source raises.
    """
    mixture, root = open_mixture(settings)
    return {
        **stream_fingerprint(mixture, data_root=root, task_paths=settings.task_paths),
        "adapter code": hashlib.sha256(inspect.getsource(adapters).encode()).hexdigest(),
        "tokenizer": tokenizer_fingerprint,
        "objective": json.dumps([getattr(settings, name) for name in _OBJECTIVE]),
        "lengths": json.dumps([getattr(settings, name) for name in _LENGTHS]),
        "separator": json.dumps(settings.separator),
        "data_seed": str(settings.data_seed),
        "store format": str(STORE_FORMAT),
        "stream version": str(STREAM_VERSION),
    }


def join_parts(parts: Mapping[str, str]) -> str:
    """The fingerprint: a hash over all parts."""
    return hashlib.sha256(json.dumps(dict(parts), sort_keys=True).encode()).hexdigest()


def changed_parts(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Names of the parts that differ."""
    return sorted(name for name in {*old, *new} if old.get(name) != new.get(name))


def read_parts(directory: Path) -> dict[str, str] | None:
    """The parts that the packs in `directory` were made from, or None where there are none."""
    for name, key in (("fingerprint.json", "parts"), ("manifest.json", "fingerprint_parts")):
        try:
            parts: dict[str, str] | None = read_vouched(directory / name).get(key)
        except ValueError:
            continue  # damaged; the other file says the same
        if parts is not None:
            return parts
    return None
