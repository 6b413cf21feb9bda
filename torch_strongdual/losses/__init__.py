"""Convex training losses bound to their targets, with everything duality needs: conjugate, domain, residual.

:func:`conjugate_loss` maps a torch module to one of these; :class:`HalfSquaredLoss` is a module to train with.
"""

from torch_strongdual.losses.abstract_dual_loss import AbstractDualLoss as AbstractDualLoss
from torch_strongdual.losses.abstract_dual_loss import FeasiblePoint as FeasiblePoint
from torch_strongdual.losses.from_torch import conjugate_loss as conjugate_loss
from torch_strongdual.losses.half_squared_loss import HalfSquaredLoss as HalfSquaredLoss
from torch_strongdual.losses.huber_family import HuberFamilyLoss as HuberFamilyLoss
from torch_strongdual.losses.logistic_loss import LogisticLoss as LogisticLoss
from torch_strongdual.losses.softmax_loss import SoftmaxLoss as SoftmaxLoss
