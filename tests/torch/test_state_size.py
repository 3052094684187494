"""Memory: the state is as large as it is said to be, temporaries are bounded, constants go with the optimizer."""

import gc

import pytest
import torch
from lowrank_torch import DCTAdamW
from torch_helpers import OPTIMIZERS, VARIANTS, parameters, set_gradients, train, variant_id

import lowrank_core as lc

pytestmark = pytest.mark.usefixtures("torch")

SHAPES = ((32, 16), (16, 32), (8, 4, 2, 2), (5,), (3, 16, 8))


def measured(state):
    """Bytes of all tensors of a parameter's state; the step count, a number, is not among them."""
    return sum(v.nbytes for name, v in state.items() if name != "step" and torch.is_tensor(v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_state_is_as_large_as_the_summary_and_the_core_say(variant, dtype):
    given = parameters(*SHAPES, dtype=dtype)
    options = {name: value for name, value in variant.items() if name != "preset"}
    optimizer = DCTAdamW(
        [{"params": given[:-1]}, {"params": given[-1:], "batch_dims": 1}], rank=3, **variant
    )
    rows = optimizer.summary()
    train(optimizer, given, 2)
    config = lc.DCTAdamWConfig(rank=3, **options)
    compute = "float64" if dtype == torch.float64 else "float32"
    matrices = {(8, 4, 2, 2): (8, 16)}
    for parameter, row in zip(given, rows, strict=True):
        assert measured(optimizer.state[parameter]) == row.state_bytes
        if parameter.ndim > 1:
            shape = matrices.get(row.shape, row.shape)
            assert row.state_bytes == lc.state_bytes(shape, config, dtype=compute)


@pytest.mark.parametrize("optimizer_type", OPTIMIZERS)
def test_every_optimizer_says_how_large_its_state_is(optimizer_type):
    given = parameters(*SHAPES)
    optimizer = optimizer_type(given, lr=0.01, rank=3)
    rows = optimizer.summary()
    train(optimizer, given, 2)
    assert [measured(optimizer.state[parameter]) for parameter in given] == [
        row.state_bytes for row in rows
    ]


@pytest.mark.parametrize(("shape", "rank"), [((48, 20), 5), ((20, 48), 5), ((30, 30), 7)])
def test_low_rank_state_is_two_moments_and_the_indices(shape, rank):
    (parameter,) = parameters(shape)
    plain = DCTAdamW([parameter], rank=rank, preset=None)
    train(plain, [parameter], 2)
    assert measured(plain.state[parameter]) == 4 * (2 * max(shape) * rank + rank)


@pytest.mark.parametrize(("shape", "rank"), [((48, 20), 5), ((20, 48), 5), ((30, 30), 7)])
def test_the_default_keeps_one_moment_and_means_of_rows_and_columns(shape, rank):
    (parameter,) = parameters(shape)
    optimizer = DCTAdamW([parameter], rank=rank)
    train(optimizer, [parameter], 2)
    assert measured(optimizer.state[parameter]) == 4 * (max(shape) * rank + rank + sum(shape))


def bases_alive(size):
    """Square tensors of one size that Python still holds."""
    gc.collect()
    return sum(1 for o in gc.get_objects() if type(o) is torch.Tensor and o.shape == (size, size))


@pytest.mark.slow
def test_basis_is_shared_and_freed_with_the_last_optimizer():
    size = 101  # used by no other test, and small enough for the transform by a product
    assert bases_alive(size) == 0
    given = parameters((113, size), (size, 127), (131, size))
    first, second = DCTAdamW(given[:2], rank=3), DCTAdamW(given[2:], rank=3)
    train(first, given[:2], 1)
    assert bases_alive(size) == 1
    train(second, given[2:], 1)
    assert bases_alive(size) == 1
    del first
    assert bases_alive(size) == 1
    del second
    assert bases_alive(size) == 0


def peak_of(function):
    """Most bytes that were allocated at once during a call, over what there was before it."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    assert events
    current = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak


@pytest.mark.parametrize("shape", [(6000, 1000), (1000, 6000)], ids=["tall", "wide"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("preset", [None, "factored"])
def test_temporaries_of_a_step_are_bounded(preset, shape, dtype, monkeypatch):
    def empty(shape, dtype):
        return torch.empty(tuple(shape), dtype=dtype)

    # PyTorch does not see what NumPy allocates, nor what another thread does.
    monkeypatch.setattr("lowrank_backends._torch_cosine.empty", empty)
    monkeypatch.setattr(
        "lowrank_backends._torch_memory.Scratch.empty", lambda _, *given: empty(*given)
    )
    # Numba's panels hold no such arrays.
    monkeypatch.setattr("lowrank_backends._torch_panels.LEAST", 2**62)
    monkeypatch.setattr("lowrank_backends.torch.num_threads", lambda: 1)
    monkeypatch.setattr("lowrank_backends._torch_threads.num_threads", lambda: 1)
    (parameter,) = parameters(shape, dtype=dtype)
    optimizer = DCTAdamW([parameter], rank=8, preset=preset, refresh_every=2)
    full = 4 * parameter.numel()  # of float32 numbers
    set_gradients([parameter], 0)
    optimizer.step()  # makes state, chooses columns
    peaks = []
    for step in (1, 2):  # the first chooses columns, the second does not
        set_gradients([parameter], step)
        peaks.append(peak_of(optimizer.step))
    # bf16 is transformed in float32: one more temporary, the wide copy of the gradient.
    wide = full if dtype == torch.bfloat16 else 0
    if preset is not None:
        # The coefficients and what becomes of them, at every step.
        assert all(full < peak < 1.8 * full + wide / 4 for peak in peaks)
        return
    # The coefficients, and what is r wide; without a choice, blocks of the update alone. bf16 is copied part by part.
    assert full < peaks[0] < 1.5 * full
    assert peaks[1] - wide < 0.5 * full
