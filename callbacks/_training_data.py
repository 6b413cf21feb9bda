"""Reading the data that a fit trains on, without disturbing the fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler, Subset
from torch.utils.data.distributed import DistributedSampler

from torch_strongdual.certification._gather import gather_batches
from torch_strongdual.errors import InvalidInputError

from ._fingerprint import data_digest

__all__ = ["BATCHES_CURE", "CertifiedData", "check_data", "read_training_data"]

# Without parameters: of Dataset[Any] jsonargparse, which reads the configurations of LightningCLI, makes a bare Dataset.
CertifiedData: TypeAlias = Sequence[Tensor] | Dataset | DataLoader  # type: ignore[type-arg]

_BATCH_SIZE = 256
_NUM_REPEATED = 256  # samples read twice more, to see whether they stay the same
_TRANSFER_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
BATCHES_CURE = "If `training_step` changes the batches, pass what network and loss are given by `data=`."
_CURE = "Pass what the network is trained on by `data=`: tensors (inputs, targets), a Dataset or a DataLoader."


def check_data(data: object) -> None:
    """Raise MisconfigurationException unless ``data`` is of a kind that can be read."""
    if isinstance(data, (DataLoader, Dataset)):
        if not isinstance(data, (DataLoader, IterableDataset)) and not hasattr(data, "__len__"):
            raise MisconfigurationException(f"`data` is a {type(data).__name__} without a length; expected one with `__len__`.")
        return
    is_pair = isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
    if not is_pair:
        raise MisconfigurationException(
            f"`data` is of type {type(data).__name__}; expected a pair of tensors (inputs, targets), a Dataset or a DataLoader."
        )


def read_training_data(trainer: pl.Trainer, data: CertifiedData | None) -> tuple[Tensor, Tensor]:
    """Return inputs and targets of ``data``, or of the trainer's own loader if it is ``None``, each sample once.

    Random numbers are drawn from generators made here; those that a data set draws itself are for the caller to isolate.

    Raises:
        MisconfigurationException: If the trainer's loader does not say what the network is trained on.
        InvalidInputError: If there are no samples, or they are no pairs of tensors.
        ShapeError: If their shapes do not fit together.
    """
    if isinstance(data, (tuple, list)):
        return data[0].detach().cpu(), data[1].detach().cpu()
    if isinstance(data, DataLoader):
        return gather_batches(data if _hidden_by_loader(data) else _in_order(data))
    if isinstance(data, Dataset):
        return gather_batches(DataLoader(data, batch_size=_BATCH_SIZE, generator=torch.Generator()))
    loader: Any = trainer.train_dataloader
    reason = _hidden_by_loader(loader) or _hidden_by_trainer(trainer, loader) or _hidden_by_hooks(trainer)
    if reason is not None:
        raise MisconfigurationException(
            f"What the network is trained on cannot be seen from the train dataloader: {reason}. {_CURE}"
        )
    try:
        _check_repeatable(loader)
        return gather_batches(_in_order(loader))
    except InvalidInputError as error:
        raise InvalidInputError(f"{error} {_CURE}") from error


def _in_order(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A loader over the same data, first sample to last, in this process, that shares no state with ``loader``."""
    return DataLoader(
        loader.dataset,
        batch_size=loader.batch_size,
        collate_fn=loader.collate_fn,
        num_workers=0,
        drop_last=loader.drop_last,
        generator=torch.Generator(),
    )


def _some_batches(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Batches spread evenly from the first to the last; single entries where the data set makes batches itself."""
    size = 1 if loader.batch_size is None else loader.batch_size
    number = len(loader.dataset)  # type: ignore[arg-type]  # checked before
    firsts = range(0, number, size)
    chosen = min(len(firsts), 2 if loader.batch_size is None else max(2, _NUM_REPEATED // size))
    starts = sorted({firsts[i * (len(firsts) - 1) // max(1, chosen - 1)] for i in range(chosen)})
    indices = [list(range(start, min(start + size, number))) for start in starts]
    if loader.batch_size is None:
        subset = Subset(loader.dataset, [index for batch in indices for index in batch])
        return DataLoader(subset, batch_size=None, collate_fn=loader.collate_fn, generator=torch.Generator())
    return DataLoader(
        loader.dataset, batch_sampler=indices, collate_fn=loader.collate_fn, num_workers=0, generator=torch.Generator()
    )


def _hidden_by_loader(loader: Any) -> str | None:
    """Why reading the data set of ``loader`` in order would not give what it yields; ``None`` if it would."""
    if type(loader) is not DataLoader:
        if isinstance(loader, (list, tuple, dict)):
            return f"it is a {type(loader).__name__}, of several dataloaders or of batches"
        return f"it is a {type(loader).__name__}, not a plain DataLoader"
    if isinstance(loader.dataset, IterableDataset):
        return f"its data set {type(loader.dataset).__name__} is iterable, so it may yield something else each time"
    if loader.batch_sampler is not None and (type(loader.batch_sampler) is not BatchSampler or loader.batch_size is None):
        return f"it has a batch sampler of its own, {type(loader.batch_sampler).__name__}"
    return _hidden_by_sampler(loader) or _hidden_by_drop_last(loader)


def _hidden_by_sampler(loader: Any) -> str | None:
    sampler = loader.sampler
    if type(sampler) not in (SequentialSampler, RandomSampler, DistributedSampler):
        return f"its sampler {type(sampler).__name__} may leave out or weigh samples"
    source: Any = sampler.dataset if isinstance(sampler, DistributedSampler) else sampler.data_source
    if len(source) != len(loader.dataset):
        return f"its sampler is of {len(source)} samples, its data set of {len(loader.dataset)}"
    return None


def _hidden_by_drop_last(loader: Any) -> str | None:
    sampler = loader.sampler
    left_out = (
        len(loader.dataset) % sampler.num_replicas if isinstance(sampler, DistributedSampler) and sampler.drop_last else 0
    )
    if loader.drop_last and loader.batch_size is not None:
        left_out += len(sampler) % loader.batch_size
    return f"drop_last=True leaves out {left_out} samples an epoch" if left_out else None


def _hidden_by_trainer(trainer: pl.Trainer, loader: Any) -> str | None:
    if trainer.num_training_batches < len(loader):
        return (
            f"the trainer takes {trainer.num_training_batches} of its {len(loader)} batches (`limit_train_batches` or "
            "`overfit_batches`)"
        )
    if getattr(trainer, "reload_dataloaders_every_n_epochs", 0):
        return "the trainer makes another one every few epochs (`reload_dataloaders_every_n_epochs`), maybe of other data"
    sampler = loader.sampler
    if isinstance(sampler, DistributedSampler) and sampler.num_replicas != trainer.world_size:
        return f"its sampler is for {sampler.num_replicas} processes, and there are {trainer.world_size}"
    return None


def _hidden_by_hooks(trainer: pl.Trainer) -> str | None:
    owners = [owner for owner in (trainer.lightning_module, getattr(trainer, "datamodule", None)) if owner is not None]
    for owner in owners:
        for hook in _TRANSFER_HOOKS:
            if is_overridden(hook, owner):
                return f"{type(owner).__name__}.{hook} may change the batches"
    return None


def _check_repeatable(loader: DataLoader[Any]) -> None:
    """Refuse data that differ when they are read again: a few hundred samples, spread over all of them."""
    digests = {data_digest(*gather_batches(_some_batches(loader))) for _ in range(2)}
    if len(digests) > 1:
        raise MisconfigurationException(
            "The train dataloader yields other numbers each time it is read (random augmentation), so that there is no one "
            f"training problem to certify. {_CURE}"
        )
