"""Roles over many architectures: every parameter of two and more dimensions is what a table written by hand says."""

import importlib
import math
import warnings
from fnmatch import fnmatchcase

import pytest
import torch
from lowrank_torch import matrix_groups, parameter_roles
from model_libraries import import_timm, import_torchvision
from sweep_tables import CASES
from torch import nn

pytestmark = pytest.mark.usefixtures("torch")

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
#: The smallest side of a hidden matrix, as documented.
MIN_SIZE = 32


def make(case):
    """Return the model of a case, on the meta device."""
    with warnings.catch_warnings(), torch.device("meta"):
        warnings.simplefilter("ignore")
        if case.library == "timm":
            return import_timm().create_model(case.name, **case.options)
        vision = import_torchvision()
        if case.library == "torchvision":
            return getattr(vision.models, case.name)(weights=None, **case.options)
        library = importlib.import_module("transformers")
        config = getattr(library, case.config)(**case.options)
        return getattr(library, case.name)(config)


def matches(name, patterns):
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def convolutions(model):
    """Return the convolution of each weight, that under a parametrization too."""
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, CONVOLUTIONS):
            for part in ("weight", "parametrizations.weight.original1"):
                found[f"{name}.{part}"] = module
    return found


def expected(case, name, shape, convolution):
    """Return the role by the hand-written table, and how many matrices a hidden weight is, by their smaller side."""
    if matches(name, case.tables):
        return "table", 0
    if matches(name, case.vectors):
        return "vector", 0
    if convolution is not None:
        if convolution.groups == convolution.in_channels > 1:
            return "adamw", 0
        side, count = min(shape[0] // convolution.groups, math.prod(shape[1:])), convolution.groups
    elif matches(name, case.stacks):
        side, count = min(shape[-2:]), math.prod(shape[:-2])
    else:
        assert len(shape) == 2 or matches(name, case.flat), f"{name} {shape} is in no list"
        parts = next((n for pattern, n in case.fused if fnmatchcase(name, pattern)), 1)
        side, count = min(shape[0] // parts, math.prod(shape[1:])), parts
    return ("matrix", count) if side >= MIN_SIZE else ("adamw", 0)


def count(row):
    """Return how many matrices a parameter is, by the library."""
    return (
        math.prod(row.shape[: row.batch_dims]) * len(row.split_sizes or "1") * (row.num_heads or 1)
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_roles_are_those_of_the_table(case):
    model = make(case)
    rows = {row.name: row for row in parameter_roles(model) if len(row.shape) >= 2}
    layers = convolutions(model)
    for pattern in (*case.tables, *case.vectors, *case.stacks, *case.flat, *case.transposed):
        assert any(fnmatchcase(name, pattern) for name in rows), f"{pattern} matches nothing"
    low_rank = {
        name
        for group in matrix_groups(model)
        if group.get("algorithm") != "adamw"
        for name, _ in group["params"]
    }
    wrong = []
    for name, row in rows.items():
        role, matrices = expected(case, name, row.shape, layers.get(name))
        found = "adamw" if role == "adamw" and name not in low_rank else row.role
        if (found, name in low_rank) != (role, role == "matrix"):
            wrong.append(f"{name} {row.shape} must be {role}, is {found}: {row.reason}")
        elif role == "matrix" and count(row) != matrices:
            wrong.append(f"{name} {row.shape} must be {matrices} matrices, is {count(row)}")
        elif role == "matrix" and row.transposed != matches(name, case.transposed):
            wrong.append(f"{name} {row.shape} has the wrong orientation, got {row.transposed}")
    assert not wrong, "\n".join(wrong)


def test_sweep_has_forty_architectures():
    assert len({(case.library, case.name) for case in CASES}) == len(CASES)
    assert len(CASES) >= 40
