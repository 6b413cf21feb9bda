"""Finding out what a LightningModule minimises: its network, its loss, its path penalty."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import Optimizer

from torch_strongdual.errors import InvalidInputError, UnsupportedLossError
from torch_strongdual.losses import conjugate_loss
from torch_strongdual.nn import ParallelNet

__all__ = ["PathPenalty", "find_loss", "find_net", "find_path_penalty", "is_supported_loss"]


@dataclass(frozen=True, slots=True)
class PathPenalty:
    """Strength and form of the path penalty.

    Args:
        path_decay: In the units of the loss.
        penalty: ``"product"``, ``"power"`` or ``"l2_path"``.
    """

    path_decay: float
    penalty: str


def find_net(module: nn.Module, name: str | None) -> nn.Module:
    """Return the submodule called ``name``, or the only ParallelNet if it is ``None``.

    Raises:
        MisconfigurationException: If there is none, or several; the message names those.
    """
    if name is not None:
        try:
            return module.get_submodule(name)
        except AttributeError as error:
            raise MisconfigurationException(
                f"`net` is {name!r}, but {type(module).__name__} has no submodule of that name: {error}. Its ParallelNets are "
                f"{_names(_parallel_nets(module))}."
            ) from error
    found = _parallel_nets(module)
    if len(found) != 1:
        raise MisconfigurationException(
            f"{type(module).__name__} has {len(found)} ParallelNets ({_names(found)}); expected one. Say which one to certify "
            'by `net="attribute_name"`.'
        )
    return next(iter(found.values()))


def _parallel_nets(module: nn.Module) -> dict[str, nn.Module]:
    return {name or "the module itself": child for name, child in module.named_modules() if isinstance(child, ParallelNet)}


def find_loss(module: nn.Module, loss: nn.Module | None) -> nn.Module:
    """Return ``loss``, or the only submodule that is a supported loss if it is ``None``; on the CPU, a copy if need be.

    Raises:
        MisconfigurationException: If there is none, or several; the message names those.
    """
    if loss is None:
        found = {name: child for name, child in module.named_modules() if is_supported_loss(child)}
        if len(found) != 1:
            raise MisconfigurationException(
                f"{type(module).__name__} has {len(found)} attributes that are loss modules with a known conjugate "
                f"({_names(found)}); expected one. Say which loss is trained by `loss=`, for example `loss=nn.MSELoss()`."
            )
        loss = next(iter(found.values()))
    return _on_cpu(loss)


def is_supported_loss(module: nn.Module) -> bool:
    """Whether :func:`~torch_strongdual.losses.conjugate_loss` takes modules of this class."""
    try:
        conjugate_loss(module, torch.zeros(1), num_outputs=1)
    except UnsupportedLossError:
        return False
    except InvalidInputError:
        return True  # of the right class: only the probe does not fit
    return True


def _on_cpu(loss: nn.Module) -> nn.Module:
    """Class weights of a loss in the LightningModule live where the module lives."""
    is_elsewhere = any(buffer.device.type != "cpu" for buffer in loss.buffers())
    return copy.deepcopy(loss).cpu() if is_elsewhere else loss


def find_path_penalty(
    net: nn.Module, optimizers: Iterable[Optimizer], *, path_decay: float | None, penalty: str | None
) -> PathPenalty:
    """Return what was asked for, or else what the optimizer applies to the weights of ``net`` now.

    Raises:
        MisconfigurationException: If no optimizer applies a path penalty to all weights, or not the same to all.
    """
    if path_decay is not None:
        return PathPenalty(path_decay, "product" if penalty is None else penalty)
    group = net.path_param_groups(1.0)[0]["params"] if isinstance(net, ParallelNet) else net.parameters()
    weights = {id(parameter) for parameter in group}
    found = set()
    for optimizer in optimizers:
        for options in optimizer.param_groups:
            if weights.isdisjoint(map(id, options["params"])):
                continue
            if options.get("path_decay") and not _ignores_penalty(optimizer):
                found.add(PathPenalty(float(options["path_decay"]), str(options.get("penalty", "product"))))
            else:
                found.add(PathPenalty(0.0, ""))
    if len(found) != 1 or PathPenalty(0.0, "") in found:
        raise MisconfigurationException(_penalty_message(found))
    (only,) = found
    return only if penalty is None else PathPenalty(only.path_decay, penalty)


def _ignores_penalty(optimizer: Optimizer) -> bool:
    """Torch's own optimizers take groups with ``path_decay``, and do nothing with it."""
    return type(optimizer).__module__.startswith("torch.optim")


def _penalty_message(found: set[PathPenalty]) -> str:
    stated = ", ".join(sorted(f"{entry.path_decay:g} ({entry.penalty})" if entry.path_decay else "none" for entry in found))
    return (
        f"The path penalties that the optimizers apply to the weights of the network are: {stated or 'none'}; expected one, "
        "above zero, for all weights. Train with PathAdamW(net.path_param_groups(path_decay=...)) or PathSGD (torch's "
        "own optimizers ignore `path_decay`), or, if it is part of the loss in `training_step`, say which by `path_decay=` and "
        "`penalty=`."
    )


def _names(found: dict[str, nn.Module]) -> str:
    return ", ".join(found) or "none"
