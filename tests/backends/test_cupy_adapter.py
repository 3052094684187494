"""CuPy: its adapter's logic with NumPy standing in, the names it is asked for, and the real thing on a GPU."""

import ast
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import oracles
import pytest
import scipy.fft
from helpers import assert_close, from_numpy, normal, to_numpy
from ops_cases import CASES, compare, overridden

import lowrank_core as lc
from lowrank_core._typing import Array

if importlib.util.find_spec("cupy") is None:
    pytest.skip("CuPy is not installed", allow_module_level=True)

from lowrank_backends.cupy import CupyOps

CORE = sorted(Path(lc.__file__).parent.rglob("*.py"))
BACKENDS = Path(inspect.getfile(CupyOps)).parent
FILES = [*CORE, BACKENDS / "_numpy_like.py", BACKENDS / "cupy.py"]


# -- logic, on NumPy's arrays -----------------------------------------------------------------------


@pytest.fixture
def standing_in(monkeypatch):
    """CuPy's adapter with NumPy and SciPy in the places of CuPy and of its `scipy.fft`."""
    monkeypatch.setattr(CupyOps, "scipy_fft", scipy.fft)
    return CupyOps(lc.ops_for_namespace(np).xp)


@pytest.mark.parametrize("name", sorted(overridden(CupyOps)))
def test_every_override_gives_what_the_standard_gives(standing_in, name):
    assert name in CASES, "add a case to ops_cases.py"
    compare(name, standing_in, lambda values, kind: from_numpy(values, np, kind))


@pytest.mark.parametrize("shape", [(8, 6), (2, 3, 5, 9)])
def test_a_run_gives_what_the_oracle_gives(standing_in, shape):
    sequence = [normal(*shape, seed=t) for t in range(5)]
    options = {"rank": 3, "refresh_every": 2, "residual": "error_feedback"}
    expected, columns, _ = oracles.dct_adamw(sequence, **options)
    config = lc.DCTAdamWConfig(method="fft", **options)
    state = lc.dct_adamw_init(shape, config, xp=np, dtype=np.float64)
    for t, gradient in enumerate(sequence):
        update, state = lc.dct_adamw_step(gradient, state, config, ops=standing_in)
        np.testing.assert_array_equal(update.indices, columns[t])
        full = lc.materialize(update, method="fft", ops=standing_in)
        assert_close(full, expected[t], xp=np, dtype="float64", kind="trajectory")


# -- names, in the CuPy that is installed -----------------------------------------------------------


def is_namespace(node: ast.expr) -> bool:
    """Whether an expression is the array namespace: ``xp``, ``ops.xp``, ``self.xp``."""
    match node:
        case ast.Name(id="xp") | ast.Attribute(value=ast.Name(), attr="xp"):
            return True
    return False


def dotted_name(node: ast.expr) -> str | None:
    """``fft.rfft`` for ``xp.fft.rfft``; ``None`` for what is no attribute of the namespace."""
    if not isinstance(node, ast.Attribute):
        return None
    if is_namespace(node.value):
        return node.attr
    outer = dotted_name(node.value)
    return None if outer is None else f"{outer}.{node.attr}"


def names_used(path: Path) -> set[str]:
    """Every name that a file takes from the array namespace."""
    tree = ast.parse(path.read_text())
    found = {dotted_name(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return {name for name in found if name is not None and not name.startswith("__")}


def calls_made(path: Path) -> Iterator[tuple[str, int, tuple[str, ...]]]:
    """Every call of a namespace's function: its name, number of positional arguments, keywords."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and (name := dotted_name(node.func)) is not None:
            starred = any(isinstance(argument, ast.Starred) for argument in node.args)
            keywords = tuple(keyword.arg for keyword in node.keywords if keyword.arg is not None)
            if not name.startswith("__"):
                yield name, 0 if starred else len(node.args), keywords


NAMES = sorted(set().union(*(names_used(path) for path in FILES)))
CALLS = sorted({call for path in FILES for call in calls_made(path)})


def resolve(name):
    """The object of that name in the namespace that the core sees CuPy through."""
    import array_api_compat.cupy as namespace

    found = namespace
    for part in name.split("."):
        found = getattr(found, part)
    return found


def test_the_search_for_names_finds_them():
    assert {"float32", "take_along_axis", "argsort", "zeros", "fft.rfft", "linalg.qr"} <= set(NAMES)
    assert ("argsort", 1, ("axis", "descending", "stable")) in CALLS


# Asked for by name where a library has it; CuPy has not.
OPTIONAL = {"bfloat16"}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OPTIONAL])
def test_cupy_has_the_name(name):
    assert resolve(name) is not None


@pytest.mark.parametrize(("name", "positional", "keywords"), CALLS)
def test_cupy_takes_the_arguments(name, positional, keywords):
    import cupy

    function = resolve(name)
    if isinstance(function, cupy.ufunc):
        assert positional <= function.nin
        assert set(keywords) <= {"out", "dtype", "casting"}
        return
    signature = inspect.signature(function)
    signature.bind(*range(positional), **dict.fromkeys(keywords))
    kinds = {parameter.kind for parameter in signature.parameters.values()}
    if inspect.Parameter.VAR_KEYWORD in kinds:
        # A wrapper hands what it does not know to CuPy's own function of that name.
        handed_on = set(keywords) - set(signature.parameters)
        assert not handed_on or handed_on <= set(inspect.signature(getattr(cupy, name)).parameters)


def test_cupy_arrays_do_what_the_core_asks_of_arrays():
    import cupy

    asked = {
        name
        for name in vars(Array)
        if callable(getattr(Array, name)) or isinstance(vars(Array)[name], property)
    }
    asked = {name for name in asked if name.startswith("__") or not name.startswith("_")}
    assert {"shape", "__matmul__", "__getitem__"} <= asked
    assert not {name for name in asked if not hasattr(cupy.ndarray, name)}


@pytest.mark.parametrize("name", ["dct", "idct"])
def test_the_native_transform_takes_what_scipy_takes(name):
    from cupyx.scipy import fft as native

    assert CupyOps.scipy_fft is native
    for module in (native, scipy.fft):
        bound = inspect.signature(getattr(module, name)).bind("x", type=2, norm="ortho", axis=-1)
        assert set(bound.arguments) == {"x", "type", "norm", "axis"}


def test_the_adapter_is_found_for_cupy():
    from importlib.metadata import entry_points

    (point,) = entry_points(group="lowrank_core.ops", name="cupy")
    assert point.load() is CupyOps
    # And computes with the library's own transform, not with the one that stood in.
    assert CupyOps.scipy_fft.__name__ == "cupyx.scipy.fft"


# -- computations, where there is a GPU -------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("name", sorted(overridden(CupyOps)))
def test_every_override_gives_what_the_standard_gives_on_a_gpu(cupy, name):
    ops = lc.ops_for_namespace(cupy)
    assert type(ops) is CupyOps
    compare(name, ops, lambda values, kind: from_numpy(values, cupy, kind))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_fifty_steps_on_a_gpu_are_those_of_the_oracle(cupy, dtype):
    sequence = [normal(20, 12, seed=t).astype(dtype) for t in range(50)]
    expected, columns, _ = oracles.dct_adamw(sequence, rank=5)
    config = lc.DCTAdamWConfig(rank=5)
    state = lc.dct_adamw_init((20, 12), config, xp=cupy, dtype=getattr(cupy, dtype))
    moved, wanted = 0.0, 0.0
    for t, gradient in enumerate(sequence):
        update, state = lc.dct_adamw_step(from_numpy(gradient, cupy), state, config)
        np.testing.assert_array_equal(to_numpy(update.indices), columns[t])
        moved, wanted = moved + lc.materialize(update), wanted + expected[t]
        assert_close(moved, wanted, xp=cupy, dtype=dtype, kind="trajectory")
