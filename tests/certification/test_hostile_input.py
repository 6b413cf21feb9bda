"""Inputs that nobody means and somebody gives: extreme units, empty scales, wrong kinds. No crash, no wrong number."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.certification import (
    CertificateScope,
    VerificationVerdict,
    certify,
    dual_norm_bound,
    optimize_to_certificate,
    verify_certificate,
)
from torch_strongdual.certification.training_problem import TrainingProblem
from torch_strongdual.errors import InvalidInputError
from torch_strongdual.nn import GatedReLU, ParallelNet


def data(num_outputs: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(9, 2, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(9, num_outputs, generator=generator, dtype=torch.float64)


def net(middle: nn.Module | None = None, *, num_outputs: int = 1, width: int = 1, bias: bool = False) -> ParallelNet:
    layers = [nn.Linear(2, width, bias=False), middle or nn.ReLU(), nn.Linear(width, num_outputs, bias=bias)]
    return ParallelNet(*layers, num_branches=3, dtype=torch.float64)


def deep_net() -> ParallelNet:
    layers: list[nn.Module] = []
    for fan_in in (2, 2):
        layers += [nn.Linear(fan_in, 2, bias=False), nn.ReLU()]
    return ParallelNet(*layers, nn.Linear(2, 1, bias=False), num_branches=3, dtype=torch.float64)


def emptied(model: ParallelNet) -> ParallelNet:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def emptied_of(kind: str) -> ParallelNet:
    """The zero net of a kind, with the same gates each time."""
    torch.manual_seed(0)
    models = {
        "relu": net(), "leaky": net(nn.LeakyReLU(0.2)), "linear": net(nn.Identity()), "gated": net(GatedReLU(2)),
        "two outputs": net(num_outputs=2), "deep": deep_net(),
    }  # fmt: skip
    return emptied(models[kind])


@functools.cache
def plain_bound(kind: str) -> float:
    """In the units of :func:`data`."""
    inputs, targets = data(2 if kind == "two outputs" else 1)
    return certify(emptied_of(kind), inputs, targets, loss=nn.MSELoss(), path_decay=0.1, time_budget=0.3).dual_bound


UNITS = [5e-324, 1e-310, 1e-200, 1e-150, 1e-60, 1e60, 1e150, 1e200, 1e300]


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", ["relu", "leaky", "linear", "gated", "two outputs", "deep"])
def test_units_of_the_inputs_do_not_matter(kind: str, unit: float) -> None:
    """With inputs in other units, and the path decay with them, the bound of the zero net is the same, and is a bound."""
    inputs, targets = data(2 if kind == "two outputs" else 1)
    model, loss = emptied_of(kind), nn.MSELoss()
    path_decay = max(0.1 * unit, 5e-324)
    scaled = certify(model, unit * inputs, targets, loss=loss, path_decay=path_decay, time_budget=0.3)
    assert 0.0 <= scaled.dual_bound <= scaled.primal_value
    report = verify_certificate(scaled, model, unit * inputs, targets, loss=loss, path_decay=path_decay)
    if kind == "deep":
        assert report.verdict is VerificationVerdict.UNVERIFIED
    else:
        assert report.verdict is VerificationVerdict.VERIFIED, str(report)
    if 1e-100 < unit < 1e100 and kind != "deep":
        assert scaled.dual_bound == pytest.approx(plain_bound(kind), rel=0.05)


@pytest.mark.parametrize("unit", [1e-310, 1e-200, 1e200, 1e300])
def test_units_of_the_inputs_do_not_matter_beyond_the_reach_of_boxes(unit: float) -> None:
    """At a rank where relaxations and the joint dual come in, extreme units give a bound and an optimizer that runs."""
    generator = torch.Generator().manual_seed(5)
    inputs = torch.randn(30, 14, generator=generator, dtype=torch.float64)
    targets = torch.randn(30, 1, generator=generator, dtype=torch.float64)
    layers = (nn.Linear(14, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    model = emptied(ParallelNet(*layers, num_branches=3, dtype=torch.float64))
    loss, path_decay = nn.MSELoss(), 0.05 * unit
    certificate = certify(model, unit * inputs, targets, loss=loss, path_decay=path_decay, time_budget=1.0)
    assert 0.0 <= certificate.dual_bound <= certificate.primal_value
    result = optimize_to_certificate(model, unit * inputs, targets, loss=loss, path_decay=path_decay, time_budget=1.0)
    optimized = result.certificate
    assert 0.0 <= optimized.dual_bound <= optimized.primal_value <= certificate.primal_value


@pytest.mark.parametrize("path_decay", [5e-324, 1e-300, 1e-12, 1e12, 1e300])
@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.HuberLoss(), nn.L1Loss()], ids=repr)
def test_any_positive_path_decay(path_decay: float, loss: nn.Module) -> None:
    inputs, targets = data()
    model = net()
    certificate = certify(model, inputs, targets, loss=loss, path_decay=path_decay, time_budget=0.3)
    assert 0.0 <= certificate.dual_bound <= certificate.primal_value
    report = verify_certificate(certificate, model, inputs, targets, loss=loss, path_decay=path_decay)
    assert report.verdict is VerificationVerdict.VERIFIED, str(report)


def test_infinite_options_are_refused() -> None:
    """An infinite tolerance would certify a network about which nothing is proven."""
    inputs, targets = data()
    with pytest.raises(InvalidInputError, match="rtol"):
        certify(net(), inputs, targets, loss=nn.MSELoss(), path_decay=0.1, rtol=math.inf)
    with pytest.raises(InvalidInputError, match="path_decay"):
        certify(net(), inputs, targets, loss=nn.MSELoss(), path_decay=math.inf)
    with pytest.raises(InvalidInputError, match="time_budget"):
        dual_norm_bound(net(), inputs, targets, time_budget=math.nan)
    with pytest.raises(InvalidInputError, match="`inputs` is list"):
        dual_norm_bound(net(), inputs.tolist(), targets)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [None, 3, object()])
def test_inputs_that_are_no_data_are_refused(wrong: object) -> None:
    with pytest.raises(InvalidInputError, match="`inputs` is"):
        certify(net(), wrong, loss=nn.MSELoss(), path_decay=0.1)  # type: ignore[arg-type]


def test_arrays_sparse_and_meta_tensors_are_refused() -> None:
    inputs, targets = data()
    with pytest.raises(InvalidInputError, match="as_tensor"):
        certify(net(), inputs.numpy(), targets, loss=nn.MSELoss(), path_decay=0.1)
    with pytest.raises(InvalidInputError, match="to_dense"):
        certify(net(), inputs.to_sparse(), targets, loss=nn.MSELoss(), path_decay=0.1)
    with pytest.raises(InvalidInputError, match="meta"):
        certify(net(), inputs, targets.to("meta"), loss=nn.MSELoss(), path_decay=0.1)


def test_a_hundred_thousand_rows_take_seconds_at_most() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs, targets = (torch.randn(100_000, size, generator=generator, dtype=torch.float64) for size in (3, 1))
    branch = nn.Sequential(nn.Linear(3, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    found = dual_norm_bound(branch, inputs, targets, time_budget=0.5)
    assert found.lower <= found.upper < math.inf
    assert float(found.stats["seconds"]) < 15.0


@pytest.mark.parametrize("option", [{"path_decay": -1.0}, {"penalty": "l1"}])
def test_options_are_checked_before_non_finite_data_are_reported(option: dict[str, object]) -> None:
    inputs, targets = data()
    arguments: dict[str, object] = {"loss": nn.MSELoss(), "path_decay": 0.1}
    with pytest.raises(InvalidInputError, match=next(iter(option))):
        certify(net(), math.nan * inputs, targets, **(arguments | option))  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.L1Loss(), nn.HuberLoss()], ids=repr)
def test_a_loss_that_is_never_negative_has_no_negative_bound(loss: nn.Module) -> None:
    inputs, _ = data()
    certificate = certify(net(bias=True), inputs, torch.ones(9, 1), loss=loss, path_decay=0.1, time_budget=0.3)
    assert certificate.dual_bound == 0.0
    assert certificate.relative_gap == 1.0


def test_the_bound_of_the_l2_path_form_speaks_of_these_widths() -> None:
    """A wider branch pays less for the same function, so its optimum may lie below the bound of a narrow one."""
    inputs, targets = data()
    bounds = [
        certify(net(width=width), inputs, targets, loss=nn.MSELoss(), path_decay=0.3, penalty="l2_path", rtol=1e-4)
        for width in (1, 8)
    ]
    assert bounds[1].dual_bound < 0.9 * bounds[0].dual_bound
    assert all(bound.scope is CertificateScope.WIDTHS for bound in bounds)
    gated = certify(net(GatedReLU(2)), inputs, targets, loss=nn.MSELoss(), path_decay=0.3, penalty="l2_path")
    assert gated.scope is CertificateScope.GATED_WIDTHS
    assert certify(net(), inputs, targets, loss=nn.MSELoss(), path_decay=0.3).scope is CertificateScope.GLOBAL


def test_rounding_is_allowed_for_where_squares_vanish() -> None:
    """The allowance for rounding the dual point is in the units of the inputs, however small they are."""
    inputs, targets = data()
    bounds = []
    for unit in (1.0, 2.0**-560, 2.0**560):
        problem = TrainingProblem.from_model(net(), unit * inputs, targets, loss=nn.MSELoss(), path_decay=unit)
        candidate = problem.dual_candidate(torch.zeros_like(problem.loss.targets))
        bounds.append(problem.scaled_bound(candidate, 4.0 * unit).dual_norm_upper / unit)
    assert bounds[0] == bounds[1] == bounds[2]


@pytest.mark.parametrize(
    ("inputs", "match"),
    [
        (torch.ones(9), r"shape \(9,\); expected one row a sample"),
        (torch.ones(9, 2).to(torch.float8_e4m3fn), "float8_e4m3fn; expected one to compute with"),
        (torch.nested.as_nested_tensor([torch.ones(9, 2)], layout=torch.jagged), "nested|layout"),
        (torch.ones(0, 2), "at least one sample"),
    ],
    ids=["one dimension", "eight bits", "nested", "none"],
)
def test_inputs_of_a_wrong_kind_are_refused_by_name(inputs: Tensor, match: str) -> None:
    targets = torch.ones(len(inputs) if not inputs.is_nested else 9, 1)
    with pytest.raises(InvalidInputError, match=match):
        certify(net(), inputs, targets, loss=nn.MSELoss(), path_decay=0.1)


def test_an_objective_of_nothing_but_rounding_is_said_to_be_that() -> None:
    """The output bias fits constant targets: the optimum is zero, which floating point misses by very little."""
    model, (inputs, targets) = emptied(net(bias=True)), data()
    with torch.no_grad():
        model.get_parameter("2.bias").fill_(0.3 + 2.0**-54)
    certificate = certify(model, inputs, torch.full_like(targets, 0.3), loss=nn.MSELoss(), path_decay=0.1)
    assert 0.0 < certificate.primal_value < 1e-30
    assert "open because the objective is zero up to rounding" in str(certificate)
    other = certify(model, inputs, targets, loss=nn.MSELoss(), path_decay=0.1, rtol=1e-9)
    assert "zero up to rounding" not in str(other)
