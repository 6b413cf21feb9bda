"""The problem that a certificate speaks of, from the data it was issued for."""

from __future__ import annotations

import math

from torch import Tensor, nn

from torch_strongdual.certification.certificate import Certificate
from torch_strongdual.certification.training_problem import PrimalValue, TrainingProblem
from torch_strongdual.errors import InvalidInputError
from torch_strongdual.nn import ParallelWeights

__all__ = ["certified_problem"]

_RTOL = 1e-9  # processors may add up in another order


def certified_problem(
    certificate: Certificate, net: nn.Module, inputs: Tensor, targets: Tensor, *, loss: nn.Module
) -> tuple[TrainingProblem, PrimalValue]:
    """The training problem, and what ``net`` attains in it.

    Raises:
        InvalidInputError: If the objective of ``net`` on these data is not that of the certificate, or not finite.
        UnsupportedModelError: As :func:`certify`; so are the other errors.
    """
    problem = TrainingProblem.from_model(
        net, inputs, targets, loss=loss, path_decay=certificate.path_decay, penalty=certificate.penalty
    )
    primal = problem.primal(ParallelWeights.from_module(net))
    if not math.isclose(primal.value, certificate.primal_value, rel_tol=_RTOL):
        raise InvalidInputError(
            f"The objective of `net` is {primal.value!r} on these data, but `certificate` says {certificate.primal_value!r}; "
            "expected the certificate of this network, data and loss, with finite numbers."
        )
    return problem, primal
