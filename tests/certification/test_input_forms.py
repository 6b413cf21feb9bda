"""Data in every form a tensor can have: dtypes, strides, gradients. All entry points take them, with the same numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.certification import (
    certify,
    differentiable_optimum,
    dual_norm_bound,
    max_path_decay,
    optimize_to_certificate,
    path_decay_path,
    path_decay_sensitivity,
    reduce_branches,
    verify_certificate,
)
from torch_strongdual.errors import InvalidInputError, ShapeError
from torch_strongdual.nn import ParallelNet

LOSS = nn.MSELoss()

FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "float32": Tensor.float,
    "float16": Tensor.half,
    "bfloat16": Tensor.bfloat16,
    "transposed": lambda tensor: tensor.T.contiguous().T,
    "every second column": lambda tensor: torch.stack([tensor, tensor + 1.0], dim=-1)[..., 0],
    "expanded": lambda tensor: tensor[:1].expand_as(tensor),
    "with gradients": lambda tensor: tensor.clone().requires_grad_(),
}


def data() -> tuple[Tensor, Tensor]:
    """Small integers, which every dtype holds."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randint(-3, 4, (7, 2), generator=generator).double()
    return inputs, torch.randint(-3, 4, (7, 1), generator=generator).double()


def net(inputs: Tensor) -> ParallelNet:
    torch.manual_seed(0)
    layers = [nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)]
    return ParallelNet(*layers, num_branches=2, dtype=inputs.dtype)


def numbers(inputs: Tensor, targets: Tensor) -> list[float]:
    """What every entry point says."""
    model = net(inputs.detach().double())
    certificate = certify(model, inputs, targets, loss=LOSS, path_decay=0.5)
    result = optimize_to_certificate(model, inputs, targets, loss=LOSS, path_decay=0.5)
    table = path_decay_path(model, inputs, targets, loss=LOSS, fractions=(0.5, 0.2))
    report = verify_certificate(certificate, model, inputs, targets, loss=LOSS, path_decay=0.5)
    sensitivity = path_decay_sensitivity(result.net, inputs, targets, loss=LOSS, certificate=result.certificate)
    optimum = differentiable_optimum(result.net, inputs, targets, loss=LOSS, path_decay=torch.tensor(0.5, dtype=torch.float64))
    return [
        certificate.primal_value,
        certificate.dual_bound,
        dual_norm_bound(model, inputs, targets.double()).upper,
        max_path_decay(model, inputs, targets, loss=LOSS).upper,
        result.certificate.primal_value,
        *[row.result.certificate.dual_bound for row in table.rows],
        report.dual_objective,
        sensitivity.penalty,
        float(optimum(inputs.detach().double()).sum().detach()),
        float(reduce_branches(result.net, inputs).path_penalty().detach()),
    ]


@pytest.mark.parametrize("form", FORMS)
def test_the_form_of_the_data_does_not_matter(form: str) -> None:
    inputs, targets = data()
    if form == "expanded":
        inputs, targets = inputs[:1].repeat(7, 1), targets[:1].repeat(7, 1)
    made = FORMS[form]
    assert numbers(made(inputs), made(targets)) == pytest.approx(numbers(inputs, targets), rel=1e-9)


def checked(inputs: object, targets: object, *, loss: nn.Module = LOSS) -> object:
    certificate = certify(net(data()[0]), *data(), loss=LOSS, path_decay=0.5)
    return verify_certificate(certificate, net(data()[0]), inputs, targets, loss=loss, path_decay=0.5)  # type: ignore[arg-type]


WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "arrays to verify": (lambda: checked(data()[0].numpy(), data()[1]), InvalidInputError, "`inputs` is ndarray"),
    "targets to verify": (lambda: checked(data()[0], data()[1].repeat(1, 2)), ShapeError, r"\(7, 2\); expected \(7, 1\)"),
    "labels to verify": (
        lambda: checked(data()[0], torch.ones(7, dtype=torch.int64), loss=nn.CrossEntropyLoss()),
        InvalidInputError,
        "expected labels from 0 to 0",
    ),
    "no certificate": (
        lambda: verify_certificate("it", net(data()[0]), *data(), loss=LOSS, path_decay=0.5),  # type: ignore[arg-type]
        InvalidInputError,
        "`certificate` is str",
    ),
    "sparse inputs": (lambda: dual_norm_bound(net(data()[0]), data()[0].to_sparse(), data()[1]), InvalidInputError, "layout"),
    "an oracle by name": (
        lambda: dual_norm_bound(net(data()[0]), *data(), oracle="auto"),  # type: ignore[arg-type]
        InvalidInputError,
        "`oracle` is 'auto'",
    ),
    "weights on meta": (
        lambda: certify(net(data()[0]).to("meta"), *data(), loss=LOSS, path_decay=0.5),
        InvalidInputError,
        "to_empty",
    ),
    "one fraction": (
        lambda: path_decay_path(net(data()[0]), *data(), loss=LOSS, fractions=0.5),  # type: ignore[arg-type]
        InvalidInputError,
        "`fractions` is 0.5; expected a sequence",
    ),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_mistakes_are_named(mistake: str) -> None:
    call, error, message = WRONG[mistake]
    with pytest.raises(error, match=message):
        call()


def test_strengths_may_be_an_array() -> None:
    inputs, targets = data()
    given = torch.tensor([0.5, 0.25], dtype=torch.float64)
    table = path_decay_path(net(inputs), inputs, targets, loss=LOSS, path_decays=given.numpy())  # type: ignore[arg-type]
    assert [row.path_decay for row in table.rows] == [0.5, 0.25]
