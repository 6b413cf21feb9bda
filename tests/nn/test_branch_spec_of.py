from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from torch_strongdual.errors import ShapeError, StrongDualWarning, UnsupportedModelError
from torch_strongdual.nn import BranchSequential, GatedReLU, ParallelNet, branch_spec_of

from ._networks import BRANCHES, make_net


@pytest.mark.parametrize("kind", BRANCHES)
def test_sequential_and_parallel_net_agree(kind: str) -> None:
    layers = BRANCHES[kind]()
    one, many = branch_spec_of(nn.Sequential(*layers)), branch_spec_of(ParallelNet(*layers, num_branches=3))
    for name in ("widths", "negative_slopes", "input_bias", "hidden_bias_layers", "output_bias", "flatten"):
        assert getattr(one, name) == getattr(many, name)
    for single, stacked in zip(one.activations, many.activations, strict=True):
        for vector, vectors in zip(single.gate_vectors, stacked.gate_vectors, strict=True):
            assert vectors.shape == (3, 3)
            assert torch.equal(vector, vectors[:1])


def test_biases_and_widths() -> None:
    spec = branch_spec_of(make_net("three_layers_biases"))
    assert spec.widths == (3, 5, 4, 2)
    assert (spec.input_bias, spec.hidden_bias_layers, spec.output_bias) == (True, (1,), True)
    spec = branch_spec_of(make_net("no_bias"))
    assert (spec.input_bias, spec.hidden_bias_layers, spec.output_bias) == (False, (), False)
    assert branch_spec_of(make_net("five_layers")).hidden_bias_layers == (2, 3)


def test_activations_compose() -> None:
    assert branch_spec_of(make_net("composed")).negative_slopes == (0.25,)
    assert branch_spec_of(make_net("linear")).negative_slopes == (1.0,)
    assert branch_spec_of(make_net("gated_deep")).negative_slopes == (1.0, 0.0)
    assert branch_spec_of(make_net("five_layers")).negative_slopes == (0.0, 0.0, 1.0, 0.01)
    assert len(branch_spec_of(make_net("gated_twice")).activations[0].gate_vectors) == 2
    relu_then_leaky = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.LeakyReLU(0.5), nn.Linear(4, 1))
    assert branch_spec_of(relu_then_leaky).negative_slopes == (0.0,)


def test_flatten() -> None:
    assert branch_spec_of(nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1))).flatten


def test_gates_are_copies() -> None:
    net = make_net("gated")
    spec = branch_spec_of(net)
    before = spec.activations[0].gate_vectors[0].clone()
    net.load_state_dict({name: torch.zeros_like(value) for name, value in net.state_dict().items()})
    assert torch.equal(spec.activations[0].gate_vectors[0], before)


def test_masks_are_those_of_training() -> None:
    """A branch whose gates are all open or all closed by the spec gives hidden units, or zeros, in the network."""
    net = ParallelNet(nn.Linear(3, 1), GatedReLU(3), nn.Linear(1, 1, bias=False), num_branches=5)
    with torch.no_grad():
        net.get_parameter("0.weight").zero_()
        net.get_parameter("0.bias").fill_(1.0)
        net.get_parameter("2.weight").copy_((2.0 ** torch.arange(5))[:, None, None])
    inputs = torch.randn(200, 3)
    masks = branch_spec_of(net).gate_masks(inputs)
    assert masks is not None
    assert torch.equal(net(inputs)[:, 0].double(), 2.0 ** torch.arange(5, dtype=torch.float64) @ masks)


def test_submodule_of_a_larger_model() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = make_net("two_layers")

    model = Model()
    assert branch_spec_of(model.head).widths == (3, 4, 2)
    with pytest.raises(UnsupportedModelError, match=r"A Model has no branches.*the submodule itself"):
        branch_spec_of(model)


def test_refusals() -> None:
    class Twice(ParallelNet):
        def forward(self, inputs: Tensor) -> Tensor:
            return 2 * super().forward(inputs)

    with pytest.raises(UnsupportedModelError, match="Twice overrides the forward pass"):
        branch_spec_of(Twice(*BRANCHES["linear"](), num_branches=1))
    with pytest.raises(UnsupportedModelError, match="Linear has no branches"):
        branch_spec_of(nn.Linear(3, 1))
    with pytest.raises(UnsupportedModelError, match=r"`\._orig_mod` of a compiled module"):
        branch_spec_of(torch.compile(make_net("linear"), backend="eager"))  # type: ignore[arg-type]
    with pytest.raises(UnsupportedModelError, match="Dropout"):
        branch_spec_of(nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 1)))
    with pytest.raises(ShapeError, match="takes 5 features"):
        branch_spec_of(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(5, 1)))


def test_does_not_change_the_module() -> None:
    net = BranchSequential(nn.Linear(3, 4), GatedReLU(3), nn.Linear(4, 1)).eval()
    state, rng = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    branch_spec_of(net)
    assert all(torch.equal(net.state_dict()[name], value) for name, value in state.items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert not net.training


@pytest.mark.parametrize("name", ["", "0", "1"])
def test_hooks_that_may_change_outputs_are_warned_of(name: str) -> None:
    net = make_net("two_layers")
    handle = net.get_submodule(name).register_forward_hook(lambda module, arguments, outputs: 2 * outputs)
    with pytest.warns(StrongDualWarning, match="what a hook changes in inputs or outputs is not seen"):
        branch_spec_of(net)
    handle.remove()
    masked: Any = prune.l1_unstructured
    masked(net.get_submodule("0"), "weight", amount=0.5)  # seen in the weights
    branch_spec_of(net)


class TestReplacedLayers:
    """Loops over modules replace activations in trained networks, too; the certificate must not speak of the old ones."""

    @pytest.mark.parametrize("kind", ["two_layers", "convolution"])
    @pytest.mark.parametrize(
        ("layer", "message"),
        [
            (nn.Tanh(), r"layer 1 \('1'\), Tanh\(\), is not supported"),
            (nn.LeakyReLU(1.5), r"slope outside \[0, 1\]"),
            (nn.Linear(4, 4), "Layer '1' was replaced by Linear"),
            (GatedReLU(3), "Layer '1' was replaced by GatedReLU"),
            (None, "Layer '1' was replaced by None"),
        ],
    )
    def test_unsupported_ones_are_refused(self, kind: str, layer: nn.Module | None, message: str) -> None:
        convolution: list[nn.Module] = [nn.Conv1d(1, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2)]
        net = ParallelNet(*(convolution if kind == "convolution" else BRANCHES[kind]()), num_branches=3)
        setattr(net, "1", layer)
        with pytest.raises(UnsupportedModelError, match=message):
            branch_spec_of(net)

    def test_supported_ones_are_seen(self) -> None:
        net = make_net("two_layers")
        setattr(net, "1", nn.LeakyReLU(0.3))
        assert branch_spec_of(net).negative_slopes == (0.3,)
        net.get_submodule("1").negative_slope = -0.3  # type: ignore[assignment]
        with pytest.raises(UnsupportedModelError, match="slope outside"):
            branch_spec_of(net)

    def test_layer_of_one_branch(self) -> None:
        net = make_net("two_layers")
        setattr(net, "2", nn.Linear(4, 2))
        with pytest.raises(UnsupportedModelError, match="Layer '2' was replaced by Linear"):
            branch_spec_of(net)

    def test_modules_that_are_no_layers_do_not_count(self) -> None:
        net = make_net("two_layers")
        net.loss = nn.MSELoss()
        assert branch_spec_of(net).negative_slopes == (0.0,)
        assert [name for name, _ in net.branch(0).named_children()] == ["0", "1", "2"]
