"""The Lightning callback that adds the branches a certification has found to lower the objective."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
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
from torch_strongdual.nn import ParallelNet, ParallelWeights, match_branches_

from ._branch_state import state_follows_branches_
from ._distinct_gates import branch_of_each_gate, gate_rows
from ._growth_on_all_ranks import check_buckets_can_grow, from_first_rank, renew_buckets_
from ._stored_state import records_as_numbers, stored_records
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
        gate_vectors: Their gates, one tensor for each GatedReLU.
    """

    record: GrowthRecord
    added: list[Tensor]
    gate_vectors: list[Tensor]


class GrowBranches(Callback):
    """Turn the branches that violate the dual constraint into new branches of the network.

    An open gap comes with branches that lower the training objective when added (``Certificate.improving_branches``). After
    each certification of a :class:`CertifyOptimality` callback they are added one by one, each with the magnitude that
    lowers the objective on all training data most; so after a growth the objective is lower than before. Branches that are
    exactly zero are removed to make room. Optimizers go on with the moments of the old branches; those of new ones are zero.

    Until there is something to add, training is as it would be without the callback, bit for bit. After the last epoch nothing
    is added, so that the last certificate is of the network that training ends with.

    The CertifyOptimality callback has to stand before this one in ``Trainer(callbacks=[...])``. A trainer that loads a
    checkpoint with this callback, to resume or to test, gives the network as many branches as the checkpoint has; elsewhere, as
    in ``load_from_checkpoint``, :func:`~torch_strongdual.nn.match_branches_` does.

    The gates of a gated network stay the set they are, as the certified problem is defined by them: each new branch has one of
    them, and the last branch of a gate stays, dead or not.

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
            callback before this one, the network is no ParallelNet, or what an optimizer, another callback or an option of
            DDP keeps cannot follow the branches (LBFGS, ZeroRedundancyOptimizer; StochasticWeightAveraging,
            WeightAveraging; ``static_graph``, ``mixed_precision``, ``delay_all_reduce_named_params``, ``ddp_comm_state``), or
            if DDP forks or spawns its processes (``"ddp_fork"``, ``"ddp_notebook"``, ``"ddp_spawn"``), whose caller gets
            weights back into a network that has not grown.

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
        self._resizing: list[RemovableHandle] = []

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(certifier=self.certifier)

    # Hooks

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            if trainer.current_epoch == 0:  # otherwise this trainer goes on with the fit before
                self.history = []
            self._net(trainer, pl_module)
        nets = [net for net in pl_module.modules() if isinstance(net, ParallelNet)]
        register = [net.register_load_state_dict_pre_hook for net in nets]
        self._resizing = [hook(_resize_as_stored_) for hook in register]  # type: ignore[no-untyped-call]

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
        self._check_averages(trainer)

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
    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop_resizing()

    @override
    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop_resizing()

    @override
    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._stop_resizing()

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        self._stop_resizing()

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"history": records_as_numbers(self.history)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = stored_records(GrowthRecord, state_dict)

    # Steps

    def _stop_resizing(self) -> None:
        """The checkpoint, if any, is loaded between ``setup`` and the start."""
        for handle in self._resizing:
            handle.remove()
        self._resizing = []

    def _check_averages(self, trainer: pl.Trainer) -> None:
        """Copies of the network that other callbacks average cannot follow; some of them came after Lightning 2.5."""
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            names = {kind.__name__ for kind in type(callback).__mro__}
            if names & {"StochasticWeightAveraging", "WeightAveraging"}:
                raise MisconfigurationException(
                    f"{type(callback).__name__} averages weights with a copy of the network, which has the branches training "
                    "began with; use it without GrowBranches, in a fit that follows."
                )

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
        return net

    def _plan(self, trainer: pl.Trainer, net: ParallelNet) -> _Growth | None:
        """Try on a copy; the network is to change only if the objective is lower in its own precision."""
        certifier = self._certifier(trainer)
        certificate, problem = certifier.last_certificate, certifier.problem
        is_last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if certificate is None or problem is None or is_last or not certificate.improving_branches:
            return None
        weights = ParallelWeights.from_module(net)
        own, witnesses = _of_network(weights, problem, certificate.improving_branches)
        new = _branches_to_add(own, weights, witnesses, max_added=self.max_added, max_branches=self.max_branches)
        if new.number == 0:
            return None
        gates = [] if new.gates is None else [vectors.cpu()[new.gates] for vectors in net.gate_vectors()]
        trial, added = copy.deepcopy(net), new.balanced().padded_to(net)
        trial.add_branches_(added, gate_vectors=gates)
        trial.prune_(keep_gates=True)
        before, after = problem.primal(weights).value, problem.primal(ParallelWeights.from_module(trial)).value
        if not after < before:
            return None
        record = GrowthRecord(
            epoch=trainer.current_epoch,
            num_added=new.number,
            num_pruned=net.num_branches + new.number - trial.num_branches,
            objective_before=before,
            objective_after=after,
        )
        return _Growth(record=record, added=added, gate_vectors=gates)

    def _grow(self, trainer: pl.Trainer, net: ParallelNet, growth: _Growth) -> None:
        """Change network and optimizer state, on each rank alike."""
        num_before = net.num_branches
        net.add_branches_(growth.added, gate_vectors=growth.gate_vectors)
        kept = net.prune_(keep_gates=True)
        stacked = net.path_param_groups(1.0)[0]["params"]
        old, num_new = kept[kept < num_before], int((kept >= num_before).sum())
        state_follows_branches_(trainer.optimizers, stacked, old, num_new, num_before=num_before)
        self.history.append(growth.record)


def _of_network(
    weights: ParallelWeights, problem: TrainingProblem, witnesses: tuple[Witness, ...]
) -> tuple[TrainingProblem, list[Witness]]:
    """The problem and its witnesses with gates numbered as the branches of the network."""
    own = dataclasses.replace(problem, spec=weights.spec)
    rows, gates = gate_rows(weights.spec), gate_rows(problem.spec)
    if rows is None or gates is None:
        return own, list(witnesses)
    branches = branch_of_each_gate(rows, gates).tolist()
    return own, [dataclasses.replace(w, gate_index=branches[w.gate_index or 0]) for w in witnesses]


def _branches_to_add(
    problem: TrainingProblem, weights: ParallelWeights, witnesses: Sequence[Witness], *, max_added: int, max_branches: int
) -> WorkingBranches:
    """New branches that lower the objective, steepest first, as many as there is room for."""
    present = WorkingBranches.of_network(weights)
    candidates = WorkingBranches.of_witnesses(problem, witnesses)
    slopes = candidates.features(problem).T @ problem.loss.residual(present.outputs(problem))
    steepest = torch.argsort(torch.linalg.vector_norm(slopes, dim=1), descending=True).tolist()
    chosen = _affordable(steepest, candidates, weights, max_added=max_added, max_branches=max_branches)
    larger = grown(problem, present, candidates.kept(torch.tensor(chosen, dtype=torch.int64)), one_by_one=True)
    return larger.kept(torch.arange(present.number, larger.number))


def _affordable(
    order: Sequence[int], candidates: WorkingBranches, weights: ParallelWeights, *, max_added: int, max_branches: int
) -> list[int]:
    """Those for which there is room; the first of a gate without live branches takes the place of the dead one kept for it."""
    alive = weights.product_norms() > 0.0
    rows = gate_rows(weights.spec)
    kinds = [0] * weights.num_branches if rows is None else torch.unique(rows, dim=0, return_inverse=True)[1].tolist()
    live_kinds = {kind for kind, is_alive in zip(kinds, alive.tolist(), strict=True) if is_alive}
    unused = set() if rows is None else set(kinds) - live_kinds
    room = max_branches - int(alive.sum()) - len(unused)
    chosen: list[int] = []
    for index in order:
        kind = 0 if candidates.gates is None else kinds[int(candidates.gates[index])]
        if len(chosen) == max_added or not (kind in unused or room > 0):
            continue
        room -= kind not in unused
        unused.discard(kind)
        chosen.append(index)
    return chosen


def _resize_as_stored_(net: nn.Module, state_dict: dict[str, Any], prefix: str, *others: object) -> None:
    """Right before the weights of a checkpoint are loaded."""
    match_branches_(net, state_dict, prefix)
