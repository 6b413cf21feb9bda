from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from torch_strongdual.certification import Certificate, CertificateScope, CertificateStatus, certify, max_path_decay
from torch_strongdual.certification.dual_norm_bound import DualNormBound
from torch_strongdual.certification.oracles import AbstractDualNormOracle, BoundRequest, LinearOracle
from torch_strongdual.errors import (
    InvalidInputError,
    ShapeError,
    SoundnessError,
    UnsupportedLossError,
    UnsupportedModelError,
)
from torch_strongdual.losses import HalfSquaredLoss
from torch_strongdual.nn import BranchSpec, GatedReLU, ParallelNet
from torch_strongdual.problems import (
    PlantedProblem,
    planted_gated_relu,
    planted_linear,
    planted_orthonormal_relu,
    planted_rank_one_relu,
)

from .._cpu_clock import count_cpu_time


def linear(fan_in: int, fan_out: int, bias: bool = False) -> nn.Linear:
    return nn.Linear(fan_in, fan_out, bias=bias)


def relu_net(num_inputs: int = 2, num_outputs: int = 1, *, bias: bool = False, num_branches: int = 12) -> ParallelNet:
    return ParallelNet(
        linear(num_inputs, 1), nn.ReLU(), linear(1, num_outputs, bias), num_branches=num_branches, dtype=torch.float64
    )


def data(num_samples: int = 12, num_inputs: int = 2, num_outputs: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(num_samples, num_inputs, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(num_samples, num_outputs, generator=generator, dtype=torch.float64)


def train(net: ParallelNet, inputs: Tensor, targets: Tensor, loss: nn.Module, path_decay: float, steps: int = 400) -> None:
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        (loss(net(inputs), targets) + path_decay * net.path_penalty("product")).backward()
        optimizer.step()


class Claims(AbstractDualNormOracle):
    """Says what it is told: a wrong oracle, for tests of what happens then."""

    def __init__(self, upper: float) -> None:
        self.upper = upper

    def supports(self, spec: BranchSpec) -> str | None:
        return None

    def init(self, spec: BranchSpec, inputs: Tensor) -> None:
        return None

    def bound(self, state: None, dual_point: Tensor, request: BoundRequest) -> DualNormBound:
        return DualNormBound(upper=self.upper, stats={"limited_by": "made up"})


# ------------------------------------------------------------------ truth


def test_one_sample_in_closed_form() -> None:
    """n = 1, f = z >= 0 free: min (z - y)^2 / 2 + beta |z| / |x| is soft-thresholding."""
    net = relu_net(1, num_branches=3)
    x, y, beta = 2.0, 3.0, 0.5
    certificate = certify(net, torch.tensor([[x]]), torch.tensor([[y]]), loss=HalfSquaredLoss(), path_decay=beta, rtol=1e-9)
    threshold = beta / x
    optimum = 0.5 * threshold**2 + threshold * (y - threshold)
    assert certificate.dual_bound == pytest.approx(optimum, rel=1e-8)
    assert certificate.dual_bound <= optimum


def planted_net(problem: PlantedProblem) -> ParallelNet:
    """A network that holds the planted optimum."""
    spec, weights = problem.spec, problem.optimal_weights
    layers: list[nn.Module] = []
    for index, (fan_in, fan_out) in enumerate(zip(spec.widths[:-1], spec.widths[1:], strict=True)):
        bias = (index == 0 and spec.input_bias) or (index == spec.num_layers - 1 and spec.output_bias)
        layers.append(linear(fan_in, fan_out, bias))
        if index < spec.num_layers - 1:
            activation = spec.activations[index]
            layers.append(
                GatedReLU(spec.widths[0]) if activation.is_gated else nn.Identity() if activation.is_identity else nn.ReLU()
            )
    net = ParallelNet(*layers, num_branches=weights[0].shape[0], dtype=torch.float64)
    own = net.branch_weights()
    assert [tuple(w.shape) for w in own] == [tuple(w.shape) for w in weights]
    with torch.no_grad():
        parameters = [p for p in net.parameters() if p.ndim == 3]
        for parameter, weight in zip(parameters, weights, strict=True):
            parameter.copy_(weight)
        for module, activation in zip(
            [m for m in net.modules() if isinstance(m, GatedReLU) or "Gated" in type(m).__name__],
            [a for a in spec.activations if a.is_gated],
            strict=False,
        ):
            for buffer in module.buffers():
                buffer.copy_(activation.gate_vectors[0])
    return net


@pytest.mark.parametrize("make", [planted_linear, planted_orthonormal_relu, planted_rank_one_relu, planted_gated_relu])
def test_planted_optimum_is_certified_to_seven_digits(make: object) -> None:
    problem: PlantedProblem = make()  # type: ignore[operator]
    if problem.spec.output_bias or problem.spec.input_bias:
        pytest.skip("planted without biases here")
    net = planted_net(problem)
    certificate = certify(net, problem.inputs, problem.targets, loss=problem.loss, path_decay=problem.path_decay, rtol=1e-7)
    assert certificate.primal_value == pytest.approx(problem.optimal_value, rel=1e-10)
    assert certificate.is_certified, str(certificate)
    assert certificate.dual_bound <= problem.optimal_value * (1 + 1e-12)


@pytest.mark.parametrize(
    ("loss", "bias"),
    [
        (nn.MSELoss(), False),
        (nn.MSELoss(), True),
        (nn.HuberLoss(), True),
        (nn.SmoothL1Loss(), False),
        (nn.L1Loss(), True),
        (nn.MSELoss(reduction="sum"), False),
    ],
    ids=repr,
)
def test_trained_regression_is_certified(loss: nn.Module, bias: bool) -> None:
    inputs, targets = data()
    net = relu_net(bias=bias)
    path_decay = 0.2 * max_path_decay(net, inputs, targets, loss=loss).lower
    train(net, inputs, targets, loss, path_decay)
    certificate = certify(net, inputs, targets, loss=loss, path_decay=path_decay, rtol=3e-2)
    assert certificate.is_certified, str(certificate)
    assert certificate.dual_point is not None
    if bias:
        assert float(certificate.dual_point.sum().abs()) < 1e-12


def test_trained_classifiers_are_certified() -> None:
    inputs, scores = data(num_outputs=3)
    labels = scores.argmax(1)
    for loss, targets, num_outputs, bias in (
        (nn.CrossEntropyLoss(label_smoothing=0.1), labels, 3, True),
        (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)), labels, 3, False),
        (nn.BCEWithLogitsLoss(), (scores[:, :1] > 0).double(), 1, True),
    ):
        net = relu_net(num_outputs=num_outputs, bias=bias, num_branches=20)
        path_decay = 0.2 * max_path_decay(net, inputs, targets, loss=loss).lower
        train(net, inputs, targets, loss, path_decay)
        certificate = certify(net, inputs, targets, loss=loss, path_decay=path_decay, rtol=3e-2)
        assert certificate.is_certified, str(certificate)


@pytest.mark.parametrize("penalty", ["product", "power", "l2_path"])
def test_penalties_have_their_own_dual(penalty: str) -> None:
    """Two hidden units a branch: the l2 path form is cheaper by up to sqrt(2), and its bound lower."""
    inputs, targets = data()
    net = ParallelNet(linear(2, 2), nn.ReLU(), linear(2, 1), num_branches=10, dtype=torch.float64)
    loss, path_decay = HalfSquaredLoss(), 0.5
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
    for _ in range(700):
        optimizer.zero_grad()
        (loss(net(inputs), targets) + path_decay * net.path_penalty(penalty)).backward()
        optimizer.step()
    certificate = certify(net, inputs, targets, loss=loss, path_decay=path_decay, penalty=penalty, rtol=2e-2)
    assert certificate.is_certified, str(certificate)
    other = "product" if penalty == "l2_path" else "l2_path"
    wrong = certify(net, inputs, targets, loss=loss, path_decay=path_decay, penalty=other, rtol=2e-2)
    assert (wrong.dual_bound > certificate.dual_bound) == (penalty == "l2_path")


def test_batches_and_tensors_agree_and_float32_is_exact() -> None:
    inputs, targets = (tensor.float() for tensor in data())
    net = relu_net().float()
    loader = DataLoader(TensorDataset(inputs, targets), batch_size=5)
    first = certify(net, inputs, targets, loss=nn.MSELoss(), path_decay=0.05)
    second = certify(net, loader, loss=nn.MSELoss(), path_decay=0.05)
    assert first.primal_value == second.primal_value
    assert first.dual_bound == second.dual_bound
    exact = certify(net.double(), inputs.double(), targets.double(), loss=nn.MSELoss(), path_decay=0.05)
    assert exact.primal_value == first.primal_value


def test_the_model_is_only_read() -> None:
    inputs, targets = data()
    net = relu_net()
    net(inputs).sum().backward()
    before = {name: (p.clone(), p.grad.clone()) for name, p in net.named_parameters()}  # type: ignore[union-attr]
    generator_state = torch.get_rng_state()
    certify(net, inputs, targets, loss=nn.MSELoss(), path_decay=0.05)
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter, before[name][0])
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, before[name][1])
    assert torch.equal(torch.get_rng_state(), generator_state)
    assert net.training


def test_sequential_is_one_branch_of_the_parallel_problem() -> None:
    inputs, targets = data()
    branch = nn.Sequential(linear(2, 1), nn.ReLU(), linear(1, 1)).double()
    alone = certify(branch, inputs, targets, loss=nn.MSELoss(), path_decay=0.05)
    parallel = certify(relu_net(), inputs, targets, loss=nn.MSELoss(), path_decay=0.05)
    assert abs(alone.dual_bound - parallel.dual_bound) <= 0.02 * abs(alone.dual_bound)


def test_zero_net_is_optimal_above_the_largest_path_decay() -> None:
    inputs, targets = data()
    net = relu_net()
    limit = max_path_decay(net, inputs, targets, loss=nn.MSELoss(), rtol=1e-6)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    above = certify(net, inputs, targets, loss=nn.MSELoss(), path_decay=1.001 * limit.upper, rtol=1e-9)
    assert above.is_certified, str(above)
    below = certify(net, inputs, targets, loss=nn.MSELoss(), path_decay=0.9 * limit.lower, rtol=1e-4)
    assert not below.is_certified
    assert below.improving_branches
    assert all(w.value > 0.9 * limit.lower for w in below.improving_branches)


def test_improving_branches_lower_the_objective() -> None:
    inputs, targets = data()
    net, loss = relu_net(num_branches=1), nn.MSELoss()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    path_decay = 0.3 * max_path_decay(net, inputs, targets, loss=loss).lower
    certificate = certify(net, inputs, targets, loss=loss, path_decay=path_decay)
    before = certificate.primal_value
    step = 1e-3
    weights = [w[None].clone() for w in certificate.improving_branches[0].weights]
    weights[-1] *= step
    net.add_branches_(weights)
    with torch.no_grad():
        after = float(loss(net(inputs), targets) + path_decay * net.path_penalty("product"))
    assert after < before


def test_gated_scope_is_named() -> None:
    inputs, targets = data()
    net = ParallelNet(linear(2, 2), GatedReLU(2), linear(2, 1), num_branches=5, dtype=torch.float64)
    certificate = certify(net, inputs, targets, loss=nn.MSELoss(), path_decay=0.05)
    assert certificate.scope is CertificateScope.GATED
    assert math.isfinite(certificate.dual_bound)


def test_constant_and_absent_classes() -> None:
    inputs, _ = data()
    labels = torch.zeros(len(inputs), dtype=torch.int64)
    for bias in (False, True):
        certificate = certify(
            relu_net(num_outputs=3, bias=bias),
            inputs,
            labels,
            loss=nn.CrossEntropyLoss(),
            path_decay=0.05,
            time_budget=1.0,  # the infimum is not attained with a bias: the gap cannot close
        )
        assert certificate.dual_bound <= certificate.primal_value
        assert certificate.dual_bound > -1e-9


# --------------------------------------------------------- what can go wrong


def test_a_bound_above_an_attained_value_raises() -> None:
    inputs, targets = data()
    net = relu_net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    limit = max_path_decay(net, inputs, targets, loss=nn.MSELoss()).lower
    net.requires_grad_(True)
    train_net = relu_net(num_branches=30)
    train(train_net, inputs, targets, nn.MSELoss(), 0.05 * limit, steps=800)
    with pytest.raises(SoundnessError, match="bug in the bound") as caught:
        certify(train_net, inputs, targets, loss=nn.MSELoss(), path_decay=0.05 * limit, oracle=Claims(1e-9), rtol=1e-9)
    assert caught.value.dual_bound > caught.value.primal_value


def test_an_oracle_that_proves_nothing_gives_minus_infinity() -> None:
    inputs, targets = data()
    certificate = certify(relu_net(), inputs, targets, loss=nn.MSELoss(), path_decay=0.05, oracle=Claims(math.inf))
    assert certificate.dual_bound == -math.inf
    assert not certificate.is_certified
    assert certificate.stats["limited_by"] == "made up"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["inputs", "targets", "weights"])
def test_non_finite_numbers_prove_nothing(bad: float, where: str) -> None:
    inputs, targets = data()
    net = relu_net()
    if where == "weights":
        with torch.no_grad():
            next(net.parameters())[0, 0, 0] = bad
    elif where == "inputs":
        inputs[1, 0] = bad
    else:
        targets[1, 0] = bad
    certificate = certify(net, inputs, targets, loss=nn.MSELoss(), path_decay=0.05)
    assert certificate.status is CertificateStatus.NUMERICAL_FAILURE
    assert certificate.dual_bound == -math.inf
    assert certificate.relative_gap == math.inf
    assert not certificate.is_certified
    name = "weights of linear layer 0" if where == "weights" else where
    assert f"It is due to `{name}`, where 1 of" in str(certificate)
    assert f"the first in row {0 if where == 'weights' else 1}." in str(certificate)


def test_an_objective_beyond_all_numbers_is_said_to_be_that() -> None:
    inputs, targets = data()
    certificate = certify(relu_net(), inputs, 1e200 * targets, loss=nn.MSELoss(), path_decay=0.05)
    assert certificate.status is CertificateStatus.NUMERICAL_FAILURE
    assert "It is due to an objective beyond all numbers" in str(certificate)


def call(**changes: object) -> Certificate:
    inputs, targets = data()
    arguments: dict[str, object] = {
        "model": relu_net(), "inputs": inputs, "targets": targets, "loss": nn.MSELoss(), "path_decay": 0.05,
    }  # fmt: skip
    return certify(**(arguments | changes))  # type: ignore[arg-type]


MISTAKES: dict[str, tuple[dict[str, object], type[Exception], str]] = {
    "empty": ({"inputs": torch.zeros(0, 2), "targets": torch.zeros(0, 1)}, InvalidInputError, "at least one sample"),
    "width": ({"inputs": torch.zeros(12, 3)}, ShapeError, "3 features"),
    "three dimensions": ({"inputs": torch.zeros(12, 1, 2)}, ShapeError, "3 dimensions"),
    "other length": ({"targets": torch.zeros(11, 1)}, ShapeError, "equally many samples"),
    "other outputs": ({"targets": torch.zeros(12, 2)}, ShapeError, "targets"),
    "no targets": ({"targets": None}, InvalidInputError, "expected a tensor"),
    "labels": (
        {"targets": torch.full((12,), 7), "loss": nn.CrossEntropyLoss(), "model": relu_net(num_outputs=3)},
        InvalidInputError,
        "7",
    ),
    "path decay zero": ({"path_decay": 0.0}, InvalidInputError, "path_decay"),
    "path decay nan": ({"path_decay": math.nan}, InvalidInputError, "path_decay"),
    "penalty": ({"penalty": "l1"}, InvalidInputError, "product"),
    "rtol": ({"rtol": 0.0}, InvalidInputError, "rtol"),
    "loss": ({"loss": nn.CosineEmbeddingLoss()}, UnsupportedLossError, "CosineEmbeddingLoss"),
    "reduction": ({"loss": nn.MSELoss(reduction="none")}, UnsupportedLossError, "none"),
    "model": ({"model": nn.Sequential(linear(2, 2), nn.Tanh(), linear(2, 1))}, UnsupportedModelError, "Tanh"),
    "dropout": ({"model": nn.Sequential(linear(2, 2), nn.Dropout(), linear(2, 1))}, UnsupportedModelError, "Dropout"),
    "hidden bias": (
        {"model": ParallelNet(linear(2, 2), nn.ReLU(), linear(2, 2, True), nn.ReLU(), linear(2, 1), num_branches=2)},
        UnsupportedModelError,
        "bias=False",
    ),
    "oracle name": ({"oracle": "auto"}, InvalidInputError, "oracle object"),
    "oracle": ({"oracle": LinearOracle()}, UnsupportedModelError, "LinearOracle cannot certify"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_named_before_any_work(mistake: str) -> None:
    changes, error, message = MISTAKES[mistake]
    with pytest.raises(error, match=message):
        call(**changes)


def deep_net() -> ParallelNet:
    return ParallelNet(linear(12, 4), nn.ReLU(), linear(4, 3), nn.ReLU(), linear(3, 1), num_branches=10)


@pytest.mark.parametrize("make_net", [lambda: relu_net(12), deep_net], ids=["two layers", "three layers"])
def test_time_budget_is_kept(monkeypatch: pytest.MonkeyPatch, make_net: Callable[[], nn.Module]) -> None:
    count_cpu_time(monkeypatch)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 12, generator=generator, dtype=torch.float64)
    targets = torch.randn(200, 1, generator=generator, dtype=torch.float64)
    model = make_net()
    hurried = call(inputs=inputs, targets=targets, model=model, time_budget=1e-3, path_decay=1e-3)  # compiles
    assert hurried.status is CertificateStatus.BUDGET_EXHAUSTED
    certificate = call(inputs=inputs, targets=targets, model=model, time_budget=1.0, path_decay=1e-3)
    # A fast machine sees within a second that the network, not the bound, is what keeps the gap open.
    assert certificate.status in (CertificateStatus.BUDGET_EXHAUSTED, CertificateStatus.GAP_OPEN)
    assert certificate.stats["seconds"] < 1.1 + 1.0  # type: ignore[operator]  # and one oracle chunk, with room to spare
    assert math.isfinite(certificate.dual_bound)


def test_an_open_certificate_says_what_keeps_it_open() -> None:
    inputs, targets = data()
    untrained = certify(relu_net(), inputs, targets, loss=nn.MSELoss(), path_decay=0.05)
    assert "train longer" in str(untrained.stats["reason"])
    assert str(untrained.stats["reason"]) in str(untrained)
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(150, 16, generator=generator, dtype=torch.float64)
    answers = torch.randn(150, 1, generator=generator, dtype=torch.float64)
    loose = relu_net(16, num_branches=200)
    train(loose, wide, answers, nn.MSELoss(), 0.02, steps=300)
    certificate = certify(loose, wide, answers, loss=nn.MSELoss(), path_decay=0.02, rtol=1e-4, time_budget=2.0)
    assert not certificate.is_certified
    assert "dual norm" in str(certificate.stats["reason"])


def test_a_perfect_zero_net_is_certified() -> None:
    inputs, _ = data()
    net = relu_net()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    certificate = certify(net, inputs, torch.zeros(len(inputs), 1), loss=nn.MSELoss(), path_decay=0.1)
    assert certificate.is_certified
    assert certificate.relative_gap == 0.0
