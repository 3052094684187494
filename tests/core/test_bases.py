"""Every basis: orthonormal, the same on every library, its fast transform the product with its matrix."""

import gc
import subprocess
import sys
import weakref

import numpy as np
import oracles_family as oracles
import pytest
from helpers import (
    assert_close,
    from_numpy,
    library_of,
    normal,
    to_numpy,
    tolerance,
)

import lowrank_core as lc
from lowrank_core.bases import registry
from lowrank_core.ops.constants import Constants

NAMES = (
    "dct",
    "dct3",
    "local_dct",
    "hartley",
    "hadamard",
    "haar",
    "legendre",
    "random",
    "random:7",
    "identity",
)
STORED = ("svd", "power")
METHODS = ("matmul", "fft")


def sizes(name, xp):
    """Odd, even, prime, a power of two, one; fewer in JAX, which compiles anew for each."""
    if name == "hadamard":
        every, few = (1, 2, 4, 8, 32, 128), (1, 8, 32)
    elif name == "local_dct":
        # One run, whole runs, and a shorter one at the end.
        every, few = (1, 7, 64, 65, 100, 192), (1, 100)
    else:
        every, few = (1, 2, 3, 7, 12, 32, 45, 128), (1, 7, 12)
    return few if library_of(xp) == "jax" else every


def matrix_of(name, size, xp, dtype="float64"):
    """The basis matrix through the public functions: what unit vectors are lifted to."""
    unit = from_numpy(np.eye(size), xp, dtype)
    every = from_numpy(np.arange(size), xp, "int32")
    return lc.lift(unit, every, size, axis=-2, basis=name, method="matmul")


def compiled(function, xp):
    """``function`` under ``jax.jit`` in JAX, whose single operations take longer to compile; else itself."""
    if library_of(xp) != "jax":
        return function
    import jax

    return jax.jit(function)


@pytest.fixture
def registered():
    """A way to register a basis that is forgotten after the test."""
    before = dict(registry._REGISTRY)
    yield lc.register_basis
    registry._REGISTRY.clear()
    registry._REGISTRY.update(before)


# -- fixed bases -------------------------------------------------------------------------------


def test_the_names_are_those():
    assert set(lc.basis_names()) == {name for name in NAMES if ":" not in name}


@pytest.mark.parametrize("name", NAMES)
def test_the_matrix_is_orthonormal_and_the_same_on_every_library(xp, name):
    for size in sizes(name, xp):
        expected = oracles.basis(name, size)
        found = matrix_of(name, size, xp)
        assert_close(found, expected, xp=xp, dtype="float64")
        np.testing.assert_allclose(expected.T @ expected, np.eye(size), atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_float32_bases_are_orthonormal(xp, name):
    matrix = to_numpy(matrix_of(name, 256, xp, "float32")).astype(np.float64)
    assert np.abs(matrix.T @ matrix - np.eye(256)).max() <= tolerance("basis", "float32")


@pytest.mark.parametrize("name", NAMES)
def test_fast_transform_is_the_product_and_the_inverse_undoes_it(xp, name):
    basis = lc.get_basis(name)
    for size in sizes(name, xp):
        q, x, y = oracles.basis(name, size), normal(2, 3, size), normal(2, size, 3)
        right, left = from_numpy(x, xp), from_numpy(y, xp)
        ops = lc.ops_for(right)

        def transform_all(right, left, ops=ops):
            out = []
            for method in METHODS:
                for array, axis in ((right, -1), (left, -2)):
                    there = basis.transform(array, ops, axis=axis, method=method)
                    back = basis.inverse(array, ops, axis=axis, method=method)
                    out += [there, back, basis.inverse(there, ops, axis=axis, method=method)]
            return out

        wanted = [x @ q, x @ q.T, x, q.T @ y, q @ y, y] * len(METHODS)
        for found, expected in zip(compiled(transform_all, xp)(right, left), wanted, strict=True):
            assert_close(found, expected, xp=xp, dtype="float64")


@pytest.mark.parametrize("name", NAMES)
def test_chosen_columns_are_those_of_the_matrix(xp, name):
    basis, size = lc.get_basis(name), 16
    q = oracles.basis(name, size)
    for chosen in (np.array([0, 3, 4, 15]), np.array([[0, 1], [7, 12], [14, 15]])):
        indices, like = from_numpy(chosen, xp, "int32"), from_numpy(np.ones(1), xp)
        found = basis.columns(indices, size, like.dtype, lc.ops_for(like))
        expected = np.moveaxis(q[:, chosen], 0, -2)
        assert_close(found, expected, xp=xp, dtype="float64")


@pytest.mark.parametrize("axis", [-1, -2])
@pytest.mark.parametrize("name", NAMES)
def test_project_and_lift_know_every_basis(xp, name, axis):
    size = 32
    q, chosen = oracles.basis(name, size), np.array([0, 2, 9, 31])
    x = normal(5, size) if axis == -1 else normal(size, 5)
    indices = from_numpy(chosen, xp, "int32")
    low = x @ q[:, chosen] if axis == -1 else q[:, chosen].T @ x
    full = low @ q[:, chosen].T if axis == -1 else q[:, chosen] @ low
    for method in ("auto", *METHODS):
        found = lc.project(from_numpy(x, xp), indices, axis=axis, basis=name, method=method)
        assert_close(found, low, xp=xp, dtype="float64")
        back = lc.lift(found, indices, size, axis=axis, basis=name, method=method)
        assert_close(back, full, xp=xp, dtype="float64")


@pytest.mark.parametrize("size", [3, 6, 12, 100])
def test_hadamard_needs_a_power_of_two(size):
    x = np.ones((2, size))
    indices = np.array([0])
    for call in (
        lambda: lc.project(x, indices, basis="hadamard"),
        lambda: lc.lift(x[:, :1], indices, size, basis="hadamard"),
        lambda: lc.dct_adamw_init(
            (200, size), lc.DCTAdamWConfig(rank=1, basis="hadamard", side="right"), xp=np
        ),
        lambda: lc.trion_init(
            (size, 200), lc.TrionConfig(rank=1, basis="hadamard", side="left"), xp=np
        ),
        lambda: lc.state_bytes((200, size), lc.DCTAdamWConfig(rank=1, basis="hadamard")),
    ):
        with pytest.raises(ValueError, match=rf"hadamard.*power of two, got {size}.*'dct'"):
            call()


@pytest.mark.parametrize("size", [5, 40, 200])
def test_low_legendre_degrees_are_the_qr_of_powers(xp, size):
    points = np.linspace(-1, 1, size)
    degrees = min(size, 8)
    q, r = np.linalg.qr(np.vander(points, degrees, increasing=True))
    expected = q * np.sign(np.diag(r))
    found = to_numpy(matrix_of("legendre", size, xp))[:, :degrees]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_legendre_polynomials_of_all_degrees_stay_orthonormal(xp):
    matrix = to_numpy(matrix_of("legendre", 1024, xp))
    assert np.abs(matrix.T @ matrix - np.eye(1024)).max() < 1e-11


def test_seeds_give_different_random_bases(xp):
    first, second = (to_numpy(matrix_of(f"random:{seed}", 20, xp)) for seed in (1, 2))
    # Columns of unrelated bases are nowhere near each other.
    assert np.abs(first.T @ second).max() < 0.95
    assert lc.get_basis("random") is lc.get_basis("random:0")


@pytest.mark.parametrize("name", ["fourier", "", "dct2", "random:", "random:x", "random:-1", "svd"])
def test_an_unknown_name_is_refused_with_a_list(name):
    for call in (lambda: lc.get_basis(name), lambda: lc.TrionConfig(rank=1, basis=name)):
        with pytest.raises(ValueError, match=r"basis must be one of 'dct'.*'identity'") as caught:
            call()
        assert repr(name) in str(caught.value)


@pytest.mark.slow
def test_jax_builds_every_basis_without_64_bit_numbers(jnp):
    # Tests run with 64 bits; users, as a rule, without. Warnings are errors here too.
    script = """
import jax, jax.numpy as jnp, numpy as np
import lowrank_core as lc
assert not jax.config.jax_enable_x64
for name in lc.basis_names():
    @jax.jit
    def square(x):
        every = jnp.arange(16, dtype=jnp.int32)
        return lc.project(x, every, basis=name, method="matmul")
    matrix = square(jnp.eye(16, dtype=jnp.float32))
    assert matrix.dtype == jnp.float32
    exact = lc.project(np.eye(16), np.arange(16), basis=name, method="matmul")
    assert abs(np.array(matrix) - exact).max() < 1e-6, name
"""
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


# -- bases of one's own ------------------------------------------------------------------------


def test_a_function_makes_a_basis(xp, registered):
    calls = []

    def reversed_identity(size, /, *, xp, dtype, device):
        calls.append(size)
        return xp.flip(xp.eye(size, dtype=dtype, device=device), axis=0)

    registered("mirror", reversed_identity)
    assert "mirror" in lc.basis_names()
    x = normal(6, 5)
    for _ in range(2):
        found = lc.project(from_numpy(x, xp), from_numpy([1, 4], xp, "int32"), basis="mirror")
        assert_close(found, x[:, [3, 0]], xp=xp, dtype="float64")
    assert calls == [5]
    config = lc.DCTAdamWConfig(rank=2, basis="mirror", residual="discard")
    state = lc.dct_adamw_init((6, 5), config, xp=xp, dtype=xp.float64)
    update, _ = lc.dct_adamw_step(from_numpy(x, xp), state, config)
    best = np.sort(np.argsort(-(x**2).sum(axis=0))[:2])
    moved = np.zeros_like(x)
    moved[:, best] = np.sign(x[:, best])
    np.testing.assert_allclose(to_numpy(lc.materialize(update)), moved, rtol=1e-6)


class Negated(lc.Basis):
    """The standard basis with every sign turned, fast and slow."""

    fast = True
    used = 0

    def __init__(self, name):
        super().__init__(name, lambda size, /, *, xp, dtype, device: -xp.eye(size, dtype=dtype))

    def fast_transform(self, x, ops, *, axis):
        type(self).used += 1
        return -x

    fast_inverse = fast_transform


def test_a_subclass_brings_its_own_transform(xp, registered):
    basis = registered("negated", Negated("negated"))
    assert lc.get_basis("negated") is basis
    x, indices = normal(4, 6), from_numpy([0, 5], xp, "int32")
    Negated.used = 0
    for method in METHODS:
        found = lc.project(from_numpy(x, xp), indices, basis="negated", method=method)
        assert_close(found, -x[:, [0, 5]], xp=xp, dtype="float64")
    assert Negated.used == 1


@pytest.mark.parametrize("name", ["dct", "random", "random:3", "mine:2", "svd", "power"])
def test_a_name_must_be_new(registered, name):
    with pytest.raises(ValueError, match="name must be new") as caught:
        registered(name, lambda size, /, *, xp, dtype, device: xp.eye(size))
    assert repr(name) in str(caught.value)


def test_an_object_goes_by_its_own_name(registered):
    # Matrices are shared by name: under two names, one basis could be given another's.
    with pytest.raises(ValueError, match=r"'dct'.*'mine'"):
        registered("mine", Negated("dct"))
    assert "mine" not in lc.basis_names()


# -- sharing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("xp", ["numpy", "torch", "jax"], indirect=True)
def test_matrices_are_shared_and_freed(xp):
    ops = lc.ops_for(xp.zeros(1))
    # No other test uses this size.
    basis, size, like = lc.get_basis("hartley"), 37, from_numpy(np.ones(1), xp, "float32")
    kind, wide, device = like.dtype, from_numpy(np.ones(1), xp).dtype, ops.device_of(like)
    first, second = Constants(), Constants()
    one = basis.matrix(size, kind, device, ops.with_constants(first))
    assert basis.matrix(size, kind, device, ops.with_constants(first)) is one
    assert basis.matrix(size, kind, device, ops.with_constants(second)) is one
    others = [
        basis.matrix(size + 1, kind, device, ops.with_constants(first)),
        basis.matrix(size, wide, device, ops.with_constants(first)),
        lc.get_basis("random").matrix(size, kind, device, ops.with_constants(first)),
        lc.get_basis("random:1").matrix(size, kind, device, ops.with_constants(first)),
    ]
    assert len({id(other) for other in [one, *others]}) == 5
    alive = weakref.ref(one)
    del one, others, first
    gc.collect()
    assert alive() is not None, "its second holder still has it"
    del second
    gc.collect()
    assert alive() is None


def test_optimizers_share_matrices_and_free_them(torch):
    import lowrank_torch

    from lowrank_core.ops import constants

    def held():
        gc.collect()
        return {key for key in constants._alive if "legendre" in str(key) and "39" in str(key)}

    parameters = [torch.nn.Parameter(torch.ones(50, 39)) for _ in range(3)]
    optimizers = [
        lowrank_torch.DCTAdamW(parameters[:2], rank=4, preset=None, basis="legendre"),
        lowrank_torch.Trion(parameters[2:], rank=4, basis="legendre"),
    ]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    for optimizer in optimizers:
        optimizer.step()
    assert len(held()) == 1
    del optimizers[1:], optimizer
    assert len(held()) == 1
    optimizers.clear()
    assert not held()


# -- svd and power -----------------------------------------------------------------------------


def captured(gradient, vectors, axis):
    """Share of the energy that the subspace holds."""
    low = gradient @ vectors if axis == -1 else vectors.T @ gradient
    return (low**2).sum() / (gradient**2).sum()


def decaying(*shape, seed=0):
    """A matrix whose singular values fall, with gaps between them."""
    u, s, vt = np.linalg.svd(normal(*shape, seed=seed), full_matrices=False)
    return (u * s.max() * 0.7 ** np.arange(len(s))) @ vt


def steps(config, sequence, xp, dtype):
    """Vectors, update and state after every step."""
    state = lc.dct_adamw_init(sequence[0].shape, config, xp=xp, dtype=getattr(xp, dtype))
    step = compiled(lambda g, s: lc.dct_adamw_step(g, s, config), xp)
    for gradient in sequence:
        update, state = step(from_numpy(gradient, xp, dtype), state)
        yield to_numpy(state.vectors), update, state


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("shape", "axis"), [((14, 9), -1), ((9, 14), -2)])
def test_svd_captures_what_the_best_subspace_captures(xp, shape, axis, dtype):
    config = lc.DCTAdamWConfig(rank=3, basis="svd", refresh_every=4)
    sequence = [normal(*shape, seed=t) for t in range(9)]
    kept = None
    for t, (vectors, _, _) in enumerate(steps(config, sequence, xp, dtype), start=1):
        np.testing.assert_allclose(
            vectors.T @ vectors, np.eye(3), atol=1e-12 if dtype == "float64" else 1e-5
        )
        if t == 1 or t % 4 == 0:
            s = np.linalg.svd(sequence[t - 1], compute_uv=False)
            best = (s[:3] ** 2).sum() / (s**2).sum()
            gap = best - captured(sequence[t - 1], vectors.astype(np.float64), axis)
            assert abs(gap) <= (1e-5 if dtype == "float32" else 1e-12)
        else:
            np.testing.assert_array_equal(vectors, kept)
        kept = vectors


def rotated_adam(sequence, vectors, betas, eps, axis):
    """Adam in the coordinates of given vectors, its moments rotated from step to step; float64 throughout."""
    beta1, beta2 = betas
    m = v = previous = None
    for t, (gradient, q) in enumerate(zip(sequence, vectors, strict=True), start=1):
        q = q.astype(np.float64)
        a = (gradient if axis == -1 else gradient.T) @ q
        if m is None:
            m, v = np.zeros_like(a), np.zeros_like(a)
        elif not np.array_equal(q, previous):
            r = previous.T @ q
            weight1, weight2 = 1 - beta1 ** (t - 1), 1 - beta2 ** (t - 1)
            m_hat, v_hat = m / weight1, v / weight2
            v = weight2 * np.abs((v_hat - m_hat**2) @ (r * r) + (m_hat @ r) ** 2)
            m = weight1 * m_hat @ r
        m, v = beta1 * m + (1 - beta1) * a, beta2 * v + (1 - beta2) * a * a
        u = m / (1 - beta1**t) / (np.sqrt(v / (1 - beta2**t)) + eps)
        previous = q
        full = u @ q.T
        yield (full if axis == -1 else full.T), m, v


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize(("shape", "axis"), [((10, 6), -1), ((6, 10), -2)])
@pytest.mark.parametrize("refresh_every", [1, 3])
def test_moments_rotate_with_their_vectors(xp, name, shape, axis, refresh_every):
    betas, eps = (0.8, 0.95), 1e-6
    config = lc.DCTAdamWConfig(
        rank=3,
        betas=betas,
        eps=eps,
        basis=name,
        refresh_every=refresh_every,
        residual="discard",
    )
    sequence = [normal(*shape, seed=t) for t in range(7)]
    found = list(steps(config, sequence, xp, "float64"))
    vectors = [q for q, _, _ in found]
    assert not np.array_equal(vectors[0], vectors[-1])
    expected = rotated_adam(sequence, vectors, betas, eps, axis)
    for (_, update, state), (full, m, v) in zip(found, expected, strict=True):
        options = {"xp": xp, "dtype": "float64", "kind": "trajectory"}
        assert_close(lc.materialize(update), full, **options)
        assert_close(state.first_moment, m if axis == -1 else m.T, **options)
        assert_close(state.second_moment, v if axis == -1 else v.T, **options)


@pytest.mark.parametrize("scale", [1.0, 1e-15, 1e15])
@pytest.mark.parametrize(("shape", "axis"), [((12, 8), -1), ((8, 12), -2)])
def test_power_iteration_finds_the_leading_subspace(xp, shape, axis, scale):
    matrix = decaying(*shape)
    config = lc.DCTAdamWConfig(rank=2, basis="power")
    sequence = [matrix * scale] * 25
    found = [vectors for vectors, _, _ in steps(config, sequence, xp, "float32")]
    s = np.linalg.svd(matrix, compute_uv=False)
    best = (s[:2] ** 2).sum() / (s**2).sum()
    gaps = [best - captured(matrix, vectors.astype(np.float64), axis) for vectors in found]
    assert gaps[0] > 1e-3, "one step from a random start must not be enough for this test"
    assert abs(gaps[-1]) < 1e-5


def test_power_iteration_starts_from_its_seed(xp):
    starts = []
    for seed in (0, 0, 1):
        config = lc.DCTAdamWConfig(rank=2, basis="power", seed=seed)
        starts.append(to_numpy(lc.dct_adamw_init((9, 6), config, xp=xp).vectors))
        np.testing.assert_allclose(starts[-1].T @ starts[-1], np.eye(2), atol=1e-6)
    np.testing.assert_array_equal(starts[0], starts[1])
    assert np.abs(starts[0] - starts[2]).max() > 0.1


@pytest.mark.parametrize("name", STORED)
@pytest.mark.parametrize("bad", [0.0, np.nan, np.inf])
def test_no_gradient_breaks_the_decomposition(xp, name, bad):
    config = lc.DCTAdamWConfig(rank=2, basis=name)
    whole = np.full((7, 5), bad)
    one = normal(7, 5)
    one[3, 2] = bad
    for gradient in (whole, one):
        with np.errstate(invalid="ignore"):
            found = list(steps(config, [normal(7, 5), gradient, normal(7, 5)], xp, "float32"))
        for vectors, _, _ in found:
            np.testing.assert_allclose(vectors.T @ vectors, np.eye(2), atol=1e-5)
        if bad == 0.0:
            assert all(
                np.isfinite(to_numpy(lc.materialize(update))).all() for _, update, _ in found
            )


def test_a_gradient_of_zeros_leaves_the_iterated_vectors(xp):
    config = lc.DCTAdamWConfig(rank=2, basis="power")
    found = list(steps(config, [normal(7, 5), np.zeros((7, 5))], xp, "float64"))
    np.testing.assert_allclose(np.abs(found[0][0].T @ found[1][0]), np.eye(2), atol=1e-12)


@pytest.mark.parametrize("name", STORED)
def test_stored_vectors_of_a_stack(xp, name):
    config = lc.DCTAdamWConfig(rank=2, basis=name, side="right", residual="discard")
    sequence = [normal(3, 6, 5, seed=t) for t in range(3)]
    for t, (vectors, update, _) in enumerate(steps(config, sequence, xp, "float64")):
        assert vectors.shape == (3, 5, 2)
        full = to_numpy(lc.materialize(update))
        for place in range(3):
            s = np.linalg.svd(sequence[t][place], compute_uv=False)
            best = (s[:2] ** 2).sum() / (s**2).sum()
            share = captured(sequence[t][place], vectors[place], -1)
            assert share <= best + 1e-12
            assert name == "power" or share >= best - 1e-12
            assert np.linalg.matrix_rank(full[place], tol=1e-10) == 2


def test_a_rank_above_the_other_dimension_is_refused():
    for name in STORED:
        config = lc.DCTAdamWConfig(rank=5, basis=name, side="right")
        with pytest.raises(ValueError, match=r"rank must not exceed either dimension.*5"):
            lc.dct_adamw_init((4, 9), config, xp=np)


@pytest.mark.parametrize("xp", ["numpy", "torch"], indirect=True)
def test_materializing_by_any_method_is_the_same(xp):
    x = from_numpy(normal(6, 64), xp)
    for name in NAMES:
        config = lc.DCTAdamWConfig(rank=3, basis=name, side="right")
        state = lc.dct_adamw_init((6, 64), config, xp=xp, dtype=xp.float64)
        update, _ = lc.dct_adamw_step(x, state, config)
        by_product = lc.materialize(update, method="matmul")
        by_transform = lc.materialize(update, method="fft")
        assert_close(by_transform, to_numpy(by_product), xp=xp, dtype="float64")
        assert (np.diff(to_numpy(update.indices)) > 0).all()
