"""Golden files: what is rendered or ordered today, as text in tests/golden/, so that a changed space shows in a diff.

`make golden` (FLAN_TUNE_UPDATE_GOLDEN=1) rewrites them; say why in CHANGELOG.md, section Data.
"""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path(__file__).parent / "golden"


def assert_golden(name: str, text: str) -> None:
    """`text` is what tests/golden/`name`.txt holds."""
    path = FOLDER / f"{name}.txt"
    if os.environ.get("FLAN_TUNE_UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert path.exists(), f"{path} is missing: run `make golden` and look at what it wrote"
    assert text == path.read_text(encoding="utf-8"), f"{path} changed: run `make golden` if that is meant"
