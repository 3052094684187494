"""What a rule of update is to those who run it, and what one of its steps is bound to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, TypeVar

from lowrank_core._typing import Array, Device
from lowrank_core.bases.registry import STORED_BASES, get_basis
from lowrank_core.layout import Layout, with_side_of
from lowrank_core.ops.passes import PassedRows
from lowrank_core.ops.rows import RowWrite
from lowrank_core.ops.standard import Ops
from lowrank_core.rules.reductions import Steps
from lowrank_core.subspace.update import LowRankUpdate

Config = TypeVar("Config", bound=Any)


@dataclass(frozen=True, eq=False)
class MatrixStep(Generic[Config]):
    """What the steps of one matrix (or of a stack of same-shaped ones) need and do not change.

    Attributes
    ----------
    config
        The rule's options, with the side stated where a step is given parts of the matrix.
    layout
        Geometry of the whole matrix, whatever part of its rows a step is given.
    basis
        Its `Basis`; ``None`` where the vectors are state.
    ops
        Operations of the array library.
    method
        How all coefficients are made: ``"matmul"`` with the whole basis, or ``"fft"``.
    by_columns
        Whether a product with the chosen basis vectors alone is faster than a transform.
    in_parts
        Whether a step is given some of the rows, and its sums are over several such parts.
    """

    config: Config
    layout: Layout
    basis: Any
    ops: Ops
    method: str = "matmul"
    by_columns: bool = False
    in_parts: bool = False


def bind(
    config: Config, shape: tuple[int, ...], ops: Ops, device: Device, *, in_parts: bool = False
) -> MatrixStep[Config]:
    """Return what steps on matrices of ``shape`` on ``device`` need, or on parts of them.

    Raises
    ------
    ValueError
        If the options do not fit the shape.
    """
    layout = config.layout(shape)
    config = config.simplified(layout)
    if in_parts:
        config = with_side_of(config, layout.axis)
    if config.basis in STORED_BASES:
        return MatrixStep(config, layout, None, ops, in_parts=in_parts)
    basis, rank, size, asked = get_basis(config.basis), layout.rank, layout.size, config.method
    method = "matmul" if basis.by_matrix(size, asked, device, ops) else "fft"
    by_columns = basis.by_columns(rank, size, asked, device, ops)
    return MatrixStep(config, layout, basis, ops, method, by_columns, in_parts)


def _always(_state: Any, _matrix: MatrixStep[Any]) -> bool:
    return True


class RowPasses(NamedTuple):
    """A step in passes over memory, in place, where an adapter has kernels for them (`StandardOps.row_kernels`)."""

    #: ``fits(matrix)``: whether steps of ``matrix`` can be done so.
    fits: Callable[[MatrixStep[Any]], bool]
    #: ``steps(rows, state, matrix, due)``: all of a step but its last pass; ``rows`` are `PassedRows`, ``due`` that
    #: of ``Rule.steps``. Returns what the last pass takes, and the state after it, its arrays of rows those of before.
    steps: Callable[[PassedRows[Any], Any, MatrixStep[Any], Any], Steps[tuple[Any, Any]]]
    #: ``write(rows, states, matrix, job, writes)``: the last pass; ``states`` are those of the matrices, one after the
    #: other, ``job`` what it takes, and of ``writes`` each a `RowWrite`.
    write: Callable[
        [PassedRows[Any], Sequence[Any], MatrixStep[Any], Any, Sequence[RowWrite]], object
    ]
    #: Names of the arrays of the state that have rows: the last pass writes to them.
    arrays: tuple[str, ...]
    #: Which of them is added to the gradient before it is transformed; empty for none.
    added: str = ""

    def of_rows(self, state: Any) -> dict[str, Any]:
        """Return the arrays of a state that have rows, by name."""
        return {name: getattr(state, name) for name in self.arrays}


class Rule(NamedTuple):
    """A rule of update, as frontends and state files know it."""

    #: What it is called in options, summaries and files.
    name: str
    #: Type of its options.
    config: type[Any]
    #: Type of its state.
    state: type[Any]
    #: ``init(shape, config, *, xp, dtype, device)``: the state before the first step.
    init: Callable[..., Any]
    #: ``steps(gradient, state, matrix, due)``: one step on some or all rows of ``matrix``, a `MatrixStep`, whose
    #: columns stay if ``due`` is ``False``, and are chosen anew if it is what ``due`` below returns.
    steps: Callable[[Array, Any, MatrixStep[Any], Any], Steps[tuple[LowRankUpdate, Any]]]
    #: Whether what a step does depends on how many there have been.
    step_dependent: bool = True
    #: ``due(state, matrix)``: whether the next step chooses columns, ``True`` or booleans ``(...)`` for which matrices.
    due: Callable[[Any, MatrixStep[Any]], Any] = _always
    #: ``project(gradient, state, matrix)`` and ``step_projected(low_rank, state, matrix)``: the coefficients of a
    #: gradient on the current columns, and the step on these alone; ``None`` where the rule has no such step.
    project: Callable[[Array, Any, MatrixStep[Any]], Array] | None = None
    step_projected: Callable[[Array, Any, MatrixStep[Any]], tuple[LowRankUpdate, Any]] | None = None
    #: How a step is done in passes over rows, in place; ``None`` where the rule has no such step.
    passes: RowPasses | None = None
    #: ``choose(gradient, state, matrix)``: the columns ``(..., r)`` that the next step takes, of a rule whose state has
    #: none; ``None`` where the state after a step has them.
    choose: Callable[[Array, Any, MatrixStep[Any]], Array] | None = None
    #: Options that go together, by the name that stands for them.
    presets: Mapping[str, Mapping[str, Any]] = MappingProxyType({})

    @property
    def uses_rng(self) -> bool:
        """Whether ``init`` takes a ``stream``, so that each matrix draws random numbers of its own."""
        return "key" in self.state._fields
