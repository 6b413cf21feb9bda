"""What PathSGD and PathAdamW share: parameter groups with branches, their checks, and the frame of a step."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, overload

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, ParamsT

from torch_strongdual._checks import check_in, check_non_negative
from torch_strongdual.errors import InvalidInputError, ShapeError
from torch_strongdual.functional import PATH_PENALTIES
from torch_strongdual.optim._branch_structure import ADVICE, BranchStructure

__all__ = ["AbstractPathOptimizer"]


_ELSEWHERE = "give parameters outside of branches that need it to an optimizer of torch."
# Options of torch's optimizers that would otherwise be ignored in a group without a word.
_NOT_HERE = {
    "weight_decay": f"Expected none: `path_decay` takes its place for branches; {_ELSEWHERE}",
    "amsgrad": f"Expected False: not supported; {_ELSEWHERE}",
    "fused": f"Expected False: not supported; {_ELSEWHERE}",
}


class AbstractPathOptimizer(Optimizer):
    """Optimizer whose parameter groups may describe stacked branches.

    Every option can be set for a group by a key of the same name, as for all optimizers of torch. Groups with the key
    ``"layer_index"`` hold the layers of stacked branches; all others are *plain* and must have ``path_decay`` zero.

    Args:
        params: Parameters or parameter groups.
        defaults: Values of the options where a group does not set them.
    """

    _option_defaults: ClassVar[Mapping[str, Any]]
    """Options as they were before a checkpoint knew them."""
    _steps_sparse: ClassVar[bool] = False
    """Whether parameters of plain groups may have sparse gradients."""

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        if isinstance(params, nn.Module):
            raise InvalidInputError(
                f"`params` is a {type(params).__name__}; expected its parameters: `net.path_param_groups(path_decay=...)` of a "
                "ParallelNet, `parameters()` of what is trained without the penalty."
            )
        self._check_options(defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, as in torch; a group that is refused leaves the optimizer as it was.

        Args:
            param_group: Its parameters under ``"params"``, and options. Copied, not kept.

        Raises:
            InvalidInputError: If an option is out of its range, or ``path_decay`` is positive without ``"layer_index"``.
            ShapeError: If the parameters do not fit ``"layer_index"``.
        """
        group = dict(param_group) if isinstance(param_group, dict) else param_group
        super().add_param_group(group)
        try:
            self._check_group(group)
        except Exception:
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Do one step. ``p.grad`` is read, never changed; parameters whose ``grad`` is ``None`` stand still.

        Args:
            closure: Evaluates the model anew and returns the loss.

        Returns:
            What ``closure`` returned.

        Raises:
            RuntimeError: If a gradient is sparse, except of a plain group of :class:`PathSGD`.
            ShapeError: If branches were added or removed, and the state of the optimizer was not adapted.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                self._refuse_sparse(group)
                self._refuse_stale_state(group)
                if all(param.grad is None for param in group["params"]):
                    continue
                if group["layer_index"] is None:
                    self._step_plain(group)
                else:
                    self._step_branches(group)
        return loss

    def __setstate__(self, state: dict[str, Any]) -> None:
        known = self.__dict__.get("param_groups", [])
        super().__setstate__(state)
        for index, group in enumerate(self.param_groups):
            # what an older checkpoint, or one of a stock optimizer, does not say stays as it is in this optimizer
            present = known[index] if index < len(known) else {}
            neutral = {"layer_index": None, "path_decay": 0.0, "penalty": "product", **self._option_defaults}
            for name, value in (self.defaults | neutral).items():
                group.setdefault(name, present.get(name, value))
            for name in _NOT_HERE:
                group.pop(name, None)
            self._check_group(group)

    @abc.abstractmethod
    def _check_options(self, options: Mapping[str, Any]) -> None:
        """Raise InvalidInputError if a value in ``options`` (the defaults, or a group) is out of its range."""

    @abc.abstractmethod
    def _step_plain(self, group: dict[str, Any]) -> None:
        """Step the parameters of a group without branches."""

    @abc.abstractmethod
    def _step_branches(self, group: dict[str, Any]) -> None:
        """Step the layers of stacked branches."""

    def _check_group(self, group: dict[str, Any]) -> None:
        self._check_options(group)
        for name, advice in _NOT_HERE.items():
            if group.get(name):
                raise InvalidInputError(f"`{name}` is {group[name]!r} in a parameter group of {type(self).__name__}. {advice}")
        group.setdefault("layer_index", None)
        if group["layer_index"] is not None:
            complex_shapes = [tuple(param.shape) for param in group["params"] if torch.is_complex(param)]
            if complex_shapes:
                raise InvalidInputError(f"a layer of shape {complex_shapes[0]} is complex; expected real layers of branches.")
            group["layer_index"] = tuple(int(layer) for layer in group["layer_index"])
            BranchStructure.of(group["params"], group["layer_index"])
        elif group["path_decay"] > 0:
            raise InvalidInputError(
                f"`path_decay` is {group['path_decay']!r} for {len(group['params'])} parameters of unknown branch structure; "
                f'expected a group with "layer_index", or path_decay 0. {ADVICE}'
            )

    def _refuse_sparse(self, group: dict[str, Any]) -> None:
        if group["layer_index"] is None and self._steps_sparse:
            return
        for param in group["params"]:
            if param.grad is not None and param.grad.is_sparse:
                raise RuntimeError(
                    f"{type(self).__name__} got a sparse gradient for a parameter of shape {tuple(param.shape)}; expected "
                    "dense gradients. Make the layer with sparse=False."
                )

    def _refuse_stale_state(self, group: dict[str, Any]) -> None:
        for param in group["params"]:
            state = self.state.get(param, {})
            moment = state.get("exp_avg", state.get("momentum_buffer"))
            if moment is not None and moment.shape != param.shape:
                raise ShapeError(
                    f"the state of a parameter has shape {tuple(moment.shape)} and the parameter {tuple(param.shape)}; "
                    "expected the same. After branches were removed, index its tensors with what `prune_` returned; after "
                    "they were added, append zeros; or drop it, by `optimizer.state.pop(parameter)`."
                )


def check_common_options(options: Mapping[str, Any]) -> None:
    """Check the options that all path optimizers have."""
    lr = options["lr"]
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise InvalidInputError(f"`lr` is a tensor of shape {tuple(lr.shape)}; expected a number or a tensor with one element.")
    if not hasattr(lr, "__float__"):  # strings have none, though float() takes them
        raise InvalidInputError(f"`lr` is {lr!r}; expected a finite number >= 0.")
    check_non_negative("lr", float(lr))
    check_non_negative("path_decay", options["path_decay"])
    check_in("penalty", options["penalty"], PATH_PENALTIES)
    if options["differentiable"]:
        raise InvalidInputError("`differentiable` is True; expected False: not supported. Use a torch optimizer for that.")


def uses_foreach(foreach: bool | None, params: list[Tensor]) -> bool:
    """Resolve ``foreach=None`` as torch does: multi-tensor operations on CUDA, one tensor at a time elsewhere."""
    return all(param.is_cuda for param in params) if foreach is None else foreach
