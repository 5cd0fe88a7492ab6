"""Fixtures for all tests: a small data root in every layout, and the real one where FLAN_TUNE_DATA names it.

The last line of a run says how many tests read real data: 'real-data tests: N run, M skipped (reason)'.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from command_line import FlanTune
from hypothesis import settings
from small_data import build

# The same examples in every run: what passed once passes again. FLAN_TUNE_EXPLORE=1 looks for new ones. No deadlines:
# a law does not fail because the machine is busy.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("explore", deadline=None)
settings.load_profile("explore" if os.environ.get("FLAN_TUNE_EXPLORE") else "fixed")

NO_MIRROR = "FLAN_TUNE_DATA is not set: the real data is not here"


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small data root of small_data.py, for reading. A test that changes files builds its own."""
    return build(tmp_path_factory.mktemp("data_root"))


@pytest.fixture
def mirror() -> Path:
    """The real data root. A test that asks for it is marked `mirror` and skipped where there is none."""
    root = os.environ.get("FLAN_TUNE_DATA")
    if not root:
        pytest.skip(NO_MIRROR)
    return Path(root)


@pytest.fixture
def flan_tune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> FlanTune:
    """The command line, without a data root, on a wide terminal."""
    monkeypatch.delenv("FLAN_TUNE_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    return FlanTune(monkeypatch, capsys)


def pytest_configure() -> None:
    """Started in the background, this process may ignore Ctrl-C, and so would every process a test starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Counts the tests marked `mirror`, on one process or many."""
    reports = [one for kind in ("passed", "failed", "skipped") for one in terminalreporter.stats.get(kind, [])]
    of_mirror = [one for one in reports if "mirror" in getattr(one, "keywords", {})]
    skipped = [one.longrepr[2].removeprefix("Skipped: ") for one in of_mirror if one.skipped]
    reason = f" ({'; '.join(dict.fromkeys(skipped))})" if skipped else ""
    terminalreporter.write_line(f"real-data tests: {len(of_mirror) - len(skipped)} run, {len(skipped)} skipped{reason}")
