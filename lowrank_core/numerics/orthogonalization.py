"""The nearest matrix with orthonormal rows or columns, approximately, by Newton-Schulz iterations.

References
----------
K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), for the quintic iteration and
its coefficients; N. Amsel, D. Persson, C. Musco, R. M. Gower, "The Polar Express: optimal matrix sign methods and
their application to the Muon algorithm", arXiv 2505.16932, for coefficients that differ from step to step.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple, get_args

from lowrank_core._checks import check_choice, check_integer, check_matrix
from lowrank_core._typing import Array, Scalar
from lowrank_core.numerics.scaling import scaled_to_one
from lowrank_core.ops.precision import to_compute
from lowrank_core.ops.registry import ops_for
from lowrank_core.ops.standard import Ops
from lowrank_core.option_types import Coefficients

Polynomial = tuple[float, float, float]

COEFFICIENTS = get_args(Coefficients)
FORMS = ("auto", "direct", "gram")

_MUON: Polynomial = (3.4445, -4.7750, 2.0315)
# Optimal for singular values in [1e-3, 1], step by step; the last one repeats.
_POLAR_EXPRESS: tuple[Polynomial, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
# Rounding can push a singular value past 1, where the first polynomials diverge: they are applied to slightly
# smaller numbers, as the paper advises.
_SAFETY = 1.01
# Squaring halves the digits that small singular values have in the Gram matrix. After so many steps they have
# grown enough to be seen, and it is formed afresh; at the start, where they are smallest, a step sooner.
_FIRST_GRAM_STEPS, _GRAM_STEPS = 2, 3
# With the long side at least this many times the short one, two products with the long side less pay for the
# extra products of the small ones.
_GRAM_ASPECT = 1.5


def orthogonalize(
    x: Array, /, *, steps: int = 5, coefficients: str = "muon", form: str = "auto"
) -> Array:
    """Return ``x`` with its singular values brought near 1, its singular vectors kept.

    Each step maps ``X`` to ``c0 X + c1 X K + c2 X K^2`` with ``K = X^T X``, starting from ``X / ||X||_F``. The Gram
    form iterates on the small matrix alone, ``K -> T K T`` with ``T = c0 I + c1 K + c2 K^2``, and multiplies by the
    product of all ``T`` after the second step, then after every third and after the last.

    Parameters
    ----------
    x
        ``(..., m, n)``, real floating-point; computed in float32 (float64 for float64).
    steps
        Number of iterations, at least 1.
    coefficients
        ``"muon"``: one polynomial for every step, after five of which singular values that were above about 0.002
        of the Frobenius norm lie in [0.65, 1.25]; ``"polar_express"``: the best polynomial for each step, closer
        to 1.
    form
        ``"direct"``, ``"gram"``, or ``"auto"`` for the cheaper one. A choice of speed alone.

    Returns
    -------
    Array
        Shape and dtype of ``x``, dimensionless; zero for an ``x`` of zeros.

    Raises
    ------
    TypeError, ValueError
        If an argument is none of the above.
    """
    ops = ops_for(x)
    check_matrix("x", x, ops.xp)
    check_orthogonalization(steps, coefficients)
    check_choice("form", form, FORMS)
    iteration = NewtonSchulz(int(steps), coefficients)
    wide, _ = scaled_to_one(to_compute(x, ops), ops)
    if form == "direct" or (form == "auto" and is_direct(*x.shape[-2:])):
        result = orthogonalize_directly(wide, iteration, ops)
    else:
        axis = -1 if x.shape[-1] <= x.shape[-2] else -2
        result = wide
        for round_ in iteration.rounds():
            result = multiply(result, iteration.factor(gram(result, axis, ops), round_, ops), axis)
    return ops.astype(result, x.dtype)


def check_orthogonalization(steps: int, coefficients: str) -> None:
    """Raise unless the iteration is one there is."""
    check_integer("steps", steps, low=1)
    check_choice("coefficients", coefficients, COEFFICIENTS)


def is_direct(rows: int, columns: int) -> bool:
    """Return whether iterating on a matrix itself is cheaper than iterating on its Gram matrix."""
    return max(rows, columns) < _GRAM_ASPECT * min(rows, columns)


def orthogonalize_directly(x: Array, iteration: NewtonSchulz, ops: Ops) -> Array:
    """Return ``X`` after all steps ``X <- c0 X + X (c1 K + c2 K^2)`` with ``K = X^T X``, from ``X / ||X||_F``."""
    axis = -1 if x.shape[-1] <= x.shape[-2] else -2
    square = ops.xp.sum(x * x, axis=(-2, -1))[..., None, None]
    x = x / _norm(square, iteration.coefficients, ops)
    for c0, c1, c2 in _polynomials(iteration.steps, iteration.coefficients):
        k = gram(x, axis, ops)
        x = c0 * x + multiply(x, c1 * k + c2 * (k @ k), axis)
    return x * iteration.scale


class NewtonSchulz(NamedTuple):
    """Newton-Schulz steps on a Gram matrix ``K = X^T X`` alone, in rounds between which ``K`` is formed afresh.

    ``X`` after a round is ``X`` times the round's :meth:`factor`. Only ``K``, a sum over rows, mixes the rows of ``X``:
    so parts of a matrix are orthonormalised where they are once their Gram matrices have been added up.
    """

    steps: int
    coefficients: str
    #: What the result is multiplied by.
    scale: Scalar = 1.0

    def rounds(self) -> list[tuple[int, int]]:
        """Return the rounds, each as its first step and the first step of the next."""
        return list(pairwise([0, *range(_FIRST_GRAM_STEPS, self.steps, _GRAM_STEPS), self.steps]))

    def factor(self, k: Array, round_: tuple[int, int], ops: Ops) -> Array:
        """Return the product of the ``T = c0 I + c1 K + c2 K^2`` of a round, ``K`` becoming ``T K T`` after each."""
        xp, (start, stop) = ops.xp, round_
        eye = xp.eye(k.shape[-1], dtype=k.dtype, device=ops.device_of(k))
        # What scales the whole scales the small matrix.
        weight: Scalar = self.scale if stop == self.steps else 1.0
        if start == 0:
            square = xp.sum(k * eye, axis=(-2, -1))[..., None, None]
            norm = _norm(square, self.coefficients, ops)
            k = k / (norm * norm)
            weight = weight / norm
        product = eye
        polynomials = _polynomials(self.steps, self.coefficients)[start:stop]
        for place, (c0, c1, c2) in enumerate(polynomials, start=1):
            factor = c0 * eye + c1 * k + c2 * (k @ k)
            # All factors are polynomials in one symmetric matrix: symmetric, and their order does not matter.
            product = factor if place == 1 else product @ factor
            if place < len(polynomials):  # after the last it is formed afresh, or not needed
                k = factor @ k @ factor
        return product * weight


def gram(x: Array, axis: int, ops: Ops) -> Array:
    """Return ``x^T x`` (axis -1) or ``x x^T`` (axis -2)."""
    transposed: Array = ops.xp.matrix_transpose(x)
    return transposed @ x if axis == -1 else x @ transposed


def multiply(x: Array, small: Array, axis: int) -> Array:
    """Return ``x @ small`` (axis -1) or ``small @ x`` (axis -2)."""
    return x @ small if axis == -1 else small @ x


def _norm(square: Array, coefficients: str, ops: Ops) -> Array:
    """Return what to divide by: the Frobenius norm (with a margin where the polynomials need one), 1 for zero."""
    norm = ops.xp.sqrt(square)
    if coefficients == "polar_express":
        norm = norm * _SAFETY
    return ops.xp.where(norm == 0, ops.xp.ones_like(norm), norm)


def _polynomials(steps: int, coefficients: str) -> list[Polynomial]:
    if coefficients == "muon":
        return [_MUON] * steps
    chosen = [_POLAR_EXPRESS[min(step, len(_POLAR_EXPRESS) - 1)] for step in range(steps)]
    careful = [(c0 / _SAFETY, c1 / _SAFETY**3, c2 / _SAFETY**5) for c0, c1, c2 in chosen[:-1]]
    return [*careful, chosen[-1]]
