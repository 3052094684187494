"""Low-rank optimizer state in a fixed orthonormal basis: the mathematics, on any array library.

Every function takes arrays of a library that follows the Python array API (NumPy, CuPy, PyTorch, JAX, ...)
and returns new arrays of the same library; nothing is changed in place and nothing is remembered.
"""

from lowrank_core.bases.basis import Basis
from lowrank_core.bases.dct import dct, dct_matrix, idct
from lowrank_core.bases.registry import basis_names, get_basis, register_basis
from lowrank_core.calibration import calibrate, use_crossovers
from lowrank_core.numerics.orthogonalization import orthogonalize
from lowrank_core.numerics.quantization import Quantized, dequantize, quantize
from lowrank_core.ops.crossovers import Crossovers
from lowrank_core.ops.registry import ops_for, ops_for_namespace
from lowrank_core.ops.standard import StandardOps
from lowrank_core.rules.dct_adamw import dct_adamw_init, dct_adamw_step
from lowrank_core.rules.dct_adamw_config import DCTAdamWConfig, DCTAdamWState
from lowrank_core.rules.dct_adamw_projected import dct_adamw_project, dct_adamw_step_projected
from lowrank_core.rules.diagnostics import MatrixDiagnostics
from lowrank_core.rules.presets import PRESETS, TRION_PRESETS
from lowrank_core.rules.state import state_bytes
from lowrank_core.rules.trion import trion_init, trion_step
from lowrank_core.rules.trion_config import TrionConfig, TrionState
from lowrank_core.subspace.columns import carry_columns, column_scores, select_columns
from lowrank_core.subspace.projection import lift, project
from lowrank_core.subspace.update import (
    CoefficientRest,
    DenseRest,
    LowRankUpdate,
    SignRest,
    materialize,
)

__version__ = "0.1.0"

__all__ = [
    "PRESETS",
    "TRION_PRESETS",
    "Basis",
    "CoefficientRest",
    "Crossovers",
    "DCTAdamWConfig",
    "DCTAdamWState",
    "DenseRest",
    "LowRankUpdate",
    "MatrixDiagnostics",
    "Quantized",
    "SignRest",
    "StandardOps",
    "TrionConfig",
    "TrionState",
    "basis_names",
    "calibrate",
    "carry_columns",
    "column_scores",
    "dct",
    "dct_adamw_init",
    "dct_adamw_project",
    "dct_adamw_step",
    "dct_adamw_step_projected",
    "dct_matrix",
    "dequantize",
    "get_basis",
    "idct",
    "lift",
    "materialize",
    "ops_for",
    "ops_for_namespace",
    "orthogonalize",
    "project",
    "quantize",
    "register_basis",
    "select_columns",
    "state_bytes",
    "trion_init",
    "trion_step",
    "use_crossovers",
]
