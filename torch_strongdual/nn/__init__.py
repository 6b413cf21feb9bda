"""Parallel networks and the layers they are made of."""

from torch_strongdual.nn.branch_sequential import BranchSequential as BranchSequential
from torch_strongdual.nn.branch_spec import BranchActivation as BranchActivation
from torch_strongdual.nn.branch_spec import BranchSpec as BranchSpec
from torch_strongdual.nn.branch_spec_of import branch_spec_of as branch_spec_of
from torch_strongdual.nn.gated_relu import GatedReLU as GatedReLU
from torch_strongdual.nn.match_branches import match_branches_ as match_branches_
from torch_strongdual.nn.parallel_net import ParallelNet as ParallelNet
from torch_strongdual.nn.parallel_weights import ParallelWeights as ParallelWeights
from torch_strongdual.nn.patch_map import PatchGrid as PatchGrid
from torch_strongdual.nn.patch_map import PatchMap as PatchMap
