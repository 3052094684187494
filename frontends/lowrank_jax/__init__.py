"""Optax gradient transformations with low-rank optimizer state."""

from importlib.util import find_spec

if find_spec("jax") is None or find_spec("optax") is None:
    raise ImportError("lowrank_jax needs JAX and Optax: pip install 'lowrank-core[jax]'")

from lowrank_core import __version__
from lowrank_jax._axes import MatrixAxes, axes_by_name, matrix_mask
from lowrank_jax._dct_adamw import dct_adamw, scale_by_dct_adam
from lowrank_jax._diagnostics import Step, diagnostics
from lowrank_jax._options import static_options
from lowrank_jax._portable import load_state, save_state
from lowrank_jax._scale import ScaleByLowRankState
from lowrank_jax._summary import LeafSummary, Summary, summary
from lowrank_jax._trion import scale_by_trion, trion

__all__ = [
    "LeafSummary",
    "MatrixAxes",
    "ScaleByLowRankState",
    "Step",
    "Summary",
    "__version__",
    "axes_by_name",
    "dct_adamw",
    "diagnostics",
    "load_state",
    "matrix_mask",
    "save_state",
    "scale_by_dct_adam",
    "scale_by_trion",
    "static_options",
    "summary",
    "trion",
]
