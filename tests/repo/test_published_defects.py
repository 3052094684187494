"""Defects of the code published with the method, each with the test that it would fail.

Every docstring says what went wrong there. That a test fails once its defect is brought back has been tried.
"""

import io
import itertools

import numpy as np
import oracles_family
import pytest
import scipy.fft
from family_cases import gradients, oracle_of, steps
from helpers import assert_close, assert_identical, from_numpy, normal, to_numpy, untouched

import lowrank_core as lc

OPTIMIZERS = ("DCTAdamW", "Trion")


@pytest.fixture
def optim(torch):
    import lowrank_torch

    return lowrank_torch


def parameter(torch, *shape, seed=0):
    return torch.nn.Parameter(from_numpy(normal(*shape, seed=seed), torch, "float32"))


def give(torch, parameters, seed=0):
    """Set gradients, and return copies of them."""
    for place, one in enumerate(parameters):
        one.grad = from_numpy(normal(*one.shape, seed=100 * seed + place), torch, "float32")
    return [one.grad.clone() for one in parameters]


# -- bases -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["matmul", "fft"])
def test_every_matrix_has_a_basis_of_its_own_size(torch, optim, method):
    """One basis was made for the whole model, as large as its first matrix; some shapes were told by number."""
    shapes = [(24, 10), (10, 24), (7, 33), (40, 40), (30, 17), (24, 10)]
    parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in shapes]
    optimizer = optim.DCTAdamW(
        parameters, lr=1.0, weight_decay=0.0, rank=3, preset=None, method=method
    )
    config = lc.DCTAdamWConfig(rank=3)
    for place, one in enumerate(parameters):
        one.grad = from_numpy(normal(*one.shape, seed=place), torch)
    optimizer.step()
    for place, (one, shape) in enumerate(zip(parameters, shapes, strict=True)):
        expected = oracle_of(config, shape).step(normal(*shape, seed=place))
        assert_close(one, -expected, xp=torch, dtype="float64", kind="trajectory")


@pytest.mark.parametrize("axis", [-1, -2])
def test_product_and_fft_use_one_basis(xp, axis):
    """The product took the columns of a matrix for basis vectors, the FFT its rows."""
    x = normal(12, 12)
    expected = scipy.fft.dct(x, type=2, norm="ortho", axis=axis)
    chosen = from_numpy([1, 2, 7], xp, "int32")
    part = expected[:, [1, 2, 7]] if axis == -1 else expected[[1, 2, 7]]
    for method in ("matmul", "fft"):
        found = lc.dct(from_numpy(x, xp), axis=axis, method=method)
        assert_close(found, expected, xp=xp, dtype="float64")
        found = lc.project(from_numpy(x, xp), chosen, axis=axis, method=method)
        assert_close(found, part, xp=xp, dtype="float64")


def test_a_large_basis_keeps_its_digits(xp):
    """Angles grew with the square of the size before their cosine was taken, which cost half of float32's digits."""
    size = 4096
    chosen = np.array([0, 1, size // 2, size - 2, size - 1])
    unit = from_numpy(np.eye(len(chosen)), xp, "float32")
    rows = lc.lift(unit, from_numpy(chosen, xp, "int32"), size, method="matmul")
    gram = to_numpy(rows).astype(np.float64) @ to_numpy(rows).astype(np.float64).T
    assert np.abs(gram - np.eye(len(chosen))).max() < 1e-6


class Recording:
    """A namespace that notes which of its functions are asked for."""

    def __init__(self, namespace, asked):
        self.namespace, self.asked = namespace, asked

    def __getattr__(self, name):
        if name == "fft":
            return Recording(self.namespace.fft, self.asked)
        self.asked.add(name)
        return getattr(self.namespace, name)


def test_the_fft_is_a_real_one():
    """Real numbers went through a complex FFT, at twice the work."""
    for name in ("dct", "dct3", "hartley"):
        asked = set()
        ops, basis = lc.StandardOps(Recording(np, asked)), lc.get_basis(name)
        x = normal(4, 64)
        there = basis.transform(x, ops, axis=-1, method="fft")
        back = basis.inverse(there, ops, axis=-1, method="fft")
        np.testing.assert_allclose(back, x, atol=1e-12)
        transforms = {function for function in asked if "fft" in function}
        assert transforms
        assert transforms <= {"rfft", "irfft"}


@pytest.mark.parametrize("method", ["matmul", "fft"])
def test_the_norm_is_heeded_on_either_path(xp, method):
    """Columns were chosen by one norm on the FFT path, whichever was asked for."""
    coefficients = np.zeros((4, 9))
    coefficients[0, 2] = 3.0
    coefficients[:, 5] = 1.0
    gradient = scipy.fft.idct(coefficients, type=2, norm="ortho", axis=-1)
    for norm, best in (("l2", 2), ("l1", 5)):
        for config in (
            lc.DCTAdamWConfig(rank=1, score=norm, side="right", method=method),
            lc.TrionConfig(rank=1, score=norm, side="right", method=method),
        ):
            ((_, update, _),) = steps(config, [gradient], xp)
            assert to_numpy(update.indices).tolist() == [best]


# -- quantisation ------------------------------------------------------------------------------


def test_eight_bits_are_256_levels(xp):
    """The 8-bit quantiser had the 16 levels of the 4-bit one."""
    x = from_numpy(np.arange(256.0), xp, "float32")
    quantized = lc.quantize(x, 8)
    assert len(set(to_numpy(quantized.codes).tolist())) == 256
    np.testing.assert_allclose(to_numpy(lc.dequantize(quantized)), np.arange(256.0), atol=1e-4)


def test_nibbles_are_unpacked_as_they_were_packed(xp):
    """Two codes went into a byte in one order and came out in the other."""
    for x in (np.arange(16.0), np.delete(np.arange(15.0, -1.0, -1.0), 8)):
        back = lc.dequantize(lc.quantize(from_numpy(x, xp, "float32"), 4))
        assert np.abs(to_numpy(back) - x).max() < 1e-5


@pytest.mark.parametrize("bits", [8, 4])
def test_a_constant_block_is_no_division_by_zero(xp, bits):
    """A block of equal numbers was divided by its spread, which made NaN of it."""
    for value in (0.0, 0.3, -7.0):
        x = from_numpy(np.full(300, value), xp, "float32")
        # Any warning of NumPy's would be an error here.
        assert_identical(lc.dequantize(lc.quantize(x, bits)), x)


# -- the step ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("options", [{}, {"residual": "error_feedback"}])
def test_gradients_are_read_and_not_written(torch, optim, name, options):
    """The step kept the error feedback in the gradients, so whoever looked at them or added to them was misled."""
    if name == "Trion" and options:
        options = {"momentum_bits": 8}
    parameters = [parameter(torch, 8, 6), parameter(torch, 6)]
    optimizer = getattr(optim, name)(parameters, rank=2, **options)
    for seed in range(3):
        copies = give(torch, parameters, seed)
        given = [one.grad for one in parameters]
        optimizer.step()
        for one, gradient, copy in zip(parameters, given, copies, strict=True):
            assert one.grad is gradient
            assert torch.equal(gradient, copy)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_resumed_run_knows_its_step(torch, optim, name):
    """The step count was no part of ``state_dict``, so a resumed run corrected and refreshed as if it began."""
    options = {"rank": 2, **({"refresh_every": 4} if name == "DCTAdamW" else {})}
    whole = parameter(torch, 8, 6)
    optimizer = getattr(optim, name)([whole], **options)
    for seed in range(6):
        give(torch, [whole], seed)
        optimizer.step()
    stream = io.BytesIO()
    torch.save(optimizer.state_dict(), stream)
    resumed = torch.nn.Parameter(whole.detach().clone())
    again = getattr(optim, name)([resumed], **options)
    stream.seek(0)
    again.load_state_dict(torch.load(stream, weights_only=True))
    for seed in range(6, 11):
        for one, rule in ((whole, optimizer), (resumed, again)):
            give(torch, [one], seed)
            rule.step()
        assert int(again.state[resumed]["step"]) == seed + 1
        assert_identical(resumed, whole)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_is_tensors_and_numbers(torch, optim, name):
    """State held objects of classes of its own, which no safe loader and no sharded checkpoint takes."""
    for options in (
        [{}, {"residual": "error_feedback", "feedback_bits": 4}, {"preset": "galore"}]
        if name == "DCTAdamW"
        else [{}, {"momentum_bits": 8}, {"num_heads": 2}]
    ):
        parameters = [parameter(torch, 8, 6), parameter(torch, 6)]
        optimizer = getattr(optim, name)(parameters, rank=2, **options)
        give(torch, parameters)
        optimizer.step()
        for state in optimizer.state_dict()["state"].values():
            for value in state.values():
                assert isinstance(value, (torch.Tensor, int)), type(value)
        stream = io.BytesIO()
        torch.save(optimizer.state_dict(), stream)
        stream.seek(0)
        optimizer.load_state_dict(torch.load(stream, weights_only=True))


@pytest.mark.parametrize(
    "config",
    [
        lc.DCTAdamWConfig(rank=2, method="matmul", residual="scaled", bias_correction="gentle"),
        lc.DCTAdamWConfig(rank=2, method="fft", residual="error_feedback", feedback_bits=4),
        lc.DCTAdamWConfig(rank=2, basis="hartley", residual="sign", selection="sampled"),
        lc.DCTAdamWConfig(rank=2, basis="svd"),
        lc.TrionConfig(rank=2, momentum_bits=8),
        lc.TrionConfig(rank=2, basis="legendre", state_dtype="bfloat16"),
    ],
)
def test_no_device_is_named_in_the_code(torch, config):
    """The device's name stood in the code: nothing ran without CUDA and a process group.

    No test machine need have a GPU: a device that holds no numbers, ``meta``, shows as well where arrays are made.
    """
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    class Devices(TorchDispatchMode):
        """Notes where every result of every operation is."""

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            # An array of nothing, which a namespace is told by, may be anywhere.
            made.update(
                x.device.type for x in tree_leaves(result) if torch.is_tensor(x) and x.numel()
            )
            return result

    assert not torch.distributed.is_initialized()
    trion = isinstance(config, lc.TrionConfig)
    start, step = (
        (lc.trion_init, lc.trion_step) if trion else (lc.dct_adamw_init, lc.dct_adamw_step)
    )
    for device, other in (("cpu", "meta"), ("meta", "cpu")):
        made = set()
        # What is made without a device would be made elsewhere.
        with Devices(), torch.device(other):
            state = start((12, 8), config, xp=torch, device=device)
            for _ in range(2):
                update, state = step(torch.ones(12, 8, device=device), state, config)
                full = lc.materialize(update)
        assert made == {device}
        assert full.device.type == device


def test_moments_follow_their_columns(xp):
    """Moments stayed in place when the columns under them changed, and so were taken for other columns'."""
    config = lc.DCTAdamWConfig(rank=2, basis="identity", side="right", betas=(0.5, 0.5))
    # Columns 1 and 3, then 0 and 3: what was second stays second, what was first is gone.
    sequence = [np.array([[0.0, 2.0, 0.0, 4.0]]), np.array([[6.0, 0.0, 0.0, 8.0]])]
    *_, (_, _, state) = steps(config, sequence, xp)
    np.testing.assert_array_equal(to_numpy(state.indices), [0, 3])
    np.testing.assert_allclose(to_numpy(state.first_moment), [[3.0, 5.0]], rtol=1e-12)
    np.testing.assert_allclose(to_numpy(state.second_moment), [[18.0, 36.0]], rtol=1e-12)


@pytest.mark.parametrize("basis", ["svd", "power"])
def test_rotation_reads_its_operands_before_it_writes(xp, basis):
    """The rotated first moment was written over the unrotated one, which the second then was rotated by."""
    beta1, beta2, shape = 0.6, 0.8, (7, 5)
    config = lc.DCTAdamWConfig(rank=2, basis=basis, betas=(beta1, beta2))
    state = lc.dct_adamw_init(shape, config, xp=xp, dtype=xp.float64)
    for t in range(1, 4):
        gradient = from_numpy(normal(*shape, seed=t), xp)
        given = (state.first_moment, state.second_moment, state.vectors)
        with untouched(gradient, *given):
            _, after = lc.dct_adamw_step(gradient, state, config)
        m, v, q = map(to_numpy, given)
        new = to_numpy(after.vectors)
        r, a = q.T @ new, to_numpy(gradient) @ new
        w1, w2 = 1 - beta1 ** (t - 1), 1 - beta2 ** (t - 1)
        if t > 1:
            m_hat, v_hat = m / w1, v / w2
            m, v = m @ r, w2 * abs((v_hat - m_hat**2) @ r**2 + (m_hat @ r) ** 2)
        expected = beta1 * m + (1 - beta1) * a, beta2 * v + (1 - beta2) * a**2
        assert_close(after.first_moment, expected[0], xp=xp, dtype="float64", kind="trajectory")
        assert_close(after.second_moment, expected[1], xp=xp, dtype="float64", kind="trajectory")
        state = after


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("shape", [(), (5,), (6, 4), (2, 3, 4), (4, 3, 2, 2)])
def test_parameters_of_any_dimension_are_updated(torch, optim, name, shape):
    """Scalars and parameters of three dimensions and more were decayed, and their gradients never used."""
    one = parameter(torch, *shape) if shape else torch.nn.Parameter(torch.tensor(1.0))
    start = one.detach().clone()
    optimizer = getattr(optim, name)([one], lr=0.1, weight_decay=0.5, rank=2)
    one.grad = torch.ones_like(one)
    optimizer.step()
    beyond_decay = one.detach() - start * (1 - 0.1 * 0.5)
    assert (beyond_decay < 0).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_first_gradient_may_come_late(torch, optim, name):
    """A parameter without a gradient at the first step had no state when its first gradient came."""
    for shape, foreach in itertools.product(((6, 4), (5,)), (True, False)):
        early, late, alone = (parameter(torch, *shape) for _ in range(3))
        optimizer = getattr(optim, name)([early, late], rank=2, foreach=foreach)
        for seed in range(3):
            give(torch, [early], seed)
            optimizer.step()
        assert late not in optimizer.state
        single = getattr(optim, name)([alone], rank=2, foreach=foreach)
        for seed in range(3, 6):
            give(torch, [late], seed)
            give(torch, [alone], seed)
            optimizer.step()
            single.step()
            # It starts where it would have started alone: at its own first step. Products of stacked matrices are
            # rounded otherwise on some processors.
            if name == "Trion" and foreach:
                assert_close(late.detach(), alone.detach(), xp=torch, dtype="float32")
            else:
                assert_identical(late, alone)


def test_options_of_a_group_are_heeded(torch, optim):
    """Betas, eps and rank of a parameter group were ignored in favour of the first."""
    special = {"betas": (0.5, 0.6), "eps": 0.3, "rank": 4}
    common = {"lr": 0.01, "weight_decay": 0.1}
    for shape in ((8, 6), (5,)):
        one, other, alone, plain = (parameter(torch, *shape) for _ in range(4))
        groups = [{"params": [one]}, {"params": [other], **special}]
        together = optim.DCTAdamW(groups, rank=2, **common)
        single = [
            optim.DCTAdamW([alone], **special, **common),
            optim.DCTAdamW([plain], rank=2, **common),
        ]
        for seed in range(3):
            for each in (one, other, alone, plain):
                give(torch, [each], seed)
            together.step()
            for optimizer in single:
                optimizer.step()
        assert_identical(other, alone)
        assert_identical(one, plain)
        assert not torch.equal(one, other)
    # The last, a vector, had AdamW: PyTorch's own, with the group's options.
    again = parameter(torch, 5)
    adamw = torch.optim.AdamW([again], betas=(0.5, 0.6), eps=0.3, **common)
    for seed in range(3):
        give(torch, [again], seed)
        adamw.step()
    assert_close(other, to_numpy(again), xp=torch, dtype="float32", kind="trajectory")
    ranks = [
        row.rank
        for row in optim.Trion(
            [{"params": [parameter(torch, 8, 6)]}, {"params": [parameter(torch, 8, 6)], "rank": 4}],
            rank=2,
        ).summary()
    ]
    assert ranks == [2, 4]


@pytest.mark.parametrize("xp", ["torch", "jax"], indirect=True)
def test_a_bfloat16_second_moment_decays(xp):
    """Rounded to nearest, a bfloat16 times 0.999 is itself again: the second moment only ever grew."""
    config = lc.DCTAdamWConfig(
        rank=6, side="right", betas=(0.9, 0.999), state_dtype="bfloat16", basis="identity"
    )
    sequence = [np.ones((200, 6))] + [np.zeros((200, 6))] * 100
    states = [state for _, _, state in steps(config, sequence, xp, "float32")]
    start, end = (to_numpy(state.second_moment).astype(np.float64) for state in states[::100])
    assert abs(end.mean() / start.mean() - 0.999**100) < 0.005


# -- Trion -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["direct", "gram", "auto"])
def test_nothing_to_orthonormalise_is_nothing(xp, form):
    """A low-rank momentum of zero was divided by its norm, and the step and the parameter became NaN."""
    for coefficients in ("muon", "polar_express"):
        for shape in ((6, 3), (3, 6), (4, 4)):
            x = from_numpy(np.zeros(shape), xp, "float32")
            assert_identical(lc.orthogonalize(x, coefficients=coefficients, form=form), x)
    for full, _, state in steps(lc.TrionConfig(rank=2), [np.zeros((6, 4))] * 2, xp, "float32"):
        np.testing.assert_array_equal(to_numpy(full), 0)
        np.testing.assert_array_equal(to_numpy(state.momentum), 0)


def test_trion_runs_with_every_option(torch, optim):
    """Names that nobody had defined stood on Trion's path: it could not run."""
    rows = {
        "scale": ("none", "spectral", "dion", "rms"),
        "coefficients": ("muon", "polar_express"),
        "momentum_bits": (None, 8, 4),
        "rank_scaling": (False, True),
        "row_decay": (None, 0.9),
        "update_scale": (1.0, 2.0),
        "stochastic_rounding": (False, True),
    }
    for values in itertools.product(*rows.values()):
        options = dict(zip(rows, values, strict=True))
        one = torch.nn.Parameter(torch.ones(12, 6, dtype=torch.bfloat16))
        wide = parameter(torch, 12, 6)
        optimizer = optim.Trion([one, wide], lr=0.1, weight_decay=0.0, rank=2, **options)
        for seed in range(2):
            give(torch, [wide], seed)
            one.grad = wide.grad.to(one.dtype)
            before = wide.detach().clone()
            optimizer.step()
            moved = (before - wide).detach() / 0.1
            assert torch.linalg.matrix_rank(moved, atol=1e-4) == 2, options
            assert torch.isfinite(one).all()


def test_trion_is_the_published_rule(xp):
    """As above; what it does once it runs is the paper's: momentum, best columns, orthonormalised, scaled."""
    config = lc.TrionConfig(rank=3, momentum=0.95, scale="spectral")
    oracle = oracles_family.Trion(rank=3, momentum=0.95, scale="spectral")
    sequence = gradients(6, 12, 7)
    for gradient, (full, update, _) in zip(sequence, steps(config, sequence, xp), strict=True):
        expected = oracle.step(gradient)
        np.testing.assert_array_equal(to_numpy(update.indices), oracle.columns)
        assert_close(full, expected, xp=xp, dtype="float64", kind="trajectory")
