"""Certificates of networks with convolutional branches, end to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from torch_strongdual.callbacks import CertifyOptimality, GrowBranches
from torch_strongdual.certification import (
    Certificate,
    TrainingProblem,
    VerificationVerdict,
    certify,
    max_path_decay,
    optimize_to_certificate,
    reduce_branches,
    verify_certificate,
)
from torch_strongdual.certification._restricted.restricted_dual import AtomSet
from torch_strongdual.errors import ShapeError, UnsupportedModelError
from torch_strongdual.metrics import DualityGap
from torch_strongdual.nn import ParallelNet, ParallelWeights, branch_spec_of
from torch_strongdual.problems import PlantedProblem, planted_linear, planted_orthonormal_relu

from ..contracts.lightning_regression import IGNORE_ADVICE, Regression, make_trainer

Layers = Callable[[], Sequence[nn.Module]]

CERTIFIED: dict[str, Layers] = {
    "global": lambda: [nn.Conv2d(1, 2, (1, 2), bias=False), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)],
    "leaky_bias": lambda: [nn.Conv2d(1, 3, 1), nn.LeakyReLU(0.1), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(3, 2, bias=False)],
    "local": lambda: [nn.Conv2d(1, 2, (2, 1), bias=False), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(4, 2)],
    "linear": lambda: [nn.Conv2d(1, 2, 3, padding=1), nn.AvgPool2d(2, padding=1), nn.Flatten(), nn.Linear(18, 2, bias=False)],
}
LOSS = nn.MSELoss()


def make_net(layers: Layers, num_branches: int = 6) -> ParallelNet:
    return ParallelNet(*layers(), num_branches=num_branches, dtype=torch.float64)


def make_data(num_samples: int = 14, num_outputs: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(num_samples, 1, 4, 4, generator=generator, dtype=torch.float64)
    return images, torch.randn(num_samples, num_outputs, generator=generator, dtype=torch.float64)


def objective(net: nn.Module, inputs: Tensor, targets: Tensor, path_decay: float) -> Tensor:
    assert isinstance(net, ParallelNet)
    loss: Tensor = LOSS(net(inputs), targets)
    return loss + path_decay * net.path_penalty("power")


def train(net: ParallelNet, inputs: Tensor, targets: Tensor, path_decay: float) -> None:
    optimizer = torch.optim.LBFGS(net.parameters(), max_iter=400, history_size=30, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective(net, inputs, targets, path_decay)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]


def trained(layers: Layers, fraction: float = 0.2) -> tuple[ParallelNet, Tensor, Tensor, float]:
    torch.manual_seed(0)
    net, (inputs, targets) = make_net(layers), make_data()
    path_decay = fraction * max_path_decay(net, inputs, targets, loss=LOSS).lower
    train(net, inputs, targets, path_decay)
    return net, inputs, targets, path_decay


class TestCertify:
    @pytest.mark.parametrize("name", CERTIFIED)
    def test_trained_networks_are_certified_and_verified(self, name: str) -> None:
        net, inputs, targets, path_decay = trained(CERTIFIED[name])
        certificate = certify(net, inputs, targets, loss=LOSS, path_decay=path_decay)
        assert certificate.is_certified
        with torch.no_grad():
            expected = LOSS(net(inputs), targets) + path_decay * net.path_penalty()
        assert certificate.primal_value == pytest.approx(float(expected), rel=1e-9)
        report = verify_certificate(certificate, net, inputs, targets, loss=LOSS, path_decay=path_decay)
        assert report.verdict is VerificationVerdict.VERIFIED

    @pytest.mark.parametrize("name", CERTIFIED)
    def test_improving_branches_lower_the_objective(self, name: str) -> None:
        net, inputs, targets, path_decay = trained(CERTIFIED[name])
        with torch.no_grad():
            for parameter in net.path_param_groups(path_decay)[0]["params"]:
                parameter.mul_(0.3)
            if net.output_bias is not None:  # a certificate speaks of the network with its bias fitted
                net.output_bias.add_((targets - net(inputs)).mean(0))
        before = certify(net, inputs, targets, loss=LOSS, path_decay=path_decay)
        assert not before.is_certified
        branches = [torch.stack(layer)[:1] for layer in zip(*[w.weights for w in before.improving_branches], strict=True)]
        net.add_branches_([*branches[:-1], 0.02 * branches[-1]])
        after = certify(net, inputs, targets, loss=LOSS, path_decay=path_decay)
        assert after.primal_value < before.primal_value

    def test_max_path_decay_is_where_the_zero_net_stops_being_optimal(self) -> None:
        net, (inputs, targets) = make_net(CERTIFIED["global"]), make_data()
        limit = max_path_decay(net, inputs, targets, loss=LOSS)
        with torch.no_grad():
            for parameter in net.path_param_groups(0.1)[0]["params"]:
                parameter.zero_()
            assert net.output_bias is not None
            net.output_bias.copy_(targets.mean(0))
        above = certify(net, inputs, targets, loss=LOSS, path_decay=1.001 * limit.upper, rtol=1e-9)
        below = certify(net, inputs, targets, loss=LOSS, path_decay=0.99 * limit.lower, rtol=1e-9)
        assert above.is_certified
        assert not below.is_certified
        assert below.improving_branches

    @pytest.mark.parametrize("make_problem", [planted_linear, planted_orthonormal_relu])
    def test_kernels_as_large_as_the_signal_are_linear_layers(self, make_problem: Callable[..., PlantedProblem]) -> None:
        problem = make_problem(generator=torch.Generator().manual_seed(0))
        num_samples, size = problem.inputs.shape
        is_linear = problem.spec.is_linear
        activation: list[nn.Module] = [] if is_linear else [nn.ReLU()]
        width, outputs = problem.spec.hidden_widths[0], problem.spec.out_features
        first = nn.Conv1d(1, width, size, bias=False)
        layers = [first, *activation, nn.Flatten(), nn.Linear(width, outputs, bias=problem.spec.output_bias)]
        net = ParallelNet(*layers, num_branches=2, dtype=torch.float64)
        signals = problem.inputs.reshape(num_samples, 1, size)
        if len(problem.optimal_weights) == 2 and problem.optimal_weights[0].shape[1] == width:
            net.add_branches_(problem.optimal_weights)
            with torch.no_grad():
                for parameter in net.path_param_groups(0.1)[0]["params"]:
                    parameter[:2] = 0.0
                if net.output_bias is not None and problem.optimal_bias is not None:
                    net.output_bias.copy_(problem.optimal_bias)
        certificate = certify(net, signals, problem.targets, loss=problem.loss, path_decay=problem.path_decay, rtol=1e-3)
        assert certificate.dual_bound <= problem.optimal_value * (1 + 1e-12)
        assert certificate.dual_bound >= problem.optimal_value * (1 - 2e-3)

    def test_same_network_as_sequential(self) -> None:
        net, inputs, targets, path_decay = trained(CERTIFIED["global"])
        net.prune_(0.99)
        certificates: list[Certificate] = [
            certify(module, inputs, targets, loss=LOSS, path_decay=path_decay) for module in (net, net.branch(0))
        ]
        assert certificates[0].primal_value == pytest.approx(certificates[1].primal_value, rel=1e-12)


class TestParallelWeights:
    @pytest.mark.parametrize("name", CERTIFIED)
    def test_outputs_are_those_of_the_network_within_the_error(self, name: str) -> None:
        net, (inputs, _) = make_net(CERTIFIED[name], 5), make_data()
        weights = ParallelWeights.from_module(net)
        difference = (weights.outputs(inputs) - net(inputs).detach()).abs()
        error = weights.output_error(inputs)
        assert (difference <= 2 * error).all()
        assert float(error.max()) < 1e-11

    def test_features_of_the_spec_are_those_of_the_layers(self) -> None:
        for layers in CERTIFIED.values():
            net, (inputs, _) = make_net(layers, 3), make_data()
            features = net.branch_spec.features(inputs, net.branch_weights()[:-1])
            for k in range(3):
                torch.testing.assert_close(features[k], net.branch(k)[:-1](inputs), rtol=1e-12, atol=1e-12)


class TestRestrictedDual:
    @pytest.mark.parametrize("name", CERTIFIED)
    def test_atoms_of_a_network_give_its_outputs_at_no_smaller_penalty(self, name: str) -> None:
        net, (inputs, targets) = make_net(CERTIFIED[name]), make_data()
        problem = TrainingProblem.from_model(net, inputs, targets, loss=LOSS, path_decay=0.1)
        weights = ParallelWeights.from_module(net)
        atoms = AtomSet.of_network(problem, weights)
        bias = 0.0 if weights.output_bias is None else weights.output_bias
        torch.testing.assert_close(atoms.features @ atoms.coefficients + bias, weights.outputs(inputs))


class TestOtherEntryPoints:
    def test_optimize_to_certificate(self) -> None:
        net, inputs, targets, path_decay = trained(CERTIFIED["global"])
        result = optimize_to_certificate(
            make_net(CERTIFIED["global"], 2), inputs, targets, loss=LOSS, path_decay=path_decay, time_budget=20.0
        )
        assert result.certificate.is_certified
        assert result.certificate.primal_value <= 1.01 * float(objective(net, inputs, targets, path_decay).detach())

    def test_optimize_refuses_several_locations(self) -> None:
        net, (inputs, targets) = make_net(CERTIFIED["local"]), make_data()
        with pytest.raises(UnsupportedModelError, match="reach their last layer at 2 locations"):
            optimize_to_certificate(net, inputs, targets, loss=LOSS, path_decay=0.1)

    @pytest.mark.parametrize("name", CERTIFIED)
    def test_reduce_branches(self, name: str) -> None:
        net, (inputs, _) = make_net(CERTIFIED[name], 60), make_data()
        small = reduce_branches(net, inputs)
        assert small.num_branches <= 28
        torch.testing.assert_close(small(inputs), net(inputs))
        assert float(small.path_penalty().detach()) <= float(net.path_penalty().detach()) * (1 + 1e-9)

    def test_metric(self) -> None:
        net, inputs, targets, path_decay = trained(CERTIFIED["global"])
        metric = DualityGap(net, loss=LOSS, path_decay=path_decay)
        metric.update(inputs, targets)
        assert float(metric.compute()) < 0.01

    @IGNORE_ADVICE
    def test_callback(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        images, targets = make_data(num_outputs=1)
        module = Regression(path_decay=0.02, lr=0.1)
        layers = nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 1)
        module.net = ParallelNet(*layers, num_branches=4)
        loader = DataLoader(TensorDataset(images.float(), targets.float()), batch_size=14)
        certifier, grower = CertifyOptimality(loss=LOSS, time_budget=10.0), GrowBranches(max_branches=20)
        trainer: pl.Trainer = make_trainer(tmp_path, certifier, grower, max_epochs=3)
        trainer.fit(module, loader)
        assert 0.0 <= float(trainer.callback_metrics["certificate/relative_gap"]) < 1.0
        assert grower.history
        assert all(record.objective_after < record.objective_before for record in grower.history)


REFUSED: list[tuple[Layers, str]] = [
    (
        lambda: [nn.Conv2d(1, 2, 2), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(2, 1)],
        r"maximum pooling, MaxPool2d.*it trains, but cannot be certified",
    ),
    (
        lambda: [nn.Conv2d(1, 2, 2), nn.AvgPool2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(2, 1)],
        r"average pooling in front of its activation, ReLU\(\)",
    ),
    (
        lambda: [nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(2, 1)],
        "has 3 layers with weights",
    ),
    (
        lambda: [nn.Conv2d(1, 2, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2), nn.Linear(2, 1)],
        "has 3 layers with weights",
    ),
]


class TestRefusals:
    @pytest.mark.parametrize(("layers", "message"), REFUSED)
    def test_by_name_at_every_entry(self, layers: Layers, message: str) -> None:
        net, (inputs, targets) = make_net(layers), make_data(num_outputs=1)
        net(inputs)  # it trains
        for attempt in (
            lambda: branch_spec_of(net),
            lambda: certify(net, inputs, targets, loss=LOSS, path_decay=0.1),
            lambda: max_path_decay(net, inputs, targets, loss=LOSS),
            lambda: DualityGap(net, loss=LOSS, path_decay=0.1),
            lambda: reduce_branches(net, inputs),
        ):
            with pytest.raises(UnsupportedModelError, match=message):
                attempt()

    def test_l2_path(self) -> None:
        net, (inputs, targets) = make_net(CERTIFIED["global"]), make_data()
        with pytest.raises(UnsupportedModelError, match="'l2_path' penalty sums over paths of linear layers"):
            certify(net, inputs, targets, loss=LOSS, path_decay=0.1, penalty="l2_path")

    def test_shapes(self) -> None:
        net, (inputs, targets) = make_net(CERTIFIED["local"]), make_data()
        with pytest.raises(ShapeError, match=r"expected \(num_samples, 1, height, width\)"):
            certify(net, inputs.flatten(1), targets, loss=LOSS, path_decay=0.1)
        with pytest.raises(ShapeError, match="pooling leaves 1 locations; expected 2"):
            certify(net, inputs[..., :2], targets, loss=LOSS, path_decay=0.1)
        with pytest.raises(ShapeError, match="smaller than the kernel"):
            certify(net, inputs[..., :1, :], targets, loss=LOSS, path_decay=0.1)
