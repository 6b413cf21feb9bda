"""The Lightning callback that adds the branches a certification has found to lower the objective."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import override

from torch_strongdual.certification import TrainingProblem, Witness
from torch_strongdual.certification._growth import grown
from torch_strongdual.certification._working_branches import WorkingBranches
from torch_strongdual.nn import ParallelNet, ParallelWeights

from ._branch_state import state_follows_branches_
from ._growth_on_all_ranks import check_buckets_can_grow, from_first_rank, renew_buckets_
from ._trained_objective import find_net
from .certify_optimality import CertifyOptimality
from .growth_record import GrowthRecord

__all__ = ["GrowBranches"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Growth:
    """What is to be done.

    Args:
        record: Its numbers.
        added: Branch weight list of the new branches.
    """

    record: GrowthRecord
    added: list[Tensor]


class GrowBranches(Callback):
    """Turn the branches that violate the dual constraint into new branches of the network.

    An open gap comes with branches that lower the training objective when added (``Certificate.improving_branches``). After
    each certification of a :class:`CertifyOptimality` callback they are added one by one, each with the magnitude that
    lowers the objective on all training data most; so after a growth the objective is lower than before. Branches that are
    exactly zero are removed to make room. Optimizers go on with the moments of the old branches; those of new ones are zero.

    Until there is something to add, training is as it would be without the callback, bit for bit. After the last epoch nothing
    is added, so that the last certificate is of the network that training ends with.

    The CertifyOptimality callback has to stand before this one in ``Trainer(callbacks=[...])``. A fit that resumes from a
    checkpoint gives the network as many branches as the checkpoint has. Networks with gates are refused, because the certified
    problem is defined by the gates of their branches.

    With several processes rank 0 finds the branches, and all add the same ones; the module is wrapped in a new
    DistributedDataParallel then, whose gradient buckets have the new shapes.

    Args:
        max_branches: The network never grows past this number.
        max_added: Branches added at a time, at most.
        certifier: ``name`` of the CertifyOptimality callback, if there are several.

    Attributes:
        history: A :class:`GrowthRecord` for each growth.

    Raises:
        MisconfigurationException: If an argument is out of its range; when the fit starts, if there is no CertifyOptimality
            callback before this one, the network has gates or is no ParallelNet, or what an optimizer or an option of DDP
            keeps cannot follow the branches (LBFGS, ZeroRedundancyOptimizer; ``static_graph``, ``mixed_precision``,
            ``delay_all_reduce_named_params``, ``ddp_comm_state``), or if DDP forks or spawns its processes (``"ddp_fork"``,
            ``"ddp_notebook"``, ``"ddp_spawn"``), whose caller gets weights back into a network that has not grown.

    Example:
        >>> import warnings
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from torch_strongdual.optim import PathAdamW
        >>> class Regression(pl.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         layers = nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False)
        ...         self.net = ParallelNet(*layers, num_branches=1)
        ...         self.loss = nn.MSELoss()
        ...     def training_step(self, batch, batch_idx):
        ...         inputs, targets = batch
        ...         return self.loss(self.net(inputs), targets)
        ...     def configure_optimizers(self):
        ...         return PathAdamW(self.net.path_param_groups(path_decay=0.1), lr=0.05)
        >>> samples = TensorDataset(torch.eye(2), torch.tensor([[2.0], [-1.0]]))
        >>> callbacks = [CertifyOptimality(every_n_epochs=5), GrowBranches(max_branches=8)]
        >>> quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        >>> trainer = pl.Trainer(max_epochs=11, callbacks=callbacks, accelerator="cpu", enable_checkpointing=False, **quiet)
        >>> module = Regression()
        >>> with warnings.catch_warnings(action="ignore"):  # advice of Lightning
        ...     trainer.fit(module, DataLoader(samples, batch_size=2))
        >>> 1 < module.net.num_branches <= 8
        True
    """

    def __init__(self, max_branches: int, *, max_added: int = 16, certifier: str | None = None) -> None:
        super().__init__()
        for name, value in (("max_branches", max_branches), ("max_added", max_added)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise MisconfigurationException(f"`{name}` is {value!r}; expected an integer >= 1.")
        self.max_branches, self.max_added, self.certifier = max_branches, max_added, certifier
        self.history: list[GrowthRecord] = []
        self._resizing: RemovableHandle | None = None

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(certifier=self.certifier)

    # Hooks

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self.history = []
        net = self._net(trainer, pl_module)
        self._resizing = net.register_load_state_dict_pre_hook(_resize_as_stored_)  # type: ignore[no-untyped-call]

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop_resizing()
        for optimizer in trainer.optimizers:
            if isinstance(optimizer, torch.optim.LBFGS):
                raise MisconfigurationException(
                    "LBFGS keeps a history of whole flat gradients, which cannot follow branches that come and go; use another "
                    "optimizer, such as PathAdamW."
                )
        check_buckets_can_grow(trainer.strategy, trainer.optimizers)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        history = self._certifier(trainer).history  # the same on all ranks
        if not history or history[-1].epoch != trainer.current_epoch:
            return
        net = self._net(trainer, pl_module)
        with torch.no_grad():
            growth = from_first_rank(trainer, lambda: self._plan(trainer, net))
            if growth is None:
                return
            self._grow(trainer, net, growth)
        renew_buckets_(trainer.strategy)

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._stop_resizing()

    @override
    def state_dict(self) -> dict[str, Any]:
        fields = GrowthRecord.__dataclass_fields__
        return {"history": [{name: getattr(record, name) for name in fields} for record in self.history]}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [GrowthRecord(**numbers) for numbers in state_dict["history"]]

    # Steps

    def _stop_resizing(self) -> None:
        """The checkpoint, if any, is loaded between ``setup`` and ``on_fit_start``."""
        if self._resizing is not None:
            self._resizing.remove()
            self._resizing = None

    def _certifier(self, trainer: pl.Trainer) -> CertifyOptimality:
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # Lightning sets it, and does not declare it
        before = callbacks[: callbacks.index(self)] if self in callbacks else callbacks
        found = [callback for callback in before if isinstance(callback, CertifyOptimality)]
        found = [callback for callback in found if self.certifier in (None, callback.name)]
        if len(found) != 1:
            raise MisconfigurationException(
                f"There are {len(found)} CertifyOptimality callbacks before GrowBranches"
                f"{'' if self.certifier is None else f' with the name {self.certifier!r}'}; expected one. Write "
                "Trainer(callbacks=[CertifyOptimality(), GrowBranches(...)]); if there are several, say which by `certifier=`."
            )
        if found[0].background:
            raise MisconfigurationException(
                "GrowBranches adds branches to the very network that was certified, and CertifyOptimality(background=True) "
                "certifies while it is trained on. Pass background=False."
            )
        return found[0]

    def _net(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> ParallelNet:
        net = find_net(pl_module, self._certifier(trainer).net)
        if not isinstance(net, ParallelNet):
            raise MisconfigurationException(f"A {type(net).__name__} cannot take more branches; expected a ParallelNet.")
        if net.gate_vectors():
            raise MisconfigurationException(
                "The network has gated activations: the problem that is certified is defined by the gates of its branches, so "
                "that branches cannot come and go. Give it as many branches as needed from the start."
            )
        return net

    def _plan(self, trainer: pl.Trainer, net: ParallelNet) -> _Growth | None:
        """Try on a copy; the network is to change only if the objective is lower in its own precision."""
        certifier = self._certifier(trainer)
        certificate, problem = certifier.last_certificate, certifier.problem
        is_last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if certificate is None or problem is None or is_last or not certificate.improving_branches:
            return None
        before = problem.primal(ParallelWeights.from_module(net)).value
        trial = copy.deepcopy(net)
        kept = trial.prune_()
        room = min(self.max_added, self.max_branches - trial.num_branches)
        added = _branches_to_add(trial, problem, certificate.improving_branches, room)
        if not added:
            return None
        trial.add_branches_(added)
        after = problem.primal(ParallelWeights.from_module(trial)).value
        if not after < before:
            return None
        record = GrowthRecord(
            epoch=trainer.current_epoch,
            num_added=added[0].shape[0],
            num_pruned=net.num_branches - len(kept),
            objective_before=before,
            objective_after=after,
        )
        return _Growth(record=record, added=added)

    def _grow(self, trainer: pl.Trainer, net: ParallelNet, growth: _Growth) -> None:
        """Change network and optimizer state, on each rank alike."""
        num_before = net.num_branches
        kept = net.prune_()
        net.add_branches_(growth.added)
        stacked = net.path_param_groups(1.0)[0]["params"]
        state_follows_branches_(trainer.optimizers, stacked, kept, growth.record.num_added, num_before=num_before)
        self.history.append(growth.record)


def _branches_to_add(net: ParallelNet, problem: TrainingProblem, witnesses: tuple[Witness, ...], room: int) -> list[Tensor]:
    """Branch weight list of the new branches, balanced; empty if none lowers the objective, or there is no room."""
    if room < 1:
        return []
    present = WorkingBranches.of_network(ParallelWeights.from_module(net))
    candidates = WorkingBranches.of_witnesses(problem, witnesses)
    slopes = candidates.features(problem).T @ problem.loss.residual(present.outputs(problem))
    steepest = torch.argsort(torch.linalg.vector_norm(slopes, dim=1), descending=True)[:room]
    larger = grown(problem, present, candidates.kept(steepest), one_by_one=True)
    new = larger.kept(torch.arange(present.number, larger.number)).balanced()
    return new.padded_to(net) if new.number else []


def _resize_as_stored_(net: nn.Module, state_dict: dict[str, Any], prefix: str, *others: object) -> None:
    """Give ``net`` the number of branches that a checkpoint has, right before its weights are loaded."""
    assert isinstance(net, ParallelNet)
    name = next(name for name, parameter in net.named_parameters() if parameter is net.branch_weights()[-1])
    stored = state_dict.get(prefix + name)
    if not isinstance(stored, Tensor):
        return
    missing = stored.shape[0] - net.num_branches
    if missing > 0:
        net.add_branches_([weight.new_zeros(missing, *weight.shape[1:]) for weight in net.branch_weights()])
    elif missing < 0:  # values are about to be loaded: only zero or not zero counts
        with torch.no_grad():
            for parameter in net.path_param_groups(1.0)[0]["params"]:
                parameter.fill_(1.0)[stored.shape[0] :] = 0.0
        net.prune_()
