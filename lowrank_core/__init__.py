"""Low-rank optimizer state in a fixed orthonormal basis: the mathematics, on any array library.

Every function takes arrays of a library that follows the Python array API (NumPy, CuPy, PyTorch, JAX, ...)
and returns new arrays of the same library; nothing is changed in place and nothing is remembered.
"""

from lowrank_core.bases import basis_names, get_basis, register_basis
from lowrank_core.basis import Basis
from lowrank_core.columns import carry_columns, column_scores, select_columns
from lowrank_core.crossovers import Crossovers, calibrate
from lowrank_core.dct_adamw import dct_adamw_init, dct_adamw_step, dct_adamw_survey
from lowrank_core.dct_adamw_config import DCTAdamWConfig, DCTAdamWState
from lowrank_core.dct_adamw_projected import dct_adamw_project, dct_adamw_step_projected
from lowrank_core.ops import StandardOps, ops_for, ops_for_namespace
from lowrank_core.orthogonalization import orthogonalize
from lowrank_core.projection import lift, project
from lowrank_core.quantization import Quantized, dequantize, quantize
from lowrank_core.state import state_bytes
from lowrank_core.transforms import dct, dct_matrix, idct
from lowrank_core.trion import TrionConfig, TrionState, trion_init, trion_step, trion_survey
from lowrank_core.update import LowRankUpdate, materialize

__version__ = "0.1.0"

__all__ = [
    "Basis",
    "Crossovers",
    "DCTAdamWConfig",
    "DCTAdamWState",
    "LowRankUpdate",
    "Quantized",
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
    "dct_adamw_survey",
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
    "trion_survey",
]
