from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from torch_strongdual.certification import reduce_branches
from torch_strongdual.certification._caratheodory import reduced_magnitudes
from torch_strongdual.errors import InvalidInputError, ShapeError, UnsupportedModelError
from torch_strongdual.nn import GatedReLU, ParallelNet


def net_of(
    kind: str, num_inputs: int, num_outputs: int, num_branches: int, *, dtype: torch.dtype = torch.float64
) -> ParallelNet:
    layers: dict[str, list[nn.Module]] = {
        "linear": [nn.Linear(num_inputs, 3), nn.Linear(3, num_outputs)],
        "relu": [nn.Linear(num_inputs, 2), nn.ReLU(), nn.Linear(2, num_outputs)],
        "gated": [nn.Linear(num_inputs, 2, bias=False), GatedReLU(num_inputs), nn.Linear(2, num_outputs)],
        "deep": [
            nn.Linear(num_inputs, 3),
            nn.ReLU(),
            nn.Linear(3, 2, bias=False),
            nn.LeakyReLU(0.1),
            nn.Linear(2, num_outputs, bias=False),
        ],
    }
    return ParallelNet(*layers[kind], num_branches=num_branches, dtype=dtype)


def relative_error(left: Tensor, right: Tensor) -> float:
    return float((left - right).detach().norm() / right.detach().norm().clamp(min=1e-300))


def penalty_of(net: ParallelNet, kind: str = "product") -> float:
    return net.path_penalty(kind).item()


@settings(max_examples=150)
@given(
    kind=st.sampled_from(["linear", "relu", "gated", "deep"]),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3), st.integers(1, 60)),
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
    penalty=st.sampled_from(["product", "power", "l2_path"]),
)
def test_outputs_stay_penalty_does_not_grow_and_the_bound_holds(
    kind: str, sizes: tuple[int, int, int, int], seed: int, scale: float, penalty: str
) -> None:
    num_samples, num_inputs, num_outputs, num_branches = sizes
    torch.manual_seed(seed)
    net = net_of(kind, num_inputs, num_outputs, num_branches)
    inputs = scale * torch.randn(num_samples, num_inputs, dtype=torch.float64)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    reduced = reduce_branches(net, inputs, penalty=penalty)
    assert reduced.num_branches <= num_samples * num_outputs + 1
    assert reduced.num_branches <= num_branches
    assert relative_error(reduced(inputs), net(inputs)) <= 1e-10
    assert penalty_of(reduced, penalty) <= penalty_of(net, penalty) * (1 + 1e-12)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_branches_kept_are_independent_and_none_can_be_removed() -> None:
    net, inputs = net_of("relu", 3, 2, 200), torch.randn(7, 3, dtype=torch.float64)
    reduced = reduce_branches(net, inputs)
    outputs = torch.stack([reduced.branch(k)(inputs).flatten() for k in range(reduced.num_branches)])
    assert int(np.linalg.matrix_rank(outputs.detach().numpy())) == reduced.num_branches == 14


def test_many_copies_become_one_branch() -> None:
    single = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False)).double()
    net = ParallelNet.from_sequential(single, num_branches=1)
    weights = [weight.detach().expand(20, -1, -1) for weight in net.branch_weights()]
    net.add_branches_(weights)
    inputs = torch.randn(30, 2, dtype=torch.float64)
    reduced = reduce_branches(net, inputs)
    assert reduced.num_branches == 1
    assert relative_error(reduced(inputs), net(inputs)) <= 1e-12


def test_a_branch_and_its_opposite_leave_nothing() -> None:
    net = net_of("linear", 2, 1, 1)
    first, last = (weight.detach().clone() for weight in net.branch_weights())
    net.add_branches_([first, -last])
    inputs = torch.randn(5, 2, dtype=torch.float64)
    reduced = reduce_branches(net, inputs)
    assert reduced.num_branches == 1
    assert penalty_of(reduced) <= 1e-12 * penalty_of(net)


def test_branches_that_are_zero_on_the_data_go() -> None:
    net = ParallelNet(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False), num_branches=4, dtype=torch.float64)
    with torch.no_grad():
        net.branch_weights()[0].copy_(torch.tensor([1.0, -1.0, 2.0, -3.0])[:, None, None])
    reduced = reduce_branches(net, torch.tensor([[1.0], [2.0]], dtype=torch.float64))
    assert reduced.num_branches == 1
    assert reduced.branch_weights()[0].item() > 0


def test_the_cheapest_of_parallel_atoms_is_chosen() -> None:
    atoms = torch.tensor([[1.0, 2.0, 1.0]], dtype=torch.float64)
    magnitudes = reduced_magnitudes(atoms, torch.tensor([1.0, 1.0, 3.0], dtype=torch.float64))
    assert magnitudes.tolist() == pytest.approx([0.0, 2.0, 0.0])


def test_nearly_dependent_atoms_do_not_blow_up() -> None:
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(40, 5, generator=generator, dtype=torch.float64)
    mix = torch.rand(5, 300, generator=generator, dtype=torch.float64)
    noise = torch.randn(40, 300, generator=generator, dtype=torch.float64)
    for size in (1e-15, 1e-12, 1e-9):
        atoms = base @ mix + size * noise
        costs = atoms.norm(dim=0)
        magnitudes = reduced_magnitudes(atoms, costs)
        assert float(magnitudes.min()) >= 0
        assert int((magnitudes > 0).sum()) <= 40
        assert relative_error(atoms @ magnitudes, atoms.sum(dim=1)) <= 1e-10
        assert float(costs @ magnitudes) <= float(costs.sum()) * (1 + 1e-12)


def test_power_form_equals_product_form_afterwards() -> None:
    net, inputs = net_of("deep", 2, 2, 30), torch.randn(3, 2, dtype=torch.float64)
    reduced = reduce_branches(net, inputs)
    assert penalty_of(reduced, "power") == pytest.approx(penalty_of(reduced, "product"), rel=1e-12)


def test_single_precision_stays_so() -> None:
    net, inputs = net_of("relu", 3, 1, 40, dtype=torch.float32), torch.randn(8, 3)
    reduced = reduce_branches(net, inputs)
    assert reduced(inputs).dtype == torch.float32
    assert reduced.num_branches <= 8
    assert relative_error(reduced(inputs), net(inputs)) <= 1e-4


@pytest.mark.parametrize(
    ("inputs", "error"),
    [
        (torch.zeros(0, 3), InvalidInputError),
        (torch.full((2, 3), math.nan), InvalidInputError),
        (torch.zeros(2, 4), ShapeError),
        (torch.zeros(3), InvalidInputError),
    ],
)
def test_unusable_inputs_are_refused(inputs: Tensor, error: type[Exception]) -> None:
    with pytest.raises(error, match="inputs"):
        reduce_branches(net_of("relu", 3, 1, 2), inputs)


def test_other_modules_and_hidden_biases_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="ParallelNet"):
        reduce_branches(nn.Linear(3, 1), torch.zeros(2, 3))  # type: ignore[arg-type]
    biased = ParallelNet(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1), num_branches=2)
    with pytest.raises(UnsupportedModelError, match="bias"):
        reduce_branches(biased, torch.zeros(2, 3))
