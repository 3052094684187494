"""The registry of fixed bases by name, open to users' own."""

from __future__ import annotations

from functools import cache

from lowrank_core._checks import check_kind
from lowrank_core.bases.basis import Basis, MatrixFunction
from lowrank_core.bases.cosines import Cosine, LocalCosine, TransposedCosine
from lowrank_core.bases.families import (
    Haar,
    Hadamard,
    Hartley,
    Identity,
    legendre_matrix,
    random_basis,
)

#: Bases that are not fixed: their vectors are computed from the gradient and are state.
STORED_BASES = ("svd", "power")

_REGISTRY: dict[str, Basis] = {
    basis.name: basis
    for basis in (
        Cosine(),
        TransposedCosine(),
        LocalCosine(),
        Hartley(),
        Hadamard(),
        Haar(),
        Basis("legendre", legendre_matrix),
        Identity(),
    )
}

_random_basis = cache(random_basis)


def basis_names() -> tuple[str, ...]:
    """Return the names of the fixed bases; ``random`` also takes a seed, as ``random:7``."""
    return (*_REGISTRY, "random")


def get_basis(name: str) -> Basis:
    """Return the basis of a name.

    Raises
    ------
    TypeError, ValueError
        If there is none of that name.
    """
    check_kind("basis", name, str, "the name of a basis")
    if name in _REGISTRY:
        return _REGISTRY[name]
    kind, _, seed = name.partition(":")
    if kind == "random" and (seed.isdecimal() or name == kind):
        return _random_basis(int(seed or 0))
    listed = ", ".join(repr(known) for known in basis_names())
    raise ValueError(f"basis must be one of {listed} (or 'random:SEED'), got {name!r}")


def register_basis(name: str, matrix: MatrixFunction | Basis) -> Basis:
    """Make a basis of one's own known by ``name`` to every function and optimizer.

    Parameters
    ----------
    name
        A name not yet taken, without a colon.
    matrix
        ``matrix(size, /, *, xp, dtype, device)`` returns the ``(size, size)`` orthonormal matrix whose columns are the
        basis vectors, in namespace ``xp``. Called once for each size, dtype and device in use. Instead, an object of
        a subclass of `Basis`, which may have a fast transform.

    Returns
    -------
    Basis
        The registered basis.

    Raises
    ------
    TypeError, ValueError
        If ``matrix`` is neither, or the name is taken, has a colon, or is not the one that the object of `Basis` has.
    """
    check_kind("name", name, str, "a name")
    if not name or name in (*basis_names(), *STORED_BASES) or ":" in name:
        raise ValueError(f"name must be new and without a colon, got {name!r}")
    if not (isinstance(matrix, Basis) or callable(matrix)):
        raise TypeError(f"matrix must be a function or a Basis, got {matrix!r}")
    basis = matrix if isinstance(matrix, Basis) else Basis(name, matrix)
    if basis.name != name:  # shared matrices go by it
        raise ValueError(f"name must be the basis's own, {basis.name!r}, got {name!r}")
    _REGISTRY[name] = basis
    return basis
