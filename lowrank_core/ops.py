"""The operations a step is made of, on the Python array API, and how a library's faster ones are found.

:class:`StandardOps` is complete by itself. A library that has a better way for some operation gets an
*adapter*: a subclass that overrides that operation alone and changes neither results nor layout. Adapters
are found by the entry-point group ``lowrank_core.ops``, whose entry names are array libraries (the first
part of the namespace's module name: ``numpy``, ``torch``, ``jax``, ``cupy``), and are loaded on first use.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Generic, Self, TypeAlias, TypeVar

from array_api_compat import array_namespace, is_array_api_obj
from array_api_compat import device as device_of

from lowrank_core._typing import A, Array, Device, DType, Namespace, Scalar
from lowrank_core.constants import Constants
from lowrank_core.crossovers import Crossovers, default_path, load, measured_on
from lowrank_core.layout import cut_across, on_axis
from lowrank_core.makhoul import dct_by_fft, fft_phases, idct_by_fft
from lowrank_core.names import library_name

ENTRY_POINT_GROUP = "lowrank_core.ops"
METHODS = ("auto", "matmul", "fft")

T = TypeVar("T")


@dataclass(frozen=True)
class Analysis(Generic[A]):
    """What a choice of columns asks of coefficients: sums over each of them, then the few that are chosen.

    An adapter need not keep the coefficients in their order for that.

    Attributes
    ----------
    sums
        By norm, ``"l1"`` or ``"l2"``: the sums of magnitudes or of squares over columns ``(..., n)``.
    take
        Gives the coefficients of the columns ``(..., r)`` for a slice of the dimension that is not transformed, as the
        caller's own.
    """

    sums: Mapping[str, A]
    take: Callable[[A, slice], A]


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
    #: The axis of a matrix that is spread over shards, which is never the transformed one; ``None`` on one device.
    sharded_axis: int | None = None

    def __init__(self, xp: Namespace, constants: Constants | None = None) -> None:
        self.xp = xp
        self.constants = Constants(keep=16) if constants is None else constants

    def holding(self, constants: Constants, *, reuse: bool = False) -> Self:
        """Return the same operations with another holder of constants, so that they are freed with it.

        With ``reuse`` an adapter may keep the memory of one large temporary from step to step.
        """
        return type(self)(self.xp, constants)

    # -- precision -----------------------------------------------------------------------------

    def compute_dtype(self, dtype: DType) -> DType:
        """Return the dtype to compute in: float64 for float64, float32 for anything narrower."""
        return self.xp.float64 if dtype == self.xp.float64 else self.xp.float32

    def compute_dtype_name(self, dtype: DType) -> str:
        """Return the name of the dtype to compute in, ``dtype`` being ``None`` for the default."""
        return "float32" if dtype is None or dtype != self.xp.float64 else "float64"

    def to_compute(self, x: A) -> A:
        """Return ``x`` in the dtype to compute in, without a copy where none is needed."""
        return self.astype(x, self.compute_dtype(x.dtype))

    def astype(self, x: A, dtype: DType) -> A:
        """Return ``x`` as ``dtype``, without a copy where none is needed."""
        converted: A = self.xp.astype(x, dtype, copy=False)
        return converted

    def device_of(self, x: A) -> Device:
        """Return where ``x`` lives, or ``None`` where the library places arrays by itself."""
        return device_of(x)

    # -- transforms ----------------------------------------------------------------------------

    def dct(self, x: A, *, axis: int) -> A:
        """Return the orthonormal DCT-II of ``x`` along ``axis`` by FFT; ``x`` is in a compute dtype."""
        phases = fft_phases(x.shape[axis], self.xp, x.dtype, self.device_of(x))
        return self.along_last(lambda rows: dct_by_fft(rows, self.xp, phases), x, axis=axis)

    def idct(self, coefficients: A, *, axis: int) -> A:
        """Return the inverse of :meth:`dct` by FFT."""
        n, dtype = coefficients.shape[axis], coefficients.dtype
        phases = fft_phases(n, self.xp, dtype, self.device_of(coefficients))
        return self.along_last(
            lambda rows: idct_by_fft(rows, self.xp, phases), coefficients, axis=axis
        )

    def analysis(self, coefficients: A, *, axis: int, norms: Sequence[str]) -> Analysis[A]:
        """Return what a choice of columns asks of ``coefficients``."""
        sums = {
            norm: self.column_sums(coefficients, axis=axis, squares=norm == "l2") for norm in norms
        }

        def take(indices: A, block: slice) -> A:
            return self.take(cut_across(coefficients, block, axis), indices, axis=axis)

        return Analysis(sums, take)

    def dct_analysis(
        self, x: A, *, axis: int, norms: Sequence[str], plus: A | None = None
    ) -> Analysis[A]:
        """Return the :meth:`analysis` of :meth:`dct` of ``x``, or of ``x + plus``."""
        total = x if plus is None else self.add(x, plus)
        return self.analysis(self.dct(total, axis=axis), axis=axis, norms=norms)

    def idct_columns(self, values: A, indices: A, size: int, *, axis: int) -> A:
        """Return :meth:`idct` of coefficients ``values`` at ``indices``, all others zero."""
        return self.idct(self.put(values, indices, size, axis=axis), axis=axis)

    def use_matmul(self, size: int, method: str, device: Device) -> bool:
        """Return whether a transform of ``size`` goes by the matrix product."""
        if method != "auto":
            return method == "matmul"
        return size < self.crossovers_on(device).small_size

    def use_product(self, rank: int, size: int, method: str, device: Device) -> bool:
        """Return whether ``rank`` columns are projected on by a product instead of a whole transform."""
        if method != "auto":
            return method == "matmul"
        crossovers = self.crossovers_on(device)
        return size < crossovers.small_size or rank <= crossovers.columns(size)

    def crossovers_on(self, device: Device) -> Crossovers:
        """Return which way to transform is the faster on a device."""
        return measured_on(self.xp, device) or self.crossovers

    def constant(self, key: Hashable, build: Callable[[], A]) -> A:
        """Return the shared constant of ``key``, built once."""
        value: Any = self.constants.get(key, build)
        return value

    def apply_matrix(self, x: A, matrix: A, *, axis: int) -> A:
        """Return ``x @ matrix`` (axis -1) or ``matrix.T @ x`` (axis -2), batched."""
        return x @ matrix if axis == -1 else self.xp.matrix_transpose(matrix) @ x

    def along_last(self, function: Callable[[A], A], x: A, *, axis: int) -> A:
        """Return ``function``, which works along the last axis, applied along ``axis``."""
        if axis == -1:
            return function(x)
        transformed: A = self.xp.matrix_transpose(function(self.xp.matrix_transpose(x)))
        return transformed

    def add(self, x: A, y: A) -> A:
        """Return ``x + y``, matrices of the size of a gradient, as the caller's own."""
        return x + y

    def subtract(self, x: A, part: Callable[[slice], A], *, axis: int) -> A:
        """Return ``x`` less what ``part`` gives for a slice of the dimension that is not ``axis``.

        ``x`` is the caller's own and not used again: an adapter may work block by block in its memory.
        """
        return x - part(slice(None))

    def divide_by_root(self, x: A, square: A, weights: tuple[Scalar, Scalar], eps: Scalar) -> A:
        """Return ``x / (sqrt(square) + eps)``, each divided by its weight first."""
        return (x / weights[0]) / (self.xp.sqrt(square / weights[1]) + eps)

    def add_signs(self, x: A, gradient: A, kept: A, scale: Scalar) -> A:
        """Return ``x + scale * sign(gradient - kept)``; ``x`` and ``kept`` are the caller's own and not used again."""
        return x + self.xp.sign(gradient - kept) * scale

    # -- choosing and moving columns -----------------------------------------------------------

    def as_index(self, indices: A) -> A:
        """Return ``indices`` in the integer dtype the library indexes with."""
        info = self.xp.__array_namespace_info__()
        return self.astype(indices, info.default_dtypes(device=self.device_of(indices))["indexing"])

    def column_sums(self, x: A, *, axis: int, squares: bool) -> A:
        """Return the sums of squares or of magnitudes of every column (axis -1) or row (axis -2)."""
        terms = x * x if squares else self.xp.abs(x)
        sums: A = self.xp.sum(terms, axis=-3 - axis)
        return sums

    def running_mean(self, mean: A, x: A, decay: Scalar, *, squares: bool, own: bool = False) -> A:
        """Return ``decay * mean + (1 - decay) * x``, of the squares of ``x`` where asked for.

        With ``own`` the ``mean`` is the caller's own and not used again: an adapter may work in its memory.
        """
        terms = x * x if squares else x
        return mean * decay + terms * (1 - decay)

    def top_k(self, scores: A, k: int) -> A:
        """Return the indices ``(..., k)`` of the largest scores, ascending; of equals the lower index wins."""
        order = self.xp.argsort(scores, axis=-1, descending=True, stable=True)[..., :k]
        return self.astype(self.xp.sort(order, axis=-1), self.xp.int32)

    def take(self, x: A, indices: A, *, axis: int) -> A:
        """Return the rows or columns ``indices`` ``(..., r)`` of the matrices ``x`` along ``axis``."""
        index = self.as_index(indices)
        if index.ndim == 1:
            taken: A = self.xp.take(x, index, axis=axis)
            return taken
        return self.xp.take_along_axis(x, self.spread(index, x, axis=axis), axis=axis)

    def take_kept(self, x: A, indices: A, kept: A, *, axis: int) -> A:
        """Return :meth:`take` of ``indices``, zero where ``kept`` ``(..., r)`` is false."""
        # A selection, not a product: what is left behind may be infinite.
        taken: A = self.xp.where(on_axis(kept, axis), self.take(x, indices, axis=axis), 0.0)
        return taken

    def pick(self, x: A, indices: A) -> A:
        """Return the entries ``indices`` ``(..., r)`` of the vectors ``x`` ``(..., n)``."""
        picked: A = self.xp.take_along_axis(x, self.as_index(indices), axis=-1)
        return picked

    def put(self, values: A, indices: A, size: int, *, axis: int) -> A:
        """Return zeros of ``size`` along ``axis`` with ``values`` at ``indices``: the reverse of :meth:`take`."""
        # The array API has no scatter. Gathering through the inverse map gives the same: place j takes
        # from the position of j among the indices, or from an appended zero.
        edge = values[..., :1] if axis == -1 else values[..., :1, :]
        padded = self.xp.concat([values, self.xp.zeros_like(edge)], axis=axis)
        position, _ = self.find(indices, size)
        return self.take(padded, position, axis=axis)

    def replace(self, x: A, values: A, indices: A, *, axis: int) -> A:
        """Return ``x`` with its rows or columns ``indices`` replaced by ``values``."""
        _, found = self.find(indices, x.shape[axis])
        put = self.put(values, indices, x.shape[axis], axis=axis)
        replaced: A = self.xp.where(on_axis(found, axis), put, x)
        return replaced

    def find(self, indices: A, size: int) -> tuple[A, A]:
        """Return for ``0 .. size - 1`` its position among ``indices`` (their number if none), and if it has one."""
        xp = self.xp
        places = xp.arange(size, dtype=indices.dtype, device=self.device_of(indices))
        match = indices[..., None] == places
        found = xp.any(match, axis=-2)
        first = xp.argmax(self.astype(match, xp.int8), axis=-2)
        return xp.where(found, first, indices.shape[-1]), found

    def match(self, previous: A, current: A) -> tuple[A, A]:
        """Return for each of ``current`` ``(..., r)`` its place in ``previous``, any if none, and if it has one."""
        xp = self.xp
        match: Any = current[..., :, None] == previous[..., None, :]
        return xp.argmax(self.astype(match, xp.int8), axis=-1), xp.any(match, axis=-1)

    def spread(self, index: A, x: A, *, axis: int) -> A:
        """Return ``index`` ``(..., r)`` repeated across the other dimension of the matrices ``x``."""
        shape = list(x.shape)
        shape[axis] = index.shape[-1]
        spread: A = self.xp.broadcast_to(on_axis(index, axis), tuple(shape))
        return spread

    # -- control -------------------------------------------------------------------------------

    def cond(self, predicate: bool | A, then: Callable[[], T], otherwise: Callable[[], T]) -> T:
        """Return ``then()`` if ``predicate`` holds, ``otherwise()`` if not; both give the same shapes."""
        return then() if bool(predicate) else otherwise()

    def workers(self) -> int:
        """Return how many items `for_each` works on at a time; up to so many may wait for one another."""
        return 1

    def by_rows(self, function: Callable[..., tuple[A, ...]], *arrays: A) -> tuple[A, ...]:
        """Return ``function(*arrays)``, arrays ``(..., k)`` with the same leading dimensions and one more each.

        ``function`` treats every row alone: an adapter may call it block by block.
        """
        return function(*arrays)

    def for_each(self, work: Callable[[T], object], items: Iterable[T]) -> None:
        """Call ``work`` for every item, in any order; no two write to the same array."""
        for item in items:
            work(item)

    def step_counter(self, device: Device = None) -> int | A:
        """Return a step count of zero: a host number, or a 0-d int32 array where steps are traced."""
        return 0

    def as_scalar(self, value: Scalar, like: A) -> Scalar:
        """Return a host number unchanged and an array as a 0-d array of the dtype of ``like``."""
        return self.astype(value, like.dtype) if is_array_api_obj(value) else value  # type: ignore[arg-type]

    def count_shards(self, length: int) -> int:
        """Return the length over all shards of a dimension that is ``length`` here: itself on one device."""
        return length

    def sum_shards(self, partial: A) -> A:
        """Return the sum of ``partial`` over all shards of the matrix: itself on one device."""
        return partial


#: Operations, whatever the array type.
Ops: TypeAlias = StandardOps[Any]


# What was found for each namespace and each array type. Dictionaries, because a graph compiler reads through
# them; the body of a cached function, here a search of the installed packages, it would trace.
_ops_of_namespace: dict[str, Ops] = {}
_ops_of_type: dict[type, Ops] = {}


def _find_ops(xp: Namespace) -> Ops:
    load(default_path())
    for entry in entry_points(group=ENTRY_POINT_GROUP, name=library_name(xp)):
        adapter: Ops = entry.load()(xp)
        return adapter
    return StandardOps(xp)


def ops_for(array: Array) -> Ops:
    """Return the operations for ``array``'s library: its adapter, or :class:`StandardOps` without one."""
    ops = _ops_of_type.get(type(array))
    if ops is None:
        xp = array_namespace(array)
        if xp.__name__ not in _ops_of_namespace:
            _ops_of_namespace[xp.__name__] = _find_ops(xp)
        ops = _ops_of_type[type(array)] = _ops_of_namespace[xp.__name__]
    return ops


def ops_for_namespace(xp: Namespace) -> Ops:
    """Return the operations for a namespace, wrapped for the array API where need be."""
    return ops_for(xp.empty(0))
