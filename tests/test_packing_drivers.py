"""Who makes packs: processes, shards of a job array, Ray. Always the same bytes, and never more memory."""

from __future__ import annotations

import doctest
import gc
import json
import random
import shutil
import sys
import time
import tracemalloc
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pack_folders import contents, long_recipe, shared, start_prepare
from small_packs import edit, small_recipe, small_settings

from flan_tune.cli import progress
from flan_tune.cli.main import main
from flan_tune.errors import RecipeError
from flan_tune.packing import compile as compiling
from flan_tune.packing.prepare import prepare
from flan_tune.packing.settings import PackSettings
from flan_tune.packing.store import PackReader, finished_windows, open_packs, read_json
from flan_tune.packing.work import in_processes, on_ray
from flan_tune.tokens import words


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture, a tokenizer and sealed packs of five windows, which no test changes."""
    made = tmp_path_factory.mktemp("sealed")
    prepare(small_settings(made, num_packs=140))
    return made


@pytest.fixture(scope="module")
def packs(folder: Path) -> PackReader:
    return open_packs(folder / "packs")


# The same bytes however they are made


def test_asking_for_more_packs_keeps_the_finished_windows(tmp_path: Path, folder: Path, packs: PackReader) -> None:
    few = prepare(shared(folder, tmp_path, num_packs=30))
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.arrow")}
    more = prepare(shared(folder, tmp_path))
    assert few["fingerprint"] == more["fingerprint"]
    assert len(few["windows"]) < len(more["windows"])
    assert all((tmp_path / name).stat().st_mtime_ns == made for name, made in times.items())
    assert contents(tmp_path) == contents(packs.directory)


def test_missing_windows_alone_are_remade(tmp_path: Path, folder: Path, packs: PackReader) -> None:
    settings, made = shared(folder, tmp_path), []
    prepare(settings)
    (tmp_path / "window-00001.arrow").unlink()
    (tmp_path / "window-00003.json").unlink()
    prepare(settings, progress=lambda summary, done, planned: made.append((summary["window"], done, planned)))
    assert made == [(1, 4, 5), (3, 5, 5)]
    assert contents(tmp_path) == contents(packs.directory)


def test_progress_knows_the_plan_from_the_first_window_on(tmp_path: Path, folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    prepare(shared(folder, tmp_path), progress=lambda _, done, planned: seen.append((done, planned)))
    assert seen == [(number, 5) for number in range(1, 6)]


def test_enough_windows_are_made_for_the_packs_asked_for(tmp_path: Path, folder: Path) -> None:
    for wanted in (1, 31, 32, 33, 100):
        manifest = prepare(shared(folder, tmp_path, num_packs=wanted))
        assert manifest["packs"] >= wanted
        plan = json.loads((tmp_path / "plan.json").read_text())
        assert plan["windows"] == len(manifest["windows"])


@pytest.mark.slow
def test_two_processes_write_the_bytes_of_one(tmp_path: Path, folder: Path, packs: PackReader) -> None:
    prepare(shared(folder, tmp_path), num_proc=2)
    assert contents(tmp_path) == contents(packs.directory)


SLOW = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@SLOW
@given(count=st.integers(2, 6), draws=st.randoms(use_true_random=False))
def test_any_shards_in_any_order_write_the_bytes_of_one_run(
    tmp_path_factory: pytest.TempPathFactory, folder: Path, packs: PackReader, count: int, draws: random.Random
) -> None:
    directory = tmp_path_factory.mktemp("shards")
    order = draws.sample(range(count), count)
    lines: list[str] = []
    sealed = [prepare(shared(folder, directory), shard=(index, count), say=lines.append) for index in order]
    last_with_work = max(place for place, index in enumerate(order) if index < 5)
    assert [manifest is not None for manifest in sealed] == [place >= last_with_work for place in range(count)]
    assert contents(directory) == contents(packs.directory)
    assert len(lines) == last_with_work
    assert all("not sealed yet; windows that belong to other shards are missing: " in line for line in lines)


def test_a_shard_makes_its_own_windows_and_window_0(tmp_path: Path, folder: Path) -> None:
    seen: list[tuple[int, int, int]] = []
    assert (
        prepare(shared(folder, tmp_path), shard=(2, 3), progress=lambda s, *n: seen.append((s["window"], *n))) is None
    )
    assert list(finished_windows(tmp_path)) == [0, 2]
    assert seen == [(2, 1, 1)]
    assert prepare(shared(folder, tmp_path), shard=(2, 3)) is None, "windows of others are never made"
    assert list(finished_windows(tmp_path)) == [0, 2]
    assert not (tmp_path / "manifest.json").exists()
    assert prepare(shared(folder, tmp_path)) is not None, "a run without a shard makes what is missing"


@pytest.mark.slow
def test_shards_at_the_same_time(tmp_path: Path) -> None:
    """Three at once: each trains the tokenizer the recipe asks for, one folder of it is kept, and the last seals."""
    recipe = small_recipe(tmp_path)
    shutil.rmtree(tmp_path / "tokenizer")
    edit(recipe, "tokenizer}", "tokenizer, train: {vocab_size: 400, num_examples: 200}}")
    running = [start_prepare(recipe, "--shard", f"{i}/3", "data.num_packs=140", "--json") for i in range(3)]
    log = recipe.with_suffix(".log")
    assert [process.wait(100) for process in running] == [0, 0, 0], log.read_text()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(lines) == 3
    assert len({line["fingerprint"] for line in lines}) == 1
    assert any(line["content_hash"] for line in lines)
    assert not list(tmp_path.glob(".tokenizer*"))
    assert start_prepare(recipe, "data.num_packs=140", "--packs", str(tmp_path / "alone")).wait(60) == 0
    assert contents(tmp_path / "run" / "packs") == contents(tmp_path / "alone")


def test_json_is_one_line_with_null_for_what_is_not_known_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, lines = small_recipe(tmp_path), []
    for shard in ("0/2", "1/2"):
        monkeypatch.setattr(sys, "argv", ["flan-tune", "prepare", str(recipe), "--shard", shard, "--json"])
        with pytest.raises(SystemExit) as ending:
            main()
        assert not ending.value.code
        (line,) = capsys.readouterr().out.splitlines()
        lines.append(json.loads(line))
    keys = ["fingerprint", "content_hash", "packs", "windows", "fill", "tokens", "target_tokens", "examples", "seconds"]
    assert [list(line) for line in lines] == [keys, keys]
    manifest = read_json(tmp_path / "run" / "packs" / "manifest.json")
    assert lines[0] == dict.fromkeys(keys) | {"fingerprint": manifest["fingerprint"], "seconds": lines[0]["seconds"]}
    wanted = {name: manifest[name] for name in keys} | {"windows": 2, "seconds": lines[1]["seconds"]}
    assert lines[1] == wanted


@pytest.mark.parametrize("shard", ["2/2", "0", "a/2", "-1/2", "0/0", "1/2/3"])
def test_a_shard_that_cannot_be_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, shard: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["flan-tune", "prepare", "recipe.yaml", "--shard", shard])
    with pytest.raises(SystemExit) as ending:
        main()
    assert ending.value.code == 2
    assert "is not I/N with I from 0 to N - 1" in capsys.readouterr().err


def test_packs_that_are_sealed_are_never_made_fewer(tmp_path: Path, folder: Path, packs: PackReader) -> None:
    prepare(shared(folder, tmp_path))
    before, lines = (tmp_path / "manifest.json").read_bytes(), []
    manifest = prepare(shared(folder, tmp_path, num_packs=20), say=lines.append)
    assert manifest["packs"] >= 140
    assert lines == [f"{tmp_path}: sealed for 140 packs, more than the 20 of this recipe; all of them are kept."]
    assert (tmp_path / "manifest.json").read_bytes() == before
    (tmp_path / "window-00004.json").unlink()
    prepare(shared(folder, tmp_path, num_packs=20))
    assert contents(tmp_path) == contents(packs.directory)


def test_packs_that_are_there_are_not_looked_into_again(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepare(shared(folder, tmp_path))
    monkeypatch.setattr(compiling, "open_stream", None)  # opening all sources may take long
    again = prepare(shared(folder, tmp_path))
    assert again["content_hash"] == made["content_hash"]


def memory(settings: PackSettings) -> tuple[int, int, int]:
    """(windows, bytes held after the last of them, most bytes held after that) of a run that makes packs and seals."""
    held = 0

    def look(*_: Any) -> None:
        nonlocal held
        gc.collect()
        tracemalloc.reset_peak()
        held = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes()

    tracemalloc.start()
    try:
        manifest = prepare(settings, progress=look)
        return len(manifest["windows"]), held, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_windows(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty windows: of a finished one only its hash and its number of packs are kept, and sealing takes no more."""
    monkeypatch.setattr(words, "_MOST_WORDS", 1)  # the words seen are kept up to a bound of their own
    first = prepare(shared(folder, tmp_path, num_packs=1, window_examples=40))["packs"]
    few, many = (memory(shared(folder, tmp_path, num_packs=n * first, window_examples=40)) for n in (10, 49))
    assert (few[0], many[0]) == (11, 50)
    held, at_most = ((many[n] - few[n]) / (many[0] - few[0]) for n in (1, 2))
    summary = (tmp_path / "window-00001.json").stat().st_size
    assert held < 1000 < summary
    assert at_most < 2 * summary, "while the manifest is made and written, a few hundred bytes a window"


class Taken(list[int]):
    """Numbers that count how many of them have been taken."""

    taken = 0

    def __iter__(self) -> Iterator[int]:
        for number in super().__iter__():
            self.taken += 1
            yield number


@pytest.mark.slow
def test_pieces_are_handed_out_a_few_at_a_time() -> None:
    numbers, done, made_here = Taken(range(30)), [], []

    def here(number: int) -> int:
        time.sleep(0.2)
        made_here.append(number)
        return 2**number

    for result in in_processes(partial(partial, pow, 2), numbers, 2, here=here, if_killed=""):
        done.append(result)
        assert numbers.taken - len(done) <= 2
    assert sorted(done) == [2**number for number in range(30)]
    assert made_here[0] == 2  # the first are for the other process, which takes a while to begin
    assert len(made_here) < 30


def test_progress_says_how_fast_the_last_windows_were(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    tell = progress.Progress()
    clock[0] += 600  # opening the sources
    for window in range(40):
        clock[0] += 5
        summary = {"window": window, "packs": 9, "examples": 100, "tokens": 2000}
        tell(summary | {"examples_by_family": {"muffin": 60, "cot": 40}}, window + 1, 50)
    first, *_, last = capsys.readouterr().out.splitlines()
    assert first == "window 0: 9 packs; 1/50 windows, 0 rows/s, 3 tokens/s, ETA 8:14:05; cot 40, muffin 60"
    assert last == ("window 39: 9 packs; 40/50 windows, 20 rows/s, 400 tokens/s, ETA 0:00:50; cot 1,600, muffin 2,400")
    assert doctest.testmod(progress).failed == 0


# Ray


def test_without_ray_the_message_says_what_to_do(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        RecipeError, match=r"Ray is not installed here\. Install it with `pip install 'flan_tune\[ray\]'"
    ):
        prepare(shared(folder, tmp_path), engine="ray")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def without_ray_address(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (extra `ray`)")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("without_ray_address")
def test_two_ray_workers_write_the_bytes_of_one_run(tmp_path: Path, folder: Path, packs: PackReader) -> None:
    import ray

    prepare(shared(folder, tmp_path / "packs"), engine="ray", num_proc=2)
    assert contents(tmp_path / "packs") == contents(packs.directory)
    assert not ray.is_initialized()
    wrong = partial(compiling.open_work, shared(folder, tmp_path, mixture="none.yaml"), "")
    with pytest.raises(RecipeError, match=r"none\.yaml"):
        list(on_ray(wrong, [1, 2], 2, if_killed=""))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("without_ray_address")
def test_a_ray_cluster_that_is_there_is_used(
    tmp_path: Path, folder: Path, packs: PackReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    address = ray.init(address="local", num_cpus=2, include_dashboard=False).address_info["gcs_address"]
    try:
        monkeypatch.setenv("RAY_ADDRESS", address)
        recipe = long_recipe(folder, tmp_path / "on_ray")
        assert start_prepare(recipe, "--engine", "ray").wait(100) == 0, recipe.with_suffix(".log").read_text()
        prepare(shared(folder, tmp_path / "packs"), engine="ray")
        assert ray.is_initialized(), "it is not ours to shut down"
    finally:
        ray.shutdown()
    assert contents(tmp_path / "packs") == contents(packs.directory)
    assert start_prepare(long_recipe(folder, tmp_path / "alone")).wait(60) == 0
    assert contents(tmp_path / "on_ray") == contents(tmp_path / "alone")
