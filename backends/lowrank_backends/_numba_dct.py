"""Cosine transforms of a panel of 16 rows that stays in a core's cache, compiled by Numba.

A panel holds for each sample, or coefficient, 16 numbers side by side, one of each row: the first eight are the real
and the last eight the imaginary parts of eight complex rows (see `lowrank_backends._numba_tables`). The inverse is the
transpose of the transform, step by step.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from lowrank_backends._numba_lanes import WIDTH, if_positive, load, splat, store
from lowrank_backends._numba_tables import PANEL

compiled = njit(nogil=True, cache=True, error_model="numpy", boundscheck=False)

# Numbers of a panel that fit the first cache: from there on one part of it is transformed to its end.
_NEAR = 2**13


@compiled
def _forward4(x, begin, size, count, twiddles, start):
    """Do one step by the factor 4 of the transforms of ``count`` runs of ``size`` samples."""
    quarter = size // 4 * PANEL
    for run in range(count):
        base = begin + run * size * PANEL
        for j in range(size // 4):
            p0 = base + j * PANEL
            p1 = p0 + quarter
            p2 = p1 + quarter
            p3 = p2 + quarter
            ar, ai, br, bi = load(x, p0), load(x, p0 + WIDTH), load(x, p1), load(x, p1 + WIDTH)
            cr, ci, dr, di = load(x, p2), load(x, p2 + WIDTH), load(x, p3), load(x, p3 + WIDTH)
            sr, si, tr, ti = ar + cr, ai + ci, ar - cr, ai - ci
            ur, ui, vr, vi = br + dr, bi + di, br - dr, bi - di
            store(x, p0, sr + ur)
            store(x, p0 + WIDTH, si + ui)
            o = start + 6 * j
            _put_times(x, p1, tr + vi, ti - vr, twiddles[o], twiddles[o + 1])
            _put_times(x, p2, sr - ur, si - ui, twiddles[o + 2], twiddles[o + 3])
            _put_times(x, p3, tr - vi, ti + vr, twiddles[o + 4], twiddles[o + 5])


@compiled
def _put_times(x, place, real, imag, cosine, sine):
    """Write the product of a complex vector and a complex number."""
    store(x, place, real * cosine - imag * sine)
    store(x, place + WIDTH, real * sine + imag * cosine)


@compiled
def _backward4(x, begin, size, count, twiddles, start):
    """Do the transpose of `_forward4`, conjugate."""
    quarter = size // 4 * PANEL
    for run in range(count):
        base = begin + run * size * PANEL
        for j in range(size // 4):
            p0 = base + j * PANEL
            p1 = p0 + quarter
            p2 = p1 + quarter
            p3 = p2 + quarter
            o = start + 6 * j
            ar, ai = load(x, p0), load(x, p0 + WIDTH)
            br, bi = _times_conjugate(x, p1, twiddles[o], twiddles[o + 1])
            cr, ci = _times_conjugate(x, p2, twiddles[o + 2], twiddles[o + 3])
            dr, di = _times_conjugate(x, p3, twiddles[o + 4], twiddles[o + 5])
            sr, si, tr, ti = ar + cr, ai + ci, ar - cr, ai - ci
            ur, ui, vr, vi = br + dr, bi + di, br - dr, bi - di
            store(x, p0, sr + ur)
            store(x, p0 + WIDTH, si + ui)
            store(x, p1, tr - vi)
            store(x, p1 + WIDTH, ti + vr)
            store(x, p2, sr - ur)
            store(x, p2 + WIDTH, si - ui)
            store(x, p3, tr + vi)
            store(x, p3 + WIDTH, ti - vr)


@compiled
def _times(x, place, cosine, sine):
    """Return the product of the complex vector at ``place`` and a complex number."""
    real, imag = load(x, place), load(x, place + WIDTH)
    return real * cosine - imag * sine, real * sine + imag * cosine


@compiled
def _times_conjugate(x, place, cosine, sine):
    """Return the product with the conjugate of the number."""
    real, imag = load(x, place), load(x, place + WIDTH)
    return real * cosine + imag * sine, imag * cosine - real * sine


@compiled
def _last4(x, begin, count, one, three):
    """Do the last step by the factor 4, without phases; outputs ``one`` and ``three`` change places backwards."""
    for place in range(begin, begin + count * 4 * PANEL, 4 * PANEL):
        ar, ai = load(x, place), load(x, place + WIDTH)
        br, bi = load(x, place + PANEL), load(x, place + PANEL + WIDTH)
        cr, ci = load(x, place + 2 * PANEL), load(x, place + 2 * PANEL + WIDTH)
        dr, di = load(x, place + 3 * PANEL), load(x, place + 3 * PANEL + WIDTH)
        sr, si, tr, ti = ar + cr, ai + ci, ar - cr, ai - ci
        ur, ui, vr, vi = br + dr, bi + di, br - dr, bi - di
        store(x, place, sr + ur)
        store(x, place + WIDTH, si + ui)
        store(x, place + one * PANEL, tr + vi)
        store(x, place + one * PANEL + WIDTH, ti - vr)
        store(x, place + 2 * PANEL, sr - ur)
        store(x, place + 2 * PANEL + WIDTH, si - ui)
        store(x, place + three * PANEL, tr - vi)
        store(x, place + three * PANEL + WIDTH, ti + vr)


@compiled
def _last2(x, begin, count):
    """Do the last step by the factor 2, which is its own transpose."""
    for place in range(begin, begin + count * 2 * PANEL, 2 * PANEL):
        for half in range(0, PANEL, WIDTH):
            a, b = load(x, place + half), load(x, place + PANEL + half)
            store(x, place + half, a + b)
            store(x, place + PANEL + half, a - b)


@compiled
def _any_factor(x, begin, size, count, factor, tables, level, forward, spare):
    """Do the same by any odd factor, as the sums that its short transform is said by."""
    length = size // factor
    start, short = tables.starts[level], tables.short_starts[level]
    turn = np.float32(1) if forward else np.float32(-1)
    for run in range(count):
        for j in range(length):
            base = begin + (run * size + j) * PANEL
            for q in range(factor):
                place, o = base + q * length * PANEL, start + 2 * (j * (factor - 1) + q - 1)
                real, imag = load(x, place), load(x, place + WIDTH)
                if q > 0 and not forward:
                    real, imag = _times_conjugate(
                        x, place, tables.twiddles[o], tables.twiddles[o + 1]
                    )
                store(spare, q * PANEL, real)
                store(spare, q * PANEL + WIDTH, imag)
            for k in range(factor):
                real, imag = load(spare, 0), load(spare, WIDTH)
                for q in range(1, factor):
                    o = short + 2 * (k * factor + q)
                    own = _times(spare, q * PANEL, tables.short[o], turn * tables.short[o + 1])
                    real, imag = real + own[0], imag + own[1]
                place, o = base + k * length * PANEL, start + 2 * (j * (factor - 1) + k - 1)
                store(x, place, real)
                store(x, place + WIDTH, imag)
                if k > 0 and forward:
                    _put_times(x, place, real, imag, tables.twiddles[o], tables.twiddles[o + 1])


@compiled
def _step(x, begin, size, count, tables, level, forward, spare):
    """Do the step of a level of the transforms of ``count`` runs of ``size`` samples, or backwards its transpose."""
    factor, start = tables.factors[level], tables.starts[level]
    if size == 4:
        _last4(x, begin, count, 1 if forward else 3, 3 if forward else 1)
    elif factor == 2:
        _last2(x, begin, count)
    elif factor == 4 and forward:
        _forward4(x, begin, size, count, tables.twiddles, start)
    elif factor == 4:
        _backward4(x, begin, size, count, tables.twiddles, start)
    else:
        _any_factor(x, begin, size, count, factor, tables, level, forward, spare)


@compiled
def _far(tables):
    """Return how many steps are done on all of a panel before its parts are near, and the size of these."""
    levels, size = 0, tables.n
    while levels < len(tables.factors) and size * PANEL > _NEAR:
        size //= tables.factors[levels]
        levels += 1
    return levels, size


@compiled
def fourier(x, tables):
    """Transform the panel ``x`` of samples into its Fourier coefficients, which lie at ``tables.place``."""
    spare = np.empty(tables.factors.max() * PANEL, np.float32)
    far, near = _far(tables)
    size = tables.n
    for level in range(far):
        _step(x, 0, size, tables.n // size, tables, level, True, spare)
        size //= tables.factors[level]
    for begin in range(0, tables.n * PANEL, near * PANEL):
        size = near
        for level in range(far, len(tables.factors)):
            _step(x, begin, size, near // size, tables, level, True, spare)
            size //= tables.factors[level]


@compiled
def fourier_back(x, tables):
    """Do the transpose of `fourier`, conjugate."""
    spare = np.empty(tables.factors.max() * PANEL, np.float32)
    far, near = _far(tables)
    for begin in range(0, tables.n * PANEL, near * PANEL):
        size = 1
        for level in range(len(tables.factors) - 1, far - 1, -1):
            size *= tables.factors[level]
            _step(x, begin, size, near // size, tables, level, False, spare)
    size = near
    for level in range(far - 1, -1, -1):
        size *= tables.factors[level]
        _step(x, 0, size, tables.n // size, tables, level, False, spare)


@compiled
def _scale_ends(x, tables):
    """Scale coefficients 0 and n/2, which are their own partners."""
    scale = np.float32(1 / math.sqrt(tables.n))
    for k in (0, tables.n // 2):
        place = tables.place[k]
        store(x, place, load(x, place) * scale)
        store(x, place + WIDTH, load(x, place + WIDTH) * scale)


@compiled
def cosines(x, tables, number):
    """Return pair ``number`` of coefficients of the panel ``x`` of Fourier coefficients: four vectors."""
    k, other = tables.pairs[2 * number], tables.pairs[2 * number + 1]
    cosine, sine = tables.phases[2 * number], tables.phases[2 * number + 1]
    ur, ui = _times(x, k, cosine, sine)
    vr, vi = _times_conjugate(x, other, cosine, sine)
    return ur + vr, ui + vi, vi - ui, ur - vr


@compiled
def _put_pair(x, k, other, ar, ai, br, bi):
    store(x, k, ar)
    store(x, k + WIDTH, ai)
    store(x, other, br)
    store(x, other + WIDTH, bi)


@compiled
def dct(x, tables):
    """Transform the panel ``x`` of samples in Makhoul's order into its coefficients, which lie at ``tables.place``."""
    fourier(x, tables)
    _scale_ends(x, tables)
    for number in range(tables.n // 2 - 1):
        k, other = tables.pairs[2 * number], tables.pairs[2 * number + 1]
        _put_pair(x, k, other, *cosines(x, tables, number))


@compiled
def idct(x, tables):
    """Do the inverse of `dct`."""
    _scale_ends(x, tables)
    for number in range(tables.n // 2 - 1):
        k, other = tables.pairs[2 * number], tables.pairs[2 * number + 1]
        cosine, sine = tables.phases[2 * number], tables.phases[2 * number + 1]
        ar, ai = load(x, k), load(x, k + WIDTH)
        br, bi = load(x, other), load(x, other + WIDTH)
        _put_times(x, k, ar + bi, ai - br, cosine, -sine)
        _put_times(x, other, ar - bi, ai + br, cosine, sine)
    fourier_back(x, tables)


@compiled
def dct_summed(x, tables, sums, absolute, keep):
    """Add the squares, or magnitudes, of the coefficients of the panel ``x`` of samples to the panel ``sums``.

    ``sums`` has one vector for each coefficient, at half its offset; ``x`` is used up, or what `dct` makes of it.
    """
    fourier(x, tables)
    _scale_ends(x, tables)
    for k in (0, tables.n // 2):
        place = tables.place[k]
        _add(sums, place, load(x, place), load(x, place + WIDTH), absolute)
    for number in range(tables.n // 2 - 1):
        ar, ai, br, bi = cosines(x, tables, number)
        k, other = tables.pairs[2 * number], tables.pairs[2 * number + 1]
        _add(sums, k, ar, ai, absolute)
        _add(sums, other, br, bi, absolute)
        if keep:
            _put_pair(x, k, other, ar, ai, br, bi)


@compiled
def magnitude(a):
    """Return the magnitudes of the numbers of a vector."""
    return if_positive(a, a, splat(np.float32(0)) - a)


@compiled
def _add(sums, place, a, b, absolute):
    half = place // 2
    if absolute:
        store(sums, half, load(sums, half) + magnitude(a) + magnitude(b))
    else:
        store(sums, half, load(sums, half) + a * a + b * b)
