"""What holds for both path optimizers."""

from __future__ import annotations

import copy
import io
import math
import pickle
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.errors import InvalidInputError, ShapeError
from torch_strongdual.functional import PATH_PENALTIES
from torch_strongdual.optim import PathSGD

from .._typed_torch import backward
from .branch_problems import MAKERS, MakeOptimizer, branch_group, random_bias, random_layers, relu_loss, train

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(params=MAKERS, ids=lambda maker: maker.__name__)
def make(request: pytest.FixtureRequest) -> MakeOptimizer:
    maker: MakeOptimizer = request.param
    return maker


def momentum(make: MakeOptimizer) -> dict[str, Any]:
    return {"momentum": 0.9} if make is PathSGD else {}


@pytest.mark.parametrize("penalty", PATH_PENALTIES)
def test_foreach_equals_single(make: MakeOptimizer, penalty: str) -> None:
    results = []
    for foreach in (True, False):
        layers, bias = random_layers(), random_bias()
        group = {"params": [layers[0], bias, *layers[1:]], "layer_index": (0, 0, 1, 2)}
        options = {"nesterov": True} if make is PathSGD else {}
        optimizer = make([group], lr=0.02, path_decay=0.1, penalty=penalty, foreach=foreach, **momentum(make), **options)
        train(optimizer, partial(relu_loss, layers, bias), 50)
        results.append([*layers, bias])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_gradients_are_not_changed(make: MakeOptimizer) -> None:
    layers = random_layers()
    optimizer = make([branch_group(layers)], lr=0.02, path_decay=0.1, maximize=True, **momentum(make))
    for _ in range(3):
        optimizer.zero_grad()
        backward(relu_loss(layers))
        before = [(layer.grad, layer.grad.clone()) for layer in layers if layer.grad is not None]
        optimizer.step()
        assert all(layer.grad is grad for layer, (grad, _) in zip(layers, before, strict=True))
        assert all(torch.equal(grad, copied) for grad, copied in before)


def test_maximize_means_the_loss_not_the_penalty(make: MakeOptimizer) -> None:
    ours, other = random_layers(), random_layers()
    train(make([branch_group(ours)], lr=0.01, path_decay=0.1, maximize=True), lambda: -relu_loss(ours), 20)
    train(make([branch_group(other)], lr=0.01, path_decay=0.1), lambda: relu_loss(other), 20)
    assert all(torch.equal(a, b) for a, b in zip(ours, other, strict=True))


def test_tensor_learning_rate(make: MakeOptimizer) -> None:
    ours, other = random_layers(), random_layers()
    lr = torch.tensor(0.01, dtype=torch.float64)
    train(make([branch_group(ours)], lr=lr, path_decay=0.1, **momentum(make)), lambda: relu_loss(ours), 20)
    train(make([branch_group(other)], lr=0.01, path_decay=0.1, **momentum(make)), lambda: relu_loss(other), 20)
    for a, b in zip(ours, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_closure_runs_with_gradients_and_gives_the_loss(make: MakeOptimizer) -> None:
    ours, other = random_layers(), random_layers()
    optimizer = make([branch_group(ours)], lr=0.01, path_decay=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = relu_loss(ours)
        backward(loss)
        return loss

    with torch.no_grad():
        expected = relu_loss(other)
        returned = optimizer.step(closure)  # type: ignore[arg-type]  # torch types closures as giving floats
        assert torch.equal(torch.as_tensor(returned), expected)
    train(make([branch_group(other)], lr=0.01, path_decay=0.1), lambda: relu_loss(other), 1)
    assert all(torch.equal(a, b) for a, b in zip(ours, other, strict=True))
    assert optimizer.step() is None


class TestParametersWithoutGradient:
    def test_frozen_layer_stands_still_and_counts(self, make: MakeOptimizer) -> None:
        layers = random_layers(2)
        layers[0].requires_grad_(False)
        before = layers[0].clone()
        optimizer = make([branch_group(layers)], lr=0.01, path_decay=1e6)
        train(optimizer, lambda: relu_loss(layers), 100)
        assert torch.equal(layers[0], before)
        assert layers[1].count_nonzero() == 0  # the threshold contains the norm of the frozen layer

    def test_frozen_last_layer(self, make: MakeOptimizer) -> None:
        layers = random_layers(2)
        layers[1].requires_grad_(False)
        before = [layer.detach().clone() for layer in layers]
        train(make([branch_group(layers)], lr=0.01, path_decay=0.1), lambda: relu_loss(layers), 5)
        assert torch.equal(layers[1], before[1])
        assert not torch.equal(layers[0], before[0])

    def test_no_gradient_at_all(self, make: MakeOptimizer) -> None:
        layers = random_layers()
        before = [layer.detach().clone() for layer in layers]
        make([branch_group(layers), {"params": [random_bias()]}], lr=0.01).step()
        assert all(torch.equal(a, b) for a, b in zip(layers, before, strict=True))


class TestDeadBranches:
    def layers(self) -> list[Tensor]:
        layers = random_layers(2)
        with torch.no_grad():
            layers[1][:2] = 0
            layers[0][0] = 0
        return layers

    def test_revives_where_the_dual_constraint_is_violated(self, make: MakeOptimizer) -> None:
        layers = self.layers()
        train(make([branch_group(layers)], lr=0.01, path_decay=1e-4), lambda: relu_loss(layers), 10)
        assert layers[1][1].norm() > 0

    def test_stays_exactly_dead_within_the_constraint(self, make: MakeOptimizer) -> None:
        layers = self.layers()
        backward(relu_loss(layers))
        assert layers[1].grad is not None
        violation = (layers[1].grad[1].norm() / layers[0][1].norm()).item()
        hidden = layers[0][1].detach().clone()
        with torch.no_grad():
            layers[1].zero_()
        optimizer = make([branch_group(layers)], lr=0.01, path_decay=10 * violation + 10, **momentum(make))
        train(optimizer, lambda: relu_loss(layers), 50)
        assert layers[1].count_nonzero() == 0
        assert torch.equal(layers[0][1], hidden)

    def test_zero_hidden_layers_are_dead_for_ever(self, make: MakeOptimizer) -> None:
        layers = self.layers()
        train(make([branch_group(layers)], lr=0.01, path_decay=1e-4), lambda: relu_loss(layers), 30)
        assert layers[0][0].count_nonzero() == layers[1][0].count_nonzero() == 0
        assert all(layer.isfinite().all() for layer in layers)


class TestCheckpoints:
    @pytest.mark.parametrize("penalty", PATH_PENALTIES)
    def test_resumed_run_is_identical(self, make: MakeOptimizer, penalty: str) -> None:
        whole, resumed = random_layers(), random_layers()
        plain = [torch.ones(2, dtype=torch.float64, requires_grad=True) for _ in range(2)]

        def optimizer_of(layers: list[Tensor], offset: Tensor, decay: float) -> torch.optim.Optimizer:
            groups = [branch_group(layers, path_decay=decay, penalty=penalty), {"params": [offset]}]
            return make(groups, lr=0.02, **momentum(make))

        def loss(layers: list[Tensor], offset: Tensor) -> Tensor:
            return relu_loss(layers) + (offset - layers[-1].sum()).square().sum()

        first = optimizer_of(whole, plain[0], 0.1)
        train(first, lambda: loss(whole, plain[0]), 10)
        with torch.no_grad():
            for source, target in zip([*whole, plain[0]], [*resumed, plain[1]], strict=True):
                target.copy_(source)
        file = io.BytesIO()
        torch.save(first.state_dict(), file)
        file.seek(0)
        second = optimizer_of(resumed, plain[1], 0.7)
        second.load_state_dict(torch.load(file, weights_only=True))
        train(first, lambda: loss(whole, plain[0]), 20)
        train(second, lambda: loss(resumed, plain[1]), 20)
        assert all(torch.equal(a, b) for a, b in zip([*whole, plain[0]], [*resumed, plain[1]], strict=True))

    def test_pickles_and_copies(self, make: MakeOptimizer) -> None:
        layers = random_layers()
        optimizer = make([branch_group(layers)], lr=0.02, path_decay=0.1, **momentum(make))
        train(optimizer, lambda: relu_loss(layers), 3)
        for clone in (pickle.loads(pickle.dumps(optimizer)), copy.deepcopy(optimizer)):
            group = clone.param_groups[0]
            assert group["layer_index"] == (0, 1, 2)
            train(clone, partial(relu_loss, group["params"]), 3)

    def test_stock_checkpoint_does_not_switch_the_penalty_off(self, make: MakeOptimizer) -> None:
        layers = random_layers()
        stock: type[torch.optim.Optimizer] = torch.optim.SGD if make is PathSGD else torch.optim.Adam
        state = stock(layers, lr=0.5).state_dict()  # type: ignore[call-arg]
        optimizer = make([branch_group(layers)], lr=0.02, path_decay=0.1)
        optimizer.load_state_dict(state)
        group = optimizer.param_groups[0]
        assert (group["lr"], group["path_decay"], group["penalty"], group["layer_index"]) == (0.5, 0.1, "product", (0, 1, 2))

    @pytest.mark.parametrize("stock", [torch.optim.SGD, torch.optim.AdamW])
    def test_stock_checkpoint_says_what_it_does_not_have(self, make: MakeOptimizer, stock: Any) -> None:
        """Options of the other optimizer stay as they were here; its state is used where it can be, or refused by name."""
        layers = random_layers()
        other = stock(layers, lr=0.5, **({"momentum": 0.9} if stock is torch.optim.SGD else {}))
        train(other, partial(relu_loss, layers), 2)
        optimizer = make([branch_group(layers)], lr=0.02, path_decay=0.1, **momentum(make))
        before = dict(optimizer.param_groups[0])
        optimizer.load_state_dict(other.state_dict())
        assert {name: optimizer.param_groups[0][name] for name in before} == before | {"lr": 0.5}
        if make is PathSGD:
            train(optimizer, partial(relu_loss, layers), 2)
            return
        with pytest.raises(ShapeError, match=r"expected `exp_avg_sq` and `step` with one number a branch, shape \(4,\)"):
            train(optimizer, partial(relu_loss, layers), 1)
        optimizer.state.clear()
        train(optimizer, partial(relu_loss, layers), 2)


class TestGuests:
    """Parts of torch that work on optimizers."""

    @pytest.mark.parametrize("penalty", PATH_PENALTIES)
    def test_learning_rate_schedulers(self, make: MakeOptimizer, penalty: str) -> None:
        layers = random_layers()
        optimizer = make([branch_group(layers)], lr=0.02, path_decay=0.1, penalty=penalty, **momentum(make))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: epoch / 10)  # starts at zero
        before = [layer.detach().clone() for layer in layers]
        train(optimizer, lambda: relu_loss(layers), 1)
        assert all(torch.equal(a, b) for a, b in zip(layers, before, strict=True))
        for _ in range(10):
            train(optimizer, lambda: relu_loss(layers), 1)
            scheduler.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02)
        assert not torch.equal(layers[0], before[0])
        assert all(layer.isfinite().all() for layer in layers)

    def test_one_cycle_changes_momentum_too(self, make: MakeOptimizer) -> None:
        layers = random_layers()
        optimizer = make([branch_group(layers)], lr=0.02, path_decay=0.1, **momentum(make))
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=20)
        start = relu_loss(layers).item()
        for _ in range(19):
            train(optimizer, lambda: relu_loss(layers), 1)
            scheduler.step()
        assert relu_loss(layers).item() < start

    def test_gradient_scaler_skips_overflow_and_clipping_works(self, make: MakeOptimizer) -> None:
        layers = random_layers(dtype=torch.float32)
        optimizer = make([branch_group(layers)], lr=0.02, path_decay=0.1, **momentum(make))
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for factor in (1.0, math.inf, 1.0):
            before = [layer.detach().clone() for layer in layers]
            optimizer.zero_grad()
            backward(scaler.scale(relu_loss(layers) * factor))
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(layers, 1.0)
            scaler.step(optimizer)
            scaler.update()
            moved = not all(torch.equal(a, b) for a, b in zip(layers, before, strict=True))
            assert moved == math.isfinite(factor)
        assert all(layer.isfinite().all() for layer in layers)


@pytest.mark.parametrize("foreach", [None, True])
def test_plain_groups_may_be_complex_and_in_sgd_sparse(make: MakeOptimizer, foreach: bool | None) -> None:
    stock: Any = torch.optim.SGD if make is PathSGD else torch.optim.Adam
    options: dict[str, Any] = {"lr": 0.1, "foreach": foreach, **momentum(make)}
    found = []
    for make_one in (make, stock):
        numbers = torch.tensor([1.0 + 2.0j, 3.0], requires_grad=True)
        table = nn.Embedding(5, 2, sparse=make is PathSGD, _weight=torch.arange(10.0).reshape(5, 2))
        optimizer = make_one([numbers, *table.parameters()], **options)
        for step in range(3):
            optimizer.zero_grad()
            backward(table(torch.tensor([step, 3])).square().sum() + (numbers * numbers.conj()).real.sum())
            optimizer.step()
        found.append((numbers.detach(), table.weight.detach()))
    for own, expected in zip(*found, strict=True):
        assert torch.equal(own, expected)


class TestRefusals:
    def test_state_of_branches_that_are_gone(self, make: MakeOptimizer) -> None:
        """As after ``net.prune_()``: with a message, and as it was before once the state is dropped."""
        layers = random_layers()
        optimizer = make([branch_group(layers)], **momentum(make))
        train(optimizer, partial(relu_loss, layers), 2)
        for layer in layers:
            layer.data, layer.grad = layer.data[:1], None
        with pytest.raises(ShapeError, match="prune_"):
            train(optimizer, partial(relu_loss, layers), 1)
        for layer in layers:
            optimizer.state.pop(layer)
        train(optimizer, partial(relu_loss, layers), 2)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"lr": -1.0}, "`lr` is -1.0; expected a finite number >= 0"),
            ({"lr": math.nan}, "`lr` is nan"),
            ({"lr": "0.1"}, "`lr` is '0.1'; expected a finite number"),
            ({"lr": None}, "`lr` is None; expected a finite number"),
            ({"path_decay": torch.tensor(0.1)}, r"`path_decay` is tensor.* Convert it with `float\(\.\.\.\)`"),
            ({"lr": torch.ones(2)}, r"`lr` is a tensor of shape \(2,\)"),
            ({"path_decay": -0.1}, "`path_decay` is -0.1"),
            ({"path_decay": math.inf}, "`path_decay` is inf"),
            ({"penalty": "l1"}, "`penalty` is 'l1'; expected one of 'product', 'power', 'l2_path'"),
            ({"differentiable": True}, "`differentiable` is True; expected False"),
        ],
    )
    def test_options_at_construction_and_in_a_group(self, make: MakeOptimizer, options: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            make([branch_group(random_layers())], **options)
        with pytest.raises(InvalidInputError, match=message):
            make([branch_group(random_layers(), **options)])

    @pytest.mark.parametrize(
        ("option", "message"),
        [
            ({"weight_decay": 0.01}, "`weight_decay` is 0.01 in a parameter group of Path.*`path_decay` takes its place"),
            ({"amsgrad": True}, "`amsgrad` is True"),
            ({"fused": True}, "`fused` is True"),
        ],
    )
    def test_options_of_stock_optimizers_are_not_ignored(
        self, make: MakeOptimizer, option: dict[str, Any], message: str
    ) -> None:
        for group in (branch_group(random_layers()), {"params": [random_bias()]}):
            with pytest.raises(InvalidInputError, match=message):
                make([{**group, **option}])
            make([{**group, **{name: type(value)(0) for name, value in option.items()}}])

    def test_decay_of_unknown_structure(self, make: MakeOptimizer) -> None:
        with pytest.raises(InvalidInputError, match=r"unknown branch structure.*net\.path_param_groups\(path_decay=\.\.\.\)"):
            make(random_layers(), path_decay=1e-3)
        with pytest.raises(InvalidInputError, match=r"`path_decay` is 0\.5 for 1 parameters of unknown"):
            make([branch_group(random_layers(), path_decay=0.5), {"params": [random_bias()], "path_decay": 0.5}])

    def test_default_decay_applies_to_branches_and_zero_is_allowed_elsewhere(self, make: MakeOptimizer) -> None:
        optimizer = make([branch_group(random_layers()), {"params": [random_bias()], "path_decay": 0}], path_decay=1e-3)
        assert [group["path_decay"] for group in optimizer.param_groups] == [1e-3, 0]

    @pytest.mark.parametrize(
        ("shapes", "layer_index", "error", "message"),
        [
            ([(4, 3, 2), (4, 1, 3)], (0,), InvalidInputError, "has 1 entries for 2 parameters"),
            ([(4, 3, 2), (4, 1, 3)], (0, 2), InvalidInputError, r"`layer_index` is \(0, 2\); expected the numbers 0 to L - 1"),
            ([(4, 3, 2)], (0,), InvalidInputError, "two or more layers"),
            ([(4, 3, 2), (4, 1, 3)], (-1, 0), InvalidInputError, r"`layer_index` is \(-1, 0\)"),
            ([(3, 2), (1, 3)], (0, 1), ShapeError, r"layer 0 .* shapes \(3, 2\); expected one weight"),
            ([(4, 3, 2), (5, 1, 3)], (0, 1), ShapeError, r"layer 1 has 5 branches .* layer 0 has 4"),
            ([(4, 3, 2), (4, 1, 2)], (0, 1), ShapeError, "layer 1 takes 2 inputs .* layer 0 has 3 outputs"),
            ([(4, 3, 2), (4, 2), (4, 1, 3)], (0, 0, 1), ShapeError, r"bias \(num_branches, out\)"),
            ([(4, 3, 2), (4, 1, 3), (4, 1)], (0, 1, 1), ShapeError, "layer 1 of `layer_index` has tensors of shapes"),
            ([(4, 3, 2), (4, 3, 2), (4, 1, 3)], (0, 0, 1), ShapeError, "first layer has tensors of shapes"),
        ],
    )
    def test_structure(
        self,
        make: MakeOptimizer,
        shapes: list[tuple[int, ...]],
        layer_index: tuple[int, ...],
        error: type[Exception],
        message: str,
    ) -> None:
        params = [torch.ones(shape, requires_grad=True) for shape in shapes]
        with pytest.raises(error, match=message):
            make([{"params": params, "layer_index": layer_index}], path_decay=0.1)

    def test_mixed_dtypes(self, make: MakeOptimizer) -> None:
        params = [torch.ones(2, 3, 2), torch.ones(2, 1, 3, dtype=torch.float64)]
        with pytest.raises(InvalidInputError, match=r"layer 1 has dtype torch\.float64"):
            make([branch_group(params)])

    def test_complex_parameters(self, make: MakeOptimizer) -> None:
        with pytest.raises(InvalidInputError, match=r"shape \(4, 3, 3\) is complex"):
            make([branch_group([layer.detach().to(torch.complex64) for layer in random_layers()])])

    def test_sparse_gradients(self, make: MakeOptimizer) -> None:
        layers, weight = random_layers(), torch.ones(3, 2, requires_grad=True)
        for params, last in (([weight], weight), ([branch_group(layers)], layers[2])):
            if make is PathSGD and last is weight:
                continue  # as with SGD
            optimizer = make(params)
            last.grad = torch.ones_like(last).to_sparse()
            with pytest.raises(RuntimeError, match=r"sparse gradient for a parameter of shape"):
                optimizer.step()

    def test_refused_group_leaves_the_optimizer_as_it_was(self, make: MakeOptimizer) -> None:
        optimizer = make([branch_group(random_layers())], path_decay=0.1)
        extra = random_layers(seed=1)
        with pytest.raises(InvalidInputError, match="unknown branch structure"):
            optimizer.add_param_group({"params": extra})
        assert len(optimizer.param_groups) == 1
        optimizer.add_param_group(branch_group(extra))
        assert optimizer.param_groups[1]["path_decay"] == 0.1

    def test_group_given_is_not_changed(self, make: MakeOptimizer) -> None:
        group = branch_group(random_layers())
        make([group], lr=0.5)
        assert set(group) == {"params", "layer_index"}
