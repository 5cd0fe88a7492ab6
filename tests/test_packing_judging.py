"""All rows are looked at once, by any processes, before a mixture is opened; later openings find the verdicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_packs import small_settings

from flan_tune.packing import judging as module
from flan_tune.packing.compile import open_stream
from flan_tune.packing.settings import PackSettings
from flan_tune.packing.stream import open_mixture, stream_fingerprint
from flan_tune.sources import row_filter
from flan_tune.sources.cache import CACHE_VARIABLE

CARD = """\
family: custom
tasks:
  - name: {name}
    shape: question_answer
    category: Sums
    languages: [English]
    source: {{file: {name}.jsonl, license: cc0-1.0}}
    keep: =number % 3 != 0
    adapt: {{question: "{{{{ question }}}}", answer: "{{{{ number | string }}}}"}}
    splits: {{train: train}}
check:
  - {{row: {{question: What?, number: 4}}, answer: "4"}}
"""
NAMES = [f"sums_{letter}" for letter in "abcde"]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackSettings:
    """A mixture of five tasks with 120 rows each, of which 80 can be used."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    cards = tmp_path / "cards"
    cards.mkdir()
    for name in NAMES:
        (cards / f"{name}.yaml").write_text(CARD.format(name=name))
        rows = [{"question": f"What is {n} and {n}?", "number": n} for n in range(120)]
        (cards / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "sums.yaml").write_text(f"members: [{{tasks: [{', '.join(NAMES)}]}}]\n")
    return small_settings(tmp_path, mixture=str(tmp_path / "sums.yaml"), task_paths=(str(cards),), special_tokens=None)


def judged(settings: PackSettings, num_proc: int, shard: tuple[int, int]) -> None:
    """As `prepare` has it done, with the parts of the fingerprint as they are now."""
    mixture, root = open_mixture(settings)
    parts = stream_fingerprint(mixture, data_root=root, task_paths=settings.task_paths)
    module.judge_rows(settings, parts, num_proc, shard, print)


def forbid_judging(monkeypatch: pytest.MonkeyPatch) -> None:
    def judged_again(*_: object) -> None:
        raise AssertionError("rows were judged again")

    monkeypatch.setattr(row_filter, "_judge", judged_again)


@pytest.mark.parametrize("shard", [(0, 1), (2, 3)])
def test_what_was_judged_is_not_judged_again(
    settings: PackSettings, monkeypatch: pytest.MonkeyPatch, shard: tuple[int, int]
) -> None:
    judged(settings, 1, shard)
    forbid_judging(monkeypatch)
    sizes = {entry.task.name: len(entry.presenter.rows) for entry in open_stream(settings).entries}
    assert sizes == dict.fromkeys(NAMES, 80)
    judged(settings, 1, shard)


def test_other_rows_are_judged(settings: PackSettings) -> None:
    judged(settings, 1, (0, 1))
    rows = Path(settings.task_paths[0]) / "sums_a.jsonl"
    rows.write_text(rows.read_text().replace('"number": 4}', '"number": 3}'))
    judged(settings, 1, (0, 1))
    entries = {entry.task.name: entry for entry in open_stream(settings).entries}
    assert len(entries["sums_a"].presenter.rows) == 79


@pytest.mark.slow
def test_other_processes_take_part_when_it_takes_long(
    settings: PackSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_ALONE_SECONDS", 0.0)
    monkeypatch.setattr(module, "_WORD_SECONDS", 0.0)
    judged(settings, 2, (0, 1))
    *_, last = capsys.readouterr().out.splitlines()
    assert last == "looking at all rows once: 5 of 5 tasks, 400 rows can be used so far"
    forbid_judging(monkeypatch)
    assert len(open_stream(settings).entries) == len(NAMES)


def test_where_nothing_can_be_kept_it_is_left_to_the_opening(
    settings: PackSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "file"))
    with monkeypatch.context() as patch:
        forbid_judging(patch)
        judged(settings, 1, (0, 1))
    assert len(open_stream(settings).entries) == len(NAMES)
