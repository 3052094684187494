"""Wrong arguments drawn at random, of every public function: refused by name, and a right call works afterwards."""

from __future__ import annotations

import random
import string
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from campaign import main, run

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optax", "torch")]

FEW, MANY = 400, 5000


def word(draw: random.Random) -> str:
    return "".join(draw.choices(string.ascii_letters + string.punctuation, k=draw.randint(1, 12)))


#: What numbers and choices are not, without end.
DRAWS: dict[str, Any] = {
    "choice": word,
    "optional choice": word,
    "basis": word,
    "bits": lambda draw: draw.choice([n for n in range(-9, 99) if n not in (4, 8)]),
    "count": lambda draw: draw.choice([-draw.randrange(10**9), draw.uniform(1, 9), word(draw)]),
    "rank": lambda draw: draw.choice([-draw.randrange(10**9), draw.uniform(1, 9), word(draw)]),
    "amount": lambda draw: draw.choice([-draw.expovariate(1e-3) - 1e-9, word(draw)]),
    "fraction": lambda draw: draw.choice([-draw.random() - 1e-9, 1 + draw.random(), word(draw)]),
    "index": lambda draw: draw.choice([-draw.randrange(1, 10**9), draw.uniform(1, 9), word(draw)]),
    "rates": lambda draw: (draw.random(), draw.choice([1.0, 1 + draw.random(), -draw.random()])),
}


def wrong(count: int, seed: int) -> Iterator[Any]:
    # In the path only where pytest, or `campaign`, has put it there.
    from bad_arguments import KINDS, ROWS, said_of

    draw = random.Random(seed)
    pairs = [(key, argument) for key, row in ROWS.items() for argument in row.kinds]
    for _ in range(count):
        (package, name), argument = draw.choice(pairs)
        row = ROWS[package, name]
        kind = row.kinds[argument]
        anything = kind in DRAWS and draw.random() < 0.7
        value = DRAWS[kind](draw) if anything else draw.choice(KINDS[kind])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            said = said_of(row, argument, value)
        yield said and f"{package.__name__}.{name}({argument}={value!r}): {said}"


def test_wrong_arguments_are_refused():
    outcome = run(wrong, FEW)
    assert outcome.tried == FEW
    assert not outcome.failures


if __name__ == "__main__":
    main(arguments=(wrong, MANY))
