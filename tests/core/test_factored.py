"""A second moment kept as means over rows and columns, the bounded residual, and a first moment in 8 bits."""

import numpy as np
import oracles
import pytest
from family_cases import gradients, steps
from helpers import assert_close, to_numpy

import lowrank_core as lc

BETA, DECAY, EPS = 0.9, 0.95, 1e-8


class Oracle:
    """The rule in float64 NumPy, for a matrix whose rows are transformed."""

    def __init__(self, shape, rank, refresh_every, residual):
        self.Q = oracles.dct_basis(shape[1])
        self.p, self.c, self.m = np.zeros(shape[0]), np.zeros(shape[1]), np.zeros(shape)
        self.chosen = np.zeros(0, int)
        self.rank, self.refresh_every, self.residual, self.t = rank, refresh_every, residual, 0

    def step(self, G):
        self.t += 1
        S = G @ self.Q
        self.c = DECAY * self.c + (1 - DECAY) * (S**2).mean(0)
        self.p = DECAY * self.p + (1 - DECAY) * (S**2).mean(1)
        if self.t == 1 or self.t % self.refresh_every == 0:
            new = np.sort(np.argsort(-self.c, kind="stable")[: self.rank])
            for j in set(range(S.shape[1])) - set(self.chosen) & set(new):
                self.m[:, j] = 0
            self.chosen = new
        seen = 1 - DECAY**self.t
        D = np.outer(self.p / seen, self.c / self.c.mean())
        U = np.zeros_like(S)
        if self.residual == "bounded":
            U = 0.5 * S / np.sqrt((np.sqrt(D) + EPS) ** 2 + S**2)
        own = self.chosen
        self.m[:, own] = BETA * self.m[:, own] + (1 - BETA) * S[:, own]
        U[:, own] = self.m[:, own] / (1 - BETA**self.t) / (np.sqrt(D[:, own]) + EPS)
        return U @ self.Q.T


def config_of(**options):
    defaults = {
        "rank": 3,
        "betas": (BETA, DECAY),
        "second_moment": "factored",
        "score_decay": DECAY,
    }
    return lc.DCTAdamWConfig(**defaults | {"residual": "bounded", "refresh_every": 3} | options)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("residual", ["bounded", "discard"])
@pytest.mark.parametrize("refresh_every", [1, 3])
def test_steps_are_those_of_the_oracle(xp, side, residual, refresh_every):
    config = config_of(side=side, residual=residual, refresh_every=refresh_every)
    sequence = gradients(10, 9, 7)
    oracle = Oracle((9, 7), 3, refresh_every, residual)
    if side == "left":
        sequence = [G.T for G in sequence]
    for G, (full, _, _) in zip(sequence, steps(config, sequence, xp), strict=True):
        wanted = oracle.step(G if side == "right" else G.T)
        found = to_numpy(full)
        assert_close(
            full, wanted if side == "right" else wanted.T, xp=xp, dtype="float64", kind="trajectory"
        )
        assert np.abs(found).max() > 0.1
