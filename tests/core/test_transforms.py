"""The transforms against SciPy and a plain cosine sum: every size, dtype, axis, method and library."""

import numpy as np
import oracles
import pytest
import scipy.fft
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
from lowrank_core.ops.makhoul import cosine_columns

SIZES = (*range(1, 71), 97, 128, 255, 257, 1000, 4096)
METHODS = ("auto", "matmul", "fft")
AXES = (-1, -2)
BATCH = 3


def compiled(function, xp, n):
    """``function`` under ``jax.jit`` in JAX, whose single operations take longer to compile; else itself.

    A large basis would be folded into the compiled program, which takes longer still.
    """
    if library_of(xp) != "jax" or n > 1000:
        return function
    import jax

    return jax.jit(function)


@pytest.fixture
def forgetting(xp):
    """Let JAX forget what it compiled: a program for every size adds up to gigabytes."""
    yield
    if library_of(xp) == "jax":
        import jax

        jax.clear_caches()


@pytest.mark.usefixtures("forgetting")
@pytest.mark.parametrize("n", SIZES)
def test_dct_equals_scipy_and_idct_inverts_it(xp, n):
    x = normal(BATCH, n)
    cases = [
        (method, axis, dtype)
        for method in ("matmul", "fft")
        for axis in AXES
        for dtype in ("float64", "float32")
    ]
    inputs = [from_numpy(x if axis == -1 else x.T, xp, dtype) for method, axis, dtype in cases]

    def transform_all(arrays):
        forward = [
            lc.dct(array, axis=axis, method=method)
            for array, (method, axis, _) in zip(arrays, cases, strict=True)
        ]
        back = [
            lc.idct(array, axis=axis, method=method)
            for array, (method, axis, _) in zip(forward, cases, strict=True)
        ]
        return forward, back

    forward, back = compiled(transform_all, xp, n)(inputs)
    for coefficients, returned, given, (_, axis, dtype) in zip(
        forward, back, inputs, cases, strict=True
    ):
        # What float32 lost before the transform is no error of the transform.
        exact = to_numpy(given).astype(np.float64)
        expected = scipy.fft.dct(exact, type=2, norm="ortho", axis=axis)
        assert_close(coefficients, expected, xp=xp, dtype=dtype)
        assert_close(returned, exact, xp=xp, dtype=dtype)


@pytest.mark.parametrize("n", [1, 2, 7, 31, 64, 129])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("method", METHODS)
def test_transforms_run_operation_by_operation(xp, n, axis, method):
    x = normal(2, n) if axis == -1 else normal(n, 2)
    array = from_numpy(x, xp)
    with untouched(array):
        coefficients = lc.dct(array, axis=axis, method=method)
        signal = lc.idct(array, axis=axis, method=method)
    assert_close(coefficients, oracles.dct(x, axis), xp=xp, dtype="float64")
    assert_close(signal, oracles.idct(x, axis), xp=xp, dtype="float64")


@pytest.mark.parametrize("n", [1, 2, 3, 33, 256, 1000])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_dct_matrix_is_the_cosine_basis(xp, n, dtype):
    matrix = lc.dct_matrix(n, xp=xp, dtype=getattr(xp, dtype))
    assert_close(matrix, oracles.dct_basis(n), xp=xp, dtype=dtype, kind="basis")


def test_dct_matrix_is_float32_unless_told(xp):
    assert dtype_name(lc.dct_matrix(3, xp=xp)) == "float32"


def test_large_float32_basis_is_orthonormal(xp):
    n = 4096
    matrix = to_numpy(lc.dct_matrix(n, xp=xp)).astype(np.float64)
    # Some columns, the extreme ones among them, against all: the whole product would take half a minute.
    some = np.unique(np.concatenate([[0, 1, n - 2, n - 1], np.arange(5, n, 13)]))
    gram = matrix[:, some].T @ matrix
    gram[np.arange(len(some)), some] -= 1
    assert np.abs(gram).max() <= tolerance("basis", "float32")


@pytest.mark.parametrize("n", [8192, 40_000, 2**20])
def test_angles_of_a_very_large_basis_stay_exact(xp, n):
    # Frequency times sample is beyond 32 bits, which is all that some libraries index with. Single columns,
    # by the function that makes them: a whole basis of this size fits no memory.
    chosen = np.array([0, 1, n // 2 + 1, n - 1])
    columns = cosine_columns(
        from_numpy(chosen, xp, "int32"),
        n,
        xp=lc.ops_for_namespace(xp).xp,
        dtype=xp.float32,
        device=None,
    )
    turns = (chosen * (2 * np.arange(n)[:, None] + 1)) % (4 * n)
    expected = np.cos(np.pi * turns / (2 * n)) * np.sqrt(2 / n)
    expected[:, 0] = np.sqrt(1 / n)
    assert_close(columns, expected, xp=xp, dtype="float32", kind="basis")


@pytest.mark.parametrize("method", ["matmul", "fft"])
@pytest.mark.parametrize("axis", AXES)
def test_leading_dimensions_are_a_batch(xp, method, axis):
    x = normal(2, 3, 37, 37)
    found = lc.dct(from_numpy(x, xp), axis=axis, method=method)
    assert_close(found, oracles.dct(x, axis), xp=xp, dtype="float64")
    back = lc.idct(found, axis=axis, method=method)
    assert_close(back, x, xp=xp, dtype="float64")


@pytest.mark.parametrize("method", METHODS)
def test_a_vector_is_one_row(xp, method):
    x = normal(70)
    found = lc.dct(from_numpy(x, xp), method=method)
    assert_close(found, oracles.dct(x[None])[0], xp=xp, dtype="float64")
    assert_close(lc.idct(found, method=method), x, xp=xp, dtype="float64")


@pytest.mark.parametrize("method", ["matmul", "fft"])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("function", ["dct", "idct"])
def test_transposed_input_gives_the_same(xp, function, axis, method):
    # Memory in the order of the other axis: what copies to transform must not take the input for its copy.
    x = normal(40, 150)
    turned = from_numpy(np.ascontiguousarray(x.T), xp).T
    with untouched(turned):
        found = getattr(lc, function)(turned, axis=axis, method=method)
    assert_close(found, getattr(oracles, function)(x, axis), xp=xp, dtype="float64")


def test_many_rows_are_transformed_alike(xp):
    # More numbers than one cache-sized block of any adapter.
    x = normal(1100, 256)
    array = from_numpy(x, xp, "float32")
    exact = to_numpy(array).astype(np.float64)
    found = lc.dct(array, method="fft")
    assert_close(found, scipy.fft.dct(exact, norm="ortho"), xp=xp, dtype="float32")
    assert_close(lc.idct(found, method="fft"), exact, xp=xp, dtype="float32")


@pytest.mark.parametrize("n", [5, 130])
@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("method", ["matmul", "fft"])
@pytest.mark.parametrize(
    ("xp", "dtype"),
    [
        ("torch", "bfloat16"),
        ("torch", "float16"),
        ("jax", "bfloat16"),
        ("jax", "float16"),
        ("numpy", "float16"),
    ],
    indirect=["xp"],
)
def test_half_precision_is_computed_in_float32_and_rounded_once(xp, dtype, n, axis, method):
    array = from_numpy(normal(n, n), xp, dtype)
    exact = to_numpy(array).astype(np.float64)
    for function, oracle in ((lc.dct, oracles.dct), (lc.idct, oracles.idct)):
        with untouched(array):
            found = function(array, axis=axis, method=method)
        # Each number is off by its own rounding; arithmetic in half precision would be off by far more.
        assert_close(found, oracle(exact, axis), xp=xp, dtype=dtype)


@pytest.mark.parametrize("function", [lc.dct, lc.idct])
def test_jit_gives_what_running_eagerly_gives(jnp, function):
    import jax

    x = from_numpy(normal(6, 50), jnp)
    traced = jax.jit(function, static_argnames=("axis", "method"))
    for axis in AXES:
        for method in METHODS:
            expected = to_numpy(function(x, axis=axis, method=method))
            assert_close(traced(x, axis=axis, method=method), expected, xp=jnp, dtype="float64")


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("method", ["matmul", "fft"])
def test_gradients_flow_back_through_the_inverse(torch, axis, method):
    # More rows than one block: the transform of a transpose is the inverse, batch by batch.
    x = from_numpy(normal(1100, 1100), torch, "float32").requires_grad_()
    weight = from_numpy(normal(1100, 1100, seed=1), torch, "float32")
    (lc.dct(x, axis=axis, method=method) * weight).sum().backward()
    expected = oracles.idct(to_numpy(weight).astype(np.float64), axis)
    assert_close(x.grad, expected, xp=torch, dtype="float32")


def test_the_same_call_gives_the_same_bits(xp):
    x = from_numpy(normal(20, 200), xp, "float32")
    for method in METHODS:
        assert_identical(lc.dct(x, method=method), lc.dct(x, method=method))


@pytest.mark.compiles_nothing
@pytest.mark.parametrize("function", [lc.dct, lc.idct])
@pytest.mark.parametrize(
    ("shape", "dtype", "options", "error", "words"),
    [
        ((2, 3), "int32", {}, TypeError, ["x must be of a real floating-point dtype", "int32"]),
        ((2, 3), "complex64", {}, TypeError, ["x must be", "complex64"]),
        ((2, 3), "float32", {"axis": 2}, ValueError, ["axis must be from -2 to 1", "2"]),
        ((2, 3), "float32", {"axis": 1.0}, TypeError, ["axis must be an integer", "1.0"]),
        (
            (2, 3),
            "float32",
            {"method": "fast"},
            ValueError,
            ["method must be one of 'auto', 'matmul', 'fft'", "'fast'"],
        ),
        ((3,), "float32", {"axis": -2}, ValueError, ["axis must be from -1 to 0", "-2"]),
        ((), "float32", {}, ValueError, ["axis must be", "0 dimensions", "-1"]),
        ((2, 0), "float32", {}, ValueError, ["x must not be empty", "axis -1", "(2, 0)"]),
    ],
)
def test_bad_input_is_named(xp, function, shape, dtype, options, error, words):
    with pytest.raises(error) as caught:
        function(xp.ones(shape, dtype=getattr(xp, dtype)), **options)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("n", "error", "words"),
    [
        (0, ValueError, ["n must be at least 1", "0"]),
        (-3, ValueError, ["n must be at least 1", "-3"]),
        (2.0, TypeError, ["n must be an integer", "2.0"]),
        (True, TypeError, ["n must be an integer", "True"]),
    ],
)
def test_a_bad_basis_size_is_named(n, error, words):
    with pytest.raises(error) as caught:
        lc.dct_matrix(n, xp=np)
    for word in words:
        assert word in str(caught.value)


def test_an_empty_batch_gives_an_empty_batch(xp):
    found = lc.dct(xp.ones((0, 4), dtype=xp.float32), method="matmul")
    assert tuple(found.shape) == (0, 4)
    assert dtype_name(found) == "float32"


@pytest.mark.parametrize("function", [lc.dct, lc.idct], ids=["dct", "idct"])
@pytest.mark.parametrize("axis", [0, 1, 2, -3])
def test_every_axis_that_numpy_would_take(xp, function, axis):
    x = normal(4, 5, 6)
    expected = np.moveaxis(to_numpy(function(from_numpy(np.moveaxis(x, axis, -1), xp))), -1, axis)
    assert_close(function(from_numpy(x, xp), axis=axis), expected, xp=xp, dtype="float64")
