"""The orthonormal DCT-II and its inverse, by a matrix product and by Makhoul's N-point real FFT.

References
----------
J. Makhoul, "A fast cosine transform in one and two dimensions", IEEE Transactions on Acoustics,
Speech, and Signal Processing 28 (1980), 27-34. The reordering and the phase factors are his
equations (16) to (21), here for a *real* FFT of the reordered signal: its ``n//2 + 1`` complex numbers
already hold all ``n`` coefficients, so half the work of a complex FFT is saved.

Everything in this module works along the last axis and in the dtype it is given.
"""

from __future__ import annotations

import math
from typing import Any

from lowrank_core._typing import A, Array, Device, DType, Namespace


def cosine_columns(
    frequencies: Array, size: int, *, xp: Namespace, dtype: DType, device: Device
) -> Array:
    """Return the DCT basis vectors of the given integer ``frequencies``, ``(..., r)`` to ``(..., size, r)``.

    ``Q[i, j] = c_j sqrt(2/n) cos(pi j (2i + 1) / (2n))`` with ``c_0 = 1/sqrt(2)``, otherwise 1.
    """
    samples = xp.arange(size, dtype=frequencies.dtype, device=device)
    return _cosines(samples[:, None], frequencies[..., None, :], size, xp, dtype)


def cosine_rows(samples: Array, size: int, *, xp: Namespace, dtype: DType, device: Device) -> Array:
    """Return the rows of the DCT basis at the given integer ``samples``, ``(..., r)`` to ``(..., r, size)``."""
    frequencies = xp.arange(size, dtype=samples.dtype, device=device)
    return _cosines(samples[..., :, None], frequencies, size, xp, dtype)


def cosine_matrix(size: int, *, xp: Namespace, dtype: DType, device: Device) -> Array:
    """Return the ``(size, size)`` DCT basis ``Q``, its columns being the basis vectors."""
    frequencies = xp.arange(size, dtype=xp.int32, device=device)
    return cosine_columns(frequencies, size, xp=xp, dtype=dtype, device=device)


def _cosines(samples: Array, frequencies: Array, size: int, xp: Namespace, dtype: DType) -> Array:
    # The angle is reduced modulo one period while it is still an integer. Left to the cosine, the
    # product grows to n^2 and costs a float32 basis of size 4096 three of its seven digits.
    phase = _product_modulo(2 * samples + 1, frequencies, 4 * size, xp)
    cosines = xp.cos(xp.astype(phase, dtype) * (math.pi / (2 * size))) * math.sqrt(2 / size)
    return xp.where(frequencies < 1, cosines * math.sqrt(0.5), cosines)


def _product_modulo(a: Array, b: Array, modulus: int, xp: Namespace) -> Array:
    """Return ``a * b % modulus`` for ``0 <= a, b < modulus <= 2**22`` without leaving int32."""
    if modulus * modulus < 2**33:  # a < modulus / 2 and b < modulus / 4 here
        return xp.remainder(a * b, modulus)
    # Horner's rule in base 256; no partial result reaches 2**31.
    result = xp.zeros_like(a * b)
    for shift in (16, 8, 0):
        result = xp.remainder(result * 256 + a * ((b >> shift) & 255), modulus)
    return result


def dct_by_fft(x: A, xp: Namespace, phases: tuple[A, A]) -> A:
    """Return the orthonormal DCT-II of the last axis of ``x``, by one real FFT (phases: `fft_phases`)."""
    n = x.shape[-1]
    reordered = xp.concat([x[..., ::2], xp.flip(x[..., 1::2], axis=-1)], axis=-1)
    spectrum = xp.fft.rfft(reordered, axis=-1)
    real, imag = xp.real(spectrum), xp.imag(spectrum)
    cosine, sine = phases
    # With Z = spectrum * (cosine - i sine): S_k = Re Z_k, and S_{n-k} = -Im Z_k.
    head = real * cosine + imag * sine
    inner = slice(1, (n + 1) // 2)
    tail = real[..., inner] * sine[inner] - imag[..., inner] * cosine[inner]
    return xp.concat([head, xp.flip(tail, axis=-1)], axis=-1)


def idct_by_fft(coefficients: A, xp: Namespace, phases: tuple[A, A]) -> A:
    """Return the inverse of :func:`dct_by_fft` along the last axis, by one inverse real FFT."""
    n = coefficients.shape[-1]
    half = n // 2 + 1
    cosine, sine = phases
    # The inverse of multiplying by a phase of modulus p is the conjugate phase divided by p^2.
    squared = cosine * cosine + sine * sine
    cosine, sine = cosine / squared, sine / squared
    head = coefficients[..., :half]
    # S_{n-k} for k = 0 .. n//2, where S_n is zero.
    mirrored = xp.concat(
        [xp.zeros_like(head[..., :1]), xp.flip(coefficients[..., n - half + 1 :], axis=-1)], axis=-1
    )
    # V = (S_k - i S_{n-k}) * (cosine + i sine)
    real = head * cosine + mirrored * sine
    imag = head * sine - mirrored * cosine
    spectrum = _complex(real, imag, xp)
    reordered = xp.fft.irfft(spectrum, n=n, axis=-1)
    # Undo the reordering: even places hold the first half, odd places the second half backwards.
    even, odd = reordered[..., : (n + 1) // 2], xp.flip(reordered[..., (n + 1) // 2 :], axis=-1)
    if n % 2:
        odd = xp.concat([odd, xp.zeros_like(even[..., :1])], axis=-1)
    interleaved = xp.reshape(xp.stack([even, odd], axis=-1), (*even.shape[:-1], 2 * even.shape[-1]))
    return interleaved[..., :n]


def fft_phases(n: int, xp: Namespace, dtype: DType, device: Device) -> tuple[Any, Any]:
    """Return ``(sqrt(2/n) cos, sqrt(2/n) sin)`` of ``pi k / (2n)``, ``k = 0 .. n//2``, orthonormal at k = 0."""
    angle = xp.arange(n // 2 + 1, dtype=dtype, device=device) * (math.pi / (2 * n))
    scale = xp.where(angle == 0, math.sqrt(1 / n), xp.full_like(angle, math.sqrt(2 / n)))
    return xp.cos(angle) * scale, xp.sin(angle) * scale


def _complex(real: A, imag: A, xp: Namespace) -> A:
    dtype = xp.complex128 if real.dtype == xp.float64 else xp.complex64
    return xp.astype(real, dtype) + xp.astype(imag, dtype) * 1j
