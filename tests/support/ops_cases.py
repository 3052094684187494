"""What every operation that an adapter may override must give: the same as `StandardOps` on the same arrays.

Each case takes the operations to try and a function that makes arrays of the library, and returns arrays,
whose library, shape, dtype and numbers count, and host values, which must be equal.
"""

from __future__ import annotations

from threading import Barrier
from typing import Any

import numpy as np
from helpers import assert_close, dtype_name, library_of, normal, to_numpy

from lowrank_core import StandardOps
from lowrank_core.ops.constants import Constants

INDICES = np.array([0, 2, 5])
STACKED = np.array([[0, 2, 5], [1, 2, 3]])


def astype(ops: Any, make: Any) -> list[Any]:
    x = make(normal(3, 4), "float64")
    return [ops.astype(x, ops.xp.float32), ops.astype(x, ops.xp.float64)]


def device_of(ops: Any, make: Any) -> list[Any]:
    x = make(normal(3), "float32")
    return [x + ops.xp.ones(3, dtype=ops.xp.float32, device=ops.device_of(x))]


def as_scalar(ops: Any, make: Any) -> list[Any]:
    like = make(normal(3), "float32")
    scalar = make(np.array(0.5), "float64")
    return [ops.as_scalar(0.25, like), ops.as_scalar(3, like), ops.as_scalar(scalar, like)]


def as_index(ops: Any, make: Any) -> list[Any]:
    x, index = make(normal(7), "float64"), ops.as_index(make(INDICES, "int32"))
    return [ops.xp.take(x, index, axis=0), to_numpy(index).tolist()]


def _transforms(function: Any, make: Any) -> list[Any]:
    # A vector, matrices of odd and even size, a stack, and more rows than blocks of any adapter, which leave a rest.
    found = [function(make(normal(9), "float64"), axis=-1)]
    small = ((7, 8), (2, 3, 6, 5))
    large = ((1100, 256), (1101, 64))
    for shape, kind in (*((s, "float64") for s in small), *((s, "float32") for s in large)):
        found += [function(make(normal(*shape), kind), axis=axis) for axis in (-1, -2)]
    return found


def dct(ops: Any, make: Any) -> list[Any]:
    return _transforms(ops.dct, make)


def idct(ops: Any, make: Any) -> list[Any]:
    return _transforms(ops.idct, make)


def copy(ops: Any, make: Any) -> list[Any]:
    return [ops.copy(make(normal(3, 4), "float32"))]


def is_readable(ops: Any, make: Any) -> list[Any]:
    # Where an adapter says no, reading would wait for a device.
    return [isinstance(ops.is_readable(make(INDICES, "int32")), bool)]


def with_constants(ops: Any, make: Any) -> list[Any]:
    results = []
    x = make(normal(1100, 1024), "float32")
    for reuse in (False, True):
        own = ops.with_constants(Constants(), reuse_memory=reuse)
        assert own.constants is not ops.constants
        # The second may be in the memory of the first.
        for _ in range(2):
            seen = own.dct_scored(x, axis=-1, norms=("l2",))
            results += [seen.sums, seen.take(make(INDICES, "int32")), seen.values]
    return results


def dct_scored(ops: Any, make: Any) -> list[Any]:
    results = []
    # Odd and even sizes, a stack with a choice for each, and more rows than one block of any adapter.
    for shape, kind in (((7, 8), "float64"), ((2, 6, 6), "float64"), ((1100, 256), "float32")):
        x = make(normal(*shape), kind)
        for axis in (-1, -2):
            seen = ops.dct_scored(x, axis=axis, norms=("l2", "l1"))
            indices = make(INDICES if len(shape) == 2 else STACKED, "int32")
            results += [seen.sums, seen.take(indices), seen.values]
    return results


def may_have_row_kernels(ops: Any, make: Any) -> list[Any]:
    return [ops.may_have_row_kernels(make(normal(5, 16), "float32"))]


def row_kernels(ops: Any, make: Any) -> list[Any]:
    x = make(normal(5, 16), "float32")
    return [ops.row_kernels([x], [x], [()]) is None]


def idct_columns(ops: Any, make: Any) -> list[Any]:
    few, chosen = make(INDICES, "int32"), make(STACKED, "int32")
    loud = np.array([0, 128, 255])
    return [
        ops.idct_columns(make(normal(7, 3), "float64"), few, 8, axis=-1),
        ops.idct_columns(make(normal(3, 7), "float64"), few, 9, axis=-2),
        ops.idct_columns(make(normal(2, 7, 3), "float64"), few, 6, axis=-1),
        ops.idct_columns(make(normal(2, 7, 3), "float64"), chosen, 6, axis=-1),
        ops.idct_columns(make(normal(2, 3, 7), "float64"), chosen, 7, axis=-2),
        ops.idct_columns(make(normal(1101, 3), "float32"), make(loud, "int32"), 256, axis=-1),
        ops.idct_columns(make(normal(3, 1100), "float32"), make(loud, "int32"), 256, axis=-2),
    ]


def index_in(ops: Any, make: Any) -> list[Any]:
    results = []
    # In no order, with none and with all in common, and for each of a stack; where there is no place any will do.
    for previous, current in (
        (INDICES, np.array([5, 1, 2])),
        (np.array([7, 3]), np.array([9, 1])),
        (INDICES, INDICES),
        (STACKED, STACKED[::-1].copy()),
    ):
        place, found = ops.index_in(make(previous, "int32"), make(current, "int32"))
        results += [found, ops.xp.where(found, ops.as_index(place), -1)]
    return results


def put(ops: Any, make: Any) -> list[Any]:
    return [
        ops.put(make(normal(4, 3), "float32"), make(INDICES, "int32"), 6, axis=-1),
        ops.put(make(normal(3, 4), "float32"), make(INDICES, "int32"), 6, axis=-2),
        ops.put(make(normal(2, 4, 3), "float64"), make(INDICES, "int32"), 6, axis=-1),
        ops.put(make(normal(2, 4, 3), "float64"), make(STACKED, "int32"), 6, axis=-1),
        ops.put(make(normal(2, 3, 4), "float64"), make(STACKED, "int32"), 6, axis=-2),
    ]


def put_over(ops: Any, make: Any) -> list[Any]:
    # Copies: what is given may be used up.
    return [
        ops.put_over(
            make(x, "float32") + 0, make(values, "float32"), make(indices, "int32"), axis=axis
        )
        for x, values, indices, axis in (
            (normal(4, 6), normal(4, 3, seed=1), INDICES, -1),
            (normal(2, 6, 4), normal(2, 3, 4, seed=1), INDICES, -2),
            (normal(2, 4, 6), normal(2, 4, 3, seed=1), STACKED, -1),
            (normal(2, 6, 4), normal(2, 3, 4, seed=1), STACKED, -2),
        )
    ]


def take(ops: Any, make: Any) -> list[Any]:
    return [
        ops.take(make(normal(4, 6), "float32"), make(INDICES, "int32"), axis=-1),
        ops.take(make(normal(6, 4), "float32"), make(INDICES, "int32"), axis=-2),
        ops.take(make(normal(1101, 64), "float32"), make(INDICES, "int32"), axis=-1),
        ops.take(make(normal(2, 4, 6), "float32"), make(STACKED, "int32"), axis=-1),
        ops.take(make(normal(2, 6, 4), "float32"), make(STACKED, "int32"), axis=-2),
        ops.take(make(normal(1, 2, 6, 4), "float32"), make(STACKED[None], "int32"), axis=-2),
        ops.take(make(normal(1, 2, 6000, 6), "float32"), make(STACKED[None], "int32"), axis=-1),
        ops.take(make(normal(0, 6, 4), "float32"), make(STACKED[:0], "int32"), axis=-2),
    ]


def take_or_zero(ops: Any, make: Any) -> list[Any]:
    kept = np.array([[True, False, True], [False, False, True]])
    flat, stacked = (make(values, "bool") for values in (kept[0], kept))
    loud = normal(2, 6, 4)
    loud[:, 2] = np.inf
    return [
        ops.take_or_zero(make(normal(4, 6), "float32"), make(INDICES, "int32"), flat, axis=-1),
        ops.take_or_zero(make(loud[0], "float32"), make(INDICES, "int32"), flat, axis=-2),
        ops.take_or_zero(make(loud, "float32"), make(STACKED, "int32"), stacked, axis=-2),
        *(
            ops.take_or_zero(
                make(normal(2, rows, 6), "float32"), make(STACKED, "int32"), stacked, axis=-1
            )
            for rows in (5, 6000)
        ),
    ]


def add_signs(ops: Any, make: Any) -> list[Any]:
    gradient, kept = normal(5, 6), normal(5, 6, seed=1)
    kept[2] = gradient[2]
    scales = [0.2, ops.xp.asarray(0.2, dtype=ops.xp.float32)]
    # Copies: what is given may be used up.
    return [
        ops.add_signs(
            make(normal(5, 6, seed=2), "float32") + 0,
            make(gradient, "float32"),
            make(kept, "float32") + 0,
            scale,
        )
        for scale in scales
    ]


def bounded(ops: Any, make: Any) -> list[Any]:
    x, roots = normal(5, 6), np.abs(normal(5, 6, seed=1))
    # Nothing in a column, a square that float32 has not, and far more than the root.
    roots[:, 2], x[1], roots[1], x[2] = np.inf, 1e-25, 1e-25, 1e15
    scales = [0.5, ops.xp.asarray(0.5, dtype=ops.xp.float32)]
    # A copy: it may be used up.
    return [ops.bounded(make(x, "float32"), make(roots, "float32") + 0, scale) for scale in scales]


def for_each(ops: Any, make: Any) -> list[Any]:
    done: list[list[int]] = [[], [], []]
    for count, found in zip((0, 1, 50), done, strict=True):
        ops.for_each(found.append, range(count))
    return [sorted(found) for found in done]


def num_threads(ops: Any, make: Any) -> list[Any]:
    count = ops.num_threads()
    together = Barrier(count)
    # So many wait for one another, and none waits in vain.
    ops.for_each(lambda _: together.wait(60), range(count))
    return [count >= 1]


def take_along(ops: Any, make: Any) -> list[Any]:
    return [
        ops.take_along(make(normal(6), "float32"), make(INDICES, "int32")),
        ops.take_along(make(normal(2, 6), "float32"), make(STACKED, "int32")),
    ]


def adam_update(ops: Any, make: Any) -> list[Any]:
    gradient, first = make(normal(3, 4), "float32"), make(normal(3, 4, seed=1), "float32")
    second = make(normal(3, 4, seed=2) ** 2, "float32")
    ages = make(np.array([0.5, 1.0, 0.1, 0.9]), "float32")
    betas = [(0.9, 0.99), tuple(ops.xp.asarray(b, dtype=ops.xp.float32) for b in (0.9, 0.99))]
    results: list[Any] = []
    for pair in betas:
        for weights in ((0.1, 0.001), (1.0, ages)):
            for overwrite in (False, True):
                # Copies, where what is given may be used up.
                moments = (first + 0, second + 0) if overwrite else (first, second)
                results += ops.adam_update(
                    gradient, moments, pair, weights, 1e-8, overwrite=overwrite
                )
    return results


def column_sums(ops: Any, make: Any) -> list[Any]:
    # A stack, and more numbers than one block of any adapter, in a last block that is not full.
    return [
        ops.column_sums(make(normal(*shape), kind), axis=axis, norm=norm)
        for shape, kind in (((5, 8), "float64"), ((2, 3, 6, 5), "float64"), ((700, 900), "float32"))
        for axis in (-1, -2)
        for norm in ("l2", "l1")
    ]


def cond(ops: Any, make: Any) -> list[Any]:
    one, two = make(np.array([1.0]), "float32"), make(np.array([2.0]), "float32")
    predicates = [True, False, make(np.array(2), "int32") == 2, make(np.array(2), "int32") == 3]
    return [ops.cond(predicate, lambda: one, lambda: two) for predicate in predicates]


def step_counter(ops: Any, make: Any) -> list[Any]:
    count = ops.step_counter()
    return [int(count), int(count + 1), bool((count + 1) % 2 == 1)]


def constant(ops: Any, make: Any) -> list[Any]:
    key = ("a constant of this test", type(ops).__name__)
    return [ops.constant(key, lambda: make(normal(3, 3), "float32")) for _ in range(2)]


CASES = {
    case.__name__: case
    for case in (
        *(astype, copy, device_of, is_readable, as_scalar, as_index, constant, with_constants),
        *(may_have_row_kernels, row_kernels),
        *(dct, idct, dct_scored, idct_columns, column_sums, adam_update, add_signs, bounded),
        *(take, take_or_zero, take_along, put, put_over, index_in),
        *(cond, step_counter, num_threads, for_each),
    )
}


def overridden(adapter: type[StandardOps[Any]]) -> set[str]:
    """Names of the operations that an adapter has of its own."""
    return {
        name
        for name in dir(StandardOps)
        if not name.startswith("_")
        and callable(getattr(StandardOps, name))
        and getattr(adapter, name) is not getattr(StandardOps, name)
    }


def compare(name: str, adapter: Any, make: Any) -> None:
    """Assert that an adapter's operation gives what `StandardOps` gives, and writes to nothing it is given."""
    made: list[Any] = []
    first = []

    def remember(values: Any, kind: str) -> Any:
        made.append(make(values, kind))
        first.append(to_numpy(made[-1]))
        return made[-1]

    expected = CASES[name](StandardOps(adapter.xp), make)
    found = CASES[name](adapter, remember)
    for array, before in zip(made, first, strict=True):
        np.testing.assert_array_equal(to_numpy(array), before)
    assert len(found) == len(expected) > 0
    for actual, wanted in zip(found, expected, strict=True):
        if not hasattr(wanted, "dtype"):
            assert type(actual) is type(wanted)
            assert actual == wanted
            continue
        kind = dtype_name(wanted)
        if kind in ("float32", "float64"):
            assert_close(actual, to_numpy(wanted), xp=adapter.xp, dtype=kind)
        else:
            assert library_of(actual) == library_of(wanted)
            assert dtype_name(actual) == kind
            np.testing.assert_array_equal(to_numpy(actual), to_numpy(wanted))
