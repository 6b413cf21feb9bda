"""Adam with one second moment a block, on loss plus path penalty."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.optimizer import ParamsT

from torch_strongdual._checks import check_non_negative
from torch_strongdual.errors import InvalidInputError, ShapeError
from torch_strongdual.functional._branch_weights import per_branch
from torch_strongdual.optim._branch_structure import BranchStructure, accumulation_dtype, branch_norms
from torch_strongdual.optim._implicit_step import ImplicitStep
from torch_strongdual.optim._penalty_terms import PenaltyTerms
from torch_strongdual.optim.abstract_path_optimizer import AbstractPathOptimizer, check_common_options, uses_foreach

__all__ = ["PathAdamW", "path_adamw"]


@final
class PathAdamW(AbstractPathOptimizer):
    r"""Adam for stacked branches that minimises exactly ``loss + path_decay * sum(path_penalty)``.

    AdamW's decay is decoupled from a step that rescales every entry by its own second moment, and so its fixed points are not
    the stationary points of any penalised objective. Here every *block*, one layer of one branch, has a single second moment:
    a step is the gradient step of the block times a number, and the proximal map of the block's norm is exact.

    For a block :math:`W` of :math:`p` entries with loss gradient :math:`g`, and :math:`r = \beta \prod_{m} \|W_m\|_F` over the
    other layers of the branch (:math:`\beta` = ``path_decay``, product form):

    .. math::
       \begin{aligned}
       & s = (\|g\|^2 + r^2) / p; \quad \text{where } s > 0: \quad t \leftarrow t + 1, \quad
         v \leftarrow \beta_2 v + (1 - \beta_2) s \\
       & m \leftarrow \beta_1 m + (1 - \beta_1) g, \qquad \alpha = \gamma / \big(\sqrt{v / (1 - \beta_2^t)} + \epsilon\big) \\
       & V = W - \alpha\, m / (1 - \beta_1^t), \qquad W \leftarrow (1 - \alpha r / \|V\|)_+ V
       \end{aligned}

    in all layers at once. The penalty is taken as an implicit (proximal) step, which removes whole branches: their last layer
    becomes exactly zero. Where it is a hidden layer that the formula makes zero, the branch is written as one whose last
    layer is zero, as in :class:`PathSGD`, and the last layer's moments start afresh.

    **Fixed points.** If the weights do not change any more, :math:`g` and :math:`r` are constant, :math:`\alpha > 0`, and
    :math:`m / (1 - \beta_1^t)` tends to :math:`g`. Every block is then a fixed point of a proximal gradient step, which for
    every step size means :math:`-g \in r\, \partial \|W\|`: the first-order condition of the objective; and conversely.

    **Why the second moment adds** :math:`\|g\|^2` **and** :math:`r^2` rather than taking the norm of the sum: the sum vanishes
    at a stationary point, which would drive the step size to infinity there, while :math:`\|g\|^2 + r^2` tends to
    :math:`2 r^2`. So the step size settles at a constant, and a small enough ``lr`` converges without being lowered. Because
    of :math:`r^2` a branch that no sample of a batch activates (:math:`g = 0`) decays at a bounded rate.

    **Clipping.** Gradients are those of the loss, which balance the penalty at the optimum and do not vanish there. Clipping
    in the first steps does no harm; with a limit below their norm at the optimum another objective is minimised.

    **Dead branches.** A branch with :math:`W_L = 0` has :math:`s = 0` in its hidden layers. Their second moments and step
    counts then stand still instead of decaying, so the first steps after a revival have the usual size and no spike. It
    revives when the *averaged* gradient exceeds :math:`r`, that is when the branch violates the dual constraint. A branch with
    a zero hidden layer as well has no gradient at all and is dead for ever; no step leads there, only an initialisation.

    The ``"power"`` and ``"l2_path"`` forms are differentiated in all layers (:math:`r` is then the norm of that gradient); they
    give small branches, not exact zeros. Plain groups are stepped by :func:`torch.optim.adam.adam`, entry by entry. Blocks are
    told by ``"layer_index"`` even at ``path_decay`` zero. Moments of half-precision parameters are kept in that precision for
    :math:`m` and in float32 for :math:`v`.

    Args:
        params: ``net.path_param_groups(path_decay=...)``, or parameter groups. A group with the key ``"layer_index"`` holds
            stacked branches: weights ``(num_branches, out, in)``, a first-layer bias ``(num_branches, out)``, and for each of
            them the number of its layer, from 0. Other groups must have ``path_decay`` 0.
        lr: Learning rate: about the size of one step in root mean square over a block.
        betas: Averaging factors of gradients and of squared gradients.
        eps: Added to the root of the second moment.
        path_decay: Weight of the path penalty, in units of the loss.
        penalty: ``"product"``, ``"power"`` or ``"l2_path"``, see :func:`torch_strongdual.functional.path_penalty`.
        maximize: Whether to maximise the loss; the penalty is still minimised.
        foreach: Whether to use multi-tensor operations; ``None`` means on CUDA only.
        capturable: Whether plain groups keep step counts on the device, as a CUDA graph needs; stacked branches always do.
        differentiable: Not supported; only ``False`` is accepted.

    Raises:
        InvalidInputError: If an option is out of its range, or parameters without known branch structure have a positive
            ``path_decay``.
        ShapeError: If parameters do not fit their ``"layer_index"``.

    Example:
        >>> first, last = torch.randn(8, 4, 3, requires_grad=True), torch.randn(8, 1, 4, requires_grad=True)
        >>> optimizer = PathAdamW([{"params": [first, last], "layer_index": (0, 1)}], lr=1e-2, path_decay=1e-3)
        >>> torch.einsum("koh,khi->oi", last, first).square().sum().backward()
        >>> optimizer.step()

    References:
        Kingma, Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015. https://arxiv.org/abs/1412.6980
        Yun, Lozano, Yang, "Adaptive Proximal Gradient Methods for Structured Neural Networks", NeurIPS 2021.
    """

    _option_defaults: ClassVar[Mapping[str, Any]] = {
        "maximize": False,
        "foreach": None,
        "capturable": False,
        "differentiable": False,
    }

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        path_decay: float = 0.0,
        penalty: str = "product",
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "path_decay": path_decay,
            "penalty": penalty,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
        }
        super().__init__(params, defaults)

    def _check_options(self, options: Mapping[str, Any]) -> None:
        check_common_options(options)
        check_non_negative("eps", options["eps"])
        betas = options["betas"]
        if not (isinstance(betas, (tuple, list)) and len(betas) == 2):
            raise InvalidInputError(f"`betas` is {betas!r}; expected two numbers in [0, 1).")
        for index, beta in enumerate(betas):
            if not 0 <= beta < 1:
                raise InvalidInputError(f"`betas[{index}]` is {beta!r}; expected a number in [0, 1).")

    def _step_plain(self, group: dict[str, Any]) -> None:
        params = [param for param in group["params"] if param.grad is not None]
        for param in params:
            if not self.state[param]:
                zeros = [torch.zeros_like(param, memory_format=torch.preserve_format) for _ in range(2)]
                # on the CPU, as in torch, since it is read in every step, unless that is forbidden
                step = torch.zeros((), device=param.device) if group["capturable"] else torch.zeros((), device="cpu")
                self.state[param].update(step=step, exp_avg=zeros[0], exp_avg_sq=zeros[1])
        states = [self.state[param] for param in params]
        beta1, beta2 = group["betas"]
        adam(
            params,
            [param.grad for param in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            foreach=group["foreach"],
            capturable=group["capturable"],
            has_complex=any(torch.is_complex(param) for param in params),
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=0.0,
            eps=group["eps"],
            maximize=group["maximize"],
        )

    def _step_branches(self, group: dict[str, Any]) -> None:
        params = group["params"]
        states = [self._block_state(param) for param in params]
        beta1, beta2 = group["betas"]
        path_adamw(
            params,
            [param.grad for param in params],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [state["step"] for state in states],
            layer_index=group["layer_index"],
            foreach=group["foreach"],
            path_decay=group["path_decay"],
            penalty=group["penalty"],
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            eps=group["eps"],
            maximize=group["maximize"],
        )

    def _block_state(self, param: Tensor) -> dict[str, Tensor]:
        """State of one parameter: ``exp_avg`` of its shape, ``exp_avg_sq`` and ``step`` with one number a branch."""
        state: dict[str, Tensor] = self.state[param]
        dtype = accumulation_dtype(param)
        if not state:
            state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
            one_a_branch = param.detach().flatten(1)[:, 0]  # sharded as the parameter is, if it is
            state["exp_avg_sq"] = torch.zeros_like(one_a_branch, dtype=dtype, memory_format=torch.contiguous_format)
            state["step"] = torch.zeros_like(one_a_branch, dtype=torch.float32, memory_format=torch.contiguous_format)
        second = state.get("exp_avg_sq")
        if second is None or second.shape != param.shape[:1]:
            raise ShapeError(
                f"the state of a parameter of shape {tuple(param.shape)} has {_shapes(state)}; expected `exp_avg_sq` and "
                f"`step` with one number a branch, shape {tuple(param.shape[:1])}. That of a torch optimizer cannot be used: "
                "drop it, by `optimizer.state.clear()`."
            )
        # load_state_dict casts everything to the dtype of the parameter, and leaves `step` where the file had it
        state["exp_avg_sq"] = state["exp_avg_sq"].to(dtype)
        state["step"] = state["step"].to(param.device)
        return state


def _shapes(state: Mapping[str, Tensor]) -> str:
    return ", ".join(f"`{name}` of shape {tuple(value.shape)}" for name, value in state.items() if isinstance(value, Tensor))


@torch.no_grad()
def path_adamw(
    params: list[Tensor],
    grads: list[Tensor | None],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    steps: list[Tensor],
    *,
    layer_index: Sequence[int],
    foreach: bool | None = None,
    path_decay: float,
    penalty: str,
    lr: float | Tensor,
    beta1: float,
    beta2: float,
    eps: float,
    maximize: bool,
) -> None:
    """Functional form of one step of :class:`PathAdamW` on the layers of stacked branches.

    Args:
        params: The layers; changed in place.
        grads: Gradients of the loss; a parameter with ``None`` stands still, but its norm counts in the penalty.
        exp_avgs: Averaged gradients, of the shapes of ``params``; changed in place.
        exp_avg_sqs: Averaged squared gradients, shape ``(num_branches,)`` each; changed in place.
        steps: Number of updates of each block's second moment, shape ``(num_branches,)`` each; changed in place.
        layer_index: Number of the layer of each parameter.
        foreach: See :class:`PathAdamW`; so for all that follow.
        path_decay: Weight of the path penalty.
        penalty: Form of the path penalty.
        lr: Learning rate.
        beta1: Averaging factor of gradients.
        beta2: Averaging factor of squared gradients.
        eps: Added to the root of the second moment.
        maximize: Whether to maximise the loss.

    Raises:
        InvalidInputError: If ``layer_index`` does not number the layers of ``params``.
        ShapeError: If ``params`` do not fit together as layers of stacked branches.

    Example:
        >>> layers = [torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), 2.0)]
        >>> grads, averages = ([torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)] for _ in range(2))
        >>> squares, steps = ([torch.zeros(1), torch.zeros(1)] for _ in range(2))
        >>> options = {"beta1": 0.9, "beta2": 0.999, "eps": 0.0, "maximize": False, "penalty": "product"}
        >>> path_adamw(layers, grads, averages, squares, steps, layer_index=(0, 1), path_decay=1.0, lr=0.25, **options)
        >>> torch.cat(layers).flatten()  # without a gradient a first step shortens every layer by lr
        tensor([1.7500, 1.7500])
    """
    structure = BranchStructure.of(params, layer_index)
    terms = PenaltyTerms.at(params, grads, structure, penalty=penalty, path_decay=path_decay)
    foreach = uses_foreach(foreach, params)
    positions = [i for i, grad in enumerate(grads) if grad is not None]
    moments = _SecondMoments.of([exp_avg_sqs[i] for i in positions], [steps[i] for i in positions])
    moments = moments.updated(_mean_squares(grads, structure, terms.sizes, positions), beta2)
    step_sizes = moments.step_sizes(lr.squeeze() if isinstance(lr, Tensor) else lr, beta2, eps)
    factors = step_sizes / _correction(beta1, moments.steps, step_sizes.dtype)
    losses = [-grad if maximize else grad for grad in grads if grad is not None]
    gradients = terms.added_to(losses, positions, foreach=foreach) if path_decay > 0 else losses
    _descend([params[i] for i in positions], [exp_avgs[i] for i in positions], gradients, factors, beta1, foreach=foreach)
    moments.store([exp_avg_sqs[i] for i in positions], [steps[i] for i in positions])
    if not terms.implicit_layers or terms.norms is None:
        return
    rows = [positions.index(structure.layers[layer][0]) for layer in terms.implicit_layers]
    # every parameter, or as many as there are layers: no bias, nothing frozen
    sizes = terms.sizes if len(rows) == len(terms.sizes) else torch.stack([terms.sizes[i] for i in terms.implicit_layers])
    own = step_sizes if len(rows) == len(step_sizes) else torch.stack([step_sizes[row] for row in rows])
    step = ImplicitStep.of(params, structure, terms.implicit_layers, own * sizes, terms.norms)
    step.apply(params, structure)
    if step.collapsed is not None:
        # the hidden layer that took over the norm changes the scale of the last layer's gradients
        (last,) = structure.layers[-1]
        for moment in (exp_avgs[last], exp_avg_sqs[last], steps[last]):
            moment.mul_(per_branch(~step.collapsed, moment))


def _mean_squares(
    grads: Sequence[Tensor | None], structure: BranchStructure, sizes: Tensor, positions: Sequence[int]
) -> Tensor:  # shape: (len(positions), num_branches)
    """Mean square of loss gradient and penalty gradient over each parameter's block, which is all of its layer that moves."""
    by_position: dict[int, Tensor] = {}
    for layer, size in zip(structure.layers, sizes.unbind(), strict=True):
        norms, num_entries = [size], 0
        for i in layer:
            if (grad := grads[i]) is not None:
                norms.append(branch_norms(grad))
                num_entries += grad[0].numel()
        if num_entries:
            square = torch.stack(norms).square().sum(dim=0) / num_entries
            for i in layer:
                by_position[i] = square
    return torch.stack([by_position[i] for i in positions])


def _descend(
    params: list[Tensor], averages: list[Tensor], gradients: list[Tensor], factors: Tensor, beta1: float, *, foreach: bool
) -> None:
    """Average the gradients, and step along the averages by ``factors``, one row a parameter."""
    multiples = [per_branch(row, param).to(param.dtype) for row, param in zip(factors.unbind(), params, strict=True)]
    if foreach:
        torch._foreach_lerp_(averages, gradients, 1 - beta1)
        torch._foreach_addcmul_(params, averages, multiples, value=-1)
        return
    for param, average, gradient, factor in zip(params, averages, gradients, multiples, strict=True):
        average.lerp_(gradient, 1 - beta1)
        param.addcmul_(average, factor, value=-1)


@dataclass(frozen=True, kw_only=True, eq=False)
class _SecondMoments:
    """Second moments of several parameters' blocks side by side: few operations, whatever the number of layers.

    Args:
        averages: Averaged mean squares, shape ``(num_params, num_branches)``.
        steps: Number of updates of each, of that shape.
    """

    averages: Tensor
    steps: Tensor

    @classmethod
    def of(cls, averages: list[Tensor], steps: list[Tensor]) -> _SecondMoments:
        """Copy the state of the parameters."""
        return cls(averages=torch.stack(averages), steps=torch.stack(steps))

    def updated(self, squares: Tensor, beta2: float) -> _SecondMoments:
        """Average in the squares, except where they are exactly zero."""
        is_moving = squares != 0
        averages = self.averages.lerp(torch.where(is_moving, squares, self.averages), 1 - beta2)
        return _SecondMoments(averages=averages, steps=self.steps + is_moving)

    def step_sizes(self, lr: float | Tensor, beta2: float, eps: float) -> Tensor:  # shape: (num_params, num_branches)
        """Step sizes from the bias-corrected second moments; zero where these and ``eps`` are zero."""
        root = (self.averages / _correction(beta2, self.steps, self.averages.dtype)).sqrt() + eps
        return torch.where(root > 0, lr / root, 0.0)

    def store(self, averages: list[Tensor], steps: list[Tensor]) -> None:
        """Write back what :meth:`of` copied."""
        states, values = [*averages, *steps], [*self.averages.unbind(), *self.steps.unbind()]
        if type(averages[0]) is Tensor:
            torch._foreach_copy_(states, values)
            return
        for state, value in zip(states, values, strict=True):  # sharded tensors have no such operation on lists
            state.copy_(value)


def _correction(beta: float, step: Tensor, dtype: torch.dtype) -> Tensor:
    """``1 - beta ** step`` without cancellation; one where no step was done."""
    if beta == 0:
        return torch.ones_like(step, dtype=dtype)
    return torch.where(step > 0, -torch.expm1(step.to(dtype) * math.log(beta)), 1.0)
