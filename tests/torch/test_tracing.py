"""Steps under torch.compile, on tensors without data, and with another default device."""

import pytest
import torch
from helpers import assert_close
from lowrank_torch import DCTAdamW, Trion
from torch import nn
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch_helpers import VARIANTS, assert_same_bits, copies, parameters, set_gradients, train

from lowrank_core.rules.residuals import RESIDUALS

pytestmark = pytest.mark.usefixtures("torch")

SHAPES = ((24, 10), (10, 24), (6, 4, 3, 3), (5,))
OPTIONS = {"preset": None, "lr": 0.02, "weight_decay": 0.1, "rank": 3}


@pytest.fixture
def compiler():
    """A compiler without compiled code from other tests, and none left behind."""
    torch._dynamo.reset()
    counters.clear()
    yield torch.compile
    torch._dynamo.reset()


# The compiler warns of every cached function that it looks into, array-api-compat's among them.
compiles = pytest.mark.filterwarnings(
    "ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning"
)


@compiles
@pytest.mark.parametrize("backend", ["eager", pytest.param("aot_eager", marks=pytest.mark.slow)])
@pytest.mark.parametrize("bias_correction", ["step", "column"])
def test_compiled_step_equals_the_plain_one(compiler, backend, bias_correction):
    options = OPTIONS | {"refresh_every": 3, "bias_correction": bias_correction}
    given = parameters((24, 10), (5,))
    plain = copies(given)
    optimizer, reference = DCTAdamW(given, **options), DCTAdamW(plain, **options)
    step = compiler(optimizer.step, backend=backend, fullgraph=True)
    for number in range(7):
        set_gradients(given, number)
        step()
        train(reference, plain, 1, start=number)
    assert counters["stats"]["unique_graphs"] > 0
    for found, wanted in zip(given, plain, strict=True):
        assert_close(found.detach(), wanted.detach(), xp=torch, dtype="float32", kind="trajectory")
        assert optimizer.state[found]["step"] == reference.state[wanted]["step"] == 7
    indices = optimizer.state[given[0]]["indices"]
    assert_same_bits([indices], [reference.state[plain[0]]["indices"]])


@compiles
@pytest.mark.parametrize("residual", [*RESIDUALS, None])
def test_every_rule_compiles_without_a_break(compiler, residual):
    rate, given = torch.tensor(0.02), parameters((24, 10), (24, 10), (5,))
    if residual is None:
        optimizer = Trion(given, lr=rate, rank=3, row_decay=0.9)
    else:
        moment = "factored" if residual == "bounded" else "full"
        optimizer = DCTAdamW(
            given, lr=rate, rank=3, preset=None, residual=residual, second_moment=moment
        )
    step = compiler(optimizer.step, backend="eager", fullgraph=True)
    for number in range(2):
        set_gradients(given, number)
        step()
    assert all(optimizer.state[parameter]["step"] == 2 for parameter in given)


@compiles
# The compiler calls what its own library deprecates.
@pytest.mark.filterwarnings("ignore:`torch:DeprecationWarning", "ignore:`torch:FutureWarning")
@pytest.mark.parametrize("kind", [DCTAdamW, Trion])
def test_a_stack_of_matrices_runs_as_compiled_code(compiler, kind):
    given = parameters((24, 10), (24, 10), (24, 10))
    plain = copies(given)
    optimizer, reference = (kind(own, lr=torch.tensor(0.02), rank=3) for own in (given, plain))
    train(optimizer, given, 1)
    step = compiler(optimizer.step, fullgraph=True)
    for number in range(1, 3):
        set_gradients(given, number)
        step()
    train(reference, plain, 3)
    for found, wanted in zip(given, plain, strict=True):
        assert_close(found.detach(), wanted.detach(), xp=torch, dtype="float32", kind="trajectory")


@compiles
@pytest.mark.parametrize("bias_correction", ["step", "column"])
def test_compiled_step_is_not_compiled_anew(compiler, bias_correction):
    (parameter,) = parameters((24, 10))
    options = OPTIONS | {"refresh_every": 3, "bias_correction": bias_correction}
    optimizer = DCTAdamW([parameter], **options)
    step = compiler(optimizer.step, backend="eager", fullgraph=True)
    graphs = []
    for number in range(16):
        set_gradients([parameter], number)
        step()
        graphs.append(counters["stats"]["unique_graphs"])
    # The first step makes state, the next ones teach the compiler that the count changes; from then on there is
    # one graph for steps that choose columns and one for steps that keep them.
    assert graphs[6] == graphs[-1] > 0


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("kind", [DCTAdamW, Trion])
def test_a_schedule_of_a_plain_rate_compiles_nothing_anew(compiler, kind):
    # A matrix and what gets AdamW; this backend makes constants of numbers as Inductor does.
    given = parameters((24, 10), (5,))
    plain = copies(given)
    optimizer, reference = (kind(own, lr=0.02, rank=3) for own in (given, plain))
    step = compiler(optimizer.step, backend="aot_eager", fullgraph=True)
    graphs = []
    for number in range(6):
        for one in (optimizer, reference):
            one.param_groups[0]["lr"] = 0.02 / (number + 1)
        set_gradients(given, number)
        step()
        train(reference, plain, 1, start=number)
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[2] == graphs[-1] > 0
    for found, wanted in zip(given, plain, strict=True):
        assert_close(found.detach(), wanted.detach(), xp=torch, dtype="float32", kind="trajectory")


@pytest.mark.parametrize("method", ["matmul", "fft"])
@pytest.mark.parametrize("bias_correction", ["step", "column"])
def test_step_on_fake_tensors_reads_no_value(method, bias_correction):
    with FakeTensorMode():
        given = [nn.Parameter(torch.empty(shape)) for shape in SHAPES]
        options = OPTIONS | {"method": method, "bias_correction": bias_correction}
        optimizer = DCTAdamW(given, refresh_every=2, **options)
        for _ in range(3):
            for parameter in given:
                parameter.grad = torch.empty_like(parameter)
            optimizer.step()
        for parameter in given:
            state = optimizer.state[parameter]
            tensors = [value for value in state.values() if isinstance(value, torch.Tensor)]
            assert len(tensors) >= 3
            assert all(isinstance(value, FakeTensor) for value in tensors)
        assert optimizer.state[given[0]]["first_moment"].shape == (24, 3)


def test_step_on_real_tensors_after_one_on_fake_tensors():
    given = parameters(*SHAPES)
    plain = copies(given)
    with FakeTensorMode():
        fake = [nn.Parameter(torch.empty(shape)) for shape in SHAPES]
        for parameter in fake:
            parameter.grad = torch.empty_like(parameter)
        DCTAdamW(fake, **OPTIONS).step()
    train(DCTAdamW(given, **OPTIONS), given, 2)
    train(DCTAdamW(plain, **OPTIONS), plain, 2)
    assert_same_bits(given, plain)
    assert type(given[0]) is nn.Parameter


def test_state_is_made_where_the_parameter_is():
    given = [nn.Parameter(torch.empty(shape, device="meta")) for shape in SHAPES]
    optimizer = DCTAdamW(given, **OPTIONS)
    for parameter in given:
        parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    for parameter in given:
        for name, value in optimizer.state[parameter].items():
            if isinstance(value, torch.Tensor):
                assert value.device.type == ("cpu" if name == "step" else "meta")
    assert len(optimizer.state) == len(given)


@pytest.mark.parametrize(
    "variant", VARIANTS, ids=lambda variant: "-".join(map(str, variant.values()))
)
def test_default_device_does_not_matter(variant):
    given = parameters((32, 16), (16, 32), (5,))
    plain = copies(given)
    optimizer = DCTAdamW(given, **OPTIONS | variant)
    for step in range(2):
        set_gradients(given, step)
        with torch.device("meta"):
            optimizer.step()
    train(DCTAdamW(plain, **OPTIONS | variant), plain, 2)
    assert_same_bits(given, plain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_default_dtype_does_not_matter(dtype):
    given = parameters(*SHAPES)
    plain = copies(given)
    optimizer = DCTAdamW(given, **OPTIONS)
    before = torch.get_default_dtype()
    for step in range(2):
        set_gradients(given, step)
        torch.set_default_dtype(dtype)
        try:
            optimizer.step()
        finally:
            torch.set_default_dtype(before)
    train(DCTAdamW(plain, **OPTIONS), plain, 2)
    assert_same_bits(given, plain)
    for parameter in given:
        state = optimizer.state[parameter]
        assert torch.float32 in {v.dtype for v in state.values() if isinstance(v, torch.Tensor)}


def test_step_records_nothing_for_autograd():
    given = parameters(*SHAPES)
    plain = copies(given)
    optimizer, reference = DCTAdamW(given, **OPTIONS), DCTAdamW(plain, **OPTIONS)
    for step in range(2):
        set_gradients(given, step)
        with torch.no_grad():
            optimizer.step()
        set_gradients(plain, step)
        with torch.enable_grad():
            reference.step()
    assert_same_bits(given, plain)
    assert all(parameter.requires_grad and parameter.grad_fn is None for parameter in plain)
    for parameter in plain:
        for value in reference.state[parameter].values():
            assert not (isinstance(value, torch.Tensor) and value.requires_grad)
