"""What ParallelNet refuses, and how it says so."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from torch_strongdual.errors import InvalidInputError, ShapeError, UnsupportedModelError
from torch_strongdual.nn import GatedReLU, ParallelNet

from ._networks import BRANCHES, make_net


class TestRefusals:
    @pytest.mark.parametrize(
        ("layers", "message"),
        [
            ([nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)], r"layer 1 \('1'\), Tanh\(\), is not supported.*nn.LeakyReLU"),
            ([nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1)], r"layer 1 \('1'\), Dropout\(p=0.5"),
            ([nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1)], r"layer 1 \('1'\), BatchNorm1d"),
            ([nn.Conv3d(1, 2, 3), nn.ReLU(), nn.Linear(4, 1)], r"layer 0 \('0'\), Conv3d"),
            ([nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 1)], "PReLU"),
            ([nn.Linear(3, 4), nn.ReLU6(), nn.Linear(4, 1)], "ReLU6"),
            ([nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 1)], "is lazy"),
            ([nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1), nn.ReLU()], "stands behind the last"),
            ([nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1), GatedReLU(3)], "stands behind the last"),
            ([nn.ReLU(), nn.Linear(3, 4), nn.Linear(4, 1)], "before the first nn.Linear"),
            ([nn.Linear(3, 4), nn.Flatten(), nn.Linear(4, 1)], "only once, and only before"),
            ([nn.Flatten(), nn.Flatten(), nn.Linear(3, 4), nn.Linear(4, 1)], "only once"),
            ([nn.Flatten(0), nn.Linear(3, 4), nn.Linear(4, 1)], "start_dim=1"),
            ([nn.Linear(3, 4), nn.LeakyReLU(-0.1), nn.Linear(4, 1)], r"slope outside \[0, 1\]"),
            ([nn.Linear(3, 4), nn.LeakyReLU(math.nan), nn.Linear(4, 1)], r"slope outside \[0, 1\]"),
            ([nn.Linear(3, 4), nn.LeakyReLU(1.5), nn.Linear(4, 1)], r"slope outside \[0, 1\]"),
            ([nn.Linear(3, 4, dtype=torch.complex64), nn.ReLU(), nn.Linear(4, 1)], "complex64"),
            ([nn.Sequential(nn.Linear(3, 4), nn.ReLU()), nn.Linear(4, 1)], "nested"),
            ([[nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)]], r"list, is nested\. Pass its layers one by one"),
            ([weight_norm(nn.Linear(3, 4)), nn.ReLU(), nn.Linear(4, 1)], "Subclasses may compute something else"),
            ([nn.Linear(3, 4), torch.relu, nn.Linear(4, 1)], r"layer 1 \('1'\), builtin_function_or_method"),
            ([nn.Linear(3, 4), None, nn.Linear(4, 1)], "NoneType"),
            ([nn.Linear(3, 1)], "has 1 nn.Linear layers; expected two or more"),
            ([], "has 0 nn.Linear"),
        ],
    )
    def test_unsupported(self, layers: list[Any], message: str) -> None:
        with pytest.raises(UnsupportedModelError, match=message):
            ParallelNet(*layers, num_branches=2)

    def test_tied_layers(self) -> None:
        layer = nn.Linear(3, 3)
        with pytest.raises(UnsupportedModelError, match="shares its weights with layer 0"):
            ParallelNet(layer, nn.ReLU(), layer, num_branches=2)
        tied = nn.Linear(3, 3)
        tied.weight = layer.weight
        with pytest.raises(UnsupportedModelError, match="shares its weights"):
            ParallelNet(layer, nn.ReLU(), tied, num_branches=2)

    def test_layers_with_hooks(self) -> None:
        layer = nn.Linear(3, 3)
        layer.register_forward_hook(lambda module, args, output: 2 * output)
        with pytest.raises(UnsupportedModelError, match="has forward hooks"):
            ParallelNet(layer, nn.ReLU(), nn.Linear(3, 1), num_branches=2)

    @pytest.mark.parametrize(
        ("layers", "message"),
        [
            ([nn.Linear(3, 4), nn.ReLU(), nn.Linear(5, 1)], r"layer 2 .*takes 5 features, but layer 0 before it gives 4"),
            ([nn.Linear(3, 4), GatedReLU(4), nn.Linear(4, 1)], "gates on 4 features; expected 3"),
        ],
    )
    def test_widths(self, layers: list[nn.Module], message: str) -> None:
        with pytest.raises(ShapeError, match=message):
            ParallelNet(*layers, num_branches=2)

    @pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
    def test_width_of_zero(self) -> None:
        with pytest.raises(ShapeError, match="width of zero"):
            ParallelNet(nn.Linear(3, 0, bias=False), nn.Linear(0, 2, bias=False), num_branches=2)

    @pytest.mark.parametrize("value", [0, -1, 2.0, True, None, "3"])
    def test_num_branches(self, value: Any) -> None:
        with pytest.raises(InvalidInputError, match=r"`num_branches` is .*integer >= 1"):
            ParallelNet(*BRANCHES["linear"](), num_branches=value)

    @pytest.mark.parametrize("value", [0, -1, 2.0, True])
    def test_chunk_size(self, value: Any) -> None:
        with pytest.raises(InvalidInputError, match=r"`chunk_size` is .*integer >= 1"):
            ParallelNet(*BRANCHES["linear"](), num_branches=2, chunk_size=value)

    @pytest.mark.parametrize("dtype", [torch.complex64, torch.int64])
    def test_dtype(self, dtype: torch.dtype) -> None:
        with pytest.raises(UnsupportedModelError, match="expected a real floating point dtype"):
            ParallelNet(*BRANCHES["linear"](), num_branches=2, dtype=dtype)

    @pytest.mark.parametrize("shape", [(4, 2), (3, 4), (), (0,), (2, 0)])
    def test_input_width(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ShapeError, match=r"expected \(\.\.\., 3\)"):
            make_net("two_layers")(torch.zeros(shape, dtype=torch.float64))

    @pytest.mark.parametrize("shape", [(4, 2, 2), (6,), (), (0, 5)])
    def test_input_width_behind_flatten(self, shape: tuple[int, ...]) -> None:
        net = ParallelNet(nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2), num_branches=3)
        with pytest.raises(ShapeError, match="6 numbers a sample"):
            net(torch.zeros(shape))

    @pytest.mark.parametrize("inputs", [torch.zeros(2, 3).numpy(), [[0.0, 0.0, 0.0]], None])
    @pytest.mark.parametrize("is_convolutional", [False, True])
    def test_inputs_that_are_no_tensor(self, inputs: Any, is_convolutional: bool) -> None:
        convolution = [nn.Conv1d(1, 4, 2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2)]
        net = ParallelNet(*(convolution if is_convolutional else BRANCHES["two_layers"]()), num_branches=2)
        with pytest.raises(InvalidInputError, match=f"of type {type(inputs).__name__}; expected a torch.Tensor"):
            net(inputs)

    @pytest.mark.parametrize(
        "use",
        [
            len,
            list,
            lambda net: net[0],
            lambda net: net[:2],
            lambda net: nn.Sequential(*net),
            lambda net: nn.ReLU() in net,
            lambda net: list(reversed(net)),
        ],
    )
    def test_what_could_mean_branches_or_layers(self, use: Any) -> None:
        with pytest.raises(TypeError, match=r"`branch\(k\)` for the branches, .*`get_submodule\('0'\)` for the layers"):
            use(make_net("two_layers"))
        assert make_net("two_layers")

    @pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
    def test_script(self) -> None:
        for model in (make_net("two_layers"), nn.Sequential(make_net("two_layers"), nn.Tanh())):
            with pytest.raises(UnsupportedModelError, match=r"torch\.jit\.script.* Use torch\.export\.export"):
                torch.jit.script(model)

    def test_from_sequential_of_something_else(self) -> None:
        class Twice(nn.Sequential):
            def forward(self, input: Tensor) -> Tensor:  # noqa: A002
                return 2 * input

        with pytest.raises(UnsupportedModelError, match="Twice has a forward of its own"):
            ParallelNet.from_sequential(Twice(*BRANCHES["linear"]()), num_branches=2)
        with pytest.raises(UnsupportedModelError, match=r"Expected an nn.Sequential, got Linear"):
            ParallelNet.from_sequential(nn.Linear(3, 1), num_branches=2)  # type: ignore[arg-type]

    def test_groups_of_weights_that_are_computed(self) -> None:
        """They are no parameters: torch would say that it cannot optimise a non-leaf tensor."""
        net = make_net("two_layers", 3)
        weight_norm(net.get_submodule("2"))
        with pytest.raises(UnsupportedModelError, match=r"weight of linear layer 1 .*remove_parametrizations"):
            net.path_param_groups(0.1)
        assert net.path_penalty().requires_grad

    def test_groups_of_a_weight_that_two_layers_share(self) -> None:
        net = ParallelNet(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 3, bias=False), num_branches=2)
        net.get_submodule("2").weight = net.get_submodule("0").weight
        with pytest.raises(UnsupportedModelError, match=r"layers 0 and 1 .* share their weight; .*Give one of them a copy"):
            net.path_param_groups(0.1)
