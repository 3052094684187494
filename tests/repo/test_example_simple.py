"""The examples that show an algorithm on one screen are the core's algorithms."""

import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_close, normal

import lowrank_core as lc

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
SHAPE, RANK, STEPS, LR, DECAY = (20, 12), 5, 12, 0.03, 0.1


def example(monkeypatch, name):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(name)


def run_core(init, step, config):
    weight, state = normal(*SHAPE, seed=99), init(SHAPE, config, xp=np, dtype=np.float64)
    for number in range(STEPS):
        update, state = step(normal(*SHAPE, seed=number), state, config)
        weight = (1 - LR * DECAY) * weight - LR * lc.materialize(update)
    return weight, state


def run_example(optimizer):
    weight = normal(*SHAPE, seed=99)
    for number in range(STEPS):
        weight = optimizer.step(weight, normal(*SHAPE, seed=number))
    return weight


def test_dct_adamw_simple_is_the_core(monkeypatch):
    config = lc.DCTAdamWConfig(rank=RANK)
    expected, state = run_core(lc.dct_adamw_init, lc.dct_adamw_step, config)
    own = example(monkeypatch, "dct_adamw_simple").DCTAdamW(SHAPE, RANK, lr=LR, decay=DECAY)
    assert_close(run_example(own), expected, xp=np, dtype="float64", kind="trajectory")
    np.testing.assert_array_equal(own.I, state.indices)


def test_trion_simple_is_the_core(monkeypatch):
    config = lc.TrionConfig(rank=RANK)
    expected, state = run_core(lc.trion_init, lc.trion_step, config)
    own = example(monkeypatch, "trion_simple").Trion(SHAPE, RANK, lr=LR, decay=DECAY)
    assert_close(run_example(own), expected, xp=np, dtype="float64", kind="trajectory")
    assert_close(own.M, state.momentum, xp=np, dtype="float64", kind="trajectory")


@pytest.mark.parametrize("name", ["dct_adamw_simple", "trion_simple"])
def test_simple_example_runs_and_learns(name):
    run = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py")], capture_output=True, text=True, check=True
    )
    before, after = (float(line.split()[1]) for line in run.stdout.splitlines())
    assert after < before / 20
