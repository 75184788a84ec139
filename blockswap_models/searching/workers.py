"""Scoring on many workers: any concurrent.futures.Executor, or processes of this machine."""

from __future__ import annotations

import ctypes
import multiprocessing
import multiprocessing.context
import os
import pickle
import signal
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cached_property
from itertools import islice
from multiprocessing.connection import wait
from typing import Any

import torch

__all__ = ["Shared", "WorkerError", "keep_memory", "local_workers", "map_in_order", "one_thread"]

# Enough tasks ahead to keep every worker busy, few enough to forget quickly when interrupted.
_AHEAD = 256
# How many workers at a time are sent a job that they asked for: it holds a minibatch, which can be large.
_LESSONS = 8

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
            return pickle.dumps(self.job)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"what workers compute must be importable, such as a function of a module: {error}"
            ) from None


def map_in_order(shared: Shared, tasks: Sequence[Task], executor: Executor | None = None) -> Iterator[Any]:
    """Yields job(task) for each task in order, computed here or by the workers of an executor, on one thread each."""
    if executor is None:
        with one_thread():
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
            "a worker died, perhaps for want of memory; go on with resume=True and fewer workers="
        ) from None
    finally:
        for _, future in running:
            future.cancel()


def _work(key: str, content: bytes | None, task: Task) -> tuple[bool, Any]:
    """Does one task; says that it does not know the job where this worker has not been sent it yet."""
    if content is not None and key not in _jobs:
        _learn(key, content)
    if key not in _jobs:
        return False, None
    with one_thread():
        return True, _jobs[key](task)


def _learn(key: str, content: bytes) -> None:
    _jobs.clear()
    _jobs[key] = pickle.loads(content)


@contextmanager
def one_thread() -> Iterator[None]:
    """Computes on one thread, so that sums are taken in one order and workers do not fight for cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def local_workers(number: int, shared: Shared) -> Iterator[ProcessPoolExecutor]:
    """Starts processes on this machine that know a job, and ends them at once at the end, whatever they are doing."""
    pool = ProcessPoolExecutor(number, _context(), initializer=_start, initargs=(shared.key, shared.content))
    try:
        yield pool
    finally:
        processes, manager = list((pool._processes or {}).values()), pool._executor_manager_thread
        pool.shutdown(wait=False, cancel_futures=True)
        # Before it finds its workers dead, the thread of the pool must have dropped all that is not running, which can
        # still be cancelled: it prints an error of its own otherwise (before Python 3.12).
        until = time.monotonic() + 10
        while manager is not None and manager.is_alive() and time.monotonic() < until:
            if all(item.future.running() for item in list(manager.pending_work_items.values())):
                break
            time.sleep(0.005)
        for process in processes:
            process.terminate()


def _context() -> multiprocessing.context.BaseContext:
    """Forks workers, which is fast, where gradients can then be computed in them; else they begin as new processes.

    Autograd refuses to work in the forks of a process where it has threads: for a GPU, or once something was compiled.
    """
    context: multiprocessing.context.BaseContext = multiprocessing.get_context()
    if context.get_start_method() != "fork":
        return context
    probe = context.Process(target=_try_autograd)  # type: ignore[attr-defined]
    probe.start()
    probe.join()
    return context if probe.exitcode == 0 else multiprocessing.get_context("forkserver")


def _try_autograd() -> None:
    try:
        torch.ones(1, requires_grad=True).backward()
    except RuntimeError:
        os._exit(1)
    # Without what the parent does when it ends.
    os._exit(0)


def _start(key: str, content: bytes) -> None:
    torch.set_num_threads(1)
    keep_memory()
    _learn(key, content)
    # Ctrl-C is for the parent, which ends its workers; where it was killed, they end by themselves.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def keep_memory() -> None:
    """Keeps freed memory for the next tensor, where the C library is glibc: to get it anew costs time."""
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    set_option(trim_threshold, 2**31 - 1)
    set_option(top_pad, 2**26)
    set_option(mmap_threshold, 2**25)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
