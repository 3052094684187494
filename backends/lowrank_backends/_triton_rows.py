"""The Triton kernel of all that follows the choice of columns in a step of DCT-AdamW, row by row, in place."""

import triton
import triton.language as tl

from lowrank_backends._triton_dct import forward, inverse, load_row, tile_places, within
from lowrank_backends._triton_rounding import move_row, narrow, number


@triton.jit
def _outside(s, column, root, share, eps, REST: tl.constexpr):
    """Return the update's coefficients: ``s`` on the chosen columns, where it is the step, and the rest's elsewhere.

    ``column`` says which is which. ``"discard"``, ``"sign"``: 1 if chosen, else 0. ``"normalized"``: what to multiply
    by, 1 if chosen. ``"bounded"``: -1 if chosen, else the column's share ``c`` of the root of the second moment, and 0
    where there is nothing but rounding.
    """
    if REST == "normalized":
        u = s * column
    elif REST == "bounded":
        divisor = root * column + eps
        # Without an ``eps``, where a row is all zeros so is its root.
        ratio = s / tl.where(divisor > 0, divisor, 1.0)
        bounded = ratio * (share * tl.rsqrt(ratio * ratio + 1.0))
        u = tl.where(column < 0, s, tl.where(column > 0, bounded, 0.0))
    else:
        u = tl.where(column > 0, s, 0.0)
    return u


@triton.jit(do_not_specialize=["each", "first_key", "second_key", "key"])
def step_rows(
    g, w, first_moment, second_moment, row_energy, scratch, slot, old, eps_of, share_of, column, scale,
    outer, inner, phases, rows, each, g_row, g_matrix, w_row, w_matrix, count, zero,
    rate, decay, weight1, weight2, weight3, b1, b2, b3, eps, first_key, second_key, key,
    n: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr,
    PR: tl.constexpr, REST: tl.constexpr, FACTORED: tl.constexpr, MOVED: tl.constexpr,
    RANDOM: tl.constexpr, RATE_AT: tl.constexpr, DECAY_AT: tl.constexpr, WEIGHTS_AT: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """Transform rows of ``g``, move the moments to their new columns, do Adam's step, and write rows of ``w``.

    A row is one program's. Its coefficients lie in the program's part of ``scratch``, which stays in the caches: held
    in registers from one transform to the other, they would not leave room for either. Moments ``(rows, count)`` are
    read where their columns stood, ``old`` or -1, and written where they stand. By position of a column are ``slot``,
    ``old``, ``eps_of`` (infinite for an empty place) and ``share_of``; by slot is ``column`` (see `_outside`). Words
    moved a weight at rank ``r`` of ``n``: ``3 + 4 r / n``.
    """
    program = tl.program_id(0)
    matrix = tl.program_id(1)
    H: tl.constexpr = N1 // 2
    TILE: tl.constexpr = P1 * P2
    PARTS: tl.constexpr = 4 if REST == "sign" else 2
    lr = number(rate, RATE_AT)
    keep = 1.0 - lr * number(decay, DECAY_AT)
    up1 = 1.0 / number(weight1, WEIGHTS_AT)
    up2 = 1.0 / number(weight2, WEIGHTS_AT)
    up3 = 1.0 / number(weight3, WEIGHTS_AT)
    share = tl.load(scale + matrix)
    gradient = g + matrix.to(tl.int64) * g_matrix
    target = w + matrix.to(tl.int64) * w_matrix
    own = scratch + (matrix * tl.num_programs(0) + program).to(tl.int64) * (PARTS * TILE)
    by_slot = column + matrix * (2 * TILE)
    for turn in range(0, each):
        row = program + turn * tl.num_programs(0)
        live = row < rows
        z = turn * zero
        there = matrix.to(tl.int64) * rows + row
        q, inside, first = tile_places(z, N2, H, P1, P2)
        mask = within(inside, q, row, rows)
        tile = (tl.arange(0, P1)[:, None] + z) * P2 + tl.arange(0, P2)[None, :]
        # Coefficient 0 is the one whose scale is not that of the others: sqrt(1 / n).
        half = tl.where(q == 0, 0.7071067811865476, 1.0)

        even, odd = load_row(gradient, row.to(tl.int64) * g_row, q, n, mask)
        a, b = forward(even, odd, outer, inner, phases, first, z, P1, P2, SPLIT)
        a = a * half
        root = 0.0
        if FACTORED:
            energy = b3 * tl.load(row_energy + there, mask=live, other=0.0)
            energy += (1.0 - b3) * ((tl.sum(a * a) + tl.sum(b * b)) / n)
            tl.store(row_energy + there, energy, mask=live)
            root = tl.sqrt(energy * up3)
        tl.store(own + tile, a)
        tl.store(own + TILE + tile, b)
        tl.debug_barrier()

        p = tl.arange(0, PR) + z
        held = p < count
        kept = within(held, p, row, rows)
        at = matrix * count + p
        own_slot = own + tl.load(slot + at, mask=held, other=0)
        s = tl.load(own_slot, mask=held, other=0.0)
        if MOVED:
            before = tl.load(old + at, mask=held, other=-1)
        else:
            before = p
        stayed = within(held & (before >= 0), p, row, rows)
        small = tl.load(eps_of + at, mask=held, other=1.0)
        first_row = first_moment + there * count
        # What draws are numbered by may wrap around.
        drawn = (there * count).to(tl.int32) + p
        m = tl.load(first_row + before, mask=stayed, other=0.0).to(tl.float32)
        m = b1 * m + (1.0 - b1) * s
        first_kind: tl.constexpr = first_moment.dtype.element_ty
        if FACTORED:
            u = m * up1 / (root * tl.load(share_of + at, mask=held, other=1.0) + small)
            # Of a row, all threads have read the moments before one writes.
            tl.debug_barrier()
        else:
            second_row = second_moment + there * count
            v = tl.load(second_row + before, mask=stayed, other=0.0).to(tl.float32)
            v = b2 * v + (1.0 - b2) * s * s
            u = m * up1 / (tl.sqrt(v * up2) + small)
            tl.debug_barrier()
            second_kind: tl.constexpr = second_moment.dtype.element_ty
            tl.store(second_row + p, narrow(v, second_kind, second_key, drawn, True), mask=kept)
        tl.store(first_row + p, narrow(m, first_kind, first_key, drawn, True), mask=kept)
        tl.store(own_slot, u, mask=held)
        tl.debug_barrier()

        if REST == "sign":
            # First, and put away: there are registers for one inverse.
            a = tl.where(tl.load(by_slot + tile) > 0, 0.0, tl.load(own + tile))
            b = tl.where(tl.load(by_slot + TILE + tile) > 0, 0.0, tl.load(own + TILE + tile))
            even, odd = inverse(a * half, b, outer, inner, phases, first, z, P1, P2, SPLIT)
            even = tl.where(even > 0, share, tl.where(even < 0, -share, 0.0))
            odd = tl.where(odd > 0, share, tl.where(odd < 0, -share, 0.0))
            tl.store(own + 2 * TILE + tile, even)
            tl.store(own + 3 * TILE + tile, odd)
            tl.debug_barrier()
        a = tl.load(own + tile)
        b = tl.load(own + TILE + tile)
        by_a = tl.load(by_slot + tile)
        by_b = tl.load(by_slot + TILE + tile)
        a = _outside(a, by_a, root, share, eps, REST) * half
        b = _outside(b, by_b, root, share, eps, REST)
        even, odd = inverse(a, b, outer, inner, phases, first, z, P1, P2, SPLIT)
        if REST == "sign":
            even += tl.load(own + 2 * TILE + tile)
            odd += tl.load(own + 3 * TILE + tile)
        # What draws are numbered by may wrap around.
        drawn_w = (there * n).to(tl.int32)
        to = row.to(tl.int64) * w_row
        move_row(target, to, q, n, even, odd, mask, keep, lr, key, drawn_w, RANDOM)
        # The next row's coefficients go where this one's are read.
        tl.debug_barrier()
