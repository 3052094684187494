"""PyTorch optimizers with low-rank state in a fixed orthonormal basis."""

from importlib.util import find_spec

if find_spec("torch") is None:
    raise ImportError("lowrank_torch needs PyTorch: pip install 'lowrank-core[torch]'")

from lowrank_core import __version__
from lowrank_torch._backward import (
    GradientHooks,
    ProjectedAccumulation,
    accumulate_projected,
    step_in_backward,
)
from lowrank_torch._collectives import Traffic
from lowrank_torch._compression import compressed_gradients
from lowrank_torch._dct_adamw import DCTAdamW
from lowrank_torch._for_trainer import for_trainer
from lowrank_torch._groups import matrix_groups
from lowrank_torch._optimizer import LowRankOptimizer
from lowrank_torch._report import ParameterSummary, Summary
from lowrank_torch._roles import ParameterRole, parameter_roles, role_table
from lowrank_torch._trion import Trion

__all__ = [
    "DCTAdamW",
    "GradientHooks",
    "LowRankOptimizer",
    "ParameterRole",
    "ParameterSummary",
    "ProjectedAccumulation",
    "Summary",
    "Traffic",
    "Trion",
    "__version__",
    "accumulate_projected",
    "compressed_gradients",
    "for_trainer",
    "matrix_groups",
    "parameter_roles",
    "role_table",
    "step_in_backward",
]
