"""Work on PyTorch's CPU tensors done several pieces at a time, all operations of a piece by one thread.

PyTorch divides every operation among threads, which meet after each: of pieces that fit a core's cache most of the time
goes into meeting. Here threads meet when all pieces are done.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue
from threading import Barrier, Event, RLock
from typing import TypeVar

import torch

T = TypeVar("T")

# Seconds after which an interrupt is noticed at the latest.
_PATIENCE = 0.1


class _Pool:
    """Threads whose operations use no other thread, as many as were last asked for."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin without threads: of a process that forks, the new one has none but the one that forked."""
        self._executor: ThreadPoolExecutor | None = None
        self._threads = 0
        #: Held while work is done, so that what may wait for one another is at work together. A thread that is
        #: interrupted by a tracer between its work and the release can take it again.
        self.lock = RLock()

    def of(self, threads: int) -> ThreadPoolExecutor:
        """Return a pool of so many threads; to be called with the lock held."""
        if self._executor is None or self._threads != threads:
            if self._executor is not None:
                self._executor.shutdown(wait=False)
            self._executor = None
            executor = ThreadPoolExecutor(threads, "lowrank", initializer=_single_threaded)
            # Each has begun once all have met here.
            met = Barrier(threads)
            try:
                wait([executor.submit(met.wait) for _ in range(threads)])
            except BaseException:
                met.abort()
                executor.shutdown(wait=False)
                raise
            finally:
                # What a thread sets for itself is also what threads to come begin with, which are not ours.
                torch.set_num_threads(threads)
            self._executor, self._threads = executor, threads
        return self._executor


_pool = _Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.forget)


def num_threads() -> int:
    """Return how many items `for_each` works on at a time."""
    # Modes belong to the thread that entered them; a graph compiler follows one thread alone.
    single = torch.compiler.is_compiling() or (
        torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack()
    )
    return 1 if single else torch.get_num_threads()


def for_each(work: Callable[[T], object], items: Iterable[T]) -> None:
    """Call ``work`` for every item, as many at a time as PyTorch has threads, without following gradients.

    No two items may write to the same memory; as many as there are threads may wait for one another. An item's error
    ends the work: none is begun after it, and it is raised when those that had begun are done.
    """
    listed = list(items)
    threads = num_threads()
    if min(threads, len(listed)) < 2:
        for item in listed:
            work(item)
        return
    waiting: SimpleQueue[T] = SimpleQueue()
    for item in listed:
        waiting.put(item)
    # Nobody works before all have been told to: an interrupt in between finds none at work that it does not know of.
    begin = Event()
    inference = torch.is_inference_mode_enabled()

    def work_off() -> None:
        begin.wait()
        with torch.inference_mode(inference), torch.no_grad():
            try:
                while True:
                    work(waiting.get_nowait())
            except Empty:
                return
            except BaseException:
                _empty(waiting)
                raise

    with _pool.lock:
        executor = _pool.of(threads)
        futures: list[Future[None]] = []
        try:
            futures.extend(executor.submit(work_off) for _ in range(threads))
            begin.set()
            # Woken now and then: an interrupt that comes just before a wait would be seen only after it.
            while wait(futures, timeout=_PATIENCE).not_done:
                pass
            for future in futures:
                future.result()
        finally:
            # Also when interrupted: nobody writes to the caller's tensors after this returns.
            _empty(waiting)
            begin.set()
            wait(futures)


def _empty(waiting: SimpleQueue[T]) -> None:
    while True:
        try:
            waiting.get_nowait()
        except Empty:
            return


def _single_threaded() -> None:
    """Let operations called by this thread use no other."""
    torch.get_num_threads()  # or the number for new threads would be taken over later
    torch.set_num_threads(1)
