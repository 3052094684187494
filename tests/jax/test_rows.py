"""Functions of rows that JAX's compiler cannot look into: what `jax.vmap` and `jax.grad` make of them."""

import numpy as np
import pytest
from helpers import assert_close, from_numpy, normal, to_numpy

import lowrank_core as lc

INDICES = np.array([0, 7, 30, 63])
STACKED = np.array([[0, 7, 30, 63], [1, 2, 3, 62], [5, 31, 32, 33]])

pytestmark = pytest.mark.usefixtures("jnp")


def project(x, indices):
    return lc.project(x, indices, method="fft")


def lift(x, indices):
    return lc.lift(x, indices, 64, method="fft")


@pytest.mark.parametrize(("function", "columns"), [(project, 64), (lift, 4)])
@pytest.mark.parametrize("each", [False, True], ids=["shared indices", "indices for each"])
def test_vmap_gives_what_a_loop_gives(jnp, function, columns, each):
    import jax

    x = from_numpy(normal(3, 1101, columns), jnp, "float32")
    indices = from_numpy(STACKED if each else INDICES, jnp, "int32")
    found = jax.vmap(function, (0, 0 if each else None))(x, indices)
    wanted = [function(x[i], indices[i] if each else indices) for i in range(3)]
    assert_close(found, np.stack([to_numpy(w) for w in wanted]), xp=jnp, dtype="float32")


@pytest.mark.parametrize(
    ("function", "reverse", "columns", "kept"), [(project, lift, 64, 4), (lift, project, 4, 64)]
)
def test_the_gradient_of_one_is_the_other(jnp, function, reverse, columns, kept):
    import jax

    x = from_numpy(normal(1101, columns), jnp, "float32")
    weights = from_numpy(normal(1101, kept, seed=1), jnp, "float32")
    indices = from_numpy(INDICES, jnp, "int32")
    found = jax.grad(lambda x: jnp.sum(weights * function(x, indices)))(x)
    assert_close(found, to_numpy(reverse(weights, indices)), xp=jnp, dtype="float32")
