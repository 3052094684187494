"""The operations a step is made of, on the Python array API.

:class:`StandardOps` is complete by itself. A library that has a better way for some operation gets an *adapter*: a
subclass that overrides that operation alone and changes neither results nor layout (see `lowrank_core.ops.registry`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, Self, TypeAlias, TypeVar

from array_api_compat import device as device_of
from array_api_compat import is_array_api_obj

from lowrank_core._typing import A, Device, DType, Namespace, Scalar
from lowrank_core.layout import on_axis
from lowrank_core.ops.axes import along_last, expand_index, inverse_index
from lowrank_core.ops.constants import Constants
from lowrank_core.ops.crossovers import Crossovers
from lowrank_core.ops.makhoul import dct_by_fft, fft_phases, idct_by_fft
from lowrank_core.ops.passes import PassedRows

T = TypeVar("T")
A_co = TypeVar("A_co", covariant=True)


class Coefficients(Protocol[A_co]):
    """Transform coefficients in the backend's own layout: column sums now, selected columns on request."""

    @property
    def sums(self) -> A_co | None:
        """Sums over each column, of magnitudes or squares, for each norm asked for: ``(norms, ..., n)``."""

    @property
    def values(self) -> A_co:
        """All coefficients in order, ``(..., m, n)``."""

    def take(self, indices: Any) -> A_co:
        """Return a new array of the columns ``indices`` ``(..., r)``, in their order."""


@dataclass(frozen=True)
class PlainCoefficients(Generic[A]):
    """Coefficients ``(..., m, n)`` along ``axis`` that are kept as they are."""

    values: A
    sums: A | None
    axis: int
    ops: Any

    def take(self, indices: A) -> A:
        """Return a new array of the columns ``indices`` ``(..., r)``."""
        taken: A = self.ops.take(self.values, indices, axis=self.axis)
        return taken


class StandardOps(Generic[A]):
    """Every operation the core needs, on the array API alone.

    Parameters
    ----------
    xp
        The array namespace to compute with.
    constants
        Holder of shared constants (basis matrices). Defaults to one that keeps the last 16 used.
    """

    #: Which way to transform is the faster where nothing was measured (see `lowrank_core.calibrate`).
    crossovers = Crossovers(small_size=32, few_columns=((1, 96),))
    #: Array types of the library whose arithmetic is not that of its plain arrays, and which are refused.
    refused_types: tuple[type, ...] = ()

    def __init__(self, xp: Namespace, constants: Constants | None = None) -> None:
        self.xp = xp
        self.constants = Constants(keep=16) if constants is None else constants

    def with_constants(self, constants: Constants, *, reuse_memory: bool = False) -> Self:
        """Return the same operations with another holder of constants, so that they are freed with it.

        With ``reuse_memory`` an adapter may keep the memory of large temporaries from step to step.
        """
        return type(self)(self.xp, constants)

    # -- arrays --------------------------------------------------------------------------------

    def astype(self, x: A, dtype: DType) -> A:
        """Return ``x`` as ``dtype``, without a copy where none is needed."""
        converted: A = self.xp.astype(x, dtype, copy=False)
        return converted

    def copy(self, x: A) -> A:
        """Return an array with the numbers of ``x`` that nobody else can write to."""
        copied: A = self.xp.asarray(x, copy=True)
        return copied

    def device_of(self, x: A) -> Device:
        """Return where ``x`` lives, or ``None`` where the library places arrays by itself."""
        return device_of(x)

    def is_readable(self, x: A) -> bool:
        """Return whether the host can read the numbers of ``x`` now: without a wait, and no trace is broken by it."""
        return True

    def as_scalar(self, value: Scalar, like: A) -> Scalar:
        """Return a host number unchanged and an array as a 0-d array of the dtype of ``like``."""
        return self.astype(value, like.dtype) if is_array_api_obj(value) else value  # type: ignore[arg-type]

    def constant(self, key: Hashable, build: Callable[[], A]) -> A:
        """Return the shared constant of ``key``, built once."""
        value: Any = self.constants.get(key, build)
        return value

    # -- transforms ----------------------------------------------------------------------------

    def dct(self, x: A, *, axis: int) -> A:
        """Return the orthonormal DCT-II of ``x`` along ``axis`` by FFT; ``x`` is in a compute dtype."""
        phases = fft_phases(x.shape[axis], self.xp, x.dtype, self.device_of(x))
        return along_last(lambda rows: dct_by_fft(rows, self.xp, phases), x, axis, self.xp)

    def idct(self, coefficients: A, *, axis: int) -> A:
        """Return the inverse of :meth:`dct` by FFT."""
        n, dtype = coefficients.shape[axis], coefficients.dtype
        phases = fft_phases(n, self.xp, dtype, self.device_of(coefficients))
        return along_last(
            lambda rows: idct_by_fft(rows, self.xp, phases), coefficients, axis, self.xp
        )

    def dct_scored(self, x: A, *, axis: int, norms: Sequence[str]) -> Coefficients[A]:
        """Return :meth:`dct` of ``x`` with the sums over its columns; an adapter may sum while it transforms."""
        return scored(self.dct(x, axis=axis), axis, norms, self)

    def idct_columns(self, values: A, indices: A, size: int, *, axis: int) -> A:
        """Return :meth:`idct` of coefficients ``values`` at ``indices``, all others zero."""
        return self.idct(self.put(values, indices, size, axis=axis), axis=axis)

    def column_sums(self, x: A, *, axis: int, norm: str) -> A:
        """Return the sums of squares (``"l2"``) or magnitudes (``"l1"``) of every column (axis -1) or row (axis -2)."""
        terms = x * x if norm == "l2" else self.xp.abs(x)
        sums: A = self.xp.sum(terms, axis=-3 - axis)
        return sums

    # -- passes over rows, in place ------------------------------------------------------------

    def may_have_row_kernels(self, parameter: A) -> bool:
        """Return whether there may be :meth:`row_kernels` for matrices of a parameter."""
        return False

    def row_kernels(
        self,
        gradients: Sequence[A],
        parameters: Sequence[A],
        states: Sequence[Collection[A | None]],
    ) -> type[PassedRows[A]] | None:
        """Return the kernels that pass over such matrices and the state of their rows, in place, or ``None``."""
        return None

    # -- Adam and the sign of what is left -----------------------------------------------------

    def adam_update(
        self,
        gradient: A,
        moments: tuple[A, A],
        betas: tuple[Scalar, Scalar],
        weights: tuple[Scalar, Scalar],
        eps: Scalar,
        *,
        overwrite: bool = False,
    ) -> tuple[A, A, A]:
        """Return Adam's direction and the two moments with one more gradient in them.

        ``m <- b1 m + (1 - b1) g``, ``v <- b2 v + (1 - b2) g^2`` and ``(m / w1) / (sqrt(v / w2) + eps)``, where the
        ``weights`` ``w1, w2`` correct for the moments' start at zero. With ``overwrite`` an adapter may work in the
        memory of ``moments``.
        """
        (first, second), (beta1, beta2) = moments, betas
        first = first * beta1 + gradient * (1 - beta1)
        second = second * beta2 + gradient * gradient * (1 - beta2)
        direction = (first / weights[0]) / (self.xp.sqrt(second / weights[1]) + eps)
        return direction, first, second

    def add_signs(self, x: A, gradient: A, kept: A, scale: Scalar) -> A:
        """Return ``x + scale * sign(gradient - kept)``; an adapter may overwrite ``x`` and ``kept``."""
        return x + self.xp.sign(gradient - kept) * scale

    def bounded(self, x: A, roots: A, scale: Scalar) -> A:
        """Return ``scale * x / sqrt(roots^2 + x^2)``, at most ``scale`` in size; an adapter may overwrite ``roots``."""
        # By ratios: squares of small gradients are none in float32.
        ratios = x / roots
        return ratios * (scale / self.xp.sqrt(ratios * ratios + 1.0))

    # -- choosing and moving columns -----------------------------------------------------------

    def as_index(self, indices: A) -> A:
        """Return ``indices`` in the integer dtype the library indexes with."""
        info = self.xp.__array_namespace_info__()
        return self.astype(indices, info.default_dtypes(device=self.device_of(indices))["indexing"])

    def take(self, x: A, indices: A, *, axis: int) -> A:
        """Return the rows or columns ``indices`` ``(..., r)`` of the matrices ``x`` along ``axis``, as a new array."""
        index = self.as_index(indices)
        if index.ndim == 1:
            taken: A = self.xp.take(x, index, axis=axis)
            return taken
        return self.xp.take_along_axis(x, expand_index(index, x, axis, self.xp), axis=axis)

    def take_or_zero(self, x: A, indices: A, kept: A, *, axis: int) -> A:
        """Return :meth:`take` of ``indices``, zero where ``kept`` ``(..., r)`` is false."""
        # A selection, not a product: what is left behind may be infinite.
        taken: A = self.xp.where(on_axis(kept, axis), self.take(x, indices, axis=axis), 0.0)
        return taken

    def take_along(self, x: A, indices: A) -> A:
        """Return the entries ``indices`` ``(..., r)`` of the vectors ``x`` ``(..., n)``."""
        taken: A = self.xp.take_along_axis(x, self.as_index(indices), axis=-1)
        return taken

    def put(self, values: A, indices: A, size: int, *, axis: int) -> A:
        """Return zeros of ``size`` along ``axis`` with ``values`` at ``indices``: the reverse of :meth:`take`."""
        # The array API has no scatter. Gathering through the inverse map gives the same: place j takes
        # from the position of j among the indices, or from an appended zero.
        edge = values[..., :1] if axis == -1 else values[..., :1, :]
        padded = self.xp.concat([values, self.xp.zeros_like(edge)], axis=axis)
        position, _ = inverse_index(indices, size, self.xp, self.device_of(indices))
        return self.take(padded, position, axis=axis)

    def put_over(self, x: A, values: A, indices: A, *, axis: int) -> A:
        """Return ``x`` with ``values`` at ``indices``; an adapter may overwrite what ``x`` has there."""
        ones = self.xp.ones_like(self.astype(indices, values.dtype))[..., None, :]
        held = self.put(ones, indices, x.shape[axis], axis=-1)[..., 0, :] > 0
        put = self.put(values, indices, x.shape[axis], axis=axis)
        full: A = self.xp.where(on_axis(held, axis), put, x)
        return full

    def index_in(self, previous: A, current: A) -> tuple[A, A]:
        """Return for each of ``current`` ``(..., r)`` its place in ``previous``, any if none, and if it has one."""
        xp = self.xp
        match: Any = current[..., :, None] == previous[..., None, :]
        return xp.argmax(self.astype(match, xp.int8), axis=-1), xp.any(match, axis=-1)

    # -- control -------------------------------------------------------------------------------

    def cond(self, predicate: bool | A, then: Callable[[], T], otherwise: Callable[[], T]) -> T:
        """Return ``then()`` if ``predicate`` holds, ``otherwise()`` if not; both give the same shapes."""
        return then() if bool(predicate) else otherwise()

    def step_counter(self, device: Device = None) -> int | A:
        """Return a step count of zero: a host number, or a 0-d int32 array where steps are traced."""
        return 0

    def num_threads(self) -> int:
        """Return how many items `for_each` works on at a time."""
        return 1

    def for_each(self, work: Callable[[T], object], items: Iterable[T]) -> None:
        """Call ``work`` for every item, in any order; no two write to the same array."""
        for item in items:
            work(item)


#: Operations, whatever the array type.
Ops: TypeAlias = StandardOps[Any]


def scored(
    coefficients: A, axis: int, norms: Sequence[str], ops: StandardOps[A]
) -> PlainCoefficients[A]:
    """Return ``coefficients`` with the sums over their columns."""
    sums = [ops.column_sums(coefficients, axis=axis, norm=norm) for norm in norms]
    return PlainCoefficients(coefficients, ops.xp.stack(sums) if sums else None, axis, ops)
