"""Stochastic gradient descent on loss plus path penalty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT
from torch.optim.sgd import sgd

from torch_strongdual._checks import check_non_negative
from torch_strongdual.errors import InvalidInputError
from torch_strongdual.functional._branch_weights import per_branch
from torch_strongdual.optim._branch_structure import BranchStructure
from torch_strongdual.optim._compiled_sgd import step_compiled, takes_compiled_step
from torch_strongdual.optim._implicit_step import ImplicitStep
from torch_strongdual.optim._penalty_terms import PenaltyTerms
from torch_strongdual.optim.abstract_path_optimizer import AbstractPathOptimizer, check_common_options, uses_foreach

__all__ = ["PathSGD", "path_sgd"]


@final
class PathSGD(AbstractPathOptimizer):
    r"""SGD with momentum that minimises exactly ``loss + path_decay * sum(path_penalty)``.

    With :math:`g_l` the gradient of the loss in layer :math:`l` of a branch, momentum :math:`\mu` and dampening :math:`\tau`
    (both as in :class:`torch.optim.SGD`), the product form of the penalty, :math:`\beta` = ``path_decay`` and
    :math:`r_l = \beta \prod_{m \ne l} \|W_m\|_F`, a step is

    .. math::
       \begin{aligned}
       & b_l \leftarrow \mu b_l + (1-\tau) g_l, \qquad V_l = W_l - \gamma b_l \\
       & W_l \leftarrow \big(1 - \gamma (1-\tau) r_l / \|V_l\|\big)_+ V_l, \qquad
         b_l \leftarrow b_l + \big(1 - \big(1 - \gamma (1-\tau) r_l / \|V_l\|\big)_+\big) V_l / \gamma
       \end{aligned}

    in all layers at once, with the norms before the step. The penalty is taken as an implicit (proximal) step, which removes
    whole branches: their last layer becomes exactly zero. Where it is a *hidden* layer that the formula makes zero, the
    branch is the zero function all the same, and is written as one whose last layer is zero: :math:`W_L \leftarrow 0`, while
    the hidden layer becomes :math:`V_l` scaled to the norm that the last layer had. Function and penalty are zero in both
    forms, but a ReLU branch with a zero hidden layer could never revive.

    **Fixed points.** The buffer takes in the subgradient :math:`\xi_l \in r_l\, \partial \|W_l\|` that the proximal step used,
    so that :math:`b \leftarrow \mu b + (1-\tau)(g + \xi)` and :math:`W \leftarrow W - \gamma b`. If a step changes neither
    weights nor buffers then :math:`b = 0`, hence :math:`g_l + \xi_l = 0` in every layer: the first-order condition of the
    objective. Conversely, where this holds in a live branch, :math:`V_l = (1 + \gamma (1-\tau) r_l / \|W_l\|) W_l` is
    shortened to :math:`W_l` again, never to zero; a dead branch has :math:`g_l = r_l = 0` in its hidden layers and
    :math:`\|g_L\| \le r_L`.
    (Nesterov: the step is :math:`(1 + \mu)(g + \xi) + \mu^2 b`, with the same conclusion.) A buffer of loss gradients alone,
    thresholded by :math:`\gamma r`, would instead come to rest at the solution for :math:`(1 - \mu) \beta`.

    **Clipping.** Gradients are those of the loss, which balance the penalty at the optimum and do not vanish there. Clipping
    in the first steps does no harm; with a limit below their norm at the optimum another objective is minimised.

    **Dead branches.** A branch with :math:`W_L = 0` has no gradient in its hidden layers, and they come to rest. It revives as
    soon as :math:`\|g_L\| > r_L`, that is when it violates the dual constraint. With minibatches the gradient of one batch
    decides, so branches near the boundary come and go. A branch with a zero hidden layer as well has no gradient at all and
    is dead for ever; no step leads there, only an initialisation.

    The ``"power"`` and ``"l2_path"`` forms are differentiated in all layers; they give small branches, not exact zeros.
    Plain groups, and groups with ``path_decay`` zero, are stepped by :func:`torch.optim.sgd.sgd`.

    Args:
        params: ``net.path_param_groups(path_decay=...)``, or parameter groups. A group with the key ``"layer_index"`` holds
            stacked branches: weights ``(num_branches, out, in)``, a first-layer bias ``(num_branches, out)``, and for each of
            them the number of its layer, from 0. Other groups must have ``path_decay`` 0.
        lr: Learning rate.
        momentum: Momentum factor.
        dampening: Dampening of the momentum.
        nesterov: Whether to use Nesterov momentum.
        path_decay: Weight of the path penalty, in units of the loss.
        penalty: ``"product"``, ``"power"`` or ``"l2_path"``, see :func:`torch_strongdual.functional.path_penalty`.
        maximize: Whether to maximise the loss; the penalty is still minimised.
        foreach: Whether to use multi-tensor operations; ``None`` means on CUDA only. Unless it is ``True``, large layers on the
            CPU are stepped by compiled code for the product form, which reads them from memory as often as SGD does (the
            first step on a machine compiles it, in a few seconds, and says so).
        differentiable: Not supported; only ``False`` is accepted.

    Raises:
        InvalidInputError: If an option is out of its range, or parameters without known branch structure have a positive
            ``path_decay``.
        ShapeError: If parameters do not fit their ``"layer_index"``.

    Example:
        >>> first, last = torch.randn(8, 4, 3, requires_grad=True), torch.randn(8, 1, 4, requires_grad=True)
        >>> optimizer = PathSGD([{"params": [first, last], "layer_index": (0, 1)}], lr=0.1, path_decay=100.0)
        >>> torch.einsum("koh,khi->oi", last, first).sum().backward()
        >>> optimizer.step()
        >>> last.count_nonzero()
        tensor(0)

    References:
        Ochs, Chen, Brox, Pock, "iPiano: Inertial Proximal Algorithm for Nonconvex Optimization", SIAM J. Imaging Sciences 2014.
        https://arxiv.org/abs/1404.4805
    """

    _steps_sparse: ClassVar[bool] = True
    _option_defaults: ClassVar[Mapping[str, Any]] = {
        "nesterov": False,
        "maximize": False,
        "foreach": None,
        "differentiable": False,
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        nesterov: bool = False,
        path_decay: float = 0.0,
        penalty: str = "product",
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "nesterov": nesterov,
            "path_decay": path_decay,
            "penalty": penalty,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)

    def _check_options(self, options: Mapping[str, Any]) -> None:
        check_common_options(options)
        check_non_negative("momentum", options["momentum"])
        check_non_negative("dampening", options["dampening"])
        if options["nesterov"] and (options["momentum"] == 0 or options["dampening"] != 0):
            raise InvalidInputError(
                f"`nesterov` is True with momentum {options['momentum']!r} and dampening {options['dampening']!r}; expected a "
                "positive momentum and dampening 0."
            )

    def _buffers(self, group: dict[str, Any], params: Sequence[Tensor]) -> list[Tensor | None]:
        return [self.state[param].get("momentum_buffer") if group["momentum"] else None for param in params]

    def _store(self, group: dict[str, Any], params: Sequence[Tensor], buffers: Sequence[Tensor | None]) -> None:
        for param, buffer in zip(params, buffers, strict=True):
            if group["momentum"] and buffer is not None:
                self.state[param]["momentum_buffer"] = buffer

    def _step_plain(self, group: dict[str, Any]) -> None:
        params = [param for param in group["params"] if param.grad is not None]
        buffers, grads = self._buffers(group, params), [param.grad for param in params]
        sgd(
            params,
            grads,
            buffers,
            has_sparse_grad=any(grad is not None and grad.is_sparse for grad in grads),
            foreach=group["foreach"],
            weight_decay=0.0,
            momentum=group["momentum"],
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
        )
        self._store(group, params, buffers)

    def _step_branches(self, group: dict[str, Any]) -> None:
        if group["path_decay"] == 0:
            self._step_plain(group)
            return
        params = group["params"]
        buffers = self._buffers(group, params)
        grads, layers = [param.grad for param in params], group["layer_index"]
        options = {name: group[name] for name in _OPTIONS}
        if _asks_for_compiled_step(group) and takes_compiled_step(params, grads, buffers, layers):
            buffers = step_compiled(params, grads, buffers, layers, **options)
        else:
            path_sgd(params, grads, buffers, layer_index=layers, foreach=group["foreach"], penalty=group["penalty"], **options)
        self._store(group, params, buffers)


_OPTIONS = ("path_decay", "lr", "momentum", "dampening", "nesterov", "maximize")


def _asks_for_compiled_step(group: dict[str, Any]) -> bool:
    # a learning rate in a tensor is not read out, and who wants multi-tensor operations gets them
    return group["penalty"] == "product" and not group["foreach"] and not isinstance(group["lr"], Tensor)


@torch.no_grad()
def path_sgd(
    params: list[Tensor],
    grads: list[Tensor | None],
    momentum_buffers: list[Tensor | None],
    *,
    layer_index: Sequence[int],
    foreach: bool | None = None,
    path_decay: float,
    penalty: str,
    lr: float | Tensor,
    momentum: float,
    dampening: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    """Functional form of one step of :class:`PathSGD` on the layers of stacked branches, in operations of torch throughout.

    Args:
        params: The layers; changed in place.
        grads: Gradients of the loss; a parameter with ``None`` stands still, but its norm counts in the penalty.
        momentum_buffers: Changed in place; entries that are ``None`` are made if ``momentum`` is not zero.
        layer_index: Number of the layer of each parameter.
        foreach: See :class:`PathSGD`; so for all that follow.
        path_decay: Weight of the path penalty.
        penalty: Form of the path penalty.
        lr: Learning rate.
        momentum: Momentum factor.
        dampening: Dampening of the momentum.
        nesterov: Whether to use Nesterov momentum.
        maximize: Whether to maximise the loss.

    Raises:
        InvalidInputError: If ``layer_index`` does not number the layers of ``params``.
        ShapeError: If ``params`` do not fit together as layers of stacked branches.

    Example:
        >>> layers = [torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), 2.0)]
        >>> options = {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "maximize": False}
        >>> grads, buffers = [torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)], [None, None]
        >>> path_sgd(layers, grads, buffers, layer_index=(0, 1), path_decay=1.0, penalty="product", lr=0.25, **options)
        >>> [layer.item() for layer in layers]  # each layer shortened by lr * path_decay * the other's norm
        [1.5, 1.5]
    """
    structure = BranchStructure.of(params, layer_index)
    terms = PenaltyTerms.at(params, grads, structure, penalty=penalty, path_decay=path_decay)
    foreach = uses_foreach(foreach, params)
    lr = lr.squeeze().to(params[0].device) if isinstance(lr, Tensor) else lr
    positions = [i for i, grad in enumerate(grads) if grad is not None]
    losses = [-grad if maximize else grad for grad in grads if grad is not None]
    gradients = terms.added_to(losses, positions, foreach=foreach)
    # how much of a gradient enters the buffer in this step: all of the first one, as in torch
    shares = {
        layer: 1.0 if momentum == 0 or momentum_buffers[structure.layers[layer][0]] is None else 1 - dampening
        for layer in terms.implicit_layers
    }
    updates = gradients
    if momentum != 0:
        updates = _accumulate(gradients, momentum_buffers, positions, momentum, dampening, nesterov, foreach)
    _descend([params[i] for i in positions], updates, lr, foreach)
    if not shares or terms.norms is None:
        return
    gain = 1 + momentum if nesterov else 1.0  # of the step over the buffer
    rates = torch.stack([terms.sizes[layer] * share for layer, share in shares.items()])
    step = ImplicitStep.of(params, structure, terms.implicit_layers, lr * gain * rates, terms.norms)
    if momentum != 0:
        pulls = rates / step.norms.clamp(min=torch.finfo(step.norms.dtype).tiny)
        for layer, pull in zip(step.layers, _limited(pulls, lr, gain).unbind(), strict=True):
            for position in structure.layers[layer]:
                if (buffer := momentum_buffers[position]) is not None:
                    buffer.addcmul_(params[position], per_branch(pull, buffer).to(buffer.dtype))
    step.apply(params, structure)


def _accumulate(
    gradients: list[Tensor],
    momentum_buffers: list[Tensor | None],
    positions: list[int],
    momentum: float,
    dampening: float,
    nesterov: bool,
    foreach: bool,
) -> list[Tensor]:
    """Bring the buffers up to date and return the directions of the step."""
    buffers, old, added = [], [], []
    for gradient, position in zip(gradients, positions, strict=True):
        buffer = momentum_buffers[position]
        if buffer is None:
            buffer = momentum_buffers[position] = gradient.detach().clone()
        else:
            old.append(buffer)
            added.append(gradient)
        buffers.append(buffer)
    if foreach and old:
        torch._foreach_mul_(old, momentum)
        torch._foreach_add_(old, added, alpha=1 - dampening)
    else:
        for buffer, gradient in zip(old, added, strict=True):
            if dampening == 0:  # in one pass over memory
                torch.add(gradient, buffer, alpha=momentum, out=buffer)
            else:
                buffer.mul_(momentum).add_(gradient, alpha=1 - dampening)
    if not nesterov:
        return buffers
    if foreach:
        return list(torch._foreach_add(gradients, buffers, alpha=momentum))
    return [gradient.add(buffer, alpha=momentum) for gradient, buffer in zip(gradients, buffers, strict=True)]


def _descend(params: list[Tensor], updates: list[Tensor], lr: float | Tensor, foreach: bool) -> None:
    if isinstance(lr, Tensor):  # as a factor, not as `alpha`: reading it out would stall a GPU
        for param, update in zip(params, updates, strict=True):
            param.addcmul_(update, lr.to(param.dtype), value=-1)
    elif foreach:
        torch._foreach_add_(params, updates, alpha=-lr)
    else:
        for param, update in zip(params, updates, strict=True):
            param.add_(update, alpha=-lr)


def _limited(pulls: Tensor, lr: float | Tensor, gain: float) -> Tensor:
    """What of the layer the implicit step takes off is at most the whole layer; without dividing by an ``lr`` of zero."""
    if isinstance(lr, Tensor):
        return torch.minimum(pulls, (1 / (lr * gain)).to(pulls.dtype))
    return pulls.clamp(max=1 / (lr * gain)) if lr > 0 else pulls
