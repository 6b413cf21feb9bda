"""The Lightning callback that certifies a network while it trains."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from torch_strongdual.certification import Certificate, TrainingProblem
from torch_strongdual.certification.oracles import AbstractDualNormOracle
from torch_strongdual.errors import ShapeError

from ._argument_checks import check_arguments
from ._bound_keeper import BoundKeeper
from ._certification_queue import CertificationQueue
from ._failure_warnings import warn_of_dropped_bound, warn_of_failure
from ._fingerprint import weights_digest
from ._gradient_clipping import ClippingWatch
from ._logged_metrics import log_metrics
from ._loss_comparison import LossComparison, check_loss_scale
from ._objective import Objective, found_now
from ._pace_watch import PaceWatch
from ._stored_state import records_as_numbers, stored_mapping, stored_records
from ._trained_objective import PathPenalty, find_loss, find_net, find_path_penalty
from ._training_data import BATCHES_CURE, CertifiedData, read_training_data
from .certification_record import CertificationRecord

__all__ = ["CertifyOptimality"]


class CertifyOptimality(Callback):
    """Prove, while training, how far the network is at most from the best objective, and log it.

    At the end of an epoch the network is certified on all training data, as
    :func:`~torch_strongdual.certification.certify` does. The best bound is kept over the run and, in checkpoints, over
    restarts: it belongs to the training problem, not to the weights. Logged in every epoch, as float64:

    - ``certificate/primal_value``: the training objective, recomputed in float64
    - ``certificate/dual_bound``: the best proven lower bound so far
    - ``certificate/duality_gap``: their difference
    - ``certificate/relative_gap``: the same relative to the objective, 1 where nothing but its sign is proven
    - ``certificate/seconds``: what the last certification took

    between certifications the last values again, and never NaN or infinity, so ``EarlyStopping`` and ``ModelCheckpoint`` can
    monitor them where they act at the end of train epochs. That is their default when validation runs once an epoch or never;
    otherwise pass ``check_on_train_epoch_end=True`` or ``save_on_train_epoch_end=True``.

    Training is as it would be without the callback, bit for bit. Failures of certification are warnings; only mistakes in the
    set-up, found before the first training step, end the fit.

    What is certified has to be what is trained:

    - ``training_step`` has to return ``loss(net(inputs), targets)`` for batches ``(inputs, targets)`` as the loader yields
      them. This is checked on the first batch, unless ``data`` is given or optimization is manual.
    - The data set is read once, when training starts, and kept in memory. It has to give the same numbers each time.
    - The objective is that on all data. Mini-batches of a loss that is a mean minimise it up to noise; of a loss that is a sum
      they do not, since ``path_decay`` counts once a batch, so that ``path_decay`` must be passed here.

    With several processes, rank 0 certifies while the others wait (keep ``time_budget`` below their timeout), and all log the
    same numbers. Strategies that shard parameters are refused.

    With ``background=True`` training goes on while a thread certifies a copy of the weights, on the CPU. What it found is
    the same, and is logged at the end of the first epoch by which it is there, so up to a certification later;
    ``record.epoch`` says which weights it is of. Training waits for the first certification, for the one before when the next
    is due, and for the last. A checkpoint written while a certification runs on the very weights it holds says so, and a
    resumed fit certifies these first. An oracle of one's own must draw from random number generators of its own.

    Args:
        every_n_epochs: Certify in epochs 0, n, 2n, ... and at the end of training, with the weights that the fit leaves: their
            average, say, where another callback averages them. (What comes that late is in ``history``, and not logged.)
        net: Name of the attribute of the LightningModule to certify; ``None`` if it has only one ParallelNet.
        loss: The loss that is trained; ``None`` if the LightningModule has only one attribute that is a supported loss module.
        path_decay: Strength of the path penalty; ``None`` reads it, each time, from the optimizer's parameter groups.
        penalty: Form of the penalty; ``None`` reads it with ``path_decay``, or means ``"product"``.
        data: What is trained on, if the train dataloader does not show it: ``(inputs, targets)`` tensors, a Dataset or a
            DataLoader (read in its order).
        oracle: Bounds the dual norm; ``None`` chooses.
        rtol: Relative gap up to which the network is called certified.
        time_budget: Seconds for one certification.
        stop_when_certified: End the fit as soon as the network is certified.
        name: In front of the names of the metrics; has to differ between several such callbacks.
        prog_bar: Whether the progress bar shows the relative gap.
        background: Whether training goes on meanwhile.

    Attributes:
        history: A :class:`CertificationRecord` for each certification, on all ranks. (Where DDP forks or spawns processes,
            in these; who calls ``fit`` finds the last numbers in ``trainer.callback_metrics``.)
        last_certificate: The :class:`~torch_strongdual.certification.Certificate` of the last certification, ``None`` if it
            failed; on rank 0 only.
        last_error: What the last certification failed with, or ``None``; on rank 0 only.

    Raises:
        MisconfigurationException: If an argument is out of its range; when the fit starts, if network, loss, penalty or data
            cannot be found, do not fit together, or have no certificate; before the first step, if the loss that is trained
            is another one.

    Example:
        >>> import warnings
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> from torch_strongdual.nn import ParallelNet
        >>> from torch_strongdual.optim import PathAdamW
        >>> class Regression(pl.LightningModule):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.net = ParallelNet(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1), num_branches=8)
        ...         self.loss = nn.MSELoss()
        ...     def training_step(self, batch, batch_idx):
        ...         inputs, targets = batch
        ...         return self.loss(self.net(inputs), targets)
        ...     def configure_optimizers(self):
        ...         return PathAdamW(self.net.path_param_groups(path_decay=0.1), lr=0.01)
        >>> samples = TensorDataset(torch.eye(2), torch.tensor([[2.0], [-1.0]]))
        >>> certify = CertifyOptimality(every_n_epochs=10)
        >>> quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        >>> trainer = pl.Trainer(max_epochs=20, callbacks=[certify], accelerator="cpu", enable_checkpointing=False, **quiet)
        >>> with warnings.catch_warnings(action="ignore"):  # advice of Lightning
        ...     trainer.fit(Regression(), DataLoader(samples, batch_size=2, shuffle=True))
        >>> [record.epoch for record in certify.history]
        [0, 10, 19]
        >>> bool(trainer.callback_metrics["certificate/relative_gap"] <= 1.0)
        True
    """

    def __init__(
        self,
        every_n_epochs: int = 1,
        *,
        net: str | None = None,
        loss: nn.Module | None = None,
        path_decay: float | None = None,
        penalty: str | None = None,
        data: CertifiedData | None = None,
        oracle: AbstractDualNormOracle | None = None,
        rtol: float = 1e-2,
        time_budget: float = 10.0,
        stop_when_certified: bool = False,
        name: str = "certificate",
        prog_bar: bool = True,
        background: bool = False,
    ) -> None:
        super().__init__()
        check_arguments(locals())
        self.every_n_epochs, self.rtol, self.time_budget = every_n_epochs, rtol, time_budget
        self.net, self.loss, self.data, self.oracle = net, loss, data, oracle
        self.path_decay, self.penalty = path_decay, penalty
        self.stop_when_certified, self.name, self.prog_bar = stop_when_certified, name, prog_bar
        self.background = background
        self._queue: CertificationQueue | None = None
        self._reset()

    def _reset(self) -> None:
        self.history: list[CertificationRecord] = []
        self.last_certificate: Certificate | None = None
        self.last_error: Exception | None = None
        self._keeper: BoundKeeper | None = None
        self._stored_bound: dict[str, Any] = {}
        self._comparison: LossComparison | None = None
        self._clipping, self._pace = ClippingWatch(is_penalty_apart=self.path_decay is None), PaceWatch()
        self._certified_step, self._certified_weights = -1, ""
        self._unfinished_epoch = -1  # whose weights are those of the checkpoint, and still to be certified
        self._state_before: dict[str, Any] | None = None  # as of the weights a certification just began with
        self._close()

    def _close(self) -> None:
        """Wait for a certification that runs."""
        if self._queue is not None:
            self._queue.close()
            self._queue = None

    @property
    @override
    def state_key(self) -> str:
        return self._generate_state_key(name=self.name)

    @property
    def problem(self) -> TrainingProblem | None:
        """The training problem that is certified; while a fit runs, on rank 0."""
        return None if self._keeper is None else self._keeper.problem

    def is_due(self, epoch: int, max_epochs: int | None) -> bool:
        """Whether the network is to be certified at the end of ``epoch``: in its turn, if last, or if there are no numbers yet.

        Args:
            epoch: From 0.
            max_epochs: Number of epochs of the fit; -1 or ``None`` if unknown.
        """
        return not self.history or epoch % self.every_n_epochs == 0 or epoch + 1 == max_epochs

    # Hooks

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if trainer.current_epoch == 0:  # otherwise this trainer goes on with the fit before
            self._reset()
        strategy = trainer.strategy
        if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)) or isinstance(strategy, DeepSpeedStrategy):
            raise MisconfigurationException(
                f"The strategy is {type(strategy).__name__}, under which a process may not hold all parameters; expected a "
                "single device or DDP. Certify the trained network with torch_strongdual.certification.certify instead."
            )

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        find_loss(pl_module, self.loss)
        self._find(trainer, pl_module)
        if self.data is None and pl_module.automatic_optimization:
            self._comparison = LossComparison(may_have_penalty=self.path_decay is not None)

    @override
    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if _is_dry_run(trainer):
            return
        mistake, is_resumed = None, True
        if trainer.is_global_zero:
            mistake, is_resumed = self._open(trainer, pl_module)
        mistake, is_resumed = trainer.strategy.broadcast((mistake, is_resumed))
        if mistake is not None:
            raise MisconfigurationException(mistake)
        if not is_resumed:
            self.history = []
        epoch, self._unfinished_epoch = self._unfinished_epoch, -1
        if is_resumed and epoch >= 0:
            self._begin(trainer, pl_module, epoch)
            self._finish(trainer, wait=not self.background)

    @override
    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        self._state_before = None  # from here on the weights are others
        if self._comparison is not None:
            self._comparison.batch = batch

    @override
    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        comparison, self._comparison = self._comparison, None
        if comparison is not None:
            comparison.check(trainer, loss, lambda: (find_loss(pl_module, self.loss), self._objective(trainer, pl_module)))

    @override
    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        self._clipping.see(trainer, pl_module)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if _is_dry_run(trainer):
            return
        epoch = trainer.current_epoch
        is_due = self.is_due(epoch, trainer.max_epochs)
        if is_due:
            self._begin(trainer, pl_module, epoch)
        if is_due or self.background:
            self._finish(trainer, wait=not (self.background and self.history) or epoch + 1 == trainer.max_epochs)
        if not trainer.barebones:  # where nothing may be logged
            log_metrics(pl_module, self.history, name=self.name, prog_bar=self.prog_bar)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if _is_dry_run(trainer):
            return
        is_due = self._certified_step != trainer.global_step
        if is_due:
            self._begin(trainer, pl_module, max(0, trainer.current_epoch - 1))
        if is_due or self.background:
            self._finish(trainer, wait=True)
        self._clipping.warn(self.last_certificate)

    @override
    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        is_due = self._keeper is not None and self._certified_weights != weights_digest(find_net(pl_module, self.net))
        if trainer.strategy.broadcast(is_due):  # others have changed them since: averages of weights, new branches
            self._begin(trainer, pl_module, max(0, trainer.current_epoch - 1))
            self._finish(trainer, wait=True)

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        try:
            if self._queue is not None:  # on rank 0; the others may not be there to be told
                self._keep(self._outcomes(wait=True))
        finally:
            self._close()

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._close()
        self._state_before = None
        if self._keeper is not None:  # the data are not kept, the bound is
            self._stored_bound, self._keeper = self._keeper.state_dict(), None

    @override
    def state_dict(self) -> dict[str, Any]:
        if self._state_before is not None:
            return self._state_before
        running = [] if self._queue is None else [attempt.record for attempt in self._queue.peek()]
        bound = self._stored_bound if self._keeper is None else self._keeper.state_dict()
        return self._state([*self.history, *running], bound, self._unfinished_epoch)

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = stored_records(CertificationRecord, state_dict)
        self._stored_bound = stored_mapping(state_dict, "bound")
        epoch = state_dict.get("unfinished_epoch")
        self._unfinished_epoch = epoch if isinstance(epoch, int) else -1

    # Steps

    def _find(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> tuple[nn.Module, PathPenalty]:
        net = find_net(pl_module, self.net)
        return net, find_path_penalty(net, trainer.optimizers, path_decay=self.path_decay, penalty=self.penalty)

    def _objective(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Objective:
        return Objective.of(*self._find(trainer, pl_module))

    def _open(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> tuple[str | None, bool]:
        """Read the data, pose the problem, take up a stored bound; say what is wrong, and whether the history holds."""
        with isolate_rng():
            try:
                loss = find_loss(pl_module, self.loss)
                check_loss_scale(trainer, loss, path_decay=self.path_decay)
                keeper = BoundKeeper(
                    *read_training_data(trainer, self.data),
                    loss,
                    oracle=self.oracle,
                    rtol=self.rtol,
                    time_budget=self.time_budget,
                )
                keeper.prepare(self._objective(trainer, pl_module))
            except MisconfigurationException as error:
                return str(error), True
            except Exception as error:
                cure = " " + BATCHES_CURE if self.data is None and isinstance(error, ShapeError) else ""
                return f"The network cannot be certified: {type(error).__name__}: {error}{cure}", True
        self._keeper, self._queue = keeper, CertificationQueue(background=self.background)
        is_resumed = not self._stored_bound or keeper.load_state_dict(self._stored_bound)
        if not is_resumed:
            warn_of_dropped_bound()
        return None, is_resumed

    def _begin(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> None:
        """Certify the network as it is now: at once, or, when the one before is done, beside training."""
        self._certified_step = trainer.global_step
        if not trainer.is_global_zero:
            return
        keeper, queue = self._keeper, self._queue
        if keeper is None or queue is None:
            raise RuntimeError("CertifyOptimality was not opened by `on_train_start`.")
        self._certified_weights = weights_digest(find_net(pl_module, self.net))

        def find() -> Objective:
            return self._objective(trainer, pl_module)

        if self.background:
            finished = [attempt.record for attempt in queue.peek()]  # waits
            self._state_before = self._state([*self.history, *finished], keeper.state_dict(), epoch)
            with isolate_rng():
                find = found_now(find)
        queue.submit(lambda: keeper.certify(find, epoch=epoch))

    def _finish(self, trainer: pl.Trainer, *, wait: bool) -> None:
        """Take up what is done, the same on all ranks; stop if that is wanted."""
        outcomes = self._outcomes(wait=wait) if trainer.is_global_zero else []
        if not self.background:
            self._pace.see((record.seconds for record, _ in outcomes), every_n_epochs=self.every_n_epochs)
        if self._keep(trainer.strategy.broadcast(outcomes)) and self.stop_when_certified:
            trainer.should_stop = True

    def _outcomes(self, *, wait: bool) -> list[tuple[CertificationRecord, bool]]:
        """Records of what is done, and whether the network was certified; failures are warnings."""
        assert self._queue is not None
        attempts = self._queue.collect(wait=wait)
        if self._queue.is_empty:
            self._state_before = None
        for attempt in attempts:
            if attempt.error is None or attempt.error is not self.last_error:
                warn_of_failure(attempt, self.last_certificate)
            self.last_certificate, self.last_error = attempt.certificate, attempt.error
        return [(a.record, a.certificate is not None and a.certificate.is_certified) for a in attempts]

    def _keep(self, outcomes: list[tuple[CertificationRecord, bool]]) -> bool:
        """Add to the history; return whether a network was certified."""
        self.history.extend(record for record, _ in outcomes)
        return any(is_certified for _, is_certified in outcomes)

    @staticmethod
    def _state(history: list[CertificationRecord], bound: dict[str, Any], unfinished_epoch: int) -> dict[str, Any]:
        return {"history": records_as_numbers(history), "bound": bound, "unfinished_epoch": unfinished_epoch}


def _is_dry_run(trainer: pl.Trainer) -> bool:
    return bool(getattr(trainer, "fast_dev_run", False))  # Lightning sets it, and does not declare it
