"""A second moment kept as means over rows and columns, the bounded residual, and a first moment in 8 bits."""

import itertools

import numpy as np
import oracles
import pytest
from family_cases import gradients, steps
from helpers import assert_close, to_numpy

import lowrank_core as lc
from lowrank_core.rules.presets import with_preset

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


def test_no_coefficient_outside_moves_further_than_the_scale(xp):
    """Whatever the gradients: a spike after many small ones is bounded by its own square."""
    config = config_of(rank=1, residual_scale=0.5, refresh_every=100)
    sequence = [1e-6 * G for G in gradients(6, 9, 7)]
    sequence[-1] = 1e4 * sequence[-1]
    rests = [to_numpy(update.rest.values) for _, update, _ in steps(config, sequence, xp)]
    assert max(np.abs(rest).max() for rest in rests) <= 0.5
    assert np.abs(rests[-1]).max() > 0.45  # the spike is stepped as a sign would be


def test_scaling_the_gradient_changes_nothing(xp):
    config = config_of(eps=0.0)
    sequence = gradients(5, 9, 7)
    plain = [to_numpy(full) for full, _, _ in steps(config, sequence, xp)]
    for scale in (1e-12, 1e12):
        scaled = steps(config, [scale * G for G in sequence], xp)
        for (full, _, _), wanted in zip(scaled, plain, strict=True):
            assert_close(full, wanted, xp=xp, dtype="float64", kind="trajectory")


@pytest.mark.parametrize("side", ["right", "left"])
def test_state_is_one_moment_and_two_vectors(side):
    config = config_of(side=side, rank=8)
    shape, rows, columns = ((48, 32), 48, 32) if side == "right" else ((32, 48), 48, 32)
    assert lc.state_bytes(shape, config) == 4 * (8 * rows + 8 + rows + columns)
    coded = config_of(side=side, rank=8, moment_bits=8)
    blocks = rows if side == "right" else 8
    assert lc.state_bytes(shape, coded) == 8 * rows + 8 * blocks + 4 * (8 + rows + columns)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_moment_in_eight_bits_moves_nearly_as_one_in_full(xp, side):
    exact, coded = (
        list(steps(config_of(side=side, moment_bits=bits), gradients(12, 9, 9), xp))
        for bits in (None, 8)
    )
    assert to_numpy(coded[0][2].first_moment).dtype == np.uint8
    for (full, _, _), (found, _, _) in zip(exact, coded, strict=True):
        difference = np.linalg.norm(to_numpy(found) - to_numpy(full))
        # A code is within half of 1/255 of its block's range, and a mean adds up ten of them.
        assert difference < 0.05 * np.linalg.norm(to_numpy(full))


def test_rows_and_columns_without_gradient_are_not_moved(xp):
    gradient = gradients(1, 9, 8)[0]
    gradient[2] = 0.0
    constant = np.ones((9, 8)) * gradient[:, :1]  # one coefficient a row, the others rounding
    for given in (gradient, constant):
        (full, _, _), *_ = steps(config_of(), [given], xp)
        moved = to_numpy(full)
        assert np.isfinite(moved).all()
        np.testing.assert_array_equal(moved[2], 0.0)
    spread = np.abs(moved - moved[:, :1]).max()
    assert spread <= 1e-3 * np.abs(moved).max()


def test_a_gradient_of_zeros_is_no_choice(xp):
    sequence = [np.zeros((9, 7)), *gradients(3, 9, 7)]
    *_, (full, _, state) = steps(config_of(refresh_every=100), sequence, xp)
    *_, (_, _, alone) = steps(config_of(refresh_every=100), sequence[1:], xp)
    assert np.isfinite(to_numpy(full)).all()
    np.testing.assert_array_equal(to_numpy(state.indices), to_numpy(alone.indices))


@pytest.mark.parametrize("factored", [{}, {"second_moment": "factored", "residual": "bounded"}])
@pytest.mark.parametrize("residual", [None, "discard", "scaled", "normalized"])
def test_update_scale_multiplies_the_whole_update(xp, factored, residual):
    options = {**factored, **({"residual": residual} if residual else {})}
    sequence = gradients(4, 9, 7)
    plain, scaled = (
        list(steps(lc.DCTAdamWConfig(rank=3, update_scale=s, **options), sequence, xp))
        for s in (1.0, 2.5)
    )
    for (full, _, _), (found, _, _) in zip(plain, scaled, strict=True):
        assert_close(found, 2.5 * to_numpy(full), xp=xp, dtype="float64", kind="trajectory")


BASES = [name for name in lc.basis_names() if name != "hadamard"]
OTHERS = {
    "residual": ("discard", "sign", "scaled", "normalized", "error_feedback", "bounded"),
    "selection": ("top", "sampled"),
    "moment_bits": (None, 8),
    "state_dtype": (None, "bfloat16", "float16"),
}


@pytest.mark.parametrize("basis", BASES)
def test_other_options_combine_with_it(torch, basis):
    sequence = [torch.asarray(G, dtype=torch.float32) for G in gradients(4, 12, 8)]
    for values in itertools.product(*OTHERS.values()):
        options = dict(zip(OTHERS, values, strict=True))
        config = config_of(basis=basis, refresh_every=2, **options)
        state = lc.dct_adamw_init((12, 8), config, xp=torch)
        for gradient in sequence:
            update, state = lc.dct_adamw_step(gradient, state, config)
            full = lc.materialize(update)
            assert torch.isfinite(full).all(), options
            assert full.abs().max() > 0.01, options
        arrays = [a for name, a in state._asdict().items() if name != "step" and a is not None]
        assert sum(a.nbytes for a in arrays) == lc.state_bytes((12, 8), config), options


@pytest.mark.parametrize(
    ("options", "blamed"),
    [
        ({"second_moment": "full"}, "residual must not be 'bounded'"),
        ({"second_moment": "full", "residual": "discard", "moment_bits": 8}, "moment_bits"),
        ({"basis": "svd", "residual": "discard", "score_decay": None}, "second_moment must be"),
        ({"bias_correction": "column"}, "bias_correction must be 'step'"),
        ({"betas": (0.99, 0.95)}, "betas must"),
        ({"moment_bits": 4}, "moment_bits must be one of"),
        ({"second_moment": "half"}, "second_moment must be one of"),
        ({"update_scale": 0.0}, "update_scale must be greater than 0"),
    ],
)
def test_what_does_not_go_together_is_refused(options, blamed):
    with pytest.raises(ValueError, match=blamed):
        config_of(**options)


@pytest.mark.parametrize("preset", list(lc.PRESETS))
def test_presets_are_options(preset):
    config = lc.DCTAdamWConfig(rank=4, **lc.PRESETS[preset])
    assert lc.state_bytes((64, 32), config) > 0


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="preset must be one of 'factored'"):
        with_preset("best of all", {})
    with pytest.raises(ValueError, match="preset must be one of 'best', got 'factored'"):
        with_preset("factored", {}, lc.TRION_PRESETS)
    assert with_preset("tiny", {"refresh_every": 3})["refresh_every"] == 3
