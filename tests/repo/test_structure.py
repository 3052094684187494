"""The arrows between modules point one way, and functions stay small enough to call without looking them up."""

import ast
import functools
import inspect
from graphlib import CycleError, TopologicalSorter

import pytest
from packages import PACKAGES, module_names

#: The parts of the core, each of which may import those before it.
CORE = (
    *(
        "_typing",
        "_checksum",
        "_files",
        "_interrupts",
        "roles",
        "option_names",
        "option_types",
        "_checks",
        "layout",
    ),
    *("ops", "numerics", "bases", "subspace", "rules"),
    *("calibration", "plot", "", "__main__"),
)
#: Parameters that a function may have: `self` and `cls` are not counted.
MOST_PARAMETERS = 6


def imports_of(path):
    """The modules of the project that a module imports, for types alone too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                # What is imported may be a module itself.
                yield from (node.module, f"{node.module}.{alias.name}")
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@functools.cache
def graph():
    """For each module of the four packages the modules of the same package that it imports."""
    paths = dict(module_names())
    return {
        name: {
            other
            for other in imports_of(path)
            if other in paths and other != name and other.split(".")[0] == name.split(".")[0]
        }
        for name, path in paths.items()
    }


@pytest.mark.parametrize("package", PACKAGES)
def test_no_circle_of_imports(package):
    # A package's `__init__` gathers public names and is imported by none of its modules.
    own = {name: others for name, others in graph().items() if name.split(".")[0] == package}
    try:
        order = list(TopologicalSorter(own).static_order())
    except CycleError as error:
        pytest.fail(f"modules import one another: {error.args[1]}")
    assert set(order) == set(own)


def part_of(module):
    return [*module.split("."), ""][1]


def test_every_arrow_of_the_core_points_down():
    arrows = [
        (name, other)
        for name, others in graph().items()
        for other in others
        if name.split(".")[0] == "lowrank_core"
    ]
    assert arrows
    upward = [
        f"{name} -> {other}"
        for name, other in arrows
        if CORE.index(part_of(other)) > CORE.index(part_of(name))
    ]
    assert not upward


def functions_of(path):
    """Each function of a module but those that are compiled, which take every pointer and number for themselves."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and not any(map(is_compiled, node.decorator_list)):
            yield node


def is_compiled(decorator):
    return ast.unparse(decorator).startswith(("triton.jit", "compiled"))


@pytest.mark.parametrize("package", PACKAGES)
def test_functions_have_few_parameters(package):
    long = []
    for name, path in module_names():
        if name.split(".")[0] != package:
            continue
        for function in functions_of(path):
            given = function.args
            names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
            counted = [n for n in names if n not in ("self", "cls")]
            public_constructor = function.name == "__init__" or f"{name}.{function.name}" in (
                # Optax's constructors are functions.
                *(f"lowrank_jax._dct_adamw.{f}" for f in ("dct_adamw", "scale_by_dct_adam")),
                *(f"lowrank_jax._trion.{f}" for f in ("trion", "scale_by_trion")),
            )
            if len(counted) > MOST_PARAMETERS and not public_constructor:
                long.append(f"{name}.{function.name}: {len(counted)}")
    assert not long


def test_the_reader_of_imports_sees_every_form(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        inspect.cleandoc(
            """
            import lowrank_core.layout
            from lowrank_core.ops import standard
            if TYPE_CHECKING:
                from lowrank_core._typing import Array
            """
        )
    )
    assert {"lowrank_core.layout", "lowrank_core.ops.standard", "lowrank_core._typing"} <= set(
        imports_of(path)
    )
