"""The Triton kernel of the sums by which columns are chosen: rows transformed, and only sums over columns kept."""

import triton
import triton.language as tl

from lowrank_backends._triton_dct import forward, load_sum, tile_places, within


@triton.jit
def column_sums(
    x, more, part, outer, inner, phases, rows, each, row_stride, matrix_stride, more_row, more_matrix,
    zero,
    n: tl.constexpr, N1: tl.constexpr, N2: tl.constexpr, P1: tl.constexpr, P2: tl.constexpr,
    ABSOLUTE: tl.constexpr, ADDED: tl.constexpr, SPLIT: tl.constexpr,
):  # fmt: skip
    """Write to ``part[matrix, program]`` the sums over its rows of ``S^2`` (or ``|S|``), by coefficient.

    ``x`` is read once, and so is ``more``, which is added to it if ``ADDED``. A program does ``each`` rows, and its
    sums are its own: added up in one order, they are the same to the bit on every run.
    """
    program = tl.program_id(0)
    matrix = tl.program_id(1)
    H: tl.constexpr = N1 // 2
    start = x + matrix.to(tl.int64) * matrix_stride
    more_start = more + matrix.to(tl.int64) * more_matrix
    sum_a = tl.zeros((P1, P2), tl.float32)
    sum_b = tl.zeros((P1, P2), tl.float32)
    for turn in range(0, each):
        row = program + turn * tl.num_programs(0)
        z = turn * zero
        q, inside, first = tile_places(z, N2, H, P1, P2)
        mask = within(inside, q, row, rows)
        far = row.to(tl.int64)
        even, odd = load_sum(start, far * row_stride, more_start, far * more_row, q, n, mask, ADDED)
        a, b = forward(even, odd, outer, inner, phases, first, z, P1, P2, SPLIT)
        if ABSOLUTE:
            sum_a += tl.abs(a)
            sum_b += tl.abs(b)
        else:
            sum_a += a * a
            sum_b += b * b
    _, inside, _ = tile_places(0, N2, H, P1, P2)
    k1 = tl.arange(0, P1)[:, None]
    k2 = tl.arange(0, P2)[None, :]
    k = k1 + N1 * k2
    # Coefficient 0 is the one whose scale is not that of the others: sqrt(1 / n).
    half: tl.constexpr = 0.7071067811865476 if ABSOLUTE else 0.5
    out = part + (matrix * tl.num_programs(0) + program).to(tl.int64) * n
    tl.store(out + k, tl.where(k == 0, half * sum_a, sum_a), mask=inside)
    tl.store(out + tl.where(k1 == 0, H + k, n - k), sum_b, mask=inside)
