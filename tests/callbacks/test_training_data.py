from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from torch_strongdual.callbacks import CertifyOptimality
from torch_strongdual.callbacks._training_data import _some_batches, read_training_data
from torch_strongdual.certification import certify
from torch_strongdual.errors import InvalidInputError

from ..contracts.lightning_regression import (
    IGNORE_ADVICE,
    NUM_SAMPLES,
    PATH_DECAY,
    Regression,
    make_data,
    make_loader,
    make_trainer,
)

DATA = TensorDataset(*make_data())


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(DATA)


class Augmented(Dataset[Any]):
    """Adds noise from the global generator."""

    def __len__(self) -> int:
        return NUM_SAMPLES

    def __getitem__(self, index: int) -> Any:
        inputs, targets = DATA[index]
        return inputs + 0.1 * torch.randn(2), targets


class AugmentedLate(Augmented):
    """Only the last samples."""

    def __getitem__(self, index: int) -> Any:
        return DATA[index] if index < NUM_SAMPLES - 2 else super().__getitem__(index)


class OwnLoader(DataLoader[Any]):
    pass


class OwnSampler(SequentialSampler):
    pass


class OwnBatches(BatchSampler):
    pass


def refusal(folder: Path, loader: Any, module: pl.LightningModule | None = None, **options: Any) -> str:
    """The message with which a fit on ``loader`` is refused; the same fit goes with ``data=``."""
    module = Regression() if module is None else module
    with pytest.raises(MisconfigurationException, match=r"Pass what the network is trained on by `data=`: tensors") as caught:
        make_trainer(folder, CertifyOptimality(time_budget=0.05), **options).fit(module, loader)
    callback = CertifyOptimality(data=make_data(), time_budget=0.05)
    make_trainer(folder, callback, max_epochs=1, **options).fit(module, loader)
    assert len(callback.history) == 1
    return str(caught.value)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: DataLoader(Stream(), batch_size=4), "its data set Stream is iterable"),
        (lambda: OwnLoader(DATA, batch_size=4), "it is a OwnLoader, not a plain DataLoader"),
        (lambda: DataLoader(DATA, batch_size=4, sampler=OwnSampler(DATA)), "its sampler OwnSampler may leave out"),
        (lambda: DataLoader(DATA, batch_size=4, sampler=SubsetRandomSampler(range(8))), "its sampler SubsetRandomSampler"),
        (lambda: DataLoader(DATA, sampler=WeightedRandomSampler([1.0] * 12, 12)), "its sampler WeightedRandomSampler"),
        (lambda: DataLoader(DATA, batch_size=4, sampler=SequentialSampler(range(5))), "of 5 samples, its data set of 12"),
        (lambda: DataLoader(DATA, batch_size=4, sampler=RandomSampler(range(5))), "its sampler is of 5 samples"),
        (lambda: DataLoader(DATA, batch_sampler=OwnBatches(SequentialSampler(DATA), 4, False)), "a batch sampler of its own"),
        (
            lambda: DataLoader(DATA, batch_sampler=BatchSampler(SubsetRandomSampler(range(8)), 4, False)),
            "a batch sampler of its own, BatchSampler",
        ),
        (lambda: DataLoader(DATA, batch_size=5, drop_last=True), "drop_last=True leaves out 2 samples"),
        (lambda: DataLoader(DATA, batch_size=5, drop_last=True, shuffle=True), "drop_last=True leaves out 2 samples"),
        (
            lambda: DataLoader(DATA, batch_size=4, sampler=DistributedSampler(DATA, 2, 0)),
            "its sampler is for 2 processes, and there are 1",
        ),
        (
            lambda: DataLoader(DATA, batch_size=1, sampler=DistributedSampler(DATA, 5, 0, drop_last=True)),
            "drop_last=True leaves out 2 samples",
        ),
        (lambda: DataLoader(Augmented(), batch_size=4), "yields other numbers each time it is read"),
    ],
)  # fmt: skip
@IGNORE_ADVICE
def test_loaders_that_do_not_show_the_data_are_refused(tmp_path: Path, make: Any, match: str) -> None:
    assert match in refusal(tmp_path, make())


class TwoLoaders(Regression):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch[0] if isinstance(batch, (list, tuple)) else batch["a"], batch_idx)


@IGNORE_ADVICE
def test_several_loaders_are_refused(tmp_path: Path) -> None:
    for loaders, kind in (
        ([make_loader(), make_loader()], "list"),
        ({"a": make_loader(), "b": make_loader()}, "dict"),
        (CombinedLoader([make_loader(), make_loader()], "min_size"), "list"),
    ):
        assert f"it is a {kind}, of several dataloaders" in refusal(tmp_path, loaders, TwoLoaders())


@IGNORE_ADVICE
def test_trainers_that_leave_out_batches_are_refused(tmp_path: Path) -> None:
    message = "the trainer takes 2 of its 3 batches"
    assert message in refusal(tmp_path, make_loader(), limit_train_batches=2)
    assert message in refusal(tmp_path, make_loader(), overfit_batches=2)


def test_data_sets_need_a_length_unless_they_are_streams() -> None:
    with pytest.raises(MisconfigurationException, match="`data` is a Dataset without a length"):
        CertifyOptimality(data=Dataset())
    CertifyOptimality(data=Stream())


@IGNORE_ADVICE
def test_loaders_that_are_made_anew_may_have_other_data(tmp_path: Path) -> None:
    assert "`reload_dataloaders_every_n_epochs`), maybe of" in refusal(
        tmp_path, make_loader(), reload_dataloaders_every_n_epochs=1
    )


class Moves(Regression):
    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        return super().transfer_batch_to_device(batch, device, dataloader_idx)


class Before(Regression):
    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


class After(Regression):
    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] * 2.0, batch[1]


class AugmentingModule(pl.LightningDataModule):
    def train_dataloader(self) -> Any:
        return make_loader()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch


@IGNORE_ADVICE
def test_hooks_that_may_change_batches_are_refused(tmp_path: Path) -> None:
    assert "Moves.transfer_batch_to_device may change" in refusal(tmp_path, make_loader(), Moves())
    assert "Before.on_before_batch_transfer may change" in refusal(tmp_path, make_loader(), Before())
    assert "After.on_after_batch_transfer may change" in refusal(tmp_path, make_loader(), After())
    assert "AugmentingModule.on_after_batch_transfer may change" in refusal(tmp_path, AugmentingModule())


@pytest.mark.parametrize(
    ("dataset", "match"),
    [
        (TensorDataset(make_data()[0]), "Batch 0 is of type list, of Tensor; expected a pair of tensors"),
        (TensorDataset(*make_data(), make_data()[1]), "Batch 0 is of type list, of Tensor, Tensor, Tensor; expected"),
        ([{"x": torch.ones(2), "y": torch.ones(1)}] * 4, "of type dict, with 'x', 'y'; .* on by `data="),
        (make_data()[0], "Batch 0 is of type Tensor"),
    ],
)
@IGNORE_ADVICE
def test_batches_have_to_be_pairs(tmp_path: Path, dataset: Any, match: str) -> None:
    with pytest.raises(MisconfigurationException, match=match):
        make_trainer(tmp_path, CertifyOptimality()).fit(Regression(), DataLoader(dataset, batch_size=4))


@IGNORE_ADVICE
def test_shapes_that_training_step_may_change_say_so(tmp_path: Path) -> None:
    inputs, targets = make_data()
    for data in (TensorDataset(inputs[:, :, None], targets), TensorDataset(inputs[:, :1], targets)):
        with pytest.raises(MisconfigurationException, match=r"ShapeError: .*If `training_step` changes the batches, pass"):
            make_trainer(tmp_path, CertifyOptimality()).fit(Regression(), DataLoader(data, batch_size=4))


@pytest.mark.parametrize("number", [0, 1, 3, 12, 700])
@pytest.mark.parametrize("batch_size", [None, 1, 5, 300])
def test_batches_read_twice_are_spread_over_all_data(number: int, batch_size: int | None) -> None:
    entries: Any = [(torch.full((2,), float(index)), torch.zeros(2)) for index in range(number)]
    batches = [first for first, _ in _some_batches(DataLoader(entries, batch_size=batch_size))]
    seen = [int(value) for batch in batches for value in batch.reshape(-1, 2)[:, 0]]
    assert seen == sorted(set(seen))
    assert len(seen) <= max(2 * (batch_size or 1), 256)
    if number:
        assert (seen[0], seen[-1]) == (0, number - 1)


# What is read


@pytest.mark.parametrize(
    "data",
    [
        make_data(),
        list(make_data()),
        DATA,
        Stream(),
        DataLoader(DATA, batch_size=5),
        DataLoader(DATA, batch_size=5, shuffle=True),
        DataLoader(DATA, batch_sampler=BatchSampler(SequentialSampler(DATA), 5, False)),
        DataLoader(Stream(), batch_size=5),
        OwnLoader(DATA, batch_size=5),
    ],
    ids=["tuple", "list", "dataset", "stream", "loader", "shuffled", "batch_sampler", "stream_loader", "own_loader"],
)
@IGNORE_ADVICE
def test_all_forms_of_data_are_read_in_order(tmp_path: Path, data: Any) -> None:
    inputs, targets = read_training_data(make_trainer(tmp_path), data)
    assert torch.equal(inputs, make_data()[0])
    assert torch.equal(targets, make_data()[1])


def double_targets(samples: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    inputs, targets = zip(*samples, strict=True)
    return torch.stack(inputs), 2.0 * torch.stack(targets)


@pytest.mark.parametrize(
    "make",
    [
        lambda: make_loader(batch_size=5, shuffle=True),
        lambda: make_loader(batch_size=3, shuffle=True, drop_last=True),
        lambda: DataLoader(DATA, batch_size=4, sampler=RandomSampler(DATA, replacement=True, num_samples=20)),
        lambda: DataLoader(DATA, batch_size=4, sampler=DistributedSampler(DATA, 1, 0)),
        lambda: make_loader(batch_size=5, shuffle=True, collate_fn=double_targets),
        lambda: CombinedLoader(make_loader(), "max_size"),
    ],
)
@IGNORE_ADVICE
def test_the_loader_of_the_trainer_is_read_with_its_collate_fn(tmp_path: Path, make: Any) -> None:
    loader, callback, module = make(), CertifyOptimality(time_budget=0.05), Regression()
    make_trainer(tmp_path, callback, max_epochs=1).fit(module, loader)
    inputs, targets = make_data()
    targets = 2.0 * targets if getattr(loader, "collate_fn", None) is double_targets else targets
    direct = certify(module.net, inputs, targets, loss=module.loss, path_decay=PATH_DECAY, time_budget=0.05)
    assert callback.history[0].primal_value == direct.primal_value


@IGNORE_ADVICE
def test_a_data_set_of_whole_batches_is_read_as_it_is(tmp_path: Path) -> None:
    inputs, targets = make_data()
    batches = [(inputs[:7], targets[:7]), (inputs[7:], targets[7:])]
    callback, module = CertifyOptimality(time_budget=0.05), Regression()
    loader: DataLoader[Any] = DataLoader(batches, batch_size=None, shuffle=True)  # type: ignore[arg-type]
    make_trainer(tmp_path, callback, max_epochs=1).fit(module, loader)
    direct = certify(module.net, inputs, targets, loss=module.loss, path_decay=PATH_DECAY, time_budget=0.05)
    assert callback.history[0].primal_value == direct.primal_value


@IGNORE_ADVICE
def test_generator_and_iterator_of_a_loader_are_left_alone(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    loader = make_loader(shuffle=True, generator=generator)
    iterator = iter(loader)
    next(iterator)
    before = generator.get_state().clone()
    read_training_data(make_trainer(tmp_path), loader)
    assert torch.equal(generator.get_state(), before)
    assert len(list(iterator)) == 2


def test_empty_data_sets_are_no_problem_of_the_reader(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="yields no batches"):
        read_training_data(make_trainer(tmp_path), TensorDataset(*make_data(0)))
