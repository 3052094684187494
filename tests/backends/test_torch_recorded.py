"""Whoever records PyTorch's operations sees all of them, and views that are not what is in memory are read as such."""

import pytest
import torch
from helpers import assert_close
from lowrank_backends.torch import TorchOps
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch_helpers import tensor

import lowrank_core as lc

pytestmark = pytest.mark.usefixtures("torch")

SIZE = 128
INDICES = torch.arange(100)
LINEAR = {
    "dct": lambda x: lc.dct(x, method="fft"),
    "dct of columns": lambda x: lc.dct(x, axis=-2, method="fft"),
    "dct by product": lambda x: lc.dct(x, method="matmul"),
    "idct": lambda x: lc.idct(x, method="fft"),
    "project": lambda x: lc.project(x, INDICES, method="fft"),
    "lift": lambda x: lc.lift(x, torch.arange(SIZE), 2 * SIZE, method="fft"),
}
every_function = pytest.mark.parametrize("function", LINEAR.values(), ids=LINEAR)


def inputs():
    return (tensor(8, SIZE, seed=seed) for seed in (1, 2))


def assert_equal(found, wanted):
    assert_close(found, wanted, xp=torch, dtype="float32", kind="trajectory")


# PyTorch warns of what it calls itself.
@pytest.mark.filterwarnings(
    "ignore:`torch.jit:DeprecationWarning", "ignore:Attempted to insert a get_attr:UserWarning"
)
@every_function
def test_the_tangent_of_a_linear_function_is_the_function_of_the_tangent(function):
    x, tangent = inputs()
    with forward_ad.dual_level():
        found = forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent))).tangent
    assert_equal(found, function(tangent))
    assert_equal(torch.func.jvp(function, (x,), (tangent,))[1], function(tangent))
    assert_equal(torch.func.linearize(function, x)[1](tangent), function(tangent))


@every_function
@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
def test_a_graph_of_fx_is_of_its_input(function, tracing_mode):
    x, other = inputs()
    if tracing_mode != "real" and function is LINEAR["project"]:
        pytest.skip("a real tensor beside fake ones is refused by PyTorch")
    graph = make_fx(function, tracing_mode=tracing_mode)(x)
    assert_equal(graph(other), function(other))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
@every_function
def test_a_traced_script_is_of_its_input(function):
    x, other = inputs()
    assert_equal(torch.jit.trace(function, (x,), check_trace=False)(other), function(other))


class Dispatched(TorchDispatchMode):
    """Notes on which storages operations have worked."""

    def __init__(self):
        super().__init__()
        self.ffts = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.ffts += "fft" in str(func)
        self.last = func(*args, **(kwargs or {}))
        return self.last


class Called(TorchFunctionMode):
    """The same of calls of PyTorch's functions."""

    def __init__(self):
        super().__init__()
        self.ffts = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.ffts += "fft" in func.__name__
        self.last = func(*args, **(kwargs or {}))
        return self.last


@pytest.mark.parametrize("mode", [Dispatched, Called])
@pytest.mark.parametrize("function", [f for n, f in LINEAR.items() if "product" not in n])
def test_modes_see_every_operation(function, mode):
    x, _ = inputs()
    wanted = function(x)
    # The answer to a mode that changes what it sees is changed: nothing goes past it.
    with mode() as seen:
        found = function(x)
        seen.last.fill_(7)
    assert seen.ffts == 1
    assert (found == 7).all()
    assert_equal(function(x), wanted)


def test_a_default_device_is_no_record():
    x, _ = inputs()
    torch.set_default_device("cpu")
    try:
        assert TorchOps(torch).is_readable(x)
    finally:
        torch.set_default_device(None)


@every_function
def test_views_of_another_sign_and_of_nothing_are_read_as_such(function):
    x, other = inputs()
    negative = torch.complex(other, x).conj().imag
    assert negative.is_neg()
    assert_equal(function(negative), function(-x))
    zero = torch._efficientzerotensor((8, SIZE))
    assert_equal(function(zero), function(torch.zeros(8, SIZE)))
