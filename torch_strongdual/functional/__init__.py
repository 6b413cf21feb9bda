"""Pure functions of tensors: path penalties, their gradients and proximal maps, stacked branches."""

from torch_strongdual.functional.branch_features import branch_features, branch_outputs
from torch_strongdual.functional.path_penalty import (
    PATH_PENALTIES,
    l2_path_penalty,
    path_penalty,
    power_penalty,
    product_penalty,
)
from torch_strongdual.functional.path_penalty_gradients import path_penalty_gradients
from torch_strongdual.functional.proximal import prox_branch_norm
from torch_strongdual.functional.rebalance import rebalanced

__all__ = [
    "PATH_PENALTIES",
    "branch_features",
    "branch_outputs",
    "l2_path_penalty",
    "path_penalty",
    "path_penalty_gradients",
    "power_penalty",
    "product_penalty",
    "prox_branch_norm",
    "rebalanced",
]
