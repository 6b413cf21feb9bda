"""The derivative of the optimum in the strength of the penalty, with a proof."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from torch import Tensor, nn

from torch_strongdual.certification._own_defaults import with_own_defaults
from torch_strongdual.certification.certificate import Certificate
from torch_strongdual.certification.path_decay_sensitivity import PathDecaySensitivity
from torch_strongdual.certification.training_problem import PrimalValue, TrainingProblem
from torch_strongdual.errors import InvalidInputError
from torch_strongdual.nn import ParallelWeights

__all__ = ["path_decay_sensitivity"]

_STEPS = [2.0**-k for k in range(1, 27)]  # down by these fractions of the strength, and up
_UNIT = 2.0**-53
_RTOL = 1e-9  # of the objective: processors may add up in another order


@with_own_defaults
def path_decay_sensitivity(
    net: nn.Module,
    inputs: Tensor,  # shape: (num_samples, in_features)
    targets: Tensor,  # shape: (num_samples, out_features) or as the loss takes them
    *,
    loss: nn.Module,
    certificate: Certificate,
    neighbours: Sequence[Certificate] = (),
) -> PathDecaySensitivity:
    r"""The derivative of the optimal objective in ``path_decay``, and an interval in which it is proven to lie.

    The optimum :math:`P(\beta) = \min_f \ell(f) + \beta R(f)` is a minimum of lines, so it is concave, and the penalty
    :math:`R` of an optimal network is its slope. The network at hand need not be optimal; but a concave function lies below its
    tangents, so for every optimal network, every :math:`b < \beta` and :math:`b' > \beta`

    .. math::
        \frac{D(b') - U}{b' - \beta} \;\le\; R \;\le\; \frac{U - D(b)}{\beta - b}

    with :math:`U` the objective attained and :math:`D(b), D(b')` the bounds that the certificate's dual point proves at other
    strengths, rescaled until it is feasible there. No oracle is asked. For squared and logistic losses the interval is about
    as wide as the root of the gap. Losses with bounded slopes may not let the dual point grow; for them, and for a
    narrower interval in any case, pass certificates at strengths close by.

    Args:
        net: The network the certificate was issued for, such as ``result.net`` of :func:`optimize_to_certificate`.
        inputs: The inputs it was issued for.
        targets: The targets it was issued for.
        loss: The loss it was issued for.
        certificate: From :func:`certify` or :func:`optimize_to_certificate`; strength and penalty are read off it.
        neighbours: Certificates at other strengths for the same data, loss and architecture.

    Returns:
        A :class:`PathDecaySensitivity`. Without a proven bound the interval is all that the data allow, up to ``inf``.

    Raises:
        InvalidInputError: If the certificate is not of this network on these data.
        UnsupportedModelError: As :func:`certify`; so are the other errors.

    Example:
        >>> import torch
        >>> from torch_strongdual.certification import optimize_to_certificate
        >>> from torch_strongdual.losses import HalfSquaredLoss
        >>> from torch_strongdual.nn import ParallelNet
        >>> net = ParallelNet(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False), num_branches=1)
        >>> x, y, loss = torch.eye(2), torch.tensor([[2.0], [0.0]]), HalfSquaredLoss()
        >>> result = optimize_to_certificate(net, x, y, loss=loss, path_decay=0.5, rtol=1e-6)
        >>> found = path_decay_sensitivity(result.net, x, y, loss=loss, certificate=result.certificate)
        >>> round(found.penalty, 2), found.lower <= 1.5 <= found.upper <= 1.51  # the optimum is (2 - 0.25) / 2 + ...
        (1.5, True)

    References:
        Danskin, "The Theory of Max-Min", Springer 1967 (envelope theorem).
    """
    problem, primal = _certified_problem(certificate, net, inputs, targets, loss=loss)
    attained, strength = primal.value, problem.path_decay
    lower, upper = 0.0, math.inf  # penalties are never negative
    proofs = [(certificate, strength * factor) for step in _STEPS for factor in (1.0 + step, 1.0 - step)]
    for proof, other in [*proofs, *((neighbour, neighbour.path_decay) for neighbour in neighbours)]:
        slope = (_proven(problem, proof, other) - attained) / (other - strength) if other != strength else math.nan
        lower = max(lower, _lowered(slope)) if other > strength else lower
        upper = min(upper, _raised(slope)) if other < strength else upper
    if problem.loss.is_non_negative:
        upper = min(upper, _raised(attained / strength))
    return PathDecaySensitivity(
        path_decay=strength, optimum=certificate.primal_value, penalty=primal.penalty, lower=lower, upper=upper
    )


def _certified_problem(
    certificate: Certificate, net: nn.Module, inputs: Tensor, targets: Tensor, *, loss: nn.Module
) -> tuple[TrainingProblem, PrimalValue]:
    """The training problem that a certificate speaks of, from the data it was issued for, and what ``net`` attains in it.

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


def _proven(problem: TrainingProblem, certificate: Certificate, path_decay: float) -> float:
    """What the dual point of the certificate proves at another strength; ``-inf`` if there is none."""
    norm = float(certificate.evidence.get("dual_norm_upper", math.inf))
    if certificate.dual_point is None:
        return -math.inf
    return dataclasses.replace(problem, path_decay=path_decay).scaled_bound(certificate.dual_point, norm).value


def _raised(quotient: float) -> float:
    """Above the exact quotient of two differences, each rounded, as it is."""
    return math.nextafter(quotient + 8 * _UNIT * abs(quotient), math.inf)


def _lowered(quotient: float) -> float:
    return -_raised(-quotient)
