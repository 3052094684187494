"""A first gradient of zeros binds neither optimizer to columns that it never chose."""

import functools

import jax
import lowrank_jax
import lowrank_torch
import numpy as np
import optax
import pytest
import torch
from helpers import normal

import lowrank_core as lc

pytestmark = pytest.mark.usefixtures("optax")

SHAPE = (6, 16)
# All of it in two columns of the basis that are not the first.
GRADIENT = lc.idct(np.pad(np.ones((6, 2)), ((0, 0), (9, 5))))
OPTIONS = {"preset": None, "rank": 2, "refresh_every": 50, "residual": "discard", "side": "right"}
RATE = 0.01


def in_torch(gradients, **options):
    parameter = torch.nn.Parameter(torch.zeros(gradients[0].shape, dtype=torch.float64))
    group = {"params": [parameter], "batch_dims": len(gradients[0].shape) - 2}
    optimizer = lowrank_torch.DCTAdamW([group], lr=RATE, weight_decay=0.0, **OPTIONS, **options)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient)
        optimizer.step()
    return parameter.detach().numpy()


def in_jax(gradients, **options):
    axes = functools.partial(lowrank_jax.axes_by_name, min_size=1)
    optimizer = lowrank_jax.dct_adamw(
        RATE, weight_decay=0.0, matrix_axes=axes, **OPTIONS, **options
    )
    params = {"layers/kernel": np.zeros(np.swapaxes(gradients[0], -1, -2).shape)}
    params = jax.tree.map(jax.numpy.asarray, params)
    state = optimizer.init(params)

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.update({"layers/kernel": gradient}, state, params)
        return optax.apply_updates(params, updates), state

    for gradient in gradients:
        params, state = step(params, state, np.swapaxes(gradient, -1, -2))
    return np.swapaxes(np.asarray(params["layers/kernel"]), -1, -2)


@pytest.mark.parametrize("train", [in_torch, in_jax])
@pytest.mark.parametrize("zeros", [1, 3])
def test_a_late_gradient_moves_as_an_early_one(train, zeros):
    early = train([GRADIENT] * 8)
    late = train([np.zeros(SHAPE)] * zeros + [GRADIENT] * 8)
    cosine = (early * late).sum() / np.linalg.norm(early) / np.linalg.norm(late)
    assert cosine > 1 - 1e-9
    assert np.linalg.norm(late) > 0.5 * np.linalg.norm(early)


@pytest.mark.parametrize("train", [in_torch, in_jax])
def test_an_idle_expert_goes_on_where_it_was(train):
    busy = normal(2, *SHAPE, seed=1)
    idle = busy.copy()
    idle[1] = 0
    gradients = [idle, idle, busy, busy, idle]
    together = train(gradients)
    for place in range(2):
        alone = train([gradient[place][None] for gradient in gradients])
        np.testing.assert_allclose(together[place], alone[0], atol=1e-12)


def test_coefficients_alone_are_not_kept_before_the_first_choice():
    layer = torch.nn.Linear(40, 36, bias=False)
    optimizer = lowrank_torch.DCTAdamW(
        layer.parameters(), rank=4, preset=None, refresh_every=50, residual="discard"
    )
    x = torch.ones(2, 40)
    with lowrank_torch.accumulate_projected(optimizer):
        for scale, whole in ((0.0, True), (0.0, True), (1.0, True), (1.0, False)):
            (scale * layer(x).square().mean()).backward()
            assert (type(layer.weight.grad) is torch.Tensor) == whole
            optimizer.step()
            optimizer.zero_grad()
