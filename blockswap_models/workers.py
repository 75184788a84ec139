"""Scoring on many workers: any concurrent.futures.Executor, or processes of this machine."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import wait
from typing import Any

import torch

__all__ = ["WorkerError", "local_workers", "map_in_order", "one_thread"]

# Enough tasks ahead to keep every worker busy, few enough to forget quickly when interrupted.
_AHEAD = 256

Job = Callable[[Any], Any]
# The jobs that this worker knows, by digest: a job holds a minibatch, and travels to each worker once.
_jobs: dict[str, Job] = {}


class WorkerError(RuntimeError):
    """Workers that died; what they had finished is kept."""


def map_in_order(job: Job, tasks: Sequence[Any], executor: Executor | None = None) -> Iterator[Any]:
    """Yields job(task) for each task in order, computed here or by the workers of an executor, on one thread each."""
    if executor is None:
        with one_thread():
            yield from map(job, tasks)
        return
    try:
        content = pickle.dumps(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(f"what workers compute must be importable, such as a function of a module: {error}") from None
    digest = hashlib.sha256(content).hexdigest()
    waiting = iter(tasks)
    running: deque[tuple[Any, Future[Any]]] = deque()
    try:
        while True:
            while len(running) < _AHEAD and (task := next(waiting, _jobs)) is not _jobs:
                running.append((task, executor.submit(_work, digest, None, task)))
            if not running:
                return
            task, future = running.popleft()
            known, result = future.result()
            if not known:
                # A worker that has not seen the job: now it has.
                running.appendleft((task, executor.submit(_work, digest, content, task)))
            else:
                yield result
    except BrokenProcessPool:
        raise WorkerError(
            "a worker died, perhaps for want of memory; go on (--resume) with fewer (--workers)"
        ) from None
    finally:
        for _, future in running:
            future.cancel()


def _work(digest: str, content: bytes | None, task: Any) -> tuple[bool, Any]:
    """Does one task; says that it does not know the job where this worker has not been sent it yet."""
    if content is not None and digest not in _jobs:
        _jobs.clear()
        _jobs[digest] = pickle.loads(content)
    if digest not in _jobs:
        return False, None
    with one_thread():
        return True, _jobs[digest](task)


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
def local_workers(number: int) -> Iterator[ProcessPoolExecutor]:
    """Starts processes on this machine, and ends them at once at the end, whatever they are doing."""
    pool = ProcessPoolExecutor(number, multiprocessing.get_context(), initializer=_start)
    try:
        yield pool
    finally:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()


def _start() -> None:
    torch.set_num_threads(1)
    # Ctrl-C is for the parent, which ends its workers; where it was killed, they end by themselves.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
