"""`flan-tune prepare`: which windows are made, by whom, and when packs are complete.

Window 0 comes first: its number of packs fixes how many windows there will be (2 % more than needed), which is written
to plan.json. Finished windows are skipped, so an interrupted run goes on where it was. When every window is there the
manifest is sealed (manifest.py).

Several runs may share a folder, on any number of machines: each makes its share of the windows (`shard`), and the one
that finds all of them finished seals. Nothing is locked: files get their names when they are whole, and whoever writes
a file writes the same bytes. What a window is, is in compile.py; processes and Ray are in work.py.
"""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from flan_tune.errors import StreamError
from flan_tune.packing.compile import Compiler, compile_window, make_objective, open_tokenizer, open_work
from flan_tune.packing.fingerprint import changed_parts, fingerprint_parts, join_parts, read_parts
from flan_tune.packing.judging import judge_rows
from flan_tune.packing.losses import failure_lines
from flan_tune.packing.manifest import check_same, read_manifest, seal
from flan_tune.packing.settings import PackSettings
from flan_tune.packing.store import (
    Finished,
    check_file,
    finished_windows,
    read_summary,
    remove_stale,
    shard_name,
    write_json,
    write_vouched,
)
from flan_tune.packing.work import Summary, check_engine, in_processes, on_ray
from flan_tune.sources.rows import find_data_root

ALL_WINDOWS = (0, 1)  # shard 0 of 1
_IF_KILLED = "Run the same command again, with a smaller --num-proc; finished windows are kept."
_MARGIN = 1.02  # windows differ a little in how many packs they give

Progress = Callable[[dict[str, Any], int, int], None]


def prepare(
    settings: PackSettings,
    *,
    num_proc: int | None = None,
    engine: str = "local",
    shard: tuple[int, int] = ALL_WINDOWS,
    repair: bool = False,
    progress: Progress | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any] | None:
    """Compiles the windows that are missing; seals the manifest and returns it. None if windows of others are missing.

    num_proc: processes; None for one, or on Ray for all CPUs of the cluster. engine: "local" or "ray".
    shard: (i, n): only windows w with w mod n = i are compiled here, and window 0, which every shard plans by.
    repair: first every finished window of this shard is compared with its hash; what differs is made again.
    progress: called with (a window's summary, windows of this shard done, windows of this shard planned).
    say: called with a line for a person.

    Packs that are sealed already are never made fewer. Runs in one folder write the same bytes; none harms another.
    Raises: StreamError if the folder holds packs of another recipe: they are never overwritten; or if more rows were
        replaced or dropped than the settings allow: the windows are there, the manifest is not.
    """
    started = time.monotonic()
    say = say or _silent
    check_engine(engine)
    directory = Path(settings.packs_dir)
    tokenizer = open_tokenizer(settings)
    make_objective(settings, tokenizer)  # what is wrong with it is told before any source is looked at
    parts = fingerprint_parts(settings, tokenizer.fingerprint)
    fingerprint = join_parts(parts)
    check_folder(directory, parts)
    sealed = read_manifest(directory, fingerprint)
    settings = _not_fewer(settings, sealed, say)
    if repair:
        _set_aside(directory, sealed, fingerprint, shard, say)
    folder = _Folder(settings, fingerprint, shard, progress, say)
    is_complete = bool(sealed) and sealed["packs"] >= settings.num_packs and folder.holds(sealed)
    if is_complete and not repair:
        return {**sealed, "seconds": round(time.monotonic() - started, 2)}
    judge_rows(settings, parts, num_proc or 1, shard, say)
    compiler = Compiler(settings)  # before the folder is marked: data that is not there yet changes the fingerprint
    _mark(directory, {"fingerprint": fingerprint, "parts": parts})
    folder.compile(compiler, engine, num_proc)
    if absent := folder.absent():
        say(f"{directory}: not sealed yet; windows that belong to other shards are missing: {_shortly(absent)}.")
        return None
    manifest = seal(compiler, parts, directory, folder.windows)
    if len(sealed.get("windows", ())) < folder.windows:  # what was sealed once is not judged again
        draws = {task["name"]: task["examples"] for task in manifest["tasks"]}
        if lines := failure_lines(settings, draws, manifest["replaced"], manifest["drops"]):
            raise StreamError(f"{directory}: not sealed: {lines[0]}", *lines[1:])
    manifest["seconds"] = round(time.monotonic() - started, 2)
    latest = read_manifest(directory, fingerprint)
    check_same(directory, latest, manifest)
    if len(latest.get("windows", ())) > folder.windows:  # another run has sealed more in the meantime
        return {**latest, "seconds": manifest["seconds"]}
    write_vouched(directory / "manifest.json", manifest)
    return manifest


def _mark(directory: Path, fingerprint: Mapping[str, Any]) -> None:
    """Makes the folder and says what its packs are made from."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        remove_stale(directory)
        write_vouched(directory / "fingerprint.json", fingerprint)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise StreamError(
            f"{directory}: no packs can be written here ({error.strerror}). Choose another folder with --packs DIR "
            "(recipe key data.packs_dir)."
        ) from None


def _silent(_: str) -> None:
    pass


def _not_fewer(settings: PackSettings, sealed: Mapping[str, Any], say: Callable[[str], None]) -> PackSettings:
    """The settings, with the number of packs that the folder was sealed for if that is larger."""
    before = int(sealed["settings"]["num_packs"]) if sealed else 0
    if before <= settings.num_packs:
        return settings
    say(
        f"{settings.packs_dir}: sealed for {before} packs, more than the {settings.num_packs} of this recipe; "
        "all of them are kept."
    )
    return replace(settings, num_packs=before)


def _set_aside(
    directory: Path, sealed: Mapping[str, Any], fingerprint: str, shard: tuple[int, int], say: Callable[[str], None]
) -> None:
    """Takes the mark 'finished' from windows of this shard whose shard is not what was written, so they are remade."""
    index, count = shard
    hashes = {window["window"]: window["content_hash"] for window in sealed.get("windows", ())}
    numbers = sorted({*hashes, *finished_windows(directory)})
    damaged = []
    for number in (number for number in numbers if number % count == index):
        summary = read_summary(directory, number, fingerprint)
        if summary is None:
            damaged.append(number)
            continue
        path = directory / f"{shard_name(number)}.arrow"
        try:
            check_file(path, summary["sha256"])
            is_same = summary["content_hash"] == hashes.get(number, summary["content_hash"])
        except StreamError:
            is_same = False
        if not is_same:
            damaged.append(number)
            path.with_suffix(".json").unlink(missing_ok=True)
    checked = sum(number % count == index for number in numbers)
    say(f"{directory}: {checked} windows compared with their hashes; to be made again: {_shortly(damaged) or 'none'}.")


def _shortly(numbers: Sequence[int], most: int = 20) -> str:
    """'1, 4, 7 and 3 more'."""
    rest = f" and {len(numbers) - most} more" if len(numbers) > most else ""
    return ", ".join(str(number) for number in numbers[:most]) + rest


class _Folder:
    """The windows of a folder: how many are planned, which are finished, which of them this run makes."""

    def __init__(
        self,
        settings: PackSettings,
        fingerprint: str,
        shard: tuple[int, int],
        progress: Progress | None,
        say: Callable[[str], None],
    ) -> None:
        self.settings = settings
        self.fingerprint = fingerprint
        self.shard = shard
        self.progress = progress
        self.say = say
        self.directory = Path(settings.packs_dir)
        self.done = finished_windows(self.directory, fingerprint)
        self.windows = 1

    def holds(self, sealed: Mapping[str, Any]) -> bool:
        """Whether every window that a manifest names is there as it names it, and its index is the one written."""
        try:
            check_file(self.directory / sealed["index"]["file"], sealed["index"]["sha256"])
        except StreamError:
            return False
        hashes = {number: window.sha256 for number, window in self.done.items()}
        return all(hashes.get(window["window"]) == window["sha256"] for window in sealed["windows"])

    def compile(self, compiler: Compiler, engine: str, num_proc: int | None) -> None:
        """Compiles what is missing of this run's share."""
        is_new = 0 not in self.done
        if is_new:
            first = compile_window(compiler, self.fingerprint, 0)
            self._finish(first)
            self._warn_of_failures(first)
        self._plan()
        left = [number for number in self.absent() if self._is_mine(number)]
        if is_new and self._is_mine(0):
            self._tell(first, len(left))
        while left:
            for number, summary in enumerate(self._summaries(compiler, left, engine, num_proc), 1):
                self._finish(summary)
                self._tell(summary, len(left) - number)
            self.done |= finished_windows(self.directory, self.fingerprint)  # others work here too
            self._plan()
            left = [number for number in self.absent() if self._is_mine(number)]

    def absent(self) -> list[int]:
        """Windows that are planned and not finished."""
        return [number for number in range(self.windows) if number not in self.done]

    def _is_mine(self, number: int) -> bool:
        index, count = self.shard
        return number % count == index

    def _finish(self, summary: Summary) -> None:
        self.done[summary["window"]] = Finished(summary["packs"], summary["sha256"])

    def _tell(self, summary: Summary, left: int) -> None:
        if self.progress:
            index, count = self.shard
            mine = len(range(index, self.windows, count))
            self.progress(summary, mine - left, mine)

    def _warn_of_failures(self, first: Summary) -> None:
        """Tells after window 0 what would be judged in the end: it may take days till then."""
        draws = {name: counts[0] for name, counts in first["by_task"].items()}
        if lines := failure_lines(self.settings, draws, first["replaced"], first["drops"]):
            self.say(
                "\n".join(
                    [f"warning: if all windows are like the first, they will not be sealed: {lines[0]}", *lines[1:]]
                )
            )

    def _plan(self) -> None:
        """How many windows: from window 0 alone, and more only if all of them turn out to hold too few packs."""
        first, wanted = self.done[0].packs, self.settings.num_packs
        if first == 0:
            summary = read_summary(self.directory, 0) or {}
            raise StreamError(
                f"{self.directory}: window 0 gave no pack; every example was dropped: {summary.get('drops')}."
            )
        self.windows = 1 if first >= wanted else math.ceil(wanted * _MARGIN / first)
        while not self.absent() and sum(self.done[number].packs for number in range(self.windows)) < wanted:
            self.windows += 1
        plan = {"fingerprint": self.fingerprint, "windows": self.windows, "num_packs": wanted}
        write_json(self.directory / "plan.json", plan)

    def _summaries(
        self, compiler: Compiler, numbers: Sequence[int], engine: str, num_proc: int | None
    ) -> Iterator[Summary]:
        if engine == "ray":
            root = find_data_root(self.settings.data_root)  # the environment there is another one
            settings = replace(self.settings, data_root=str(root.resolve()) if root else None)
            return on_ray(partial(open_work, settings, self.fingerprint), numbers, num_proc, if_killed=_IF_KILLED)
        opening = partial(open_work, self.settings, self.fingerprint)
        here = partial(compile_window, compiler, self.fingerprint)
        return in_processes(opening, numbers, num_proc or 1, here=here, if_killed=_IF_KILLED)


def check_folder(directory: Path, parts: Mapping[str, str]) -> None:
    """Raises StreamError if `directory` holds packs made from anything else than `parts`, and says what changed."""
    old = read_parts(directory)
    if old is None or old == dict(parts):
        return
    raise StreamError(
        f"{directory}: the packs here were made from something else; changed: {', '.join(changed_parts(old, parts))}. "
        "Delete the folder to make them anew, or choose another one with --packs DIR (recipe key data.packs_dir)."
    )
