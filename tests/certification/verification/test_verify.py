from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.certification import Certificate, VerificationVerdict, certify, max_path_decay, verify_certificate
from torch_strongdual.errors import InvalidInputError, UnsupportedLossError, UnsupportedModelError
from torch_strongdual.losses import HalfSquaredLoss
from torch_strongdual.nn import GatedReLU, ParallelNet

REGRESSION = (
    HalfSquaredLoss(),
    nn.MSELoss(),
    nn.MSELoss(reduction="sum"),
    nn.HuberLoss(delta=0.7),
    nn.SmoothL1Loss(beta=0.3),
    nn.L1Loss(),
)
CLASSIFICATION = (
    nn.CrossEntropyLoss(),
    nn.CrossEntropyLoss(label_smoothing=0.1, reduction="sum"),
    nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.3]), label_smoothing=0.05),
)
EXACT = ("linear", "deep linear", "gated", "line", "plane", "leaky plane", "embedded plane")


def architecture(name: str, num_outputs: int, *, bias: bool = False) -> tuple[ParallelNet, Tensor]:
    """A network of that kind and inputs for it."""
    generator = torch.Generator().manual_seed(5)
    d = {"line": 3, "plane": 2, "leaky plane": 2, "embedded plane": 5, "solid": 3}.get(name, 4)
    inputs = torch.randn(11, d, generator=generator, dtype=torch.float64)
    if name == "line":
        inputs = inputs[:, :1] @ torch.randn(1, d, generator=generator, dtype=torch.float64)
    if name == "embedded plane":
        inputs = inputs[:, :2] @ torch.randn(2, d, generator=generator, dtype=torch.float64)

    def linear(fan_in: int, fan_out: int, has_bias: bool = False) -> nn.Linear:
        return nn.Linear(fan_in, fan_out, bias=has_bias)

    middle: dict[str, list[nn.Module]] = {
        "linear": [],
        "deep linear": [linear(2, 2)],
        "gated": [GatedReLU(d)],
        "leaky plane": [nn.LeakyReLU(0.2)],
    }
    layers = [linear(d, 2), *middle.get(name, [nn.ReLU()]), linear(2, num_outputs, bias)]
    return ParallelNet(*layers, num_branches=5, dtype=torch.float64), inputs


def targets_for(loss: nn.Module, num_samples: int, num_outputs: int) -> Tensor:
    generator = torch.Generator().manual_seed(6)
    if isinstance(loss, nn.CrossEntropyLoss):
        return torch.randint(num_outputs, (num_samples,), generator=generator)
    numbers = torch.randn(num_samples, num_outputs, generator=generator, dtype=torch.float64)
    return torch.sigmoid(numbers) if isinstance(loss, nn.BCEWithLogitsLoss) else numbers


class Issued:
    """A certificate and the problem it was issued for."""

    def __init__(
        self,
        name: str,
        loss: nn.Module,
        num_outputs: int = 1,
        *,
        bias: bool = False,
        share: float = 0.3,
        penalty: str = "product",
    ) -> None:
        torch.manual_seed(1)
        self.model, self.inputs = architecture(name, num_outputs, bias=bias)
        self.loss, self.penalty = loss, penalty
        self.targets = targets_for(loss, len(self.inputs), num_outputs)
        self.path_decay = share * max_path_decay(self.model, self.inputs, self.targets, loss=loss, penalty=penalty).lower
        self.certificate = certify(
            self.model, self.inputs, self.targets, loss=loss, path_decay=self.path_decay, penalty=penalty, time_budget=10.0
        )

    def verdict(self, certificate: Certificate | None = None, **changes: object) -> VerificationVerdict:
        arguments: dict[str, object] = {
            "model": self.model, "inputs": self.inputs, "targets": self.targets, "loss": self.loss,
            "path_decay": self.path_decay, "penalty": self.penalty, "time_budget": 10.0,
        }  # fmt: skip
        report = verify_certificate(certificate or self.certificate, **(arguments | changes))  # type: ignore[arg-type]
        passed = (
            report.domain_checked, report.balanced_checked, report.dual_objective_checked, report.feasibility_checked,
        )  # fmt: skip
        assert report.is_verified == all(passed)
        assert report.is_verified or report.reason or report.verdict is VerificationVerdict.VACUOUS
        if report.is_verified:
            assert report.dual_objective >= (certificate or self.certificate).dual_bound
            assert report.dual_norm_upper <= report.dual_norm_limit * (1 + 1e-15)
        return report.verdict

    def room(self) -> float:
        """How far the dual point may be scaled up: it uses all that is allowed unless it is a combination of others."""
        report = verify_certificate(
            self.certificate, self.model, self.inputs, self.targets, loss=self.loss, path_decay=self.path_decay,
            penalty=self.penalty, time_budget=10.0,
        )  # fmt: skip
        return report.dual_norm_limit / report.dual_norm_upper

    def scaled(self, factor: float) -> Certificate:
        assert self.certificate.dual_point is not None
        return dataclasses.replace(self.certificate, dual_point=factor * self.certificate.dual_point)


@pytest.mark.parametrize("name", EXACT)
def test_true_certificates_are_verified(name: str) -> None:
    for num_outputs, bias in ((1, True), (3, False), (3, True)):
        assert Issued(name, nn.MSELoss(), num_outputs, bias=bias).verdict() is VerificationVerdict.VERIFIED


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("loss", REGRESSION, ids=repr)
def test_every_regression_loss(loss: nn.Module, bias: bool) -> None:
    assert Issued("plane", loss, 1, bias=bias).verdict() is VerificationVerdict.VERIFIED


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("loss", CLASSIFICATION, ids=repr)
def test_every_classification_loss(loss: nn.Module, bias: bool) -> None:
    assert Issued("linear", loss, 3, bias=bias).verdict() is VerificationVerdict.VERIFIED


@pytest.mark.parametrize("bias", [False, True])
def test_the_logistic_loss(bias: bool) -> None:
    logits = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([0.3]))
    assert Issued("plane", logits, 1, bias=bias).verdict() is VerificationVerdict.VERIFIED


@pytest.mark.parametrize("penalty", ["power", "l2_path"])
@pytest.mark.parametrize("name", ["deep linear", "plane"])
def test_other_penalties(name: str, penalty: str) -> None:
    assert Issued(name, nn.MSELoss(), penalty=penalty).verdict() is VerificationVerdict.VERIFIED


@pytest.mark.parametrize("num_outputs", [1, 2])
def test_rank_three_by_cones(num_outputs: int) -> None:
    issued = Issued("solid", nn.MSELoss(), num_outputs)
    assert issued.verdict() is VerificationVerdict.VERIFIED
    assert issued.verdict(issued.scaled(1.1)) is VerificationVerdict.REFUTED
    assert issued.verdict(time_budget=1e-9) is VerificationVerdict.UNVERIFIED


@pytest.mark.parametrize("name", EXACT)
def test_a_dual_point_scaled_by_a_millionth_is_refuted(name: str) -> None:
    """At a small path decay the constraint is active: scaled up to the largest dual norm allowed, the point is on the edge."""
    for num_outputs in (1, 3):
        issued = Issued(name, nn.MSELoss(), num_outputs, share=0.05)
        assert issued.verdict() is VerificationVerdict.VERIFIED
        assert issued.verdict(issued.scaled(issued.room() * (1 + 1e-6))) is VerificationVerdict.REFUTED


@pytest.mark.parametrize("name", EXACT)
def test_claims_that_are_not_proven_are_refuted(name: str) -> None:
    issued = Issued(name, nn.MSELoss())
    claim = issued.certificate.dual_bound
    raised = dataclasses.replace(issued.certificate, dual_bound=claim + 1e-6 * abs(claim))
    assert issued.verdict(raised) is VerificationVerdict.REFUTED
    assert issued.verdict(dataclasses.replace(issued.certificate, dual_bound=math.inf)) is VerificationVerdict.REFUTED
    assert issued.verdict(dataclasses.replace(issued.certificate, dual_bound=math.nan)) is VerificationVerdict.REFUTED
    assert issued.verdict(dataclasses.replace(issued.certificate, dual_point=None)) is VerificationVerdict.REFUTED
    lower = dataclasses.replace(issued.certificate, dual_bound=claim - 1e-6)
    assert issued.verdict(lower) is VerificationVerdict.VERIFIED


@pytest.mark.parametrize("name", ["linear", "gated", "plane"])
def test_another_problem_is_refuted(name: str) -> None:
    issued = Issued(name, nn.MSELoss(), share=0.05)
    assert issued.verdict(path_decay=issued.path_decay * (1 + 1e-6)) is VerificationVerdict.REFUTED
    forged = dataclasses.replace(issued.certificate, path_decay=issued.path_decay * (1 - 1e-6))
    assert issued.verdict(forged, path_decay=forged.path_decay) is VerificationVerdict.REFUTED
    assert issued.verdict(penalty="l2_path") is VerificationVerdict.REFUTED
    assert issued.verdict(inputs=issued.inputs * (1 + 1e-6)) is VerificationVerdict.REFUTED
    assert issued.verdict(inputs=issued.inputs[:-1], targets=issued.targets[:-1]) is VerificationVerdict.REFUTED
    assert issued.verdict(targets=0.9 * issued.targets) is VerificationVerdict.REFUTED
    assert issued.verdict(loss=nn.MSELoss(reduction="sum"), targets=0.01 * issued.targets) is VerificationVerdict.REFUTED
    assert issued.verdict(inputs=torch.full_like(issued.inputs, math.nan)) is VerificationVerdict.REFUTED


def test_an_unbalanced_point_is_refuted() -> None:
    issued = Issued("plane", nn.MSELoss(), bias=True)
    assert issued.certificate.dual_point is not None
    moved = issued.certificate.dual_point.clone()
    moved[0, 0] = math.nextafter(float(moved[0, 0]), math.inf)
    assert issued.verdict(dataclasses.replace(issued.certificate, dual_point=moved)) is VerificationVerdict.REFUTED


def test_a_point_outside_the_domain_is_refuted() -> None:
    issued = Issued("plane", nn.L1Loss())
    outside = torch.full((11, 1), 1.001 / 11, dtype=torch.float64)
    assert issued.verdict(dataclasses.replace(issued.certificate, dual_point=outside)) is VerificationVerdict.REFUTED


def test_what_has_no_second_method_is_never_called_verified() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(9, 2, generator=generator), torch.randn(9, 1, generator=generator)
    layers = [nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)]
    deep = ParallelNet(*layers, num_branches=4)
    certificate = certify(deep, inputs, targets, loss=nn.MSELoss(), path_decay=0.1, time_budget=3.0)
    report = verify_certificate(certificate, deep, inputs, targets, loss=nn.MSELoss(), path_decay=0.1)
    assert report.verdict is VerificationVerdict.UNVERIFIED
    assert "no second method" in str(report)


@pytest.mark.parametrize("loss", [*REGRESSION, *CLASSIFICATION, nn.BCEWithLogitsLoss()], ids=repr)
def test_the_zero_point_proves_a_bound_of_zero(loss: nn.Module) -> None:
    """Above the largest useful path decay, or where nothing better is proven, bounds of zero are issued."""
    issued = Issued("linear", nn.MSELoss(), 3)
    point = torch.zeros(11, 3, dtype=torch.float64)
    zero = dataclasses.replace(issued.certificate, dual_point=point, dual_bound=0.0)
    assert issued.verdict(zero, loss=loss, targets=targets_for(loss, 11, 3)) is VerificationVerdict.VERIFIED


def test_nothing_proven_is_nothing_to_verify() -> None:
    issued = Issued("plane", nn.MSELoss())
    vacuous = dataclasses.replace(issued.certificate, dual_bound=-math.inf, dual_point=None)
    assert issued.verdict(vacuous, loss=nn.L1Loss()) is VerificationVerdict.VACUOUS


def test_mistakes_are_named() -> None:
    issued = Issued("plane", nn.MSELoss())
    with pytest.raises(InvalidInputError, match="path_decay"):
        issued.verdict(path_decay=-1.0)
    with pytest.raises(UnsupportedLossError, match="Soft"):
        issued.verdict(loss=nn.SoftMarginLoss())
    with pytest.raises(UnsupportedModelError):
        issued.verdict(model=nn.Tanh())
