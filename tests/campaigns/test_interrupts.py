"""Steps that are interrupted at a random line of ours, or by a timer: every parameter and its state are old or new.

What a step is to come to is computed beside it, without an interruption, and compared bit for bit; then a further step
is done, which must be that of a run that was never interrupted.
"""

from __future__ import annotations

import copy
import random
import signal
import sys
import time
import timeit
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from campaign import main, run
from lowrank_torch import DCTAdamW, Trion
from lowrank_torch._commit import ALL, Done, at_once, to_the_end

pytestmark = pytest.mark.slow

OURS = ("lowrank_core", "lowrank_torch", "lowrank_backends")
FEW, MANY = 60, 500
TIMES, MANY_TIMES = 40, 300
#: What is noted takes microseconds, and is timed so many times.
TURNS = 10

#: Everything that is written in a way of its own: stacks, several matrices in one parameter, parts of a large matrix,
#: copies of strange layouts, narrow parameters, state in codes, AdamW.
Made = tuple[type, dict[str, Any], list[dict[str, Any]]]
SMALL, LARGE = (40, 24), (1030, 1024)
CASES: dict[str, Made] = {
    "stack": (DCTAdamW, {"rank": 6}, [{"shapes": [SMALL] * 3 + [(24,), (30,)]}]),
    "one by one": (DCTAdamW, {"rank": 6, "foreach": False}, [{"shapes": [SMALL] * 3}]),
    "fused": (DCTAdamW, {"rank": 4}, [{"shapes": [(48, 24)], "split_sizes": [24, 12, 12]}]),
    "feedback": (
        DCTAdamW,
        {"rank": 6, "residual": "error_feedback", "feedback_bits": 8},
        [{"shapes": [SMALL, (24, 300)]}],
    ),
    "scaled": (
        DCTAdamW,
        {"preset": None, "rank": 6, "residual": "scaled"},
        [{"shapes": [SMALL, (30, 20)]}],
    ),
    "power": (DCTAdamW, {"preset": None, "rank": 4, "basis": "power"}, [{"shapes": [SMALL]}]),
    "narrow": (
        DCTAdamW,
        {"rank": 6, "stochastic_rounding": True},
        [{"shapes": [SMALL, (24,)], "dtype": torch.bfloat16}],
    ),
    "capturable": (
        DCTAdamW,
        {"rank": 6, "capturable": True, "refresh_every": 3, "eps": torch.tensor(1e-8)},
        [{"shapes": [SMALL, (24,)]}, {"shapes": [SMALL, (24,)], "dtype": torch.bfloat16}],
    ),
    "transposed": (DCTAdamW, {"rank": 6}, [{"shapes": [SMALL], "transposed": True}]),
    "strange": (DCTAdamW, {"rank": 6}, [{"shapes": [(12, 6, 3, 3)], "strange": True}]),
    "trion": (Trion, {"rank": 6}, [{"shapes": [SMALL] * 2 + [(24,)]}]),
    "codes": (Trion, {"rank": 6, "momentum_bits": 4}, [{"shapes": [SMALL]}]),
    "parts": (
        DCTAdamW,
        {"preset": None, "rank": 64, "residual": "error_feedback"},
        [{"shapes": [LARGE]}],
    ),
    "parts of trion": (Trion, {"rank": 64}, [{"shapes": [LARGE, (24,)]}]),
    "fused parts": (
        DCTAdamW,
        {"rank": 64},
        [{"shapes": [(2060, 1024)], "split_sizes": [1030] * 2}],
    ),
}


def build(name: str) -> Any:
    """An optimizer with two steps done."""
    kind, options, groups = CASES[name]
    made = []
    for group in copy.deepcopy(groups):
        shapes, dtype = group.pop("shapes"), group.pop("dtype", torch.float32)
        strange = group.pop("strange", False)
        given = [torch.randn(shape, generator=generator(9)).to(dtype) for shape in shapes]
        if strange:
            given = [x.to(memory_format=torch.channels_last) for x in given]
        made.append({"params": [torch.nn.Parameter(x) for x in given], **group})
    optimizer = kind(made, lr=0.01, weight_decay=0.1, **options)
    for step in range(2):
        set_gradients(optimizer, step)
        optimizer.step()
    return optimizer


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def set_gradients(optimizer: Any, step: int) -> None:
    for group in optimizer.param_groups:
        for place, p in enumerate(group["params"]):
            gradient = torch.randn(p.shape, generator=generator(100 * step + place)).to(p.dtype)
            p.grad = torch.empty_like(p).copy_(gradient)


def snapshot(optimizer: Any) -> list[list[Any]]:
    """Of every parameter its numbers and its state, to be compared."""
    found = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            values = [p, *(state[key] for key in sorted(state))]
            found.append([v.detach().clone() if hasattr(v, "clone") else v for v in values])
    return found


def restore(optimizer: Any, kept: list[list[Any]]) -> None:
    rows = iter(kept)
    for group in optimizer.param_groups:
        for p in group["params"]:
            values, state = next(rows), optimizer.state[p]
            with torch.no_grad():
                p.copy_(values[0])
            for key, value in zip(sorted(state), values[1:], strict=True):
                state[key] = value.clone() if hasattr(value, "clone") else value


def same(one: list[Any], other: list[Any]) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one, other, strict=True)
    )


class AtLine:
    """Raises at one line of ours, by number of those that are run."""

    def __init__(self, target: int) -> None:
        self.target, self.lines, self.where = target, 0, ""

    def __call__(self, frame: Any, event: str, _: Any) -> Any:
        if frame.f_globals.get("__name__", "").partition(".")[0] not in OURS:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self.target:
                self.where = f"{frame.f_code.co_qualname}:{frame.f_lineno}"
                sys.settrace(None)
                raise KeyboardInterrupt
        return self


def traced(optimizer: Any, target: int) -> AtLine:
    """Do a step that is interrupted at a line, or counts its lines."""
    trace = AtLine(target)
    sys.settrace(trace)
    try:
        optimizer.step()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)
    return trace


def timed(optimizer: Any, seconds: float) -> bool:
    """Do a step that is interrupted after a time, wherever it is then."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        optimizer.step()
        signal.setitimer(signal.ITIMER_REAL, 0)
    except KeyboardInterrupt:
        return True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return False


def judged(optimizer: Any, old: Any, new: Any, further: Any, where: str) -> str | None:
    """Say what is wrong with a step that was interrupted."""
    found = snapshot(optimizer)
    for place, row in enumerate(found):
        if not same(row, old[place]) and not same(row, new[place]):
            return f"{where}: parameter {place} is torn"
    if all(same(row, one) for row, one in zip(found, new, strict=True)):
        set_gradients(optimizer, 3)
        optimizer.step()
        if not all(map(same, snapshot(optimizer), further)):
            return f"{where}: the next step is another one"
    return None


def prepared(name: str) -> tuple[Any, Any, Any, Any, int]:
    """An optimizer, what it is before, after a step and after a further one, and the lines of a step."""
    optimizer = build(name)
    old = snapshot(optimizer)
    set_gradients(optimizer, 2)
    optimizer.step()
    new = snapshot(optimizer)
    set_gradients(optimizer, 3)
    optimizer.step()
    further = snapshot(optimizer)
    restore(optimizer, old)
    set_gradients(optimizer, 2)
    lines = traced(optimizer, -1).lines
    assert all(map(same, snapshot(optimizer), new))
    return optimizer, old, new, further, lines


def interrupts(count: int, seed: int, *, timer: bool) -> Iterator[Any]:
    """Interrupt so many steps, of all cases in turn."""
    draw = random.Random(seed)
    came = dict.fromkeys(CASES, 0)
    for number, name in enumerate(CASES):
        share = count // len(CASES) + (number < count % len(CASES))
        optimizer, old, new, further, lines = prepared(name)
        duration = _seconds(optimizer)
        for _ in range(share):
            restore(optimizer, old)
            set_gradients(optimizer, 2)
            if timer:
                after = draw.uniform(0.02, 0.9) * duration
                while not timed(optimizer, after):
                    # It was over before.
                    restore(optimizer, old)
                    set_gradients(optimizer, 2)
                    after *= 0.7
                came[name] += 1
                where = f"{name}, after {1e3 * after:.2f} ms"
            else:
                trace = traced(optimizer, draw.randrange(1, lines + 1))
                came[name] += bool(trace.where)
                where = f"{name}, {trace.where}"
            yield judged(optimizer, old, new, further, where)
    yield {"interrupted": sum(came.values()), "by case": came}


def _seconds(optimizer: Any) -> float:
    begun = time.perf_counter()
    optimizer.step()
    return time.perf_counter() - begun


def _noted() -> None:
    """What a step of one matrix does besides, lest it be half done: it notes both of its writes."""
    done = Done()

    def work() -> None:
        at_once([partial(len, ()), partial(done.blocks.add, (0, 0))])
        at_once([partial(len, ()), partial(done.blocks.add, ALL)])

    to_the_end(work, done)


def cost(count: int, seed: int) -> Iterator[Any]:
    """Time that against a whole step of a small matrix, on one thread; a failure is more than one part in 100."""
    torch.set_num_threads(1)
    weight = torch.nn.Parameter(torch.zeros(64, 256))
    weight.grad = torch.randn(64, 256, generator=generator(seed))
    step = DCTAdamW([weight]).step
    step()
    for _ in range(count):
        noting = min(timeit.repeat(_noted, number=10_000)) / 10_000
        whole = min(timeit.repeat(step, number=100)) / 100
        yield None if noting <= 0.01 * whole else f"{noting / whole:.1%} of a step"
    yield {"noting_microseconds": 1e6 * noting, "step_microseconds": 1e6 * whole}


at_lines, by_timer = partial(interrupts, timer=False), partial(interrupts, timer=True)


def test_steps_interrupted_at_random_lines():
    outcome = run(at_lines, FEW)
    assert outcome.tried == FEW == outcome.more["interrupted"]
    assert not outcome.failures


def test_steps_interrupted_by_a_timer():
    outcome = run(by_timer, TIMES)
    assert outcome.tried == TIMES == outcome.more["interrupted"]
    assert not outcome.failures


if __name__ == "__main__":
    main(lines=(at_lines, MANY), timer=(by_timer, MANY_TIMES), cost=(cost, TURNS))
