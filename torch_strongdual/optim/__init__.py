"""Optimizers that minimise loss plus path penalty."""

from torch_strongdual.optim.path_adamw import PathAdamW, path_adamw
from torch_strongdual.optim.path_sgd import PathSGD, path_sgd

__all__ = ["PathAdamW", "PathSGD", "path_adamw", "path_sgd"]
