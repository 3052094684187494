"""Adapters change speed and never results; how they are found; constants that are shared and set free."""

import gc
import subprocess
import sys
import textwrap
import weakref
from importlib.metadata import entry_points

import numpy as np
import pytest
from helpers import assert_close, assert_identical, from_numpy, library_of, normal, to_numpy
from ops_cases import CASES, compare, overridden

import lowrank_core as lc
from lowrank_core.ops.constants import Constants


def adapter_of(xp):
    return lc.ops_for(from_numpy(np.zeros(1), xp))


def maker(xp):
    return lambda values, kind: from_numpy(values, xp, kind)


@pytest.mark.parametrize(
    "xp", ["numpy", "torch", pytest.param("jax", marks=pytest.mark.slow)], indirect=True
)
def test_every_override_gives_what_the_standard_gives(xp):
    ops = adapter_of(xp)
    own = overridden(type(ops))
    assert own, "an adapter overrides something"
    assert own <= set(CASES), "add a case to ops_cases.py for each of these"
    for name in sorted(own):
        compare(name, ops, maker(xp))


@pytest.mark.parametrize("xp", ["numpy", "torch"], indirect=True)
def test_an_adapter_does_without_what_is_optional(xp, monkeypatch):
    ops = adapter_of(xp)
    if library_of(xp) == "numpy":
        monkeypatch.setattr(type(ops), "scipy_fft", None)
    else:
        monkeypatch.setattr("lowrank_backends.torch._BY_BLOCKS", False)
    for name in ("dct", "idct", "dct_scored", "idct_columns", "put"):
        compare(name, ops, maker(xp))


@pytest.mark.parametrize(
    ("xp", "module"),
    [
        ("numpy", "lowrank_backends.numpy"),
        ("torch", "lowrank_backends.torch"),
        ("jax", "lowrank_backends.jax"),
        ("array_api_strict", "lowrank_core.ops.standard"),
    ],
    indirect=["xp"],
)
def test_each_library_has_its_adapter_and_others_the_standard(xp, module):
    ops = adapter_of(xp)
    assert type(ops).__module__ == module
    assert (type(ops) is lc.StandardOps) == (library_of(xp) == "array_api_strict")
    assert lc.ops_for_namespace(xp) is ops
    assert lc.ops_for_namespace(ops.xp) is ops


def test_entry_points_name_loadable_adapters():
    points = entry_points(group="lowrank_core.ops")
    assert {point.name for point in points} >= {"numpy", "torch", "jax", "cupy"}


THIRD_PARTY = """
from lowrank_core import StandardOps

class StrictOps(StandardOps):
    def dct(self, x, *, axis):
        return 2 * super().dct(x, axis=axis)
"""

USES_IT = """
import numpy, array_api_strict, lowrank_core, sys

assert "someones_adapter" not in sys.modules
x = array_api_strict.asarray(numpy.eye(3))
plain = numpy.asarray(lowrank_core.dct(numpy.eye(3), method="fft"))
assert "someones_adapter" not in sys.modules, "loaded before an array of its library arrived"
assert type(lowrank_core.ops_for(x)).__name__ == "StrictOps"
found = numpy.asarray(lowrank_core.dct(x, method="fft"))
numpy.testing.assert_allclose(found, 2 * plain, atol=1e-12)
print("found")
"""


def test_anyone_can_add_an_adapter_by_an_entry_point(tmp_path):
    (tmp_path / "someones_adapter.py").write_text(THIRD_PARTY)
    info = tmp_path / "someones_adapter-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: someones-adapter\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[lowrank_core.ops]\narray_api_strict = someones_adapter:StrictOps\n"
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n" + textwrap.dedent(USES_IT)
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "found\n"


def test_operations_can_be_given_instead_of_found(xp):
    class Turned(lc.StandardOps):
        def column_sums(self, x, *, axis, norm):
            return 1 / (1 + super().column_sums(x, axis=axis, norm=norm))

    config = lc.DCTAdamWConfig(rank=1)
    gradient = from_numpy(np.diag([1.0, 2.0, 3.0]) @ np.ones((3, 3)), xp)
    state = lc.dct_adamw_init((3, 3), config, xp=xp, dtype=xp.float64)
    usual, _ = lc.dct_adamw_step(gradient, state, config)
    turned, _ = lc.dct_adamw_step(gradient, state, config, ops=Turned(adapter_of(xp).xp))
    assert int(to_numpy(usual.indices)[0]) == 0
    assert int(to_numpy(turned.indices)[0]) != 0


# -- constants ------------------------------------------------------------------------------------


def test_holders_share_one_array_and_it_dies_with_the_last():
    built = []

    def build():
        built.append(np.zeros(3))
        return built[-1]

    one, two = Constants(), Constants()
    first = one.get("a shared key", build)
    assert two.get("a shared key", build) is first
    assert one.get("a shared key", build) is first
    assert len(built) == 1
    alive = weakref.ref(first)
    del first
    built.clear()
    del one
    gc.collect()
    assert alive() is not None
    del two
    gc.collect()
    assert alive() is None


def test_a_bounded_holder_lets_go_of_what_was_used_longest_ago():
    holder = Constants(keep=2)
    alive = {}
    for key in ("a", "b"):
        alive[key] = weakref.ref(holder.get(key, lambda: np.zeros(3)))
    holder.get("a", lambda: pytest.fail("still held"))
    alive["c"] = weakref.ref(holder.get("c", lambda: np.zeros(3)))
    gc.collect()
    assert [alive[key]() is not None for key in "abc"] == [True, False, True]
    assert holder.get("b", lambda: np.ones(3))[0] == 1


def test_a_build_that_fails_leaves_nothing_behind():
    holder = Constants()

    def fail():
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        holder.get("a failing key", fail)
    assert holder.get("a failing key", lambda: np.ones(1))[0] == 1


def test_a_basis_is_freed_with_the_operations_that_hold_it(xp):
    holder = Constants()
    ops = adapter_of(xp).with_constants(holder)
    config = lc.DCTAdamWConfig(rank=30, method="matmul")
    state = lc.dct_adamw_init((53, 53), config, xp=xp)
    gradient = from_numpy(normal(53, 53), xp, "float32")
    lc.dct_adamw_step(gradient, state, config, ops=ops)
    key, matrix = next(iter(holder._held.items()))
    assert tuple(matrix.shape) == (53, 53)
    alive = weakref.ref(matrix)
    # Another holder finds the same array; nothing is built twice.
    assert Constants().get(key, lambda: pytest.fail("already built")) is matrix
    del matrix, ops, holder
    gc.collect()
    assert alive() is None


def test_a_constant_first_needed_in_a_jax_trace_serves_outside(jnp):
    import jax

    x = from_numpy(normal(2, 59), jnp)
    traced = jax.jit(lambda x: lc.dct(x, method="matmul"))(x)
    assert_close(lc.dct(x, method="matmul"), to_numpy(traced), xp=jnp, dtype="float64")


def test_a_constant_made_of_fake_tensors_serves_no_real_one(torch):
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode():
        fake = lc.dct(torch.empty(2, 61), method="matmul")
    assert isinstance(fake, FakeTensor)
    x = torch.eye(61)
    found = lc.dct(x, method="matmul")
    assert not isinstance(found, FakeTensor)
    assert_close(found, to_numpy(lc.dct_matrix(61, xp=torch)), xp=torch, dtype="float32")


def test_a_constant_needs_no_gradient(torch):
    with torch.inference_mode():
        lc.dct(torch.eye(67), method="matmul")
    x = torch.eye(67, requires_grad=True)
    lc.dct(x, method="matmul").sum().backward()
    expected = lc.idct(torch.ones(67, 67), method="matmul")
    assert_close(x.grad, to_numpy(expected), xp=torch, dtype="float32")


@pytest.mark.parametrize("xp", ["numpy", "torch", "array_api_strict"], indirect=True)
def test_the_same_constant_comes_back_to_the_same_bits(xp):
    x = from_numpy(normal(3, 71), xp, "float32")
    before = lc.dct(x, method="matmul")
    for n in range(72, 72 + 17):  # more sizes than are held
        lc.dct(from_numpy(np.ones((1, n)), xp, "float32"), method="matmul")
    assert_identical(lc.dct(x, method="matmul"), before)
