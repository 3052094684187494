"""The Triton kernels, in Triton's interpreter, give what `StandardOps` gives; nothing else asks for Triton."""

import importlib.util
import json
import subprocess
import sys

import pytest
import triton_runs

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton: not installed"
)
pytestmark = pytest.mark.usefixtures("torch")

# Shares of the way that a step moves, or of the norm of a moment. Products of float16 operands in two halves are as
# exact as float32, whose rounding of a parameter is 1e-5 of a step a hundred times smaller; single ones as float16.
BOUNDS = {"highest": 2e-4, "high": 2e-3}
# The sign of what is near zero turns with rounding, and each that turns is wrong by twice its size.
TURNED = 0.02
# Of numbers that are rounded to bfloat16, the share that may fall on the other side.
OTHER_SIDE = 0.03


def found(*names):
    """What the cases of `triton_runs` found, in a process that interprets."""
    command = [sys.executable, "-W", "ignore", triton_runs.__file__, *names]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def fast():
    return found(*triton_runs.FAST)


@pytest.fixture(scope="module")
def slow():
    return found(*triton_runs.SLOW)


def check(name, errors):
    assert errors
    bound = BOUNDS["high" if "high" in name.split() or "bfloat16" in name else "highest"]
    if "sign" in name and bound == BOUNDS["high"]:
        bound = TURNED
    if "random" in name:
        bound = OTHER_SIDE
    assert errors == {what: pytest.approx(0.0, abs=bound) for what in errors}


@needs_triton
@pytest.mark.parametrize("name", triton_runs.FAST)
def test_kernels_give_what_the_standard_gives(fast, name):
    check(name, fast[name])


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("name", triton_runs.SLOW)
def test_kernels_at_more_sizes(slow, name):
    check(name, slow[name])


def test_no_kernel_is_taken_on_a_cpu_nor_made():
    code = """
    import sys, torch
    from lowrank_core import ops_for_namespace
    import lowrank_torch
    x = torch.ones(4, 96)
    assert ops_for_namespace(torch).row_kernels([x], [x], [()]) is None
    p = torch.nn.Parameter(x)
    p.grad = torch.ones(4, 96)
    lowrank_torch.DCTAdamW([p], rank=4, side="right").step()
    made = [name for name in sys.modules if name.startswith("lowrank_backends._triton")]
    assert made == ["lowrank_backends._triton_tables"], made
    """
    lines = "\n".join(line.strip() for line in code.splitlines())
    subprocess.run([sys.executable, "-c", lines], check=True)


def test_the_interpreter_has_to_be_asked_for(monkeypatch):
    from lowrank_backends._torch_rows import interpret_on_cpu

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="set TRITON_INTERPRET=1 before Triton is imported"):
        interpret_on_cpu()


def test_sizes_that_kernels_take():
    from lowrank_backends._triton_tables import factors, padded

    assert [padded(size) for size in (1, 16, 17, 86)] == [16, 16, 32, 128]
    # An odd length has no half, 262 = 2 * 131 no factors that fit, and 11008 is too long.
    none = [n for n in (1, 96, 97, 262, 8192, 11008) if factors(n) is None]
    assert none == [1, 97, 262, 11008]
    for n in range(2, 2000, 2):
        cut = factors(n)
        if cut is not None:
            assert cut.n1 * cut.n2 == n
            assert cut.n1 // 2 <= cut.p1 <= 64
            assert cut.n2 <= cut.p2 <= 64


def test_slots_hold_every_coefficient_once():
    import torch
    from lowrank_backends._triton_tables import factors, slots_of

    for n in (2, 96, 768, 4096):
        cut = factors(n)
        slots = slots_of(cut, torch.device("cpu"))
        assert len(set(slots.tolist())) == n
        assert 0 <= slots.min() <= slots.max() < cut.slots


def test_what_a_gpu_has_the_registers_for(monkeypatch):
    import torch
    from lowrank_backends import _torch_rows

    class Cuda(torch.Tensor):
        """Stands for a tensor of a GPU."""

        is_cuda = True
        device = torch.device("cuda", 0)

    monkeypatch.setattr(_torch_rows, "Parameter", Cuda)
    monkeypatch.setattr(_torch_rows, "_has_kernels", lambda device: True)
    monkeypatch.setenv("LOWRANK_KERNELS", "1")

    def takes(n, kind=torch.float32):
        x = torch.zeros(2, n, dtype=kind).as_subclass(Cuda)
        return _torch_rows.takes(x, x)

    for precision, chip, wanted in (
        ("highest", 80, [True, False, False]),
        ("high", 80, [True, True, False]),
        ("highest", 90, [True, True, False]),
    ):
        monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda p=precision: p)
        monkeypatch.setattr(_torch_rows, "_capability", lambda device, chip=chip: chip)
        assert [takes(n) for n in (4096, 8192, 11008)] == wanted
        assert not takes(4096, torch.float64)
    x = torch.zeros(2, 96).as_subclass(Cuda)
    assert _torch_rows.takes(x, x)
    assert not _torch_rows.takes(x, torch.zeros(3, 96).as_subclass(Cuda))
    assert not _torch_rows.takes(x.mT.contiguous().mT, x)
    monkeypatch.delenv("LOWRANK_KERNELS")
    assert not _torch_rows.takes(x, x)


@needs_triton
def test_a_rate_of_another_device_reaches_a_kernel_as_a_number(torch):
    # A kernel would take the address of a tensor of the CPU for one of its own device's.
    from lowrank_backends._triton_launch import rates_on

    from lowrank_core.ops.rows import RowWrite

    lr, decay = torch.tensor(0.5), torch.empty((), device="meta")
    rates = rates_on(torch.device("meta"), RowWrite(lr, decay))
    assert rates[0] == 0.5
    assert type(rates[0]) is float
    assert rates[1] is decay
    assert rates_on(torch.device("cpu"), RowWrite(lr, 0.1)) == (lr, 0.1)
