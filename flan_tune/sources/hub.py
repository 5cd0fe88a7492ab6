"""Rows from the Hugging Face hub, by `datasets.load_dataset`. A local folder path works as a dataset name too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from flan_tune.errors import SourceError


class HubRows:
    """Rows of a loaded dataset, by number."""

    def __init__(self, dataset: Any, label: str) -> None:
        self._dataset = dataset
        ends = [dataset[0], dataset[len(dataset) - 1]] if len(dataset) else []
        content = json.dumps([label, len(dataset), ends], default=str, sort_keys=True)
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        row: dict[str, Any] = self._dataset[number]
        return row


def open_hub(name: str, config: str | None, split: str, revision: str | None) -> HubRows:
    """The rows of one split of a hub dataset, downloaded and cached by `datasets`.

    Its fingerprint covers the id, revision, length and the first and last row.
    Raises: SourceError with the reason `datasets` gives, and what to do without a network.
    """
    import datasets

    try:
        dataset = datasets.load_dataset(name, config, split=split, revision=revision)
    except Exception as error:  # datasets raises many kinds, from requests, hub and its own
        first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise SourceError(
            f"{name!r} (config {config!r}, split {split!r}) cannot be loaded from the hub: {first}. "
            "Without a network set FLAN_TUNE_DATA to a data root that holds it."
        ) from None
    return HubRows(dataset, f"{name} {config} {split} {revision}")
