from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.callbacks._fingerprint import data_digest, problem_fingerprint
from torch_strongdual.certification import TrainingProblem
from torch_strongdual.losses import HalfSquaredLoss
from torch_strongdual.nn import GatedReLU, ParallelNet

from ..contracts.lightning_regression import make_data


def layers(width: int = 2, *, bias: bool = False, activation: nn.Module | None = None) -> list[nn.Module]:
    middle = nn.ReLU() if activation is None else activation
    return [nn.Linear(2, width, bias=bias), middle, nn.Linear(width, 1, bias=False)]


def fingerprint(
    inputs: Tensor | None = None,
    targets: Tensor | None = None,
    *,
    net: list[nn.Module] | None = None,
    loss: nn.Module | None = None,
    **options: Any,
) -> str:
    inputs = make_data()[0] if inputs is None else inputs
    targets = make_data()[1] if targets is None else targets
    loss = nn.MSELoss() if loss is None else loss
    model = ParallelNet(*(layers() if net is None else net), num_branches=3)
    problem = TrainingProblem.from_model(model, inputs, targets, loss=loss, **({"path_decay": 0.1} | options))
    return problem_fingerprint(data_digest(inputs, targets), problem, loss)


def changed(tensor: Tensor) -> Tensor:
    copy = tensor.clone()
    copy[3, 0] = torch.nextafter(copy[3, 0], torch.tensor(9.0))
    return copy


def test_weights_branches_and_what_certification_does_not_see_make_no_difference() -> None:
    first = fingerprint()
    loss = nn.MSELoss()
    loss.eval()
    assert first == fingerprint(make_data()[0].clone(), loss=loss)
    assert len(first) == 64


@pytest.mark.parametrize(
    "other",
    [
        {"inputs": changed(make_data()[0])},
        {"targets": changed(make_data()[1])},
        {"inputs": make_data()[0].flip(0)},
        {"inputs": make_data()[0].double()},
        {"inputs": make_data()[0][:11], "targets": make_data()[1][:11]},
        {"targets": make_data()[1][:, 0]},
        {"loss": nn.MSELoss(reduction="sum")},
        {"loss": HalfSquaredLoss()},
        {"loss": nn.HuberLoss()},
        {"path_decay": 0.1000000000000001},
        {"penalty": "l2_path"},
        {"net": layers(3)},
        {"net": layers(bias=True)},
        {"net": layers(activation=nn.Identity())},
        {"net": layers(activation=nn.LeakyReLU(0.1))},
        {"net": [nn.Flatten(), *layers()]},
    ],
)
def test_whatever_the_bound_depends_on_makes_a_difference(other: dict[str, Any]) -> None:
    assert fingerprint(**other) != fingerprint()


def test_slopes_that_print_alike_differ() -> None:
    first, second = (layers(activation=nn.LeakyReLU(slope)) for slope in (0.1, 0.1 + 1e-12))
    assert fingerprint(net=first) != fingerprint(net=second)


def test_options_and_weights_of_losses_make_a_difference() -> None:
    labels = torch.arange(12) % 2
    losses = [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0])),
        nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0])),
        nn.HuberLoss(),
        nn.HuberLoss(delta=2.0),
        nn.SmoothL1Loss(),
        nn.SmoothL1Loss(beta=0.5),
    ]
    found = set()
    for loss in losses:
        is_classifier = isinstance(loss, nn.CrossEntropyLoss)
        net = [nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2 if is_classifier else 1)]
        targets = labels if is_classifier else make_data()[1]
        found.add(fingerprint(targets=targets, net=net, loss=loss))
    assert len(found) == len(losses)


def test_gates_make_a_difference() -> None:
    gates = [torch.randn(3, 2), torch.randn(3, 2)]
    nets = []
    for vectors in (gates[0], gates[0], gates[1]):
        model = ParallelNet(nn.Linear(2, 2), GatedReLU(2), nn.Linear(2, 1), num_branches=3)
        model.get_submodule("1").gate_vector.copy_(vectors)  # type: ignore[operator]
        nets.append(model)
    inputs, targets = make_data()
    first, same, other = (
        problem_fingerprint(
            "", TrainingProblem.from_model(net, inputs, targets, loss=nn.MSELoss(), path_decay=0.1), nn.MSELoss()
        )
        for net in nets
    )
    assert first == same != other


def test_digests_of_all_types_and_layouts() -> None:
    base = torch.arange(6).reshape(2, 3)
    assert data_digest(base, base) == data_digest(base.T.contiguous().T, base)
    assert data_digest(base, base) != data_digest(base.reshape(3, 2), base)
    assert data_digest(base[:0], base) != data_digest(base, base[:0])
    tensors = [base.to(dtype) for dtype in (torch.bfloat16, torch.float16, torch.bool, torch.uint8, torch.complex64)]
    assert len({data_digest(tensor, base) for tensor in tensors}) == len(tensors)
