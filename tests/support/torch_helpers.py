"""What the tests of the PyTorch frontend share: seeded parameters, runs, comparisons bit for bit, every option."""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import lowrank_torch
import pytest
import torch
from helpers import from_numpy, normal
from torch import Tensor, nn

import lowrank_core as lc
from lowrank_core.bases.registry import STORED_BASES

#: Every optimizer that the frontend offers, so that a new one is held to the same contract.
OPTIMIZERS = [
    value
    for value in (getattr(lowrank_torch, name) for name in lowrank_torch.__all__)
    if isinstance(value, type)
    and issubclass(value, lowrank_torch.LowRankOptimizer)
    and value is not lowrank_torch.LowRankOptimizer
]


def choices(option: str) -> list[Any]:
    """The values an option of DCT-AdamW may take, as the error for a bad one lists them."""
    with pytest.raises(ValueError, match="must be one of") as error:
        lc.DCTAdamWConfig(rank=1, **{option: "no such choice"})  # type: ignore[arg-type]
    listed = str(error.value).partition("must be one of ")[2].rpartition(", got")[0]
    listed = re.sub(r" \([^)]*\)", "", listed)  # remarks on a choice
    return list(ast.literal_eval(f"[{listed}]"))


def _variants() -> list[dict[str, Any]]:
    policies = [
        {"residual": residual, "bias_correction": correction}
        for residual in choices("residual")
        if residual != "bounded"  # which goes with a factored second moment
        for correction in choices("bias_correction")
    ]
    single: list[dict[str, Any]] = [
        {option: choice}
        for option in ("basis", "score", "selection", "state_dtype")
        for choice in choices(option)
    ]
    quantised = [
        {"residual": "error_feedback", "feedback_bits": bits} for bits in choices("feedback_bits")
    ]
    every = [
        *policies,
        *single,
        *({"basis": basis} for basis in STORED_BASES),
        *quantised,
        {"score_decay": 0.9, "hysteresis": 0.2},
        {"second_moment": "factored", "residual": "sign"},
        *(lc.PRESETS[preset] for preset in ("factored", "tiny")),
    ]
    return [{"preset": None, **options} for options in every]


#: Options of DCT-AdamW that together show every policy, moment, correction, basis and state dtype there is.
VARIANTS = _variants()


def variant_id(variant: dict[str, Any]) -> str:
    return "-".join(str(value) for value in variant.values() if value is not None)


def tensor(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return from_numpy(normal(*shape, seed=seed), torch).to(dtype)


def parameters(
    *shapes: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32
) -> list[nn.Parameter]:
    """Seeded parameters, different from each other."""
    return [
        nn.Parameter(tensor(*shape, seed=100 * seed + place, dtype=dtype))
        for place, shape in enumerate(shapes)
    ]


def copies(given: Iterable[Tensor]) -> list[nn.Parameter]:
    return [nn.Parameter(parameter.detach().clone()) for parameter in given]


def set_gradients(given: Iterable[Tensor], step: int) -> None:
    """Give every parameter the gradient of ``step``, in its dtype and memory format."""
    for place, parameter in enumerate(given):
        gradient = torch.empty_like(parameter)
        gradient.copy_(tensor(*parameter.shape, seed=1000 + 50 * step + place))
        parameter.grad = gradient


def train(
    optimizer: torch.optim.Optimizer, given: Iterable[Tensor], steps: int, start: int = 0
) -> None:
    """Do steps ``start .. start + steps - 1`` on seeded gradients."""
    given = list(given)
    for step in range(start, start + steps):
        set_gradients(given, step)
        optimizer.step()


def all_parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def assert_same_bits(actual: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    """Assert the same number of tensors, each of the same dtype, shape and bits."""
    for found, wanted in zip(actual, expected, strict=True):
        assert found.dtype == wanted.dtype
        assert found.shape == wanted.shape
        assert torch.equal(_bits(found), _bits(wanted))


def _bits(value: Tensor) -> Tensor:
    """The numbers as bytes: a NaN equals itself, and zero differs from minus zero."""
    return value.detach().contiguous().reshape(-1).view(torch.uint8)


def assert_same_state(actual: torch.optim.Optimizer, expected: torch.optim.Optimizer) -> None:
    """Assert that two optimizers hold the same state, numbers and tensors to the bit."""
    for found, wanted in zip(all_parameters(actual), all_parameters(expected), strict=True):
        _assert_same(actual.state.get(found, {}), expected.state.get(wanted, {}))


def _assert_same(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted)
    if isinstance(wanted, Tensor):
        assert_same_bits([found], [wanted])
    elif isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key in wanted:
            _assert_same(found[key], wanted[key])
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            _assert_same(one, other)
    else:
        assert found == wanted or (found != found and wanted != wanted)


@contextmanager
def unchanged(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Assert that the block leaves parameters, gradients, state and options bit for bit as they were."""
    given = all_parameters(optimizer)
    values = [parameter.detach().clone() for parameter in given]
    gradients = [None if p.grad is None else p.grad.detach().clone() for p in given]
    saved = copy.deepcopy(optimizer.state_dict())
    yield
    assert list(map(id, all_parameters(optimizer))) == list(map(id, given))
    assert_same_bits(given, values)
    for parameter, gradient in zip(given, gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        if gradient is not None and gradient.layout == torch.strided:
            assert_same_bits([parameter.grad], [gradient])
    _assert_same(optimizer.state_dict(), saved)
