"""Threads: pieces of work and slabs of a matrix, side by side, give what one thread gives, and fail as one does."""

import os
import signal
import subprocess
import sys
import threading
import time

import lowrank_torch
import lowrank_torch._parts as parting
import lowrank_torch._step as stepping
import pytest
import torch
from helpers import assert_close, to_numpy
from lowrank_backends import _torch_memory
from torch_helpers import VARIANTS, parameters, tensor, variant_id

from lowrank_core import ops_for

OPS = ops_for(torch.empty(0))


@pytest.fixture
def threads():
    """Set the number of PyTorch's threads, and set it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


# -- work side by side ----------------------------------------------------------------------------


def test_as_many_items_as_threads_are_at_work_together(threads):
    for count in (2, 3, 2):
        threads(count)
        together = threading.Barrier(count)
        OPS.for_each(lambda _, together=together: together.wait(60), range(count))
        assert OPS.num_threads() == count


def test_operations_of_an_item_use_no_other_thread_and_follow_no_gradients(threads):
    threads(5)  # as in no other test, so that the threads are new
    seen = []

    def look(_):
        seen.append((torch.get_num_threads(), OPS.num_threads(), torch.is_grad_enabled()))

    OPS.for_each(look, range(9))
    assert seen == [(1, 1, False)] * 9
    assert torch.get_num_threads() == 5
    later = []
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [5], "threads of other people's are as they would be"


def test_items_are_worked_on_in_the_callers_inference_mode(threads):
    threads(2)
    with torch.inference_mode():
        made = [torch.zeros(3), torch.zeros(3)]
        OPS.for_each(lambda x: x.add_(1), made)
    assert all(bool((x == 1).all()) for x in made)


def test_an_error_ends_the_work_and_the_next_work_begins_as_ever(threads):
    threads(2)
    done = []

    def work(item):
        if item == 1:
            raise ValueError("item must be another one, got 1")
        time.sleep(0.05)
        done.append(item)

    with pytest.raises(ValueError, match="got 1"):
        OPS.for_each(work, range(100))
    assert 0 in done, "what had begun is done"
    assert len(done) < 10, "and nothing begun after it"
    OPS.for_each(done.append, range(100, 104))
    assert sorted(done)[-4:] == [100, 101, 102, 103]


def test_nobody_works_on_after_an_interrupt(threads):
    threads(2)
    done = []

    def work(item):
        if item == 0:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.1)
        done.append(item)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            OPS.for_each(work, range(100))
    finally:
        signal.signal(signal.SIGINT, before)
    at_once = list(done)
    time.sleep(0.3)
    assert done == at_once
    assert 0 in done
    assert len(done) < 10


FORKING = """
import os, torch
from lowrank_core import ops_for

ops = ops_for(torch.empty(0))
torch.set_num_threads(2)
ops.for_each(lambda _: None, range(4))
child = os.fork()
done = []
ops.for_each(done.append, range(4))
assert sorted(done) == [0, 1, 2, 3], done
if child == 0:
    os._exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_has_threads_of_its_own():
    # In a process of its own: other libraries that tests have loaded warn of being forked.
    process = subprocess.run(
        [sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=120, check=False
    )
    assert process.returncode == 0, process.stderr


def test_a_mode_sees_what_is_done(threads):
    threads(2)

    class Counting(torch.overrides.TorchFunctionMode):
        count = 0

        def __torch_function__(self, function, types, given=(), named=None):
            self.count += 1
            return function(*given, **(named or {}))

    with Counting() as mode:
        OPS.for_each(lambda _: torch.zeros(1), range(5))
    assert mode.count == 5


# -- one matrix divided ---------------------------------------------------------------------------


def run(constructor, shapes, steps=5, **options):
    given = parameters(*shapes)
    optimizer = constructor(given, lr=0.01, **{"rank": 3, **options})
    for step in range(steps):
        for place, parameter in enumerate(given):
            parameter.grad = tensor(*parameter.shape, seed=50 * step + place)
        optimizer.step()
    return given, optimizer


def assert_same(one, other):
    (first, mine), (second, theirs) = one, other
    for a, b in zip(first, second, strict=True):
        assert_close(a.detach(), to_numpy(b), xp=torch, dtype="float32", kind="trajectory")
        ours, others = mine.state[a], theirs.state[b]
        assert ours.keys() == others.keys()
        for name, value in others.items():
            if name == "step":
                assert ours[name] == value
            elif not value.is_floating_point() and "feedback" not in name:
                assert torch.equal(ours[name], value), name
            elif name != "key":
                assert ours[name].shape == value.shape
                assert ours[name].dtype == value.dtype


@pytest.fixture
def divided(monkeypatch):
    """Divide small matrices too; how many rows (or columns) were stepped at a time."""
    monkeypatch.setattr(parting, "LEAST_PART", 16)
    monkeypatch.setattr(parting, "PART", 48)
    lengths = []
    original = stepping.parts_of

    def parts(target, gradient, state, matrix, length):
        lengths.append(length)
        return original(target, gradient, state, matrix, length)

    monkeypatch.setattr(stepping, "parts_of", parts)
    return lengths


@pytest.fixture
def whole(monkeypatch):
    """Step matrices whole, whatever their size."""
    with monkeypatch.context() as patch:
        patch.setattr(stepping, "rows_per_part", lambda stack, matrix, ops: matrix.layout.rows)
        yield patch


@pytest.mark.parametrize("shape", [(13, 8), (8, 13), (2, 11, 8), (8, 600)], ids=str)
@pytest.mark.parametrize("variant", VARIANTS, ids=variant_id)
def test_a_divided_matrix_goes_where_a_whole_one_goes(variant, shape, threads, divided, whole):
    options = {**variant, "batch_dims": len(shape) - 2}
    threads(1)
    expected = run(lowrank_torch.DCTAdamW, [shape], **options)
    assert not divided
    whole.undo()
    narrow = variant.get("state_dtype") in ("bfloat16", "float16")
    stored = variant.get("basis") in ("svd", "power")
    coded = variant.get("feedback_bits") or variant.get("moment_bits")
    for count in (1, 3):
        threads(count)
        assert_same(run(lowrank_torch.DCTAdamW, [shape], **options), expected)
        if narrow or stored:
            assert not divided, (
                "a step that takes the place of a number, or the whole, is not divided"
            )
        elif coded and shape == (8, 13):
            assert not divided, "columns that share codes are not divided"
        else:
            assert len(divided) == 5
            assert divided[0] < max(shape[-2:])
            assert divided[0] % 256 == 0 or not coded or shape != (8, 600)
        divided.clear()


@pytest.mark.parametrize("shape", [(13, 8), (2, 8, 600)], ids=str)
def test_a_divided_momentum_in_codes_goes_where_a_whole_one_goes(shape, threads, divided, whole):
    options = {"momentum_bits": 4, "batch_dims": len(shape) - 2}
    threads(1)
    expected = run(lowrank_torch.Trion, [shape], **options)
    whole.undo()
    threads(2)
    assert_same(run(lowrank_torch.Trion, [shape], **options), expected)
    assert len(divided) == 5


def test_parts_of_a_fused_projection_are_divided_one_by_one(threads, divided, whole):
    threads(2)
    expected = run(lowrank_torch.DCTAdamW, [(24, 9)], split_sizes=[16, 8])
    whole.undo()
    assert_same(run(lowrank_torch.DCTAdamW, [(24, 9)], split_sizes=[16, 8]), expected)
    assert len(divided) == 2 * 5
    assert max(divided) < 8


@pytest.mark.parametrize("constructor", [lowrank_torch.DCTAdamW, lowrank_torch.Trion])
def test_small_matrices_side_by_side_go_where_they_would_go_one_by_one(constructor, threads):
    shapes = [(12, 8), (8, 12), (5,), (12, 8), (30, 7), (9, 9)]
    threads(1)
    alone = run(constructor, shapes)
    threads(3)
    assert_same(run(constructor, shapes), alone)


def test_steps_that_draw_at_random_are_not_divided(threads, divided):
    threads(2)
    run(lowrank_torch.DCTAdamW, [(13, 8)], stochastic_rounding=True)
    assert not divided


def test_kept_memory_serves_as_many_arrays_as_were_in_use_at_once():
    scratch = _torch_memory.Scratch()
    size = 2**20
    first = scratch.empty((size,), torch.float32).fill_(1)
    place, part = first.data_ptr(), first[5:]
    del first
    second = scratch.empty((size,), torch.float32).fill_(2)
    assert bool((part == 1).all()), "a view keeps what it is a view of"
    assert second.data_ptr() != place
    del second, part
    third = scratch.empty((2, size // 4), torch.complex64)
    assert third.shape == (2, size // 4)
    fourth = scratch.empty((size,), torch.float32)
    assert third.data_ptr() != fourth.data_ptr()
    places = {third.data_ptr(), fourth.data_ptr()}
    del fourth, third
    again = [scratch.empty((size,), torch.float32) for _ in range(2)]
    assert {x.data_ptr() for x in again} == places, "kept for the next"
