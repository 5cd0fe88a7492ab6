"""Numbered pieces of work, done here, by processes of this machine, or as tasks of a Ray cluster.

    open_work() -> work          opened once in each process
    work(number) -> summary      one piece; the result is small, what is made goes to files

Nothing here knows what the work is. Summaries come in the order in which pieces are finished, and only a few pieces per
process are handed out ahead, so that memory does not grow with their number.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from typing import Any

from flan_tune.errors import RecipeError, StreamError

Summary = dict[str, Any]
Work = Callable[[int], Summary]
OpenWork = Callable[[], Work]  # can be pickled

_AHEAD = 2  # pieces handed out per process: one is worked on, one is waiting
_KILLED = "a worker process was killed, perhaps for want of memory."


def in_processes(
    open_work: OpenWork, numbers: Sequence[int], num_proc: int, *, here: Work, if_killed: str
) -> Iterator[Summary]:
    """Summaries of all pieces, worked on by `num_proc` processes of this machine, this one among them.

    here: the work, opened in this process already. It begins at once, while the others open theirs.
    if_killed: what to do if another process was killed, as a sentence for the message.
    Raises: StreamError if one of them was killed; and what `open_work` and the work raise.
    """
    others = min(num_proc, len(numbers)) - 1
    if others < 1:
        yield from map(here, numbers)
        return
    context = get_context("spawn")  # forking a process that holds Arrow and tokenizer threads can hang
    with ProcessPoolExecutor(others, context, initializer=_start_worker, initargs=(open_work,)) as pool:
        coming = iter(numbers)
        waiting: set[Future[Summary]] = set()
        try:
            while True:
                waiting |= {pool.submit(_work, n) for n in islice(coming, _AHEAD * others - len(waiting))}
                mine = next(coming, None)
                if mine is not None:
                    yield here(mine)
                elif not waiting:
                    return
                done, waiting = wait(waiting, None if mine is None else 0, return_when=FIRST_COMPLETED)
                while done:
                    yield done.pop().result()
        except BrokenProcessPool:
            raise StreamError(f"{_KILLED} {if_killed}") from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_worker: list[Work] = []


def _start_worker(open_work: OpenWork) -> None:
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as it is in the background of a script
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends workers at once without a word; the parent speaks
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker.append(open_work())


def _end_with_parent() -> None:
    """Ends this worker when its parent is gone: it would wait for work for ever if the parent was killed."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _work(number: int) -> Summary:
    return _worker[0](number)


def on_ray(open_work: OpenWork, numbers: Sequence[int], num_proc: int | None, *, if_killed: str) -> Iterator[Summary]:
    """Summaries of all pieces, each a Ray task of one CPU: on the cluster of RAY_ADDRESS, else on this machine.

    num_proc: tasks at once; None for as many as the cluster has CPUs. Its machines share this one's folders.
    Raises: RecipeError if Ray is not installed; StreamError if a task's process died again and again; what
        `open_work` and the work raise.
    """
    ray = _import_ray()
    is_ours = not ray.is_initialized()
    if is_ours:
        _start_ray(ray, num_proc)
    try:
        at_once = num_proc or max(int(ray.cluster_resources().get("CPU", 1)), 1)
        task = ray.remote(num_cpus=1)(_work_on_ray)
        packed, folder = ray.put(pickle.dumps(open_work)), os.getcwd()
        coming = iter(numbers)
        waiting: list[Any] = []
        while True:
            ahead = at_once if num_proc else _AHEAD * at_once
            waiting += [task.remote(packed, folder, number) for number in islice(coming, ahead - len(waiting))]
            if not waiting:
                return
            (done,), waiting = ray.wait(waiting, num_returns=1)
            yield _result(ray, done, if_killed)
    finally:
        if is_ours:
            ray.shutdown()


def check_engine(engine: str) -> None:
    """Raises RecipeError if an engine cannot work here: to be found out before anything is done."""
    if engine == "ray":
        _import_ray()


def _import_ray() -> Any:
    try:
        import ray
    except ImportError:
        raise RecipeError(
            "--engine ray: Ray is not installed here. Install it with `pip install 'flan_tune[ray]'`, or leave "
            "--engine out: --num-proc and --shard need nothing more."
        ) from None
    return ray


def _start_ray(ray: Any, num_proc: int | None) -> None:
    quiet = {"log_to_driver": False, "logging_level": "error"}
    address = os.environ.get("RAY_ADDRESS")
    if address and address != "local":
        try:
            ray.init(address=address, **quiet)
        except ConnectionError as error:
            raise RecipeError(
                f"--engine ray: there is no Ray cluster at RAY_ADDRESS={address} ({error}). Correct the address, or "
                "unset RAY_ADDRESS to use this machine alone."
            ) from None
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anyone from here
    ray.init(address="local", num_cpus=num_proc, include_dashboard=False, **quiet)


_opened: dict[bytes, Work] = {}  # in a Ray process, which lives for many tasks


def _work_on_ray(packed: bytes, folder: str, number: int) -> Summary:
    if packed not in _opened:
        if not Path(folder).is_dir():
            raise StreamError(
                f"--engine ray: {folder} is not there on {os.uname().nodename}. The machines of the cluster have to "
                "share the folder that the command is started in and those that it reads and writes."
            )
        os.chdir(folder)  # paths in a recipe are relative to it
        _opened[packed] = pickle.loads(packed)()
    return _opened[packed](number)


def _result(ray: Any, done: Any, if_killed: str) -> Summary:
    try:
        summary: Summary = ray.get(done)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None  # as it was raised over there
    except ray.exceptions.RayError as error:
        raise StreamError(f"{_KILLED} {if_killed} Ray says: {error}") from None
    return summary
