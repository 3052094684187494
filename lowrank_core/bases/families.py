"""The bases beside the cosines: Hartley, Walsh-Hadamard, Haar, Legendre, random, identity."""

from __future__ import annotations

import math

from lowrank_core._typing import Array, Device, DType, Namespace
from lowrank_core.bases.basis import Basis
from lowrank_core.numerics.random import make_key, normal
from lowrank_core.ops.axes import along_last
from lowrank_core.ops.registry import ops_for_namespace
from lowrank_core.ops.standard import Ops


class Hartley(Basis):
    """The real Fourier basis ``(cos + sin)(2 pi i j / n) / sqrt(n)``, its own inverse.

    References
    ----------
    R. N. Bracewell, "Discrete Hartley transform", Journal of the Optical Society of America 73 (1983).
    """

    fast = True

    def __init__(self) -> None:
        super().__init__("hartley", _hartley_matrix)

    def fast_transform(self, x: Array, ops: Ops, *, axis: int) -> Array:
        """Return the transform by one real FFT: ``Re F_k - Im F_k``, and ``Re F_k + Im F_k`` at ``n - k``."""
        return along_last(lambda rows: _hartley(rows, ops), x, axis, ops.xp)

    fast_inverse = fast_transform


class Hadamard(Basis):
    """The Walsh-Hadamard basis in Sylvester's order: signs only, for sizes that are powers of two.

    The transform is that of two factors, ``H_ab = H_a (x) H_b``: two products with small matrices, O(sqrt(n)) work
    an element.
    """

    fast = True

    def __init__(self) -> None:
        super().__init__("hadamard", _hadamard_matrix)

    def check_size(self, size: int) -> None:
        """Raise ``ValueError`` unless ``size`` is a power of two."""
        if size & (size - 1):
            raise ValueError(
                f"basis 'hadamard' must have a transformed dimension that is a power of two, got {size}; "
                "basis 'dct' takes every size"
            )

    def fast_transform(self, x: Array, ops: Ops, *, axis: int) -> Array:
        """Return the transform, its own inverse."""
        return along_last(lambda rows: self._by_factors(rows, ops), x, axis, ops.xp)

    fast_inverse = fast_transform

    def _by_factors(self, x: Array, ops: Ops) -> Array:
        size = x.shape[-1]
        outer = 1 << (size.bit_length() // 2)
        inner = size // outer
        grid = ops.xp.reshape(x, (*x.shape[:-1], outer, inner))
        device = ops.device_of(x)
        left, right = (self.matrix(n, x.dtype, device, ops) for n in (outer, inner))
        return ops.xp.reshape(left @ grid @ right, x.shape)


class Haar(Basis):
    """The Haar wavelet basis of any size: one average, then differences from coarse to fine.

    A level replaces neighbours ``a, b`` by ``(a + b) / sqrt(2)`` and ``(a - b) / sqrt(2)``; the last of an odd number
    is carried to the next level as it is. O(1) work an element.
    """

    fast = True

    def __init__(self) -> None:
        super().__init__("haar", _haar_matrix)

    def fast_transform(self, x: Array, ops: Ops, *, axis: int) -> Array:
        """Return the wavelet coefficients."""
        return along_last(lambda rows: _haar(rows, ops), x, axis, ops.xp)

    def fast_inverse(self, x: Array, ops: Ops, *, axis: int) -> Array:
        """Return what has these wavelet coefficients."""
        return along_last(lambda rows: _inverse_haar(rows, ops), x, axis, ops.xp)


class Identity(Basis):
    """The standard basis: plain rows or columns of the gradient itself."""

    fast = True

    def __init__(self) -> None:
        super().__init__("identity", _identity_matrix)

    def transform(self, x: Array, ops: Ops, *, axis: int, method: str = "auto") -> Array:
        """Return ``x``."""
        return x

    def inverse(self, x: Array, ops: Ops, *, axis: int, method: str = "auto") -> Array:
        """Return ``x``."""
        return x

    def by_columns(self, rank: int, size: int, method: str, device: Device, ops: Ops) -> bool:
        """Return ``False``: nothing is faster than taking."""
        return False

    def take_transform(
        self, x: Array, indices: Array, ops: Ops, *, axis: int, method: str
    ) -> Array:
        """Return the chosen rows or columns of ``x``."""
        return ops.take(x, indices, axis=axis)


def random_basis(seed: int) -> Basis:
    """Return the basis ``random:seed``: the Q factor of a seeded Gaussian matrix, with a positive diagonal in R."""

    def build(size: int, /, *, xp: Namespace, dtype: DType, device: Device) -> Array:
        ops = ops_for_namespace(xp)
        like = xp.zeros((1,), dtype=xp.float64, device=device)
        gaussian = normal(make_key(seed, 0, (size,), ops, device), size, ops, like)
        q, r = xp.linalg.qr(gaussian)
        # The sign of each column is the library's choice unless R's diagonal settles it.
        signs = xp.sign(xp.sum(r * xp.eye(size, dtype=r.dtype, device=device), axis=-1))
        return xp.astype(q * signs, dtype)

    return Basis(f"random:{seed}", build)


def legendre_matrix(size: int, /, *, xp: Namespace, dtype: DType, device: Device) -> Array:
    """Return the discrete Legendre (Gram) polynomials of degree ``0 .. size - 1``, orthonormal over ``size`` points.

    Built along the points and not along the degrees, whose recurrence loses all digits past degree ``2 sqrt(size)``:
    they solve the difference equation ``D(w D p)(x) = -k (k + 1) p(x)`` with ``w(x) = (x + 1) (size - 1 - x)``, and are
    even or odd about the middle. From the end inwards solutions grow or oscillate, so errors do not.
    """
    degree = xp.arange(size, dtype=xp.float64, device=device)
    eigenvalue = degree * (degree + 1)
    value, flux = xp.ones_like(degree), xp.zeros_like(degree)
    scale = xp.zeros_like(degree)
    half = (size + 1) // 2
    rows, scales = [value], [scale]
    for x in range(half - 1):
        flux = flux - eigenvalue * value
        value = value + flux / ((x + 1) * (size - 1 - x))
        # High degrees grow past what a float64 holds on their way from the end to the middle.
        large = xp.maximum(xp.abs(value), xp.ones_like(value))
        value, flux, scale = value / large, flux / large, scale + xp.log(large)
        rows.append(value)
        scales.append(scale)
    upper = xp.stack(rows) * xp.exp(xp.stack(scales) - scale)
    parity = 1 - 2 * xp.remainder(degree, 2)
    lower = xp.flip(upper[: size - half, :], axis=0) * parity
    polynomials = xp.concat([upper, lower], axis=0)
    # Positive at the last point, as Legendre's polynomials are at 1.
    norm = xp.sqrt(xp.sum(polynomials * polynomials, axis=0)) * parity
    return xp.astype(polynomials / norm, dtype)


def _hartley_matrix(size: int, /, *, xp: Namespace, dtype: DType, device: Device) -> Array:
    index = xp.arange(size, dtype=xp.int64, device=device)
    angle = xp.astype(xp.remainder(index[:, None] * index, size), dtype) * (2 * math.pi / size)
    return (xp.cos(angle) + xp.sin(angle)) * math.sqrt(1 / size)


def _hartley(x: Array, ops: Ops) -> Array:
    xp, size = ops.xp, x.shape[-1]
    spectrum = xp.fft.rfft(x, axis=-1)
    real, imag = xp.real(spectrum), xp.imag(spectrum)
    inner = slice(1, (size + 1) // 2)
    tail = xp.flip(real[..., inner] + imag[..., inner], axis=-1)
    return xp.concat([real - imag, tail], axis=-1) * math.sqrt(1 / size)


def _hadamard_matrix(size: int, /, *, xp: Namespace, dtype: DType, device: Device) -> Array:
    matrix = xp.ones((1, 1), dtype=dtype, device=device)
    while matrix.shape[0] < size:
        top = xp.concat([matrix, matrix], axis=1)
        matrix = xp.concat([top, xp.concat([matrix, -matrix], axis=1)], axis=0)
    return matrix * math.sqrt(1 / size)


def _haar_matrix(size: int, /, *, xp: Namespace, dtype: DType, device: Device) -> Array:
    rows = xp.eye(size, dtype=dtype, device=device)
    return _haar(rows, ops_for_namespace(xp))


def _haar(x: Array, ops: Ops) -> Array:
    xp, root = ops.xp, math.sqrt(0.5)
    average, details = x, []
    while average.shape[-1] > 1:
        pairs = average.shape[-1] // 2
        even, odd = average[..., : 2 * pairs : 2], average[..., 1 : 2 * pairs : 2]
        details.append((even - odd) * root)
        average = xp.concat([(even + odd) * root, average[..., 2 * pairs :]], axis=-1)
    return xp.concat([average, *reversed(details)], axis=-1)


def _inverse_haar(x: Array, ops: Ops) -> Array:
    xp, root = ops.xp, math.sqrt(0.5)
    lengths = [x.shape[-1]]
    while lengths[-1] > 1:
        lengths.append((lengths[-1] + 1) // 2)
    average = x[..., :1]
    for length in reversed(lengths[:-1]):
        pairs = length // 2
        # What is to be interleaved has `pairs` sums and differences; an odd last one follows untouched.
        detail = x[..., length - pairs : length]
        total = average[..., :pairs]
        both = xp.stack([(total + detail) * root, (total - detail) * root], axis=-1)
        merged = xp.reshape(both, (*both.shape[:-2], 2 * pairs))
        average = xp.concat([merged, average[..., pairs:]], axis=-1)
    return average


def _identity_matrix(size: int, /, *, xp: Namespace, dtype: DType, device: Device) -> Array:
    return xp.eye(size, dtype=dtype, device=device)
