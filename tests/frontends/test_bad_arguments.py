"""Every public function refuses what it cannot honour, and an argument without a row in the table of that fails."""

import inspect
import itertools

import lowrank_jax
import lowrank_torch
import pytest
from bad_arguments import EXEMPT, KINDS, ROWS, TREES, TYPES, said_of

import lowrank_core

pytestmark = [pytest.mark.usefixtures("optax", "torch"), pytest.mark.compiles_nothing]

CASES = [
    pytest.param(row, argument, id=f"{package.__name__}.{name}.{argument}")
    for (package, name), row in ROWS.items()
    for argument in row.kinds
]


@pytest.mark.parametrize(("row", "argument"), CASES)
def test_what_cannot_be_honoured_is_refused(row, argument):
    said = {repr(value): said_of(row, argument, value) for value in KINDS[row.kinds[argument]]}
    assert {value: words for value, words in said.items() if words} == {}


def options_of(package, name):
    """The arguments of a function, and the options of an optimizer."""
    function = getattr(package, name)
    yield from (
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind is not parameter.VAR_KEYWORD
    )
    if package is lowrank_torch and isinstance(function, type):
        import torch

        yield from function([torch.nn.Parameter(torch.ones(6, 4))], rank=2).defaults


@pytest.mark.parametrize("package", [lowrank_core, lowrank_torch, lowrank_jax])
def test_every_argument_has_a_row(package):
    lacking = []
    for name in package.__all__:
        function = getattr(package, name)
        if not callable(function) or function in TYPES:
            continue
        row = ROWS.get((package, name))
        known = set() if row is None else set(row.kinds)
        lacking += [
            f"{name}({argument}=)"
            for argument in itertools.chain(options_of(package, name))
            if argument not in known | EXEMPT | TREES and argument != "differentiable"
        ]
    assert not lacking


def test_a_name_is_not_used_up_by_what_is_refused():
    with pytest.raises(TypeError):
        lowrank_core.register_basis("refused", None)
    with pytest.raises(ValueError, match="basis must be one of"):
        lowrank_core.get_basis("refused")
