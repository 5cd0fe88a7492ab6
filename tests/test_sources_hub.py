"""Hub sources through the real `datasets.load_dataset`, on a folder of files: no network is needed."""

from __future__ import annotations

from pathlib import Path

import datasets
import pytest
from small_data import SUMS, write

from flan_tune.errors import SourceError
from flan_tune.sources.hub import open_hub
from flan_tune.sources.rows import open_task
from flan_tune.tasks.shapes import SHAPES
from flan_tune.tasks.task import Source, Task


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder that `datasets` reads as a dataset with the splits train and test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    write(tmp_path / "toy" / "train.jsonl", SUMS[:7])
    write(tmp_path / "toy" / "test.jsonl", SUMS[7:])
    return str(tmp_path / "toy")


def test_rows_come_by_number(dataset: str) -> None:
    rows = open_hub(dataset, None, "train", None)
    assert [rows[number] for number in range(len(rows))] == list(SUMS[:7])
    assert len(open_hub(dataset, "default", "test", None)) == 3


def test_a_task_without_a_data_root_reads_the_hub(dataset: str) -> None:
    adapt = {"question": "{{ question }}", "answer": "{{ answer }}"}
    source = Source("hub", dataset, "mit")
    task = Task("sums", "cot", SHAPES["question_answer"], source, "sums", adapt=adapt, where="x:1", reserve=2)
    assert [open_task(task, "validation", None).fields(n)["answer"] for n in (0, 1)] == ["10", "12"]
    assert len(open_task(task, "train", None)) == 5


@pytest.mark.parametrize(
    ("config", "split", "reason"),
    [
        (None, "dev", "Unknown split \"dev\". Should be one of ['train', 'test']."),
        ("other", "train", "BuilderConfig 'other' not found. Available: ['default']."),
    ],
)
def test_what_is_not_there_is_said_with_what_is(dataset: str, config: str | None, split: str, reason: str) -> None:
    with pytest.raises(SourceError) as caught:
        open_hub(dataset, config, split, None)
    assert str(caught.value) == (
        f"{dataset!r} (config {config!r}, split {split!r}) cannot be loaded from the hub: {reason} "
        "Without a network set FLAN_TUNE_DATA to a data root that holds it."
    )


def test_a_dataset_that_is_not_there_is_an_error_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot be loaded from the hub: .* Without a network set FLAN_TUNE_DATA"):
        open_hub(str(tmp_path / "nothing"), None, "train", None)


def test_the_fingerprint_follows_what_is_read(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train, test = (open_hub(dataset, None, split, None).fingerprint for split in ("train", "test"))
    assert train != test
    assert open_hub(dataset, None, "train", None).fingerprint == train
    write(Path(dataset) / "train.jsonl", [*SUMS[:6], {"question": "changed", "answer": "row"}])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache 2")
    assert open_hub(dataset, None, "train", None).fingerprint != train
