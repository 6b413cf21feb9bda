"""Upper bounds on the dual norm, one family a file."""

from torch_strongdual.certification.oracles.abstract_oracle import AbstractDualNormOracle as AbstractDualNormOracle
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest as BoundRequest
from torch_strongdual.certification.oracles.angular_sweep_oracle import AngularSweepOracle as AngularSweepOracle
from torch_strongdual.certification.oracles.auto_oracle import AutoOracle as AutoOracle
from torch_strongdual.certification.oracles.auto_two_layer_oracle import AutoTwoLayerOracle as AutoTwoLayerOracle
from torch_strongdual.certification.oracles.batched_box_branch_and_bound import (
    BatchedBoxBranchAndBound as BatchedBoxBranchAndBound,
)
from torch_strongdual.certification.oracles.box_branch_and_bound import BoxBranchAndBound as BoxBranchAndBound
from torch_strongdual.certification.oracles.composition import FirstTight as FirstTight
from torch_strongdual.certification.oracles.composition import Tightest as Tightest
from torch_strongdual.certification.oracles.depth_recursion import DepthRecursion as DepthRecursion
from torch_strongdual.certification.oracles.doubly_nonnegative_relaxation import (
    DoublyNonnegativeRelaxation as DoublyNonnegativeRelaxation,
)
from torch_strongdual.certification.oracles.gated_oracle import GatedOracle as GatedOracle
from torch_strongdual.certification.oracles.linear_oracle import LinearOracle as LinearOracle
from torch_strongdual.certification.oracles.local_search import LocalSearch as LocalSearch
from torch_strongdual.certification.oracles.patch_oracle import PatchOracle as PatchOracle
from torch_strongdual.certification.oracles.polynomial_sandwich import PolynomialSandwich as PolynomialSandwich
from torch_strongdual.certification.oracles.quadratic_relaxation import QuadraticRelaxation as QuadraticRelaxation
from torch_strongdual.certification.oracles.rank_one_oracle import RankOneOracle as RankOneOracle
from torch_strongdual.certification.oracles.sphere_problem import SphereBound as SphereBound
from torch_strongdual.certification.oracles.sphere_problem import SphereProblem as SphereProblem
from torch_strongdual.certification.oracles.two_layer import AbstractTwoLayerOracle as AbstractTwoLayerOracle
