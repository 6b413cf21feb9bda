"""The relative duality gap as a metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from torch_strongdual._checks import check_in, check_non_negative, check_positive
from torch_strongdual.certification import Certificate, certify
from torch_strongdual.certification.oracles import AbstractDualNormOracle
from torch_strongdual.certification.training_problem import CERTIFIED_PENALTIES
from torch_strongdual.errors import InvalidInputError, ShapeError
from torch_strongdual.losses import conjugate_loss
from torch_strongdual.metrics._shared_module import SharedModule
from torch_strongdual.nn import branch_spec_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["DualityGap"]


class DualityGap(Metric):
    r"""How far a network is at most from the best training objective, relative to it: :math:`(P - D) / P`.

    Collects the training data batch by batch; :meth:`compute` certifies the network, with the weights it then has, on all of
    them, as :func:`~torch_strongdual.certification.certify` does. For loops without Lightning; in Lightning the callback
    ``CertifyOptimality`` keeps the bound over epochs and finds the data itself.

    The network is referred to, not held: it is neither in ``state_dict()`` nor copied by ``clone()``, but it is pickled along.
    Since the value depends on its weights as well as on the data, it is not cached between calls of :meth:`compute` unless
    ``compute_with_cache=True`` is passed.

    As input to ``forward`` and ``update`` the metric accepts:

    - ``inputs`` (:class:`~torch.Tensor`): as the network takes them, shape ``(num_samples, ...)``
    - ``targets`` (:class:`~torch.Tensor`): as the loss takes them, shape ``(num_samples, ...)``

    As output of ``forward`` and ``compute`` the metric returns:

    - ``relative_gap`` (:class:`~torch.Tensor`): a float64 scalar, infinite if nothing is proven. That of ``forward`` is the gap
      on the batch alone.

    Under distributed training the samples of all processes are gathered, and each process certifies on all of them. How far
    each gets in its time differs; all return the largest gap, so that they stop, save and schedule alike.

    Args:
        model: A :class:`~torch_strongdual.nn.ParallelNet`, or an ``nn.Sequential`` of its layers.
        loss: The loss that is trained, see :func:`~torch_strongdual.certification.certify`.
        path_decay: Strength of the path penalty, in the units of the loss on all data.
        penalty: ``"product"``, ``"power"`` or ``"l2_path"``.
        rtol: Relative gap up to which the network is called certified, and at which to stop.
        time_budget: Seconds for one certification.
        oracle: Bounds the dual norm; ``None`` chooses.
        kwargs: Additional keyword arguments of :class:`torchmetrics.Metric`.

    Raises:
        UnsupportedModelError: If the model has no known branches.
        UnsupportedLossError: If the loss is no module with a known conjugate.
        InvalidInputError: If a number is out of its range, or the oracle none; in ``update``, if inputs or targets are no
            tensors; in ``compute``, if there are no samples.
        ShapeError: In ``update``, if there are not as many targets as inputs, or samples have another shape than those before.

    Example:
        >>> from torch_strongdual.nn import ParallelNet
        >>> _ = torch.manual_seed(0)
        >>> net = ParallelNet(nn.Linear(2, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False), num_branches=8)
        >>> metric = DualityGap(net, loss=nn.MSELoss(), path_decay=0.5)
        >>> metric.update(torch.tensor([[1.0, 0.0]]), torch.tensor([[2.0]]))
        >>> metric.update(torch.tensor([[0.0, 1.0]]), torch.tensor([[-1.0]]))
        >>> gap = metric.compute()
        >>> bool(0.01 < gap < 1.0), metric.certificate.is_certified
        (True, False)
    """

    is_differentiable: bool = False
    higher_is_better: bool = False
    full_state_update: bool = False
    plot_lower_bound: float = 0.0

    inputs: list[Tensor]
    targets: list[Tensor]

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: nn.Module,
        path_decay: float,
        penalty: str = "product",
        rtol: float = 1e-2,
        time_budget: float = 60.0,
        oracle: AbstractDualNormOracle | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"compute_with_cache": False, **kwargs})
        branch_spec_of(model)
        _check_loss(loss)
        if oracle is not None and not isinstance(oracle, AbstractDualNormOracle):
            raise InvalidInputError(f"`oracle` is of type {type(oracle).__name__}; expected a dual norm oracle.")
        check_positive("path_decay", path_decay)
        check_non_negative("path_decay", path_decay)  # nor infinite
        check_in("penalty", penalty, CERTIFIED_PENALTIES)
        check_positive("rtol", rtol)
        check_positive("time_budget", time_budget)
        self._model, self._loss = SharedModule(model), SharedModule(loss)
        self.path_decay, self.penalty, self.rtol, self.time_budget, self.oracle = path_decay, penalty, rtol, time_budget, oracle
        self._certificate: Certificate | None = None
        self.add_state("inputs", default=[], dist_reduce_fx="cat")
        self.add_state("targets", default=[], dist_reduce_fx="cat")

    @property
    def certificate(self) -> Certificate | None:
        """What the last :meth:`compute` found; ``None`` before it and after :meth:`reset`."""
        return self._certificate

    def update(self, inputs: Tensor, targets: Tensor) -> None:
        """Add a batch.

        Args:
            inputs: As the network takes them, shape ``(num_samples, ...)``.
            targets: As the loss takes them, shape ``(num_samples, ...)``.
        """
        for name, value in (("inputs", inputs), ("targets", targets)):
            if not isinstance(value, Tensor):
                raise InvalidInputError(f"`{name}` is of type {type(value).__name__}; expected a tensor.")
        if inputs.ndim == 0 or inputs.shape[:1] != targets.shape[:1]:
            raise ShapeError(
                f"`inputs` has shape {tuple(inputs.shape)} and `targets` {tuple(targets.shape)}; expected as many samples in "
                "both."
            )
        for name, value, before in (("inputs", inputs, self.inputs), ("targets", targets, self.targets)):
            if before and before[-1].shape[1:] != value.shape[1:]:
                raise ShapeError(
                    f"`{name}` has shape {tuple(value.shape)}, and the batch before {tuple(before[-1].shape)}; expected "
                    "samples of the same shape."
                )
        self.inputs.append(inputs.detach())
        self.targets.append(targets.detach())

    def compute(self) -> Tensor:
        """Certify the network on all samples so far and return the relative gap."""
        if len(self.inputs) == 0:
            raise InvalidInputError("DualityGap has no samples; call `update(inputs, targets)` with the training data first.")
        inputs, targets = dim_zero_cat(self.inputs), dim_zero_cat(self.targets)
        self._certificate = certify(
            self._model.module,
            inputs,
            targets,
            loss=self._loss.module,
            path_decay=self.path_decay,
            penalty=self.penalty,
            oracle=self.oracle,
            rtol=self.rtol,
            time_budget=self.time_budget,
        )
        device = "cpu" if inputs.device.type == "mps" else inputs.device  # which has no float64
        gap = torch.tensor(self._certificate.relative_gap, dtype=torch.float64, device=device)
        if self._is_synced and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(gap, torch.distributed.ReduceOp.MAX, group=self.process_group)
        return gap

    def plot(self, val: Tensor | Sequence[Tensor] | None = None, ax: Axes | None = None) -> Any:
        """Draw one gap, or several in a row, as other metrics of torchmetrics do (needs matplotlib).

        Args:
            val: What :meth:`compute` or ``forward`` gave, or a sequence of such; ``None`` computes it.
            ax: Where to draw; a new figure if ``None``.

        Returns:
            Figure and axes.
        """
        return self._plot(val, ax)

    def reset(self) -> None:
        """Forget all samples, and the certificate."""
        super().reset()
        self._certificate = None


def _check_loss(loss: object) -> None:
    """Refuse now what :meth:`DualityGap.compute` could only refuse at the end of an epoch."""
    try:
        conjugate_loss(loss, torch.zeros(1), num_outputs=1)  # type: ignore[arg-type]  # whatever it is
    except InvalidInputError:
        return  # of the right class: only the probe does not fit
