"""Scoring on many workers: any concurrent.futures.Executor, or processes of this machine."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache, cached_property
from itertools import islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle
from loky import get_reusable_executor

from ..machine import keep_memory, threads_set

# A worker imports this module before it can take care of Ctrl-C and of the end of its parent: torch must wait.

__all__ = ["Shared", "WorkerError", "local_workers", "map_in_order"]

# Enough tasks ahead to keep every worker busy, few enough to forget quickly when interrupted.
_AHEAD = 256
# How many workers at a time are sent a job that they asked for: it holds a minibatch, which can be large.
_LESSONS = 8
# After so long without a task workers end.
_IDLE_SECONDS = 30
# Torch has one thread in a worker from its start. A network that is larger than those before it is no leak of memory,
# for which loky would start the worker anew.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "LOKY_MAX_MEMORY_LEAK_SIZE": "1e18"}

Task = Any
# The jobs that this worker knows, by key.
_jobs: dict[str, Callable[[Task], Any]] = {}


class WorkerError(RuntimeError):
    """Workers that died; what they had finished is kept."""


class Shared:
    """A job that many tasks have in common, which travels to each worker once."""

    def __init__(self, job: Callable[[Task], Any]) -> None:
        self.job = job
        self.key = uuid.uuid4().hex

    @cached_property
    def content(self) -> bytes:
        """The job as it travels; raises ValueError for one that cannot."""
        try:
            # Functions of a script or a notebook travel whole, since workers do not run it.
            return cloudpickle.dumps(self.job)
        except Exception as error:
            # Objects have errors of their own where they cannot be pickled.
            raise ValueError(
                f"what workers compute cannot be sent to them: {error}; use workers=1, or a function without it"
            ) from None


def map_in_order(shared: Shared, tasks: Sequence[Task], executor: Executor | None = None) -> Iterator[Any]:
    """Yields job(task) for each task in order, computed here or by the workers of an executor, on one thread each."""
    if executor is None:
        with threads_set(1):
            yield from map(shared.job, tasks)
        return

    def submit(task: Task, content: bytes | None = None) -> tuple[Task, Future[Any]]:
        return task, executor.submit(_work, shared.key, content, task)

    content = shared.content
    waiting = iter(tasks)
    running: deque[tuple[Task, Future[Any]]] = deque()
    try:
        while True:
            running.extend(submit(task) for task in islice(waiting, _AHEAD - len(running)))
            if not running:
                return
            known, result = running[0][1].result()
            if known:
                running.popleft()
                yield result
                continue
            # Workers that have not seen the job gave these back: some of them are sent it, with the tasks.
            lessons = _LESSONS
            for place, (task, future) in enumerate(running):
                if future.done() and not future.result()[0]:
                    running[place] = submit(task, content if lessons > 0 else None)
                    lessons -= 1
    except BrokenProcessPool:
        # The pool itself is about to fail all the others: to cancel one now would be an error there.
        running.clear()
        raise WorkerError(
            "a worker died, perhaps for want of memory; go on (--resume) with fewer (--workers)"
        ) from None
    finally:
        for _, future in running:
            future.cancel()


def _work(key: str, content: bytes | None, task: Task) -> tuple[bool, Any]:
    """Does one task; says that it does not know the job where this worker has not been sent it yet."""
    if content is not None and key not in _jobs:
        # Of another search it keeps nothing.
        _jobs.clear()
        _jobs[key] = pickle.loads(content)
    if key not in _jobs:
        return False, None
    with threads_set(1):
        return True, _jobs[key](task)


@contextmanager
def local_workers(number: int) -> Iterator[Executor]:
    """Gives processes on this machine; where it is left by an exception, they end at once, whatever they are doing.

    They begin as new processes, which do not run the main script again: it needs no `__main__` guard. Since that takes
    some seconds, they stay for the next search of this process, and end when they have had nothing to do for a while.
    """
    with _interrupts_withheld():
        pool = get_reusable_executor(
            number, timeout=_IDLE_SECONDS, initializer=_start, initargs=_lifeline(os.getpid())[:1], env=_ENVIRONMENT
        )
        # All of them start with the first task.
        pool.submit(os.getpid)
    try:
        yield pool
    except BaseException:
        pool.shutdown(kill_workers=True)
        raise


@cache
def _lifeline(process: int) -> tuple[Connection, Connection]:
    """Makes a pipe, once a process, to which nothing is sent: workers see its end when the process has ended."""
    return Pipe(duplex=False)


@contextmanager
def _interrupts_withheld() -> Iterator[None]:
    """Keeps Ctrl-C from processes that start meanwhile: it is for this one, which ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(lifeline: Connection) -> None:
    """Begins a worker: Ctrl-C is for its parent, and where that was killed, it ends by itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    keep_memory()


def _end_with_parent(lifeline: Connection) -> None:
    lifeline.poll(None)
    os._exit(1)
