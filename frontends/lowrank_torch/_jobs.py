"""The steps to be done, and those that meet no other process run side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from lowrank_core.ops import Ops


class Job(NamedTuple):
    """One step to be done, and the bytes it holds while it waits, the same number on every rank."""

    held: int
    run: Callable[[], None]
    #: Whether a thread for it alone is better than all threads for each of its operations.
    small: bool = False


def run_here(jobs: Sequence[Job], ops: Ops) -> None:
    """Do jobs that wait for no other process, the small ones side by side."""
    small = [job for job in jobs if job.small]
    if 2 * len(small) <= ops.workers():
        # Most threads would have nothing to do: better that each job is divided.
        small = []
    for job in jobs:
        if not small or not job.small:
            job.run()
    ops.for_each(lambda job: job.run(), small)
