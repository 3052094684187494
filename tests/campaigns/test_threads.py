"""Optimizers that step in several threads at once, and in a process forked off between two steps.

Each has parameters of its own; what threads share is what the library keeps for all: bases, layouts, threads of its
own. The right numbers are those of the same steps one after the other, bit for bit.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from campaign import main, run
from lowrank_torch import DCTAdamW, Trion

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
]

FEW = {"threads": 10, "forks": 10}
MANY = {"threads": 300, "forks": 300}
KINDS: list[tuple[type, dict[str, Any]]] = [
    (DCTAdamW, {}),
    (DCTAdamW, {"preset": None, "residual": "error_feedback", "refresh_every": 2}),
    (DCTAdamW, {"preset": None, "basis": "power"}),
    (DCTAdamW, {"preset": "tiny"}),
    (DCTAdamW, {"preset": None, "state_dtype": "bfloat16"}),
    (Trion, {}),
    (Trion, {"momentum_bits": 8}),
]
#: Sizes for which a basis is made on the first step, and one of whose matrices each thread may be given a part.
SIZES = [17, 48, 96, 130, 384]
#: Seconds after which a forked process is taken to wait for a thread that it does not have.
PATIENCE = 60


class Job(NamedTuple):
    """One optimizer on one matrix."""

    kind: type
    options: dict[str, Any]
    shape: tuple[int, int]
    seed: int

    def begun(self) -> Callable[[int], str]:
        """Make it; what is returned takes so many steps and says in short which numbers came of them."""
        generator = torch.Generator().manual_seed(self.seed)
        weight = torch.nn.Parameter(torch.randn(self.shape, generator=generator))
        optimizer = self.kind([weight], lr=0.01, rank=4, **self.options)

        def advance(steps: int) -> str:
            for _ in range(steps):
                weight.grad = torch.randn(self.shape, generator=generator)
                optimizer.step()
            digest = hashlib.sha256(weight.detach().numpy().tobytes())
            for value in optimizer.state[weight].values():
                if isinstance(value, torch.Tensor):
                    digest.update(value.contiguous().view(torch.uint8).numpy().tobytes())
            return digest.hexdigest()

        return advance


def drawn(draw: random.Random) -> Job:
    kind, options = draw.choice(KINDS)
    return Job(kind, options, (draw.choice(SIZES), draw.choice(SIZES)), draw.randrange(2**31))


def threads(count: int, seed: int) -> Iterator[Any]:
    """Three to five optimizers, each in a thread of its own, all of which begin together."""
    draw = random.Random(seed)
    for number in range(count):
        torch.set_num_threads(draw.choice([1, 2]))
        jobs = [drawn(draw) for _ in range(draw.randint(3, 5))]
        found: dict[int, str] = {}
        together = threading.Barrier(len(jobs))

        def work(
            place: int, job: Job, found: dict[int, str] = found, begin: Any = together.wait
        ) -> None:
            begin()
            try:
                found[place] = job.begun()(4)
            except Exception as error:  # noqa: BLE001
                found[place] = f"{type(error).__name__}: {error}"

        at_work = [threading.Thread(target=work, args=pair) for pair in enumerate(jobs)]
        for thread in at_work:
            thread.start()
        for thread in at_work:
            thread.join()
        wrong = [job for place, job in enumerate(jobs) if found[place] != job.begun()(4)]
        yield f"try {number}: {wrong}, {found}" if wrong else None


def in_child(work: Callable[[], str]) -> str:
    """What ``work`` gives in a forked process."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            said = work()
        except BaseException as error:  # noqa: BLE001
            said = f"{type(error).__name__}: {error}"
        os.write(writing, said.encode())
        os._exit(0)
    os.close(writing)
    killer = threading.Timer(PATIENCE, os.kill, (child, 9))
    killer.start()
    with os.fdopen(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    killer.cancel()
    return said


def forks(count: int, seed: int) -> Iterator[Any]:
    """An optimizer steps, its process forks, and both go on; threads may have been at work before.

    Both go on with one thread, as workers of PyTorch's data loaders do: in a process that is forked off, its products
    wait for ever for threads that there were before.
    """
    draw = random.Random(seed)
    for number in range(count):
        torch.set_num_threads(draw.choice([1, 2]))
        job = drawn(draw)
        advance = job.begun()
        advance(draw.randint(0, 2))
        torch.set_num_threads(1)
        child = in_child(lambda advance=advance: advance(3))
        here = advance(3)
        yield None if child == here else f"try {number}: {job}: {child or 'nothing said'}, {here}"


CAMPAIGNS = {"threads": threads, "forks": forks}


# JAX warns of forks where another test has loaded it; the process that is forked off does not use it.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.parametrize("name", CAMPAIGNS)
def test_same_bits_as_one_after_the_other(name):
    before = torch.get_num_threads()
    try:
        outcome = run(CAMPAIGNS[name], FEW[name])
    finally:
        torch.set_num_threads(before)
    assert outcome.tried == FEW[name]
    assert not outcome.failures


if __name__ == "__main__":
    main(**{name: (campaign, MANY[name]) for name, campaign in CAMPAIGNS.items()})
