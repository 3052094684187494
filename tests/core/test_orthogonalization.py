"""Newton-Schulz: two forms of one iteration, what becomes of singular values, and Muon's own."""

import numpy as np
import oracles_family as oracles
import pytest
from helpers import (
    assert_close,
    assert_identical,
    dtype_name,
    from_numpy,
    library_of,
    normal,
    to_numpy,
    tolerance,
    untouched,
)

import lowrank_core as lc

FORMS = ("direct", "gram", "auto")
COEFFICIENTS = ("muon", "polar_express")
SHAPES = [(24, 8), (8, 24), (12, 12), (64, 48)]
CONDITIONS = (1e0, 1e1, 1e2, 1e3, 1e4)
# The largest difference of two numbers that the two forms may have in float32.
AGREEMENT = 1e-4


def with_singular_values(values, rows, columns, seed=0):
    """A matrix of given singular values and random singular vectors."""
    rank = min(rows, columns)
    left = np.linalg.qr(normal(rows, rank, seed=seed))[0]
    right = np.linalg.qr(normal(columns, rank, seed=seed + 1))[0]
    return (left * values) @ right.T


def conditioned(shape):
    """A stack of matrices of rising condition number."""
    rank = min(shape)
    return np.stack(
        [with_singular_values(np.geomspace(1, 1 / c, rank), *shape) for c in CONDITIONS]
    )


def spectra(rank):
    """Kinds of singular values, none below a hundredth of the largest."""
    flat = np.ones(rank)
    flat[-1] = 1e-2
    spiked = np.full(rank, 1e-2)
    spiked[0] = 1.0
    random = 10 ** np.random.default_rng(rank).uniform(-2, 0, rank)
    return {
        "geometric": np.geomspace(1, 1e-2, rank),
        "flat": flat,
        "spiked": spiked,
        "random": np.maximum(random, 1e-2 * random.max()),
        "equal": np.ones(rank),
    }


def singular_values(x):
    return np.linalg.svd(to_numpy(x).astype(np.float64), compute_uv=False)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("coefficients", COEFFICIENTS)
@pytest.mark.parametrize("steps", range(3, 9))
def test_gram_and_direct_form_agree_in_float32(xp, steps, coefficients, shape):
    x = from_numpy(conditioned(shape), xp, "float32")
    found = {
        form: lc.orthogonalize(x, steps=steps, coefficients=coefficients, form=form)
        for form in FORMS
    }
    for form in ("gram", "auto"):
        difference = np.abs(to_numpy(found[form]) - to_numpy(found["direct"]))
        assert difference.max() <= AGREEMENT


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("coefficients", COEFFICIENTS)
@pytest.mark.parametrize("shape", [(24, 8), (8, 24), (12, 12), (1, 5), (5, 1), (1, 1)])
def test_both_forms_apply_the_polynomials_to_singular_values(xp, shape, coefficients, form):
    # Well conditioned, so that float64 has digits to spare in either form.
    x = np.stack(
        [with_singular_values(np.linspace(1, 0.1, min(shape)), *shape, seed=s) for s in (0, 5)]
    )
    array = from_numpy(x, xp)
    for steps in (1, 2, 5, 9):
        with untouched(array):
            found = lc.orthogonalize(array, steps=steps, coefficients=coefficients, form=form)
        expected = oracles.orthogonalize(x, steps, coefficients)
        assert_close(found, expected, xp=xp, dtype="float64", kind="trajectory")


def plain_iteration(x, steps, coefficients):
    """The direct iteration as it is written in papers, in the precision of ``x``."""
    polynomials = (oracles.MUON if coefficients == "muon" else oracles.POLAR_EXPRESS)[:steps]
    safety = x.dtype.type(1 if coefficients == "muon" else 1.01)
    x = x / (np.linalg.norm(x) * safety)
    for step, polynomial in enumerate(polynomials):
        x = x / safety if step < steps - 1 else x
        c0, c1, c2 = (x.dtype.type(c) for c in polynomial)
        square = x @ x.T if x.shape[0] <= x.shape[1] else x.T @ x
        inner = c1 * square + c2 * square @ square
        x = c0 * x + (inner @ x if x.shape[0] <= x.shape[1] else x @ inner)
    return x


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("coefficients", COEFFICIENTS)
@pytest.mark.parametrize("shape", SHAPES)
def test_float32_errors_are_in_proportion(xp, shape, coefficients, form):
    # An iteration that stretches small singular values stretches their rounding errors, in any form. The Gram
    # matrix squares them, which costs more digits the worse the conditioning, but never many times more.
    x = conditioned(shape).astype(np.float32)
    found = to_numpy(lc.orthogonalize(from_numpy(x, xp), coefficients=coefficients, form=form))
    for matrix, result, condition in zip(x, found, CONDITIONS, strict=True):
        reference = oracles.orthogonalize(matrix, 5, coefficients)
        error = np.linalg.norm(result - reference)
        plain = np.linalg.norm(plain_iteration(matrix, 5, coefficients) - reference)
        floor = tolerance("transform", "float32") * np.linalg.norm(reference)
        assert error <= 10 * max(plain, floor), condition


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (16, 16), (200, 16)])
def test_singular_values_come_near_one(xp, shape, form):
    distance = {}
    for coefficients in COEFFICIENTS:
        distance[coefficients] = 0.0
        for kind, values in spectra(min(shape)).items():
            x = from_numpy(with_singular_values(values, *shape), xp, "float32")
            found = singular_values(lc.orthogonalize(x, coefficients=coefficients, form=form))
            assert found.min() >= 0.65, (coefficients, kind)
            assert found.max() <= 1.25, (coefficients, kind)
            worst = np.abs(found - 1).max()
            distance[coefficients] = max(distance[coefficients], worst)
    assert distance["polar_express"] < 0.5 * distance["muon"]


@pytest.mark.parametrize("coefficients", COEFFICIENTS)
@pytest.mark.parametrize("shape", [(256, 64), (300, 300)])
def test_singular_values_of_larger_matrices_come_near_one(torch, shape, coefficients):
    for kind in ("geometric", "random", "equal"):
        x = with_singular_values(spectra(min(shape))[kind], *shape)
        for form in ("direct", "gram"):
            found = lc.orthogonalize(
                from_numpy(x, torch, "float32"), coefficients=coefficients, form=form
            )
            values = singular_values(found)
            assert values.min() >= 0.65
            assert values.max() <= 1.25


@pytest.mark.parametrize("steps", [6, 7, 8])
def test_polar_express_converges(xp, steps):
    x = from_numpy(with_singular_values(np.geomspace(1, 1e-2, 12), 20, 12), xp)
    worst = [
        np.abs(
            singular_values(lc.orthogonalize(x, steps=s, coefficients="polar_express")) - 1
        ).max()
        for s in (steps - 1, steps)
    ]
    assert worst[1] < 0.5 * worst[0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("coefficients", COEFFICIENTS)
def test_zero_gives_zero_and_a_stack_does_not_mix(xp, coefficients, form):
    x = normal(4, 9, 5)
    x[1] = 0.0
    x[2] *= 1e6
    x[3, 4, 2] = np.nan
    found = to_numpy(
        lc.orthogonalize(from_numpy(x, xp, "float32"), coefficients=coefficients, form=form)
    )
    assert (found[1] == 0).all()
    assert np.isnan(found[3]).all()
    for place in (0, 2):
        alone = lc.orthogonalize(
            from_numpy(x[place], xp, "float32"), coefficients=coefficients, form=form
        )
        assert_close(alone, found[place], xp=xp, dtype="float32", kind="trajectory")


@pytest.mark.parametrize("form", FORMS)
def test_size_does_not_matter(xp, form):
    x = normal(10, 6)
    expected = lc.orthogonalize(from_numpy(x, xp, "float32"), form=form)
    for power in (-40, 40):
        scaled = from_numpy(x * 2.0**power, xp, "float32")
        assert_identical(lc.orthogonalize(scaled, form=form), expected)


@pytest.mark.parametrize(
    ("xp", "dtype"),
    [("torch", "bfloat16"), ("torch", "float16"), ("jax", "bfloat16"), ("jax", "float16")],
    indirect=["xp"],
)
@pytest.mark.parametrize("form", FORMS)
def test_half_precision_is_kept_and_computed_in_float32(xp, dtype, form):
    x = from_numpy(normal(12, 7), xp, dtype)
    found = lc.orthogonalize(x, form=form)
    exact = lc.orthogonalize(from_numpy(to_numpy(x), xp, "float32"), form=form)
    assert dtype_name(exact) == "float32"
    assert_close(found, to_numpy(exact).astype(np.float64), xp=xp, dtype=dtype)


def test_it_compiles_in_jax(jnp):
    import jax

    x = from_numpy(normal(3, 11, 6), jnp, "float32")
    for coefficients in COEFFICIENTS:
        for form in FORMS:
            options = {"coefficients": coefficients, "form": form}
            found = jax.jit(lambda a, options=options: lc.orthogonalize(a, **options))(x)
            expected = to_numpy(lc.orthogonalize(x, **options))
            assert_close(found, expected, xp=jnp, dtype="float32", kind="trajectory")


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"steps": 0}, ValueError, ["steps must be at least 1", "0"]),
        ({"steps": 2.0}, TypeError, ["steps must be an integer", "2.0"]),
        ({"coefficients": "newton"}, ValueError, ["coefficients must be one of", "'newton'"]),
        ({"form": "svd"}, ValueError, ["form must be one of", "'direct'", "'svd'"]),
    ],
)
def test_a_bad_option_is_named(options, error, words):
    with pytest.raises(error) as caught:
        lc.orthogonalize(np.eye(3), **options)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("x", "error"), [(np.ones(3), ValueError), (np.eye(3, dtype=np.int64), TypeError)]
)
def test_what_is_not_a_matrix_is_refused(x, error):
    with pytest.raises(error, match="x must"):
        lc.orthogonalize(x)


# -- Muon --------------------------------------------------------------------------------------


def muon_direction(matrix):
    """The Newton-Schulz iteration of ``torch.optim.Muon``, all of it in bfloat16."""
    from torch.optim._muon import _zeropower_via_newtonschulz

    return _zeropower_via_newtonschulz(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7).float()


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("shape", [(48, 20), (20, 48), (32, 32)])
def test_the_iteration_is_muons_to_bfloat16_accuracy(torch, shape):
    for seed in range(3):
        x = from_numpy(normal(*shape, seed=seed), torch, "float32")
        muon = muon_direction(x)
        exact = from_numpy(oracles.orthogonalize(to_numpy(x)), torch, "float32")
        # Both differ from Muon's by what its own rounding makes of the exact result, and by no more.
        rounding = relative(muon, exact)
        assert rounding < 0.03
        assert abs(relative(muon, lc.orthogonalize(x)) - rounding) < 1e-4


@pytest.mark.parametrize("side", ["auto", "left", "right"])
@pytest.mark.parametrize("shape", [(24, 10), (10, 24), (16, 16)])
def test_trion_of_full_rank_is_muon(torch, shape, side):
    size = {"auto": min(shape), "left": shape[0], "right": shape[1]}[side]
    config = lc.TrionConfig(rank=size, side=side, momentum=0.9, scale="none")
    state = lc.trion_init(shape, config, xp=torch)
    momentum = torch.zeros(shape)
    for t in range(6):
        gradient = from_numpy(normal(*shape, seed=t), torch, "float32")
        update, state = lc.trion_step(gradient, state, config)
        momentum = 0.9 * momentum + gradient
        assert relative(lc.materialize(update), muon_direction(momentum)) < 0.03
        exact = oracles.orthogonalize(to_numpy(momentum))
        assert_close(lc.materialize(update), exact, xp=torch, dtype="float32", kind="trajectory")


@pytest.mark.parametrize("shape", [(24, 10), (10, 24), (16, 16)])
def test_the_whole_optimizer_of_full_rank_follows_muon(torch, shape):
    import lowrank_torch

    assert library_of(torch) == "torch"
    start = from_numpy(normal(*shape), torch, "float32")
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    options = {"lr": 0.05, "momentum": 0.95, "weight_decay": 0.1}
    trion = lowrank_torch.Trion([ours], rank=min(shape), **options)
    muon = torch.optim.Muon([theirs], nesterov=False, **options)
    for t in range(20):
        gradient = from_numpy(normal(*shape, seed=t), torch, "float32")
        ours.grad, theirs.grad = gradient, gradient.clone()
        trion.step()
        muon.step()
    # Twenty steps, each off by the rounding of a bfloat16 iteration, which is not the same from step to step.
    moved = (theirs - start).detach()
    assert relative((ours - start).detach(), moved) < 0.02
