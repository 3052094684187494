"""Cosine transforms of one row at a time, in a Triton program's registers (see `lowrank_backends._triton_tables`).

Tables stand left of the first product and right of the second, so the sums of one are the operand of the other without
a way through memory. The inverse is the transpose of the transform, step by step.
"""

import triton
import triton.language as tl


@triton.jit
def within(mask, index, row, rows):
    """Return ``mask`` where ``row`` is below ``rows``; Triton's interpreter takes a scalar truth value for a number."""
    return mask & (index * 0 + row < rows)


@triton.jit
def tile_places(zero, N2: tl.constexpr, H: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr):
    """Return the numbers ``q`` of a tile's samples, which of them exist, and which are in the tile's row 0.

    Made anew for every row: what does not depend on ``zero`` is held in registers, as many as a row of numbers takes.
    """
    rows = tl.arange(0, P1)[:, None] + zero
    columns = tl.arange(0, P2)[None, :]
    return N2 * rows + columns, (rows < H) & (columns < N2), (rows == 0) & (columns >= 0)


@triton.jit
def load_row(x, start, q, n: tl.constexpr, mask):
    """Return the two tiles of samples of a row in float32, the even ones and the odd ones from the end."""
    even = tl.load(x + start + 2 * q, mask=mask, other=0.0).to(tl.float32)
    odd = tl.load(x + start + (n - 1) - 2 * q, mask=mask, other=0.0).to(tl.float32)
    return even, odd


@triton.jit
def load_sum(x, start, more, more_start, q, n: tl.constexpr, mask, ADDED: tl.constexpr):
    """Return what `load_row` does, of the row of ``x`` and, if it is ``ADDED``, of that of ``more``, added up."""
    even, odd = load_row(x, start, q, n, mask)
    if ADDED:
        more_even, more_odd = load_row(more, more_start, q, n, mask)
        even += more_even
        odd += more_odd
    return even, odd


@triton.jit
def _table(base, place, zero, P: tl.constexpr, Q: tl.constexpr):
    """Return one ``(P, Q)`` table of those at ``base``.

    ``zero`` is one only the program knows to be so: the compiler then reads a table where it is used, and does not
    hold all of them in registers from row to row.
    """
    i = tl.arange(0, P)[:, None]
    j = tl.arange(0, Q)[None, :]
    # A multiple of 16, or the compiler would read number by number.
    return tl.load(base + zero * 16 + place * P * Q + i * Q + j)


@triton.jit
def _scaled(x, y):
    """Return two tiles times a power of two that brings their largest number near 1, and what takes it back.

    float16, in which products take their operands, has few exponents; gradients have many.
    """
    top = tl.maximum(tl.max(tl.abs(x)), tl.max(tl.abs(y)))
    exponent = tl.minimum(tl.maximum(top.to(tl.int32, bitcast=True) >> 23, 1), 253)
    down = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    back = (exponent << 23).to(tl.float32, bitcast=True)
    return x * down, y * down, back


@triton.jit
def _operand(x, part, SPLIT: tl.constexpr):
    """Return the tile ``x`` in float16, or in product 1 of those that are ``SPLIT`` what that leaves of it."""
    high = x.to(tl.float16)
    if SPLIT:
        high = tl.where(part == 1, ((x - high.to(tl.float32)) * 2048.0).to(tl.float16), high)
    return high


@triton.jit
def _left(base, place, x, total, zero, TURN: tl.constexpr, P: tl.constexpr, SPLIT: tl.constexpr):
    """Return ``total`` plus table ``place`` of four, transposed if ``TURN``, times the tile ``x``, in float32.

    ``SPLIT`` takes both operands as a float16 number and what it leaves, times 2^11: three products, as exact as one in
    float32. A loop whose end the compiler does not know has registers for one product at a time.
    """
    PRODUCTS: tl.constexpr = 3 if SPLIT else 1
    for part in range(0, PRODUCTS + zero):
        table = _table(base, place + 4 * (part // 2), zero, P, P)
        if TURN:
            table = tl.trans(table)
        product = tl.dot(table, _operand(x, part, SPLIT))
        total += product * tl.where(part == 0, 1.0, 0.00048828125)
    return total


@triton.jit
def _right(x, base, place, total, zero, TURN: tl.constexpr, P: tl.constexpr, SPLIT: tl.constexpr):
    """Return ``total`` plus the tile ``x`` times table ``place`` of two, transposed if ``TURN``, likewise."""
    PRODUCTS: tl.constexpr = 3 if SPLIT else 1
    for part in range(0, PRODUCTS + zero):
        table = _table(base, place + 2 * (part // 2), zero, P, P)
        if TURN:
            table = tl.trans(table)
        product = tl.dot(_operand(x, part, SPLIT), table)
        total += product * tl.where(part == 0, 1.0, 0.00048828125)
    return total


@triton.jit
def forward(
    even, odd, outer, inner, phases, first, zero,
    P1: tl.constexpr, P2: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Return the coefficients of a row in slots, two tiles in float32; ``first`` marks the tiles' row 0."""
    e, o, back = _scaled(even, odd)
    none = tl.zeros((P1, P2), tl.float32)
    real = _left(outer, 0, e, none, zero, False, P1, SPLIT)
    real = _left(outer, 2, o, real, zero, False, P1, SPLIT)
    imag = _left(outer, 1, e, none, zero, False, P1, SPLIT)
    imag = _left(outer, 3, o, imag, zero, False, P1, SPLIT)
    tr = _table(phases, 0, zero, P1, P2)
    ti = _table(phases, 1, zero, P1, P2)
    middle = tl.where(first, 0.0, real)
    turned = middle * tr - imag * ti
    minus = -(middle * ti + imag * tr)
    a = _right(tl.where(first, real, turned), inner, 0, none, zero, False, P2, SPLIT)
    a = _right(tl.where(first, 0.0, -minus), inner, 1, a, zero, False, P2, SPLIT)
    b = _right(turned, inner, 1, none, zero, False, P2, SPLIT)
    b = _right(minus, inner, 0, b, zero, False, P2, SPLIT)
    return a * back, b * back


@triton.jit
def inverse(
    a, b, outer, inner, phases, first, zero,
    P1: tl.constexpr, P2: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Return the samples, even ones and odd ones from the end, of which ``a, b`` are the coefficients in slots."""
    a, b, back = _scaled(a, b)
    none = tl.zeros((P1, P2), tl.float32)
    whole = _right(a, inner, 0, none, zero, True, P2, SPLIT)
    part = _right(b, inner, 1, none, zero, True, P2, SPLIT)
    other = _right(tl.where(first, 0.0, a), inner, 1, none, zero, True, P2, SPLIT)
    other = _right(-b, inner, 0, other, zero, True, P2, SPLIT)
    tr = _table(phases, 0, zero, P1, P2)
    ti = _table(phases, 1, zero, P1, P2)
    turned = tl.where(first, part, whole + part)
    real = tl.where(first, whole, turned * tr + other * ti)
    imag = other * tr - turned * ti
    even = _left(outer, 0, real, none, zero, True, P1, SPLIT)
    even = _left(outer, 1, imag, even, zero, True, P1, SPLIT)
    odd = _left(outer, 2, real, none, zero, True, P1, SPLIT)
    odd = _left(outer, 3, imag, odd, zero, True, P1, SPLIT)
    return even * back, odd * back
