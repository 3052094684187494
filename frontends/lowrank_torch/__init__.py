"""PyTorch optimizers with low-rank state in a fixed orthonormal basis."""

from lowrank_torch._backward import (
    GradientHooks,
    ProjectedAccumulation,
    accumulate_projected,
    step_in_backward,
)
from lowrank_torch._collectives import Traffic
from lowrank_torch._compression import compressed_gradients
from lowrank_torch._dct_adamw import DCTAdamW
from lowrank_torch._for_model import for_trainer
from lowrank_torch._groups import matrix_groups
from lowrank_torch._optimizer import LowRankOptimizer
from lowrank_torch._report import ParameterSummary
from lowrank_torch._roles import ParameterRole, parameter_roles, role_table
from lowrank_torch._trion import Trion

__all__ = [
    "DCTAdamW",
    "GradientHooks",
    "LowRankOptimizer",
    "ParameterRole",
    "ParameterSummary",
    "ProjectedAccumulation",
    "Traffic",
    "Trion",
    "accumulate_projected",
    "compressed_gradients",
    "for_trainer",
    "matrix_groups",
    "parameter_roles",
    "role_table",
    "step_in_backward",
]
