"""Eight float32 numbers that one instruction works on, for kernels compiled by Numba.

Numba leaves it to LLVM to find loops that go by vectors, and over arrays that may overlap LLVM finds none. With a type
for the vector there is nothing to find: a kernel for one row, written with it, is one for eight.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.datamodel import models
from numba.extending import intrinsic, overload, register_model

#: Numbers in one vector: an AVX register's. LLVM makes two of one where registers are half as wide.
WIDTH = 8

_VECTOR = ir.VectorType(ir.FloatType(), WIDTH)
_UNDEFINED = ir.Constant(_VECTOR, ir.Undefined)
# A product and a sum may be one instruction, which rounds once.
_FLAGS = ("contract", "nsz")


class LanesType(types.Type):
    """Numba's type of a vector."""

    def __init__(self) -> None:
        super().__init__(name="Lanes")


lanes = LanesType()


@register_model(LanesType)
class _LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, own: Any) -> None:
        super().__init__(manager, own, _VECTOR)


def _pointer(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    array = context.make_array(signature.args[0])(context, builder, arguments[0])
    return builder.bitcast(builder.gep(array.data, [arguments[1]]), _VECTOR.as_pointer())


@intrinsic
def load(_context: Any, array: Any, index: Any) -> Any:
    """Return the vector that begins at number ``index`` of the memory of a float32 array."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load(_pointer(context, builder, signature, arguments), align=4)

    return lanes(array, types.intp), code


@intrinsic
def store(_context: Any, array: Any, index: Any, value: Any) -> Any:
    """Write the vector ``value`` there."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        place = _pointer(context, builder, signature, arguments)
        builder.store(arguments[2], place, align=4)
        return context.get_dummy_value()

    return types.void(array, types.intp, lanes), code


def _shuffled(builder: Any, a: Any, b: Any, order: list[int]) -> Any:
    mask = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), order)
    return builder.shuffle_vector(a, b, mask)


@intrinsic
def splat(_context: Any, number: Any) -> Any:
    """Return the vector whose numbers are all ``number``."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        first = ir.Constant(ir.IntType(32), 0)
        one = builder.insert_element(_UNDEFINED, arguments[0], first)
        return _shuffled(builder, one, _UNDEFINED, [0] * WIDTH)

    return lanes(types.float32), code


@intrinsic
def sqrt(_context: Any, x: Any) -> Any:
    """Return the roots of the numbers of ``x``."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        kind = ir.FunctionType(_VECTOR, [_VECTOR])
        name = f"llvm.sqrt.v{WIDTH}f32"
        root = cgutils.get_or_insert_function(builder.module, kind, name)
        return builder.call(root, arguments)

    return lanes(lanes), code


@intrinsic
def if_positive(_context: Any, x: Any, then: Any, otherwise: Any) -> Any:
    """Return the numbers of ``then`` where those of ``x`` are above zero, else those of ``otherwise``."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zero = ir.Constant(_VECTOR, [0.0] * WIDTH)
        above = builder.fcmp_ordered(">", arguments[0], zero)
        return builder.select(above, arguments[1], arguments[2])

    return lanes(lanes, lanes, lanes), code


@intrinsic
def transposed(_context: Any, rows: Any) -> Any:
    """Return eight vectors, of the first numbers of all eight in the tuple ``rows``, of the second, and so on."""

    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        vectors = [builder.extract_value(arguments[0], place) for place in range(WIDTH)]
        # Blocks of 4 x 4 change places, then those of 2 x 2 in each, then the numbers in these.
        for size in (4, 2, 1):
            low = [x + WIDTH - size if x & size else x for x in range(WIDTH)]
            high = [x + WIDTH if x & size else x + size for x in range(WIDTH)]
            for place in range(WIDTH):
                if not place & size:
                    pair = vectors[place], vectors[place + size]
                    vectors[place] = _shuffled(builder, *pair, low)
                    vectors[place + size] = _shuffled(builder, *pair, high)
        return context.make_tuple(builder, signature.return_type, vectors)

    eight = types.UniTuple(lanes, WIDTH)
    return eight(eight), code


def _binary(instruction: str) -> Any:
    @intrinsic
    def work(_context: Any, a: Any, b: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(*arguments, flags=_FLAGS)

        return lanes(lanes, lanes), code

    return work


def _define(operation: Any, work: Any) -> None:
    """Let vectors be combined by ``operation``, with vectors and with numbers on the right."""

    @overload(operation, strict=False)
    def typed(a: Any, b: Any) -> Callable[..., Any] | None:
        if a is lanes and b is lanes:
            return lambda a, b: work(a, b)
        if a is lanes and b is types.float32:
            return lambda a, b: work(a, splat(b))
        return None


for _operation, _instruction in (
    (operator.add, "fadd"),
    (operator.sub, "fsub"),
    (operator.mul, "fmul"),
    (operator.truediv, "fdiv"),
):
    _define(_operation, _binary(_instruction))
