"""Scoring on many workers: any concurrent.futures.Executor, or processes of this machine."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import uuid
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import islice
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

import cloudpickle
from loky import get_reusable_executor

from ..errors import BlockSwapError
from ..machine import keep_memory, threads_set

# A worker imports this module before it can handle Ctrl-C and the end of its parent, so it must not import torch.

__all__ = ["Shared", "WorkerError", "local_workers", "map_in_order"]

# Enough tasks ahead to keep every worker busy, few enough to cancel quickly.
_AHEAD = 256
# How many tasks at a time carry the job, for workers without it: it holds minibatches, which can be large.
_LESSONS = 8
# Workers end after this time without a task.
_IDLE_SECONDS = 30
# Torch has one thread in a worker from its start. A network that is larger than those before it is no leak of memory,
# for which loky would restart the worker.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "LOKY_MAX_MEMORY_LEAK_SIZE": "1e18"}

Task = Any
# The jobs that this worker knows, by key.
_jobs: dict[str, Callable[[Task], Any]] = {}


class WorkerError(BlockSwapError, RuntimeError):
    """Workers that died; what they had finished is kept."""


class Shared:
    """A job that many tasks share, and that is sent to each worker once."""

    def __init__(self, job: Callable[[Task], Any]) -> None:
        self.job = job
        self.key = uuid.uuid4().hex

    @cached_property
    def content(self) -> bytes:
        """The pickled job; raises ValueError if it cannot be pickled."""
        try:
            # Functions of a script or a notebook are pickled by value, since workers do not run it.
            return cloudpickle.dumps(self.job)
        except Exception as error:
            # Objects that cannot be pickled raise all kinds of errors.
            raise ValueError(
                f"what workers compute cannot be sent to them: {error}; use workers=1, or a function without it"
            ) from None


def map_in_order(
    shared: Shared, tasks: Sequence[Task], executor: Executor | None = None, *, cancel: bool = True
) -> Generator[Any]:
    """Yields job(task) for each task in order, computed here or by the workers of an executor, on one thread each.

    What is left when it is interrupted is cancelled, but for local workers, which are ended then: loky sets an error on
    each task that is left, and fails where one is cancelled.
    """
    if executor is None:
        with threads_set(1):
            yield from map(shared.job, tasks)
        return

    content = shared.content
    waiting = iter(tasks)
    running: deque[_Sent] = deque()
    # Those that have an answer; and those that were given back while enough others taught the job.
    answered: SimpleQueue[_Sent] = SimpleQueue()
    given_back: list[_Sent] = []
    lessons = 0

    def send(each: _Sent, teach: bool = False) -> None:
        each.teaches = teach
        each.future = executor.submit(_work, shared.key, content if teach else None, each.task)
        each.future.add_done_callback(lambda _: answered.put(each))

    try:
        while True:
            for task in islice(waiting, _AHEAD - len(running)):
                running.append(_Sent(task))
                send(running[-1])
            if not running:
                return
            if running[0].finished:
                yield running.popleft().future.result()[1]
                continue
            each = answered.get()
            lessons -= each.teaches
            # Errors are raised in order, too.
            each.finished = each.future.exception() is not None or each.future.result()[0]
            if each.finished and each.teaches:
                while given_back:
                    send(given_back.pop())
            elif not each.finished and lessons < _LESSONS:
                # A worker that has not seen the job gave this back: it is sent the job with it, or another is.
                lessons += 1
                send(each, teach=True)
            elif not each.finished:
                given_back.append(each)
    except BrokenProcessPool:
        # The pool itself is about to fail all the others: to cancel one now would be an error there.
        running.clear()
        raise WorkerError(
            "a worker died, perhaps out of memory; continue with resume=True and fewer workers="
        ) from None
    finally:
        for each in running if cancel else ():
            each.future.cancel()


@dataclass(eq=False)
class _Sent:
    """A task that was sent to a worker, perhaps with the job, and whether it is done."""

    task: Task
    future: Future[tuple[bool, Any]] = field(default_factory=Future)
    teaches: bool = False
    finished: bool = False


def _work(key: str, content: bytes | None, task: Task) -> tuple[bool, Any]:
    """Does one task, or reports that this worker has not been sent the job yet."""
    job = _jobs.get(key)
    if job is None and content is not None:
        job = pickle.loads(content)
        # Jobs of other searches are dropped.
        _jobs.clear()
        _jobs[key] = job
    if job is None:
        return False, None
    with threads_set(1):
        return True, job(task)


@contextmanager
def local_workers(number: int) -> Iterator[Executor]:
    """Provides processes on this machine; an exception ends them at once, whatever they are doing.

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
    """Makes a pipe, once per process, to which nothing is sent: workers see it close when the process ends."""
    return Pipe(duplex=False)


@contextmanager
def _interrupts_withheld() -> Iterator[None]:
    """Keeps Ctrl-C from processes that are started here: it goes to this process, which ends them."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(lifeline: Connection) -> None:
    """Starts a worker: Ctrl-C goes to its parent, and it ends if its parent was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(lifeline,), daemon=True).start()
    keep_memory()
    # Imported before the first task waits for it.
    from . import scorer  # noqa: F401


def _end_with_parent(lifeline: Connection) -> None:
    lifeline.poll(None)
    os._exit(1)
