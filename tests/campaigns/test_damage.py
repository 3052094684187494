"""Damaged files and state dicts, and saves that are killed: loaded whole or refused, with all as it was before.

A file is damaged in one bit, byte or block, cut or lengthened; a state dict in one entry. Raised may be `OSError` and
`ValueError`, of files with the path in it, and of wrong types `TypeError`.
"""

from __future__ import annotations

import copy
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from campaign import main, run
from lowrank_torch import DCTAdamW, Trion

pytestmark = pytest.mark.slow

FEW = {"files": 600, "states": 300, "kills": 12}
MANY = {"files": 10_000, "states": 2_000, "kills": 500}
OPTIONS: list[tuple[type, dict[str, Any]]] = [
    (DCTAdamW, {"rank": 3}),
    (DCTAdamW, {"preset": None, "rank": 3, "residual": "error_feedback", "feedback_bits": 8}),
    (DCTAdamW, {"preset": None, "rank": 3, "selection": "sampled", "bias_correction": "gentle"}),
    (DCTAdamW, {"preset": None, "rank": 3, "basis": "power"}),
    (DCTAdamW, {"preset": None, "rank": 3, "state_dtype": "float16"}),
    (Trion, {"rank": 3, "momentum_bits": 4}),
]


def trained(kind: type, options: dict[str, Any], seed: int = 0, steps: int = 2) -> Any:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (12, 8), "b.weight": (8, 20), "c.bias": (7,)}
    given = {n: torch.nn.Parameter(torch.randn(s, generator=generator)) for n, s in shapes.items()}
    optimizer = kind(list(given.items()), **options)
    for _ in range(steps):
        for parameter in given.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return optimizer


def held(optimizer: Any) -> list[Any]:
    """What an optimizer holds, in bytes."""
    found = []
    for group in optimizer.param_groups:
        found.append({k: v for k, v in group.items() if k != "params"})
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            found.append(parameter.detach().numpy().tobytes())
            for key in sorted(state):
                value = state[key]
                found.append((key, value.numpy().tobytes() if hasattr(value, "numpy") else value))
    return found


def damaged(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    match draw.randrange(8):
        case 0 | 1 | 2:  # a flipped bit
            changed = bytes([content[place] ^ 1 << draw.randrange(8)])
            return content[:place] + changed + content[place + 1 :]
        case 3:  # a byte
            return content[:place] + bytes([draw.randrange(256)]) + content[place + 1 :]
        case 4:  # a block of zeros, or of anything
            length = draw.randrange(1, 512)
            block = bytes(length) if draw.random() < 0.5 else draw.randbytes(length)
            return (content[:place] + block + content[place + length :])[: len(content)]
        case 5:
            return content[:place]
        case 6:
            return content + draw.randbytes(draw.randrange(1, 64))
        case _:  # the header
            place = draw.randrange(min(4096, len(content)))
            return content[:place] + draw.randbytes(1) + content[place + 1 :]


def files(count: int, seed: int) -> Iterator[Any]:
    """Load damaged files."""
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        made = []
        for kind, options in OPTIONS:
            trained(kind, options).save_state(path)
            made.append((path.read_bytes(), trained(kind, options, seed=1)))
        refused = 0
        for number in range(count):
            content, optimizer = made[number % len(made)]
            bad = damaged(content, draw)
            path.write_bytes(bad)
            before = held(optimizer)
            try:
                optimizer.load_state(path)
                yield None if bad == content else f"try {number}: a damaged file was loaded"
                continue
            except (OSError, ValueError) as error:
                refused += 1
                if str(path) not in str(error):
                    yield f"try {number}: the path is not in {error}"
                    continue
            except Exception as error:  # noqa: BLE001
                yield f"try {number}: {type(error).__name__}: {error}"
                continue
            yield None if held(optimizer) == before else f"try {number}: half loaded"
        yield {"refused": refused}


def spoiled(saved: dict[str, Any], draw: random.Random) -> str:
    """Change one entry of a state dict into one that state cannot have; return which."""
    entries = saved["state"][draw.choice(list(saved["state"]))]
    key = draw.choice(list(entries))
    value = entries[key]
    junk = [None, "x", [], {}, object(), -1, 1.5, float("nan"), torch.ones(2, 2).to_sparse()]
    if key == "step" or draw.random() < 0.4:
        entries[key] = draw.choice(junk)
        return f"{key} {value!r}"[:80]
    match draw.randrange(7):
        case 0:
            entries[key] = value[..., None] if value.ndim else value.repeat(3)
        case 1:
            entries[key] = value.to(torch.complex64)
        case 2:
            entries[key] = torch.full_like(value.float(), draw.choice([float("nan"), float("inf")]))
        case 3:
            del entries[key]
        case 4:
            entries["more"] = value
        case 5:
            entries[key] = value.to("meta")
        case _:
            entries[key] = value.tolist()
    return f"{key} {value!r}"[:80]


def states(count: int, seed: int) -> Iterator[Any]:
    """Load spoiled state dicts."""
    draw = random.Random(seed)
    made = [(trained(k, o).state_dict(), trained(k, o, seed=1)) for k, o in OPTIONS]
    for number in range(count):
        saved, optimizer = made[number % len(made)]
        bad = copy.deepcopy(saved)
        what = ""
        if draw.random() < 0.85:
            what = spoiled(bad, draw)
        else:
            part = draw.choice(["state", "param_groups"])
            bad[part] = draw.choice([None, [], 3, "x", [{}]])
        before = held(optimizer)
        try:
            optimizer.load_state_dict(bad)
        except (TypeError, ValueError) as error:
            said = "" if str(error) else "no words"
        except Exception as error:  # noqa: BLE001
            said = f"{type(error).__name__}: {error}"
        else:
            said = "accepted"
        if not said and held(optimizer) != before:
            said = "half loaded"
        yield f"try {number}: {said}: {what}" if said else None


def kills(count: int, seed: int) -> Iterator[Any]:
    """Kill processes that save over and over; the file is one of two, and the next save leaves nothing beside it."""
    draw = random.Random(seed)
    one, other = (trained(DCTAdamW, {"rank": 3}, s) for s in (0, 1))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        one.save_state(path)
        left = 0
        for number in range(count):
            child = os.fork()
            if not child:
                while True:
                    one.save_state(path)
                    other.save_state(path)
            time.sleep(draw.uniform(0.0, 0.03))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            left += len(list(Path(folder).iterdir())) > 1
            loaded = trained(DCTAdamW, {"rank": 3}, 2)
            try:
                loaded.load_state(path)
            except Exception as error:  # noqa: BLE001
                yield f"kill {number}: {error}"
                continue
            found = [entry for entry in held(loaded) if isinstance(entry, tuple)]
            wanted = [[e for e in held(o) if isinstance(e, tuple)] for o in (one, other)]
            loaded.save_state(path)
            beside = [entry.name for entry in Path(folder).iterdir()]
            if found not in wanted:
                yield f"kill {number}: neither of the two"
            else:
                yield None if beside == ["state"] else f"kill {number}: {beside} is left"
            one.save_state(path)
        yield {"killed while writing": left}


CAMPAIGNS = {"files": files, "states": states, "kills": kills}


# Processes are forked, of which JAX warns where another test has loaded it; they save, and are killed.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.parametrize("name", CAMPAIGNS)
def test_whole_or_refused(name):
    outcome = run(CAMPAIGNS[name], FEW[name])
    assert outcome.tried == FEW[name]
    assert not outcome.failures


if __name__ == "__main__":
    main(**{name: (campaign, MANY[name]) for name, campaign in CAMPAIGNS.items()})
