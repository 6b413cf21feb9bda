"""Networks whose parameters are sharded by ``fully_shard``, as a whole or layer by layer, and the optimizers on them."""

from __future__ import annotations

import copy
import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from torch_strongdual.errors import InvalidInputError
from torch_strongdual.nn import ParallelNet, ParallelWeights
from torch_strongdual.optim import PathAdamW, PathSGD

from .._typed_torch import backward

pytestmark = pytest.mark.filterwarnings("ignore:The FSDP.* has forward hooks")  # its own, which gather weights

shard: Any = fully_shard
make_store: Any = vars(dist)["HashStore"]
LAYERS: list[list[nn.Module]] = [
    [nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)],
    [nn.Conv1d(1, 2, 2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(2, 2)],
]


@pytest.fixture(autouse=True)
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo", store=make_store(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()
    gc.collect()  # a process forked later would collect the group's remains, and wait for threads that it does not have


@pytest.mark.parametrize(
    "use",
    [
        ParallelWeights.from_module,
        lambda net: net.branch(0),
        lambda net: net.prune_(),
        lambda net: net.balance_(),
        lambda net: net.add_branches_([torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), torch.zeros(1, 2, 4)]),
    ],
)
def test_what_needs_all_branches_is_refused(use: Any) -> None:
    net = ParallelNet(*LAYERS[0], num_branches=4)
    shard(net, mesh=init_device_mesh("cpu", (1,)))
    with pytest.raises(InvalidInputError, match=r"sharded over processes.*full_state_dict=True"):
        use(net)


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view tensor")
@pytest.mark.parametrize("layers", LAYERS, ids=["dense", "convolution"])
@pytest.mark.parametrize("layer_by_layer", [False, True])
@pytest.mark.parametrize("make", [PathSGD, PathAdamW])
def test_trains_as_without(layers: list[nn.Module], layer_by_layer: bool, make: Any) -> None:
    plain = ParallelNet(*layers, num_branches=4)
    sharded = copy.deepcopy(plain)
    mesh = init_device_mesh("cpu", (1,))
    if layer_by_layer:
        for layer in (sharded.get_submodule("0"), sharded.get_submodule("4")):
            shard(layer, mesh=mesh)
    shard(sharded, mesh=mesh)
    inputs = torch.randn((8, 1, 3) if layers is LAYERS[1] else (8, 3))
    for net in (plain, sharded):
        optimizer = make(net.path_param_groups(path_decay=1e-2), lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            backward(net(inputs).square().mean())
            optimizer.step()
    for one, other in zip(plain.parameters(), sharded.parameters(), strict=True):
        assert isinstance(other, DTensor)
        torch.testing.assert_close(other.full_tensor(), one)
