"""Optimizers that minimise loss plus path penalty."""

from torch_strongdual.optim.abstract_path_optimizer import AbstractPathOptimizer as AbstractPathOptimizer
from torch_strongdual.optim.path_adamw import PathAdamW as PathAdamW
from torch_strongdual.optim.path_adamw import path_adamw as path_adamw
from torch_strongdual.optim.path_sgd import PathSGD as PathSGD
from torch_strongdual.optim.path_sgd import path_sgd as path_sgd
