"""What may happen to `prepare`: killed at any moment, interrupted, several at once; packs that are damaged later."""

from __future__ import annotations

import errno
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pack_folders import contents, long_recipe, shared, start_prepare, wait_for
from small_packs import small_settings

from flan_tune.errors import StreamError, disk_fault
from flan_tune.packing import compile as compiling
from flan_tune.packing import store
from flan_tune.packing.prepare import prepare
from flan_tune.packing.settings import PackSettings
from flan_tune.packing.store import PackReader, finished_windows, open_packs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture, a tokenizer and sealed packs of five windows, which no test changes."""
    made = tmp_path_factory.mktemp("sealed")
    prepare(small_settings(made, num_packs=140))
    return made


@pytest.fixture(scope="module")
def packs(folder: Path) -> PackReader:
    return open_packs(folder / "packs")


SLOW = settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


# Killed, interrupted, at the same time


def workers_of(process: subprocess.Popen[bytes]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.slow
def test_a_killed_prepare_goes_on_to_the_same_packs(tmp_path: Path, folder: Path) -> None:
    """Killed with two others at work: they end too; no half window counts; the rest is made by the next run."""
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert start_prepare(long_recipe(folder, undisturbed)).wait(60) == 0
    process = start_prepare(long_recipe(folder, killed), "--num-proc", "3")
    wait_for(lambda: (killed / "window-00002.json").exists() and len(workers_of(process)) == 2)
    workers = workers_of(process)
    process.kill()
    process.wait(60)
    wait_for(lambda: all(is_gone(pid) for pid in workers))
    assert not (killed / "manifest.json").exists()
    (killed / "window-00000.arrow").write_bytes(b"half")
    (killed / "window-00000.json").unlink()  # as if the kill had come between a shard and its summary
    assert start_prepare(long_recipe(folder, killed)).wait(60) == 0
    assert contents(killed) == contents(undisturbed)


@pytest.mark.slow
def test_a_killed_worker_is_told_in_one_message(tmp_path: Path, folder: Path) -> None:
    process = start_prepare(long_recipe(folder, tmp_path / "packs"), "--num-proc", "2")
    wait_for(lambda: len(workers_of(process)) == 1)
    os.kill(workers_of(process)[0], signal.SIGKILL)
    assert process.wait(60) == 1
    output = (tmp_path / "packs.log").read_text()
    assert "a worker process was killed, perhaps for want of memory" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_ctrl_c_ends_in_one_line(tmp_path: Path, folder: Path) -> None:
    process = start_prepare(long_recipe(folder, tmp_path / "packs"), "--num-proc", "2")
    wait_for(lambda: (tmp_path / "packs" / "window-00001.json").exists())
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130
    output = (tmp_path / "packs.log").read_text()
    assert output.endswith("interrupted; run the same command again to go on.\n")
    assert "Traceback" not in output


@pytest.mark.long
def test_ctrl_c_in_a_script_spares_what_runs_in_its_background(tmp_path: Path, folder: Path) -> None:
    """A shell starts `command &` of a script with SIGINT ignored; the workers are to ignore it too."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = start_prepare(long_recipe(folder, tmp_path / "packs"), "--num-proc", "2")
    finally:
        signal.signal(signal.SIGINT, before)
    wait_for(lambda: (tmp_path / "packs" / "window-00001.json").exists())
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 0, (tmp_path / "packs.log").read_text()


@pytest.mark.slow
def test_two_runs_in_one_folder_do_each_other_no_harm(tmp_path: Path, folder: Path) -> None:
    recipe = long_recipe(folder, tmp_path / "packs")
    both = [start_prepare(recipe), start_prepare(recipe)]
    assert [process.wait(60) for process in both] == [0, 0], recipe.with_suffix(".log").read_text()
    reader = open_packs(tmp_path / "packs")
    assert [len(reader.pack(n).input_ids) > 0 for n in range(reader.num_packs)] == [True] * reader.num_packs
    assert reader.num_packs >= 2000


def test_what_killed_runs_left_is_removed_when_it_is_old(tmp_path: Path, folder: Path) -> None:
    old, fresh = tmp_path / ".window-00000.1.tmp", tmp_path / ".window-00000.2.tmp"
    for path in (old, fresh):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    prepare(shared(folder, tmp_path, num_packs=5))
    assert not old.exists()
    assert fresh.exists(), "another run may be writing it"


def test_a_disk_that_is_full_is_named(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was finished before is kept, what was not leaves nothing behind, and with some space the run goes on."""
    settings = shared(folder, tmp_path / "packs", num_packs=60)
    real = store.file_hash

    def full(path: Path) -> str:
        if "window-00001" in path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path)

    with monkeypatch.context() as patched:
        patched.setattr(store, "file_hash", full)
        with pytest.raises(OSError, match="No space left") as caught:
            prepare(settings)
    assert caught.value.filename == str(tmp_path / "packs" / "window-00001.arrow")
    assert str(disk_fault(caught.value)).startswith(f"{caught.value.filename}: No space left")
    assert not list((tmp_path / "packs").glob(".*"))
    assert list(finished_windows(tmp_path / "packs")) == [0]
    assert prepare(settings)["packs"] >= 60


@pytest.mark.parametrize("how", ["file", "below a file"])
def test_a_folder_that_cannot_be_is_told(tmp_path: Path, folder: Path, how: str) -> None:
    (tmp_path / "file").write_text("")
    packs_dir = tmp_path / "file" if how == "file" else tmp_path / "file" / "packs"
    with pytest.raises(
        StreamError, match=r"no packs can be written here \(.*\)\. Choose another .*--packs DIR"
    ) as caught:
        prepare(shared(folder, packs_dir))
    assert str(caught.value).startswith(f"{packs_dir}: ")


KILLED_AT = """
import os, pickle, signal, sys
from pathlib import Path
from flan_tune.packing.prepare import prepare

moments, last = 0, int(sys.argv[2])

def counted(real):
    def call(*arguments, **keywords):
        global moments
        moments += 1
        if moments == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **keywords)
    return call

for owner, name in ((os, "replace"), (os, "fsync"), (Path, "write_text"), (Path, "unlink")):
    setattr(owner, name, counted(getattr(owner, name)))
prepare(pickle.loads(Path(sys.argv[1]).read_bytes()))
print(moments)
"""


def killed_at(moment: int, settings: PackSettings, folder: Path) -> subprocess.CompletedProcess[str]:
    """`prepare` in a process that kills itself at its n-th change of the folder."""
    settings_file = folder / "settings.pickle"
    settings_file.write_bytes(pickle.dumps(settings))
    command = [sys.executable, "-c", KILLED_AT, str(settings_file), str(moment)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def check_killed_at(moment: int, tmp_path: Path, folder: Path, packs: PackReader) -> None:
    """Killed there, and the next run once more at the same distance: the third seals the same bytes."""
    settings = shared(folder, tmp_path / "packs")
    for _ in range(2):
        assert killed_at(moment, settings, tmp_path).returncode == -signal.SIGKILL
    if (tmp_path / "packs" / "manifest.json").exists():  # the last thing that is written
        assert contents(tmp_path / "packs") == contents(packs.directory)
    prepare(settings)
    assert contents(tmp_path / "packs") == contents(packs.directory)


@pytest.mark.slow
@pytest.mark.parametrize("moment", [4, 9, 12])
def test_a_kill_at_a_change_of_the_folder_costs_nothing(
    tmp_path: Path, folder: Path, packs: PackReader, moment: int
) -> None:
    check_killed_at(moment, tmp_path, folder, packs)


@pytest.mark.long
def test_a_kill_at_any_change_of_the_folder_costs_nothing(
    tmp_path_factory: pytest.TempPathFactory, folder: Path, packs: PackReader
) -> None:
    whole = killed_at(-1, shared(folder, tmp_path_factory.mktemp("whole") / "packs"), tmp_path_factory.mktemp("s"))
    moments = int(whole.stdout)
    assert moments > 40
    for moment in range(1, moments + 1):
        here = tmp_path_factory.mktemp("killed")
        assert killed_at(moment, shared(folder, here / "packs"), here).returncode == -signal.SIGKILL
        prepare(shared(folder, here / "packs"))
        assert contents(here / "packs") == contents(packs.directory)


def killed_until_done(recipe: Path, directory: Path, draws: random.Random, *arguments: str) -> int:
    """Starts a run again and again, kills each after it has made a few files; how often it was killed."""
    kills = 0
    while not (directory / "manifest.json").exists():
        process = start_prepare(recipe, *arguments)
        wanted = len(list(directory.glob("*"))) + draws.randrange(8)
        wait_for(lambda p=process, n=wanted: p.poll() is not None or len(list(directory.glob("*"))) > n)
        time.sleep(draws.random() * 0.1)
        kills += process.poll() is None
        process.kill()
        process.wait(60)
    return kills


@pytest.mark.slow
def test_killed_at_random_moments_until_it_is_done(tmp_path: Path, folder: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert start_prepare(long_recipe(folder, undisturbed)).wait(60) == 0
    assert killed_until_done(long_recipe(folder, killed), killed, random.Random(1)) >= 2
    assert start_prepare(long_recipe(folder, killed)).wait(60) == 0
    assert contents(killed) == contents(undisturbed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("arguments", [(), ("--num-proc", "2"), ("--repair",)])
def test_killed_at_many_random_moments(tmp_path: Path, folder: Path, seed: int, arguments: Sequence[str]) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    assert start_prepare(long_recipe(folder, undisturbed)).wait(60) == 0
    killed_until_done(long_recipe(folder, killed), killed, random.Random(seed), *arguments)
    assert start_prepare(long_recipe(folder, killed), *arguments).wait(60) == 0
    assert contents(killed) == contents(undisturbed)


# Damaged and repaired


@SLOW
@given(draws=st.randoms(use_true_random=False))
def test_whatever_is_damaged_or_gone_is_repaired_to_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory, folder: Path, packs: PackReader, draws: random.Random
) -> None:
    directory = tmp_path_factory.mktemp("damaged") / "packs"
    shutil.copytree(packs.directory, directory)
    for path in draws.sample(sorted(directory.iterdir()), draws.randint(1, 6)):
        how = draws.choice(["gone", "cut", "changed"])
        data = bytearray(path.read_bytes())
        data[draws.randrange(len(data))] ^= 1
        if how == "gone" and path.name != "manifest.json":
            path.unlink()
        else:
            path.write_bytes(bytes(data[: len(data) // 2] if how == "cut" else data))
    made = prepare(shared(folder, directory), repair=True)
    assert contents(directory) == contents(packs.directory)
    assert made["content_hash"] == packs.manifest["content_hash"]


def test_repair_says_what_is_made_again_and_leaves_the_rest(tmp_path: Path, folder: Path) -> None:
    prepare(shared(folder, tmp_path))
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.arrow")}
    for name in ("window-00001.arrow", "window-00003.arrow"):
        data = bytearray((tmp_path / name).read_bytes())
        data[len(data) // 2] ^= 1
        (tmp_path / name).write_bytes(bytes(data))
    with pytest.raises(StreamError, match=r"window-00001\.arrow: .*`flan-tune prepare RECIPE --repair`"):
        open_packs(tmp_path).pack(40)
    lines: list[str] = []
    prepare(shared(folder, tmp_path), repair=True, say=lines.append)
    assert lines == [f"{tmp_path}: 5 windows compared with their hashes; to be made again: 1, 3."]
    same = [name for name, made in times.items() if (tmp_path / name).stat().st_mtime_ns == made]
    assert len(same) == 3
    assert open_packs(tmp_path).pack(40).target_tokens > 0
    prepare(shared(folder, tmp_path), repair=True, say=lines.append)
    assert lines[1].endswith("to be made again: none.")


def test_a_shard_repairs_its_own_windows(tmp_path: Path, folder: Path) -> None:
    prepare(shared(folder, tmp_path))
    for number in (1, 2):
        (tmp_path / f"window-{number:05d}.arrow").write_bytes(b"nothing")
    prepare(shared(folder, tmp_path), repair=True, shard=(1, 2))
    reader = open_packs(tmp_path)
    first = reader.manifest["windows"][0]["packs"]
    assert reader.pack(first).target_tokens > 0
    with pytest.raises(StreamError, match="window-00002"):
        reader.pack(first + reader.manifest["windows"][1]["packs"])


def test_windows_made_from_something_else_do_not_count(tmp_path: Path, folder: Path, packs: PackReader) -> None:
    """Two recipes were started in one empty folder at the same moment: neither seals windows of the other."""
    prepare(shared(folder, tmp_path / "other", data_seed=9))
    prepare(shared(folder, tmp_path / "mine", num_packs=1))
    for name in ("window-00001.arrow", "window-00001.json"):
        shutil.copy(tmp_path / "other" / name, tmp_path / "mine")
    prepare(shared(folder, tmp_path / "mine"))
    assert contents(tmp_path / "mine") == contents(packs.directory)


def test_code_that_gives_other_packs_for_the_same_recipe_is_found_out(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(shared(folder, tmp_path))
    before = (tmp_path / "manifest.json").read_bytes()
    (tmp_path / "window-00002.arrow").unlink()
    monkeypatch.setattr(compiling, "permutation", lambda count, _: np.arange(count))
    with pytest.raises(StreamError, match=r"made again, window\(s\) 2 hold other packs than those that were sealed"):
        prepare(shared(folder, tmp_path))
    assert (tmp_path / "manifest.json").read_bytes() == before
