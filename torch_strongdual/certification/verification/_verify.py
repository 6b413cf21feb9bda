"""Check a certificate again, by other means."""

from __future__ import annotations

import dataclasses
import math
from decimal import Context, Decimal, localcontext
from fractions import Fraction

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torch_strongdual._checks import check_in, check_positive
from torch_strongdual.certification._gather import gathered
from torch_strongdual.certification._own_defaults import with_own_defaults
from torch_strongdual.certification.certificate import Certificate, CertificateScope
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.training_problem import CERTIFIED_PENALTIES
from torch_strongdual.certification.verification._cone_proof import cone_feasibility
from torch_strongdual.certification.verification._counted_patches import CountedPatches
from torch_strongdual.certification.verification._exact_dual import ExactDual, exact_dual
from torch_strongdual.certification.verification._feasibility import Feasibility
from torch_strongdual.certification.verification._plane_proof import plane_feasibility
from torch_strongdual.certification.verification._reduced_rows import ReducedRows
from torch_strongdual.certification.verification._spectral_proof import root_up, spectral_feasibility
from torch_strongdual.certification.verification.verification_report import VerificationReport, VerificationVerdict
from torch_strongdual.errors import InvalidInputError, ShapeError
from torch_strongdual.nn import BranchSpec, branch_spec_of

__all__ = ["verify_certificate"]

FloatArray = NDArray[np.float64]

_REFUTED, _UNVERIFIED = VerificationVerdict.REFUTED, VerificationVerdict.UNVERIFIED


@with_own_defaults
def verify_certificate(
    certificate: Certificate,
    model: nn.Module,
    inputs: Tensor,  # shape: (num_samples, in_features)
    targets: Tensor,
    *,
    loss: nn.Module,
    path_decay: float,
    penalty: str = "product",
    time_budget: float = 60.0,
) -> VerificationReport:
    r"""Prove the dual bound of a certificate again, with code that shares nothing with the oracles and losses that issued it.

    Weak duality is all a bound needs: the dual point lies in the domain, is balanced where the output has a bias, has a dual
    norm of at most ``path_decay``, and its dual objective is at least the bound. The first two and the last are decided in
    rational arithmetic (entropies to 100 digits). The dual norm is proven

    - for linear and gated branches by the leading minors of :math:`\beta^2 I - M'M`, in exact integers;
    - for one (leaky) ReLU on data of rank one or two by a sweep of the circle in 60-digit decimals;
    - for one (leaky) ReLU on data of rank three to six by bisection of cones in float64, as far as time allows;
    - for convolutional branches in the same ways, on their patches, if pooling windows have one size;
    - for branches with several ReLUs and for higher ranks not at all: the verdict is ``UNVERIFIED``.

    The primal value is not checked: it is the training objective, which one forward pass gives.

    Args:
        certificate: What is to be checked.
        model: The model it was issued for; only its architecture (gates included) counts.
        inputs: The inputs it was issued for.
        targets: The targets it was issued for.
        loss: The loss it was issued for.
        path_decay: The strength of the penalty it was issued for.
        penalty: The penalty it was issued for.
        time_budget: Seconds for the search over cones, the one part that can be long.

    Returns:
        A report. Its verdict is ``VERIFIED`` only if all four parts were proven; ``REFUTED`` if one was proven wrong.

    Raises:
        UnsupportedModelError: If ``model`` is no parallel network.
        UnsupportedLossError: If there is no second formula for the conjugate of ``loss``.
        InvalidInputError: If an option is out of range, data are no tensors, or labels are outside the classes.
        ShapeError: If inputs, targets and model do not fit together.

    Example:
        >>> from torch_strongdual.certification import certify
        >>> net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
        >>> x, y = torch.eye(2), torch.tensor([[2.0], [-1.0]])
        >>> certificate = certify(net, x, y, loss=nn.MSELoss(), path_decay=0.5, time_budget=5.0)
        >>> report = verify_certificate(certificate, net, x, y, loss=nn.MSELoss(), path_decay=0.5)
        >>> report.verdict.name, report.method
        ('VERIFIED', 'sweep of the circle in 60-digit decimals')
    """
    check_positive("path_decay", path_decay)
    check_positive("time_budget", time_budget)
    check_in("penalty", penalty, CERTIFIED_PENALTIES)
    deadline = Deadline(time_budget)
    if not isinstance(certificate, Certificate):
        raise InvalidInputError(f"`certificate` is {type(certificate).__name__}; expected a Certificate, as certify returns.")
    inputs, targets = gathered(inputs, targets)
    spec = branch_spec_of(model)
    _check_targets(loss, inputs, targets, spec.out_features)
    if certificate.dual_bound == -math.inf:
        return VerificationReport(verdict=VerificationVerdict.VACUOUS)
    if mismatch := _mismatch(certificate, spec, inputs, path_decay, penalty):
        return VerificationReport(verdict=_REFUTED, reason=mismatch)
    assert certificate.dual_point is not None
    duals = certificate.dual_point.detach().cpu().numpy()
    matrix = spec.branch_inputs(inputs.detach().cpu()).numpy()
    if not (np.isfinite(duals).all() and np.isfinite(matrix).all() and bool(torch.isfinite(targets).all())):
        return VerificationReport(verdict=_REFUTED, reason="There are non-finite numbers in the data or in the dual point.")
    report = _of_dual_objective(exact_dual(loss, targets, duals), spec, duals, certificate.dual_bound)
    if not report.dual_objective_checked:
        return report
    found = _feasibility(spec, matrix, inputs, duals, path_decay, penalty, deadline)
    verdicts = {True: VerificationVerdict.VERIFIED, False: _REFUTED, None: _UNVERIFIED}
    return dataclasses.replace(
        report,
        verdict=verdicts[found.holds],
        feasibility_checked=found.holds is True,
        dual_norm_upper=_penalty_norm(found.upper, spec, penalty),
        dual_norm_limit=path_decay,
        method=found.method,
        reason=found.reason,
    )


def _of_dual_objective(exact: ExactDual, spec: BranchSpec, duals: FloatArray, dual_bound: float) -> VerificationReport:
    """What domain, balance and dual objective say, in this order, up to the first that is not proven."""
    if exact.flaw:
        return VerificationReport(verdict=_REFUTED, reason=f"Outside the domain: {exact.flaw}.")
    if spec.output_bias and not _columns_sum_to_zero(duals):
        reason = "A column of the dual point does not sum to zero, as the output bias demands."
        return VerificationReport(verdict=_REFUTED, domain_checked=True, reason=reason)
    report = VerificationReport(
        verdict=_UNVERIFIED, domain_checked=True, balanced_checked=True, dual_objective=_rounded_down(exact)
    )
    bound = Fraction(dual_bound)
    if exact.lower >= bound:
        return dataclasses.replace(report, dual_objective_checked=True)
    verdict = _REFUTED if exact.upper < bound else _UNVERIFIED
    reason = f"The dual objective is {_rounded_down(exact)!r}, below the bound {dual_bound!r}."
    return dataclasses.replace(report, verdict=verdict, reason=reason)


def _check_targets(loss: nn.Module, inputs: Tensor, targets: Tensor, num_outputs: int) -> None:
    """Raise unless there is one row (or label) a sample."""
    are_labels = isinstance(loss, nn.CrossEntropyLoss) and not targets.is_floating_point()
    num_samples = inputs.shape[0] if inputs.ndim else 0
    allowed = [(num_samples,)] if are_labels else [(num_samples, num_outputs), *([(num_samples,)] if num_outputs == 1 else [])]
    if tuple(targets.shape) not in allowed:
        raise ShapeError(f"`targets` has shape {tuple(targets.shape)}; expected {' or '.join(map(str, allowed))}.")
    if are_labels and not bool(((targets >= 0) & (targets < num_outputs)).all()):
        raise InvalidInputError(f"`targets` holds labels outside the classes; expected labels from 0 to {num_outputs - 1}.")


def _mismatch(certificate: Certificate, spec: BranchSpec, inputs: Tensor, path_decay: float, penalty: str) -> str:
    """What in the certificate belongs to another problem, or nothing."""
    if math.isnan(certificate.dual_bound) or certificate.dual_bound == math.inf or certificate.dual_point is None:
        return f"A bound of {certificate.dual_bound} with dual point {certificate.dual_point} proves nothing."
    if certificate.path_decay != path_decay:
        return f"The certificate is for path_decay={certificate.path_decay!r}, not for {path_decay!r}."
    if (certificate.penalty == "l2_path") != (penalty == "l2_path"):
        return f"The certificate is for the {certificate.penalty!r} penalty, not for {penalty!r}."
    if (certificate.scope in (CertificateScope.GATED, CertificateScope.GATED_WIDTHS)) != spec.is_gated:
        return f"The certificate speaks of {certificate.scope.value}, and the model is {spec}."
    expected = (inputs.shape[0], spec.out_features)
    if tuple(certificate.dual_point.shape) != expected or certificate.dual_point.dtype != torch.float64:
        shape, dtype = tuple(certificate.dual_point.shape), certificate.dual_point.dtype
        return f"The dual point has shape {shape} and dtype {dtype}; the data ask for {expected} in float64."
    return ""


def _feasibility(
    spec: BranchSpec,
    matrix: FloatArray,
    inputs: Tensor,
    duals: FloatArray,
    path_decay: float,
    penalty: str,
    deadline: Deadline,
) -> Feasibility:
    """Choose the method by the architecture."""
    limit_squared = Fraction(path_decay) ** 2 if math.isfinite(path_decay) else Fraction(2) ** 4096
    if penalty == "l2_path":
        limit_squared /= math.prod(spec.hidden_widths)
    if spec.hidden_bias_layers:
        return Feasibility(holds=None, method="none", reason="Hidden biases break the homogeneity that the dual rests on.")
    if not duals.any() or not matrix.any():
        return Feasibility(holds=True, upper=0.0, method="nothing to do: the dual norm is zero")
    if spec.patch_map is not None:
        counted = CountedPatches.of(spec.patch_map, inputs.detach().cpu())
        if counted is None:
            return Feasibility(holds=None, method="none", reason="Pooling windows of several sizes are not summed exactly.")
        sums = counted.grid.spread(torch.from_numpy(duals)).numpy()
        found = _dense_feasibility(spec.on_patches(), matrix, inputs, sums, limit_squared * counted.window**2, deadline)
        return dataclasses.replace(found, upper=math.nextafter(found.upper / counted.window, math.inf))
    return _dense_feasibility(spec, matrix, inputs, duals, limit_squared, deadline)


def _dense_feasibility(
    spec: BranchSpec, matrix: FloatArray, inputs: Tensor, duals: FloatArray, limit_squared: Fraction, deadline: Deadline
) -> Feasibility:
    """Choose the method by the activations of linear layers."""
    bends = [slope for slope in spec.negative_slopes if slope != 1.0]
    if not bends:
        masks = spec.gate_masks(inputs.detach().cpu())
        return spectral_feasibility(matrix, duals, None if masks is None else masks.numpy(), limit_squared)
    if len(bends) > 1 or spec.is_gated:
        return Feasibility(holds=None, method="none", reason=f"There is no second method for branches {spec}.")
    reduced = ReducedRows.of(matrix)
    if reduced is None:
        return Feasibility(holds=None, method="none", reason="There are too many numbers for decimal arithmetic.")
    lost = reduced.loss(duals, bends[0])
    if reduced.rows.shape[1] <= 2:
        return plane_feasibility(reduced.rows, duals, bends[0], lost, limit_squared)
    return cone_feasibility(reduced.rows, duals, bends[0], _limit_less(limit_squared, lost), deadline)


def _limit_less(limit_squared: Fraction, lost: Decimal) -> float:
    """``sqrt(limit_squared) - lost``, rounded down."""
    with localcontext(Context(prec=60)):
        limit = (Decimal(limit_squared.numerator) / Decimal(limit_squared.denominator)).sqrt() * (1 - Decimal("1e-50"))
        return max(math.nextafter(float(limit - lost), -math.inf), 0.0)


def _penalty_norm(product_norm: float, spec: BranchSpec, penalty: str) -> float:
    """The dual norm of the penalty's own form, rounded up."""
    if penalty != "l2_path" or not math.isfinite(product_norm):
        return product_norm
    return root_up(Fraction(product_norm) ** 2 * math.prod(spec.hidden_widths))


def _columns_sum_to_zero(duals: FloatArray) -> bool:
    return not any(sum(map(Fraction, column)) for column in duals.T.tolist())


def _rounded_down(exact: ExactDual) -> float:
    value = float(exact.lower)
    return value if Fraction(value) <= exact.lower else math.nextafter(value, -math.inf)
