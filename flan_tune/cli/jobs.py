"""Running the commands of a pipeline: in order, a few at once, each with a log; finished ones are not run again.

A job is done when its command ended well; `<output_dir>/jobs.json` remembers that, with a key over the command, the
recipe and the jobs before it. A change of a recipe makes the key differ: then the run stops and says which
folder to delete, because results are never overwritten silently. A second run in the same folder is refused.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TextIO

from flan_tune.cli.running import Running, is_written
from flan_tune.errors import EXIT_REQUEUE, EXIT_WRONG_INPUT, RecipeError
from flan_tune.packing.store import read_json, write_json

LOGS_FOLDER = "logs"

_POLL_SECONDS = 0.2
_PROGRESS_SECONDS = 10.0
_INTERRUPTED = 130
_ENVIRONMENT = {
    # Threads that wait spin, and on shared cores take the time of the one they wait for: 1,200 tokens/s instead of
    # 12,000 on two busy cores. So they give up early (libgomp).
    "GOMP_SPINCOUNT": "1000",
    "TQDM_DISABLE": "1",  # a bar in a log is one endless line
}


@dataclass(frozen=True)
class Job:
    """A command with its conditions.

    waits: names of jobs that must be done first. makes: a file that is there when it is done (None: always run it).
    status: a status.json that says more than the exit code, which a launcher may hide.
    content: what else the job is made of, a resolved recipe for example.
    after: jobs that are better done first, though nothing is taken from them.
    folder: what to delete to do the job again; the folder of `makes` if left out.
    threads: OpenMP threads of its process; more than one only pays where no other job runs beside it.
    """

    name: str
    command: list[str]
    waits: set[str] = field(default_factory=set)
    makes: Path | None = None
    status: Path | None = None
    content: str = ""
    threads: int = 1
    after: set[str] = field(default_factory=set)
    folder: Path | None = None


def run_jobs(
    jobs: Sequence[Job], output_dir: Path, parallel: int, out: TextIO | None = None
) -> tuple[int, dict[str, float]]:
    """(exit code, seconds by job). The code is 0 when every job is done, 75 if one asks to be requeued, 130 after
    Ctrl-C, else 1. A line goes to `out` (standard output) when a job starts, ends, or has been running for a while.

    Raises: RecipeError if another run works in `output_dir`, if finished jobs were made by another recipe, or if jobs
        wait for each other.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    with _lock(output_dir):
        return _Runner(jobs, output_dir, parallel, out or sys.stdout).run()


@contextmanager
def _lock(output_dir: Path) -> Iterator[None]:
    """One run at a time; a job that outlived a killed run counts as one."""
    with (output_dir / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            is_free = not any(is_written(log) for log in (output_dir / LOGS_FOLDER).glob("*.log"))
        except BlockingIOError:
            is_free = False
        if not is_free:
            raise RecipeError(
                f"{output_dir}: another run is working here, or a job of one that was killed. Wait for it, or stop it."
            )
        yield


class _Runner:
    """One run over the jobs."""

    def __init__(self, jobs: Sequence[Job], output_dir: Path, parallel: int, out: TextIO) -> None:
        self.jobs = {job.name: job for job in jobs}
        self.parallel = max(parallel, 1)
        self.out = out
        self.logs = output_dir / LOGS_FOLDER
        self.logs.mkdir(exist_ok=True)
        self.done_file = output_dir / "jobs.json"
        self.timings_file = output_dir / "timings.json"
        self.keys = self._keys()
        self.chains = self._chains()
        self.done = self._done_before()
        self.timings: dict[str, float] = read_json(self.timings_file)
        self.running: dict[str, Running] = {}
        self.started = time.monotonic()

    def _keys(self) -> dict[str, str]:
        keys: dict[str, str] = {}
        for name in _in_order(self.jobs.values()):
            job = self.jobs[name]
            content = [_words(job), job.content, [keys[name] for name in sorted(job.waits)]]
            keys[job.name] = hashlib.sha256(json.dumps(content).encode()).hexdigest()
        return keys

    def _done_before(self) -> set[str]:
        recorded: dict[str, str] = read_json(self.done_file)
        done, faults = set(), []
        for name, job in self.jobs.items():
            if job.makes is None or not job.makes.exists() or name not in recorded:
                continue
            if recorded[name] == self.keys[name]:
                done.add(name)
                continue
            faults.append(
                f"{job.makes}: {name!r} was done with another recipe or command than today's. "
                f"Delete {job.folder or job.makes.parent} to do it again."
            )
        if faults:
            raise RecipeError(*faults)
        return done

    def run(self) -> tuple[int, dict[str, float]]:
        for name in self.jobs:
            if name in self.done:
                self._say(name, "done before")
        previous = signal.signal(signal.SIGTERM, _interrupted)
        try:
            code = self._loop()
        except KeyboardInterrupt:
            code = self._interrupt()
        finally:
            signal.signal(signal.SIGTERM, previous)
        write_json(self.timings_file, self.timings)
        return code, self.timings

    def _loop(self) -> int:
        said = time.monotonic()
        while len(self.done) < len(self.jobs):
            for job in self._ready():
                self._start(job)
            time.sleep(_POLL_SECONDS)
            code = self._reap()
            if code:
                self._stop_all()
                return code
            if time.monotonic() - said > _PROGRESS_SECONDS:
                said = time.monotonic()
                for name in self.running:
                    self._say(name, _last_line(self._log(name)))
        return 0

    def _ready(self) -> list[Job]:
        free = self.parallel - len(self.running)
        waiting = (job for name, job in self.jobs.items() if name not in self.done and name not in self.running)
        ready = [job for job in waiting if job.waits | job.after <= self.done]
        return sorted(ready, key=lambda job: -self.chains[job.name])[:free]

    def _chains(self) -> dict[str, int]:
        """How many jobs must still follow each other after a job: the longest chain goes first."""
        chains = dict.fromkeys(self.jobs, 0)
        for later in reversed(_in_order(self.jobs.values())):
            for name in self.jobs[later].waits:
                chains[name] = max(chains[name], chains[later] + 1)
        return chains

    def _log(self, name: str) -> Path:
        return self.logs / f"{name.replace(' ', '-')}.log"

    def _start(self, job: Job) -> None:
        self._say(job.name, "started")
        environment = {**os.environ, **_ENVIRONMENT, "OMP_NUM_THREADS": str(job.threads)}
        self.running[job.name] = Running(job.command, self._log(job.name), environment)

    def _reap(self) -> int:
        for name, running in list(self.running.items()):
            code = running.poll()
            if code is None:
                continue
            del self.running[name]
            self.timings[name] = round(self.timings.get(name, 0.0) + running.seconds, 1)
            if code:
                return self._failed(name, code)
            self.done.add(name)
            write_json(self.done_file, {**read_json(self.done_file), name: self.keys[name]})
            self._say(name, f"done in {running.seconds:.1f} s")
        return 0

    def _failed(self, name: str, code: int) -> int:
        status = self.jobs[name].status
        recorded = read_json(status) if status else {}
        if code == EXIT_REQUEUE or recorded.get("state") == "requeue":
            self._say(name, "stopped and saved; run the same command again to go on")
            return EXIT_REQUEUE
        self._say(name, f"failed (exit code {code}). {recorded.get('message', '')}".strip())
        print(f"the end of {self._log(name)}:\n{_tail(self._log(name))}", file=self.out, flush=True)
        return EXIT_WRONG_INPUT

    def _stop_all(self) -> None:
        """Trainers save at the next step when asked to stop, so they are waited for."""
        for running in self.running.values():
            running.send(signal.SIGTERM)
        for running in self.running.values():
            running.wait_until_gone()

    def _interrupt(self) -> int:
        print("\ninterrupted: waiting for running jobs to save and stop ...", file=self.out, flush=True)
        self._stop_all()
        print("run the same command again to go on.", file=self.out, flush=True)
        return _INTERRUPTED

    def _say(self, name: str, text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.started), 60)
        print(f"[{minutes}:{seconds:02d}] {name}: {text}", file=self.out, flush=True)


def _words(job: Job) -> list[str]:
    """The command without the interpreter's place: a moved or new environment makes nothing stale."""
    return ["python" if word == sys.executable else word for word in job.command]


def _interrupted(number: int, frame: object) -> None:
    """A job script's SIGTERM is taken like Ctrl-C: save, stop, go on next time."""
    raise KeyboardInterrupt


def _in_order(jobs: Iterable[Job]) -> list[str]:
    """The names of the jobs, each after those it waits for."""
    try:
        return list(TopologicalSorter({job.name: sorted(job.waits | job.after) for job in jobs}).static_order())
    except CycleError as error:
        raise RecipeError(f"these jobs wait for each other: {' -> '.join(error.args[1])}.") from None


def _last_line(path: Path) -> str:
    lines = _tail(path, 4000).replace("\r", "\n").strip().splitlines()
    return lines[-1][:160] if lines else "running"


def _tail(path: Path, size: int = 3000) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - size))
        return file.read().decode("utf-8", errors="replace")
