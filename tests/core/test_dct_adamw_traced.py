"""DCT-AdamW's step under the graph compilers: one trace, no break in it, nothing read back to the host."""

import shutil

import numpy as np
import pytest
from helpers import assert_close, assert_identical, dtype_name, from_numpy, normal, to_numpy

import lowrank_core as lc

OPTIONS = [
    {},
    {"residual": "error_feedback", "side": "left"},
    {"bias_correction": "column", "score": "l1"},
    {"method": "fft", "residual": "error_feedback", "bias_correction": "column"},
]
SHAPE = (12, 10)


def config_of(options):
    return lc.DCTAdamWConfig(rank=4, refresh_every=3, **options)


def sequence(steps, xp, *shape):
    return [from_numpy(normal(*shape, seed=t), xp, "float32") for t in range(steps)]


@pytest.fixture
def counting(torch):
    """A factory of backends that count the graphs they are given; compiled code is forgotten afterwards."""
    from torch._dynamo.testing import CompileCounterWithBackend

    torch.compiler.reset()
    yield CompileCounterWithBackend
    torch.compiler.reset()


def torch_step(config):
    def step(gradient, state, refresh):
        update, state = lc.dct_adamw_step(gradient, state, config, refresh=refresh)
        return lc.materialize(update), state

    return step


def traceable_state(torch, config, shape=SHAPE):
    """A state that counts steps in a tensor: a count on the host would be compiled into the graph."""
    state = lc.dct_adamw_init(shape, config, xp=torch)
    return state._replace(step=torch.zeros((), dtype=torch.int32))


def compare_with_eager(compiled, torch, config, steps=9):
    step = torch_step(config)
    found = expected = traceable_state(torch, config)
    for t, gradient in enumerate(sequence(steps, torch, *SHAPE), start=1):
        refresh = t == 1 or t % config.refresh_every == 0
        direction, found = compiled(gradient, found, refresh)
        wanted, expected = step(gradient, expected, refresh)
        assert_identical(found.indices, expected.indices)
        assert_close(direction, to_numpy(wanted), xp=torch, dtype="float32", kind="trajectory")
    assert int(found.step) == steps


@pytest.mark.parametrize("options", OPTIONS)
def test_torch_compiles_one_graph_to_choose_and_one_to_keep(torch, counting, options):
    config = config_of(options)
    counter = counting("aot_eager")
    compiled = torch.compile(torch_step(config), fullgraph=True, backend=counter)
    compare_with_eager(compiled, torch, config)
    assert counter.frame_count == 2


def test_torch_compiles_the_step_alone(torch, counting):
    # Not even an adapter is known yet when the compiler sees the step for the first time.
    config = config_of({})
    compiled = torch.compile(lc.dct_adamw_step, fullgraph=True, backend=counting("eager"))
    state = traceable_state(torch, config)
    gradient = sequence(1, torch, *SHAPE)[0]
    found, _ = compiled(gradient, state, config, refresh=True)
    expected, _ = lc.dct_adamw_step(gradient, state, config, refresh=True)
    assert_identical(found.indices, expected.indices)
    # The compiler is given the plain transform, which rounds otherwise than the one by blocks.
    assert_close(found.factor, to_numpy(expected.factor), xp=torch, dtype="float32")


# PyTorch's own compiler still calls it.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
def test_torch_compiles_to_machine_code(torch, counting):
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("no C++ compiler, which torch.compile's default backend needs")
    config = config_of({"residual": "error_feedback"})
    counter = counting("inductor")
    compiled = torch.compile(torch_step(config), fullgraph=True, backend=counter)
    compare_with_eager(compiled, torch, config)
    assert counter.frame_count == 2


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_torch_reads_no_value_back(torch, options, dtype):
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    config = config_of(options)
    real = lc.dct_adamw_init(SHAPE, config, xp=torch)
    update, real = lc.dct_adamw_step(torch.ones(SHAPE), real, config)
    # Fake tensors have shapes and no values: whatever asks for one raises.
    with FakeTensorMode():
        gradient = torch.empty(SHAPE, dtype=getattr(torch, dtype))
        state = lc.dct_adamw_init(SHAPE, config, xp=torch)
        for refresh in (None, None, None, True, False):
            fake, state = lc.dct_adamw_step(gradient, state, config, refresh=refresh)
            full = lc.materialize(fake)
    assert isinstance(full, FakeTensor)
    assert tuple(full.shape) == SHAPE
    assert fake.factor.shape == update.factor.shape
    for name, array in real._asdict().items():
        if name != "step" and array is not None:
            fake_array = getattr(state, name)
            assert isinstance(fake_array, FakeTensor)
            assert fake_array.shape == array.shape
            assert fake_array.dtype == array.dtype


def test_torch_would_notice_a_value_read_back(torch):
    from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        bool(torch.zeros(()))


@pytest.mark.parametrize("shape", [SHAPE, (2, *SHAPE)])
@pytest.mark.parametrize("options", OPTIONS)
def test_jax_traces_once_for_many_steps(jnp, options, shape):
    import jax

    config, traces = config_of(options), 0

    def step(gradient, state):
        nonlocal traces
        traces += 1
        update, state = lc.dct_adamw_step(gradient, state, config)
        return update, lc.materialize(update), state

    compiled = jax.jit(step)
    found = expected = lc.dct_adamw_init(shape, config, xp=jnp)
    for gradient in sequence(10, jnp, *shape):
        update, direction, found = compiled(gradient, found)
        _, wanted, expected = step(gradient, expected)
        traces -= 1
        assert isinstance(update, lc.LowRankUpdate)
        assert_identical(update.indices, expected.indices)
        assert_close(direction, to_numpy(wanted), xp=jnp, dtype="float32", kind="trajectory")
    assert traces == 1
    assert compiled._cache_size() == 1


def test_jax_scans_over_steps(jnp):
    import jax

    config = config_of({"bias_correction": "column"})
    start = lc.dct_adamw_init(SHAPE, config, xp=jnp)
    gradients = sequence(7, jnp, *SHAPE)

    def body(state, gradient):
        update, state = lc.dct_adamw_step(gradient, state, config)
        return state, lc.materialize(update)

    _, scanned = jax.lax.scan(body, start, jnp.stack(gradients))
    state = start
    for t, gradient in enumerate(gradients):
        update, state = lc.dct_adamw_step(gradient, state, config)
        expected = to_numpy(lc.materialize(update))
        assert_close(scanned[t], expected, xp=jnp, dtype="float32", kind="trajectory")


@pytest.mark.parametrize("correction", ["step", "column"])
def test_jax_traces_the_numbers_of_a_config(jnp, correction):
    import jax

    def options(beta1, beta2, eps):
        return lc.DCTAdamWConfig(rank=3, betas=(beta1, beta2), eps=eps, bias_correction=correction)

    @jax.jit
    def step(gradient, state, *numbers):
        update, state = lc.dct_adamw_step(gradient, state, options(*numbers))
        return update.factor, state

    found = expected = lc.dct_adamw_init(SHAPE, options(0.9, 0.99, 1e-8), xp=jnp)
    for t, gradient in enumerate(sequence(4, jnp, *SHAPE)):
        numbers = 0.9 - 0.1 * t, 0.99, 1e-3 * t
        factor, found = step(gradient, found, *numbers)
        update, expected = lc.dct_adamw_step(gradient, expected, options(*numbers))
        wanted = to_numpy(update.factor)
        assert_close(factor, wanted, xp=jnp, dtype="float32", kind="trajectory")
    assert step._cache_size() == 1


def test_jax_follows_a_traced_refresh(jnp):
    import jax

    config = lc.DCTAdamWConfig(rank=2, refresh_every=100)
    gradient = sequence(1, jnp, *SHAPE)[0]
    state = lc.dct_adamw_init(SHAPE, config, xp=jnp)

    @jax.jit
    def columns(refresh):
        return lc.dct_adamw_step(gradient, state, config, refresh=refresh)[0].indices

    for refresh in (True, False):
        update, _ = lc.dct_adamw_step(gradient, state, config, refresh=refresh)
        assert_identical(columns(jnp.asarray(refresh)), update.indices)
    assert not np.array_equal(to_numpy(columns(jnp.asarray(True))), to_numpy(state.indices))


def test_jax_keeps_dtypes_without_promotion(jnp):
    # The configuration of these tests refuses any mixing of dtypes that JAX would promote.
    import jax

    assert jax.config.jax_numpy_dtype_promotion == "strict"
    config = lc.DCTAdamWConfig(rank=3, residual="error_feedback", bias_correction="column")
    state = lc.dct_adamw_init(SHAPE, config, xp=jnp)
    kinds = [dtype_name(array) for array in jax.tree.leaves(state)]
    for dtype in ("bfloat16", "float16", "float32"):
        gradient = from_numpy(normal(*SHAPE), jnp, dtype)
        _, after = jax.jit(lc.dct_adamw_step, static_argnums=2)(gradient, state, config)
        assert [dtype_name(array) for array in jax.tree.leaves(after)] == kinds
