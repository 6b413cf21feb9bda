"""Training problems whose optimum is known, because they were built around it."""

from torch_strongdual.problems.planted_gated_relu import planted_gated_relu as planted_gated_relu
from torch_strongdual.problems.planted_linear import planted_linear as planted_linear
from torch_strongdual.problems.planted_orthonormal_relu import planted_orthonormal_relu as planted_orthonormal_relu
from torch_strongdual.problems.planted_problem import PlantedProblem as PlantedProblem
from torch_strongdual.problems.planted_rank_one_relu import planted_rank_one_relu as planted_rank_one_relu
