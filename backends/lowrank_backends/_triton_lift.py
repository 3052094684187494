"""The Triton kernels of Trion beside its sums: coefficients of chosen columns, and the step by them, row by row."""

import triton
import triton.language as tl

from lowrank_backends._triton_dct import forward, inverse, load_row, load_sum, tile_places, within
from lowrank_backends._triton_rounding import move_row, number


@triton.jit(do_not_specialize=["each"])
def chosen_columns(
    x, more, out, scratch, slot, outer, inner, phases, rows, each, row_stride, matrix_stride,
    more_row, more_matrix, count, zero,
    n: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr,
    PR: tl.constexpr, ADDED: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Write to ``out`` ``(rows, count)`` the coefficients at ``slot`` of rows of ``x``, ``more`` added if ``ADDED``.

    A row is one program's; its coefficients lie in the program's part of ``scratch``, which stays in the caches.
    """
    program = tl.program_id(0)
    matrix = tl.program_id(1)
    H: tl.constexpr = N1 // 2
    TILE: tl.constexpr = P1 * P2
    start = x + matrix.to(tl.int64) * matrix_stride
    more_start = more + matrix.to(tl.int64) * more_matrix
    own = scratch + (matrix * tl.num_programs(0) + program).to(tl.int64) * (2 * TILE)
    for turn in range(0, each):
        row = program + turn * tl.num_programs(0)
        z = turn * zero
        far = row.to(tl.int64)
        q, inside, first = tile_places(z, N2, H, P1, P2)
        mask = within(inside, q, row, rows)
        tile = (tl.arange(0, P1)[:, None] + z) * P2 + tl.arange(0, P2)[None, :]
        # Coefficient 0 is the one whose scale is not that of the others: sqrt(1 / n).
        half = tl.where(q == 0, 0.7071067811865476, 1.0)
        even, odd = load_sum(start, far * row_stride, more_start, far * more_row, q, n, mask, ADDED)
        a, b = forward(even, odd, outer, inner, phases, first, z, P1, P2, SPLIT)
        tl.store(own + tile, a * half)
        tl.store(own + TILE + tile, b)
        tl.debug_barrier()
        p = tl.arange(0, PR) + z
        held = p < count
        s = tl.load(own + tl.load(slot + matrix * count + p, mask=held, other=0))
        there = matrix.to(tl.int64) * rows + row
        tl.store(out + there * count + p, s, mask=within(held, p, row, rows))
        # The next row's coefficients go where this one's are read.
        tl.debug_barrier()


@triton.jit
def _placed(values, position, mask):
    """Return a tile of a row's ``values``: the one at its position in the row, zero where that is -1."""
    return tl.load(values + position, mask=mask & (position >= 0), other=0.0)


@triton.jit(do_not_specialize=["each", "momentum_key", "key"])
def lift_rows(
    g, w, m, coefficients, update, position, outer, inner, phases, rows, each,
    g_row, g_matrix, w_row, w_matrix, m_row, m_matrix, count, zero,
    rate, decay, share, momentum_key, key,
    n: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr,
    RANDOM: tl.constexpr, RATE_AT: tl.constexpr, DECAY_AT: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Do ``m <- m + g - share b Q^T`` and ``w <- keep w - lr o Q^T``, ``b, o`` ``(rows, count)`` given, in place.

    ``position``, by slot, says where in a row of these its coefficient is, -1 if it is not chosen. Words moved a weight
    at rank ``r`` of ``n``: ``5 + 2 r / n``.
    """
    program = tl.program_id(0)
    matrix = tl.program_id(1)
    H: tl.constexpr = N1 // 2
    TILE: tl.constexpr = P1 * P2
    lr = number(rate, RATE_AT)
    keep = 1.0 - lr * number(decay, DECAY_AT)
    gradient = g + matrix.to(tl.int64) * g_matrix
    momentum = m + matrix.to(tl.int64) * m_matrix
    target = w + matrix.to(tl.int64) * w_matrix
    by_slot = position + matrix * (2 * TILE)
    for turn in range(0, each):
        row = program + turn * tl.num_programs(0)
        z = turn * zero
        far = row.to(tl.int64)
        there = matrix.to(tl.int64) * rows + row
        q, inside, first = tile_places(z, N2, H, P1, P2)
        mask = within(inside, q, row, rows)
        tile = (tl.arange(0, P1)[:, None] + z) * P2 + tl.arange(0, P2)[None, :]
        # What draws are numbered by may wrap around.
        drawn = (there * n).to(tl.int32)
        # Coefficient 0 is the one whose scale is not that of the others: sqrt(1 / n).
        half = tl.where(q == 0, 0.7071067811865476, 1.0)

        a = _placed(coefficients + there * count, tl.load(by_slot + tile), mask)
        b = _placed(coefficients + there * count, tl.load(by_slot + TILE + tile), mask)
        even, odd = inverse(a * half, b, outer, inner, phases, first, z, P1, P2, SPLIT)
        ge, go = load_row(gradient, far * g_row, q, n, mask)
        even = share * even - ge
        odd = share * odd - go
        move_row(momentum, far * m_row, q, n, even, odd, mask, 1.0, 1.0, momentum_key, drawn, True)

        # Anew, so that nothing of the first lift is held in registers for the second.
        z = z + zero
        q, inside, first = tile_places(z, N2, H, P1, P2)
        mask = within(inside, q, row, rows)
        tile = (tl.arange(0, P1)[:, None] + z) * P2 + tl.arange(0, P2)[None, :]
        half = tl.where(q == 0, 0.7071067811865476, 1.0)
        a = _placed(update + there * count, tl.load(by_slot + tile), mask)
        b = _placed(update + there * count, tl.load(by_slot + TILE + tile), mask)
        even, odd = inverse(a * half, b, outer, inner, phases, first, z, P1, P2, SPLIT)
        move_row(target, far * w_row, q, n, even, odd, mask, keep, lr, key, drawn, RANDOM)
