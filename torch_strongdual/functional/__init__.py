"""Pure functions of tensors: path penalties, their gradients and proximal maps, stacked branches."""

from torch_strongdual.functional.branch_features import branch_features as branch_features
from torch_strongdual.functional.branch_features import branch_outputs as branch_outputs
from torch_strongdual.functional.convolved_outputs import ConvolutionGeometry as ConvolutionGeometry
from torch_strongdual.functional.convolved_outputs import convolved_outputs as convolved_outputs
from torch_strongdual.functional.gate_masks import gate_masks as gate_masks
from torch_strongdual.functional.path_penalty import PATH_PENALTIES as PATH_PENALTIES
from torch_strongdual.functional.path_penalty import l2_path_penalty as l2_path_penalty
from torch_strongdual.functional.path_penalty import path_penalty as path_penalty
from torch_strongdual.functional.path_penalty import power_penalty as power_penalty
from torch_strongdual.functional.path_penalty import product_penalty as product_penalty
from torch_strongdual.functional.path_penalty_gradients import path_penalty_gradients as path_penalty_gradients
from torch_strongdual.functional.proximal import prox_branch_norm as prox_branch_norm
from torch_strongdual.functional.rebalance import rebalanced as rebalanced
from torch_strongdual.functional.stacked_outputs import stacked_outputs as stacked_outputs
