from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from torch_strongdual.callbacks import CertifyOptimality, GrowBranches, GrowthRecord
from torch_strongdual.callbacks._branch_state import state_follows_branches_
from torch_strongdual.nn import GatedReLU, ParallelNet, match_branches_
from torch_strongdual.optim import PathAdamW, PathSGD

from ..contracts.lightning_regression import IGNORE_ADVICE, PATH_DECAY, Regression, make_data, make_loader, make_trainer


def objective(net: ParallelNet) -> float:
    """Of all training data, in float64, by torch."""
    inputs, targets = make_data()
    exact = copy.deepcopy(net).double()
    value = nn.functional.mse_loss(exact(inputs.double()), targets.double()) + PATH_DECAY * exact.path_penalty()
    return value.item()


class Watch(pl.Callback):
    """Notes number of branches, objective, weights and optimizer state at the end of each epoch."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.objectives: list[float] = []
        self.weights: list[list[Tensor]] = []
        self.states: list[list[dict[str, Any]]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, Regression)
        self.numbers.append(pl_module.net.num_branches)
        self.objectives.append(objective(pl_module.net))
        self.weights.append([weight.detach().clone() for weight in pl_module.net.branch_weights()])
        state = trainer.optimizers[0].state
        self.states.append([copy.deepcopy(state[weight]) for weight in pl_module.net.branch_weights()])


def grow(folder: Path, module: Regression, callback: GrowBranches, **options: Any) -> tuple[Watch, Watch]:
    """Fit; returns what was seen right before and right after the callback."""
    before, after = Watch(), Watch()
    certify = CertifyOptimality(every_n_epochs=3, path_decay=PATH_DECAY, rtol=1e-4)
    trainer = make_trainer(folder, certify, before, callback, after, **({"max_epochs": 10} | options))
    torch.manual_seed(5)
    trainer.fit(module, make_loader(batch_size=12))
    return before, after


class WithAllStages(Regression):
    test_step = Regression.validation_step

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        outputs: Tensor = self.net(batch[0])
        return outputs


class LoadsAnywhere(Regression):
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        match_branches_(self, checkpoint["state_dict"])


@IGNORE_ADVICE
class TestGrowth:
    def test_the_objective_is_lower_after_each_growth(self, tmp_path: Path) -> None:
        callback = GrowBranches(max_branches=20, max_added=3)
        before, after = grow(tmp_path, Regression(num_branches=1, lr=0.01), callback)
        assert len(callback.history) >= 2
        for record in callback.history:
            assert record.epoch % 3 == 0
            assert after.objectives[record.epoch] < before.objectives[record.epoch]
            assert record.objective_before == pytest.approx(before.objectives[record.epoch], rel=1e-12)
            assert record.objective_after == pytest.approx(after.objectives[record.epoch], rel=1e-12)
            assert after.numbers[record.epoch] == before.numbers[record.epoch] + record.num_added - record.num_pruned
            assert 1 <= record.num_added <= 3

    def test_other_epochs_are_left_alone(self, tmp_path: Path) -> None:
        callback = GrowBranches(max_branches=20)
        before, after = grow(tmp_path, Regression(num_branches=1, lr=0.01), callback)
        epochs = {record.epoch for record in callback.history}
        for epoch in set(range(10)) - epochs:
            assert before.numbers[epoch] == after.numbers[epoch]
            assert all(torch.equal(*pair) for pair in zip(before.weights[epoch], after.weights[epoch], strict=True))
        assert 9 not in epochs  # the last one

    def test_the_number_of_branches_stays_within_its_limit(self, tmp_path: Path) -> None:
        _, after = grow(tmp_path, Regression(num_branches=2, lr=0.01), GrowBranches(max_branches=3))
        assert max(after.numbers) == 3
        callback = GrowBranches(max_branches=1)
        _, after = grow(tmp_path, Regression(num_branches=2, lr=0.01), callback)
        assert callback.history == []
        assert set(after.numbers) == {2}

    def test_dead_branches_make_room(self, tmp_path: Path) -> None:
        module = Regression(num_branches=4, lr=0.01)
        with torch.no_grad():
            module.net.branch_weights()[1][1:3] = 0.0
            module.net.branch_weights()[0][1:3] = 0.0
        callback = GrowBranches(max_branches=4)
        _, after = grow(tmp_path, module, callback)
        assert callback.history[0].num_pruned == 2
        assert after.numbers[0] <= 4

    def test_training_before_the_first_growth_is_untouched(self, tmp_path: Path) -> None:
        class Late(GrowBranches):
            def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
                if trainer.current_epoch >= 3:
                    super().on_train_epoch_end(trainer, pl_module)

        before, _ = grow(tmp_path, Regression(num_branches=1), Late(max_branches=9))
        plain = Watch()
        torch.manual_seed(5)
        make_trainer(tmp_path, plain, max_epochs=10).fit(Regression(num_branches=1), make_loader(batch_size=12))
        for epoch in range(4):
            assert all(torch.equal(*pair) for pair in zip(before.weights[epoch], plain.weights[epoch], strict=True))
        assert before.weights[-1][0].shape != plain.weights[-1][0].shape

    @pytest.mark.parametrize(
        "make_optimizer",
        [
            lambda net: PathAdamW(net.path_param_groups(PATH_DECAY), lr=0.01),
            lambda net: PathSGD(net.path_param_groups(PATH_DECAY), lr=0.01, momentum=0.9),
            lambda net: Adam(net.parameters(), lr=0.01, amsgrad=True),
            lambda net: SGD(net.parameters(), lr=0.01, momentum=0.9),
        ],
        ids=["PathAdamW", "PathSGD", "Adam", "SGD"],
    )
    def test_optimizer_state_grows_with_the_branches(
        self, tmp_path: Path, make_optimizer: Callable[[ParallelNet], Optimizer]
    ) -> None:
        callback = GrowBranches(max_branches=9)
        before, after = grow(tmp_path, Regression(num_branches=2, make_optimizer=make_optimizer), callback, max_epochs=5)
        record = callback.history[0]
        assert record.num_pruned == 0
        compared = 0
        for old, new, weight in zip(
            before.states[record.epoch], after.states[record.epoch], after.weights[record.epoch], strict=True
        ):
            assert old.keys() == new.keys()
            for name, value in old.items():
                if isinstance(value, Tensor) and value.ndim:
                    assert new[name].shape[0] == weight.shape[0]
                    assert torch.equal(new[name][:2], value)
                    assert not new[name][2:].any()
                    compared += 1
                else:
                    assert new[name] == value
        assert compared >= 2
        assert after.numbers[-1] > 2  # and training went on

    def test_a_fit_resumes_with_the_branches_of_the_checkpoint(self, tmp_path: Path) -> None:
        certify, callback = CertifyOptimality(every_n_epochs=3), GrowBranches(max_branches=6)
        trainer = make_trainer(tmp_path, certify, callback, max_epochs=5)
        module = Regression(num_branches=1)
        trainer.fit(module, make_loader())
        trainer.save_checkpoint(tmp_path / "grown.ckpt")
        number = module.net.num_branches
        assert number > 1
        for start in (1, number + 2):
            resumed, again = Regression(num_branches=start), GrowBranches(max_branches=number)
            second = make_trainer(tmp_path, CertifyOptimality(every_n_epochs=3), again, max_epochs=6)
            second.fit(resumed, make_loader(), ckpt_path=tmp_path / "grown.ckpt")
            assert resumed.net.num_branches == number
            assert again.history[: len(callback.history)] == callback.history
            moments = second.optimizers[0].state[resumed.net.branch_weights()[0]]["exp_avg"]
            assert moments.shape[0] == number

    def test_other_stages_load_the_branches_of_the_checkpoint(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, CertifyOptimality(every_n_epochs=3), GrowBranches(max_branches=6), max_epochs=5)
        module = WithAllStages(num_branches=1)
        trainer.fit(module, make_loader())
        trainer.save_checkpoint(tmp_path / "grown.ckpt")
        number, options = module.net.num_branches, {"ckpt_path": tmp_path / "grown.ckpt"}
        for start in (1, number + 2):
            for stage in ("validate", "test", "predict"):
                other = WithAllStages(num_branches=start)
                second = make_trainer(tmp_path, CertifyOptimality(), GrowBranches(max_branches=number))
                getattr(second, stage)(other, make_loader(), **options)
                assert other.net.num_branches == number
                assert torch.equal(other.net.branch_weights()[0], module.net.branch_weights()[0])
        assert LoadsAnywhere.load_from_checkpoint(tmp_path / "grown.ckpt").net.num_branches == number

    def test_one_branch_is_led_to_the_certified_optimum(self, tmp_path: Path) -> None:
        module = Regression(num_branches=1, lr=0.02)
        certify = CertifyOptimality(every_n_epochs=20, rtol=5e-3, stop_when_certified=True)
        trainer = make_trainer(tmp_path, certify, GrowBranches(max_branches=30), max_epochs=1500)
        trainer.fit(module, make_loader(batch_size=12))
        assert certify.last_certificate is not None
        assert certify.last_certificate.is_certified


def gated(num_branches: int = 3, **options: Any) -> Regression:
    module = Regression(**({"lr": 0.01} | options))
    torch.manual_seed(3)
    layers = nn.Linear(2, 2, bias=False), GatedReLU(2), nn.Linear(2, 1, bias=False)
    module.net = ParallelNet(*layers, num_branches=num_branches)
    return module


def gate_set(net: ParallelNet) -> set[tuple[float, ...]]:
    return {tuple(gate) for gate in net.gate_vectors()[0].tolist()}


def kill_(net: ParallelNet, branches: list[int]) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter[branches] = 0.0


@IGNORE_ADVICE
class TestGatedGrowth:
    def test_the_objective_is_lower_after_each_growth_and_the_gates_stay(self, tmp_path: Path) -> None:
        module = gated()
        kill_(module.net, [1])
        gates, callback = gate_set(module.net), GrowBranches(max_branches=7, max_added=2)
        before, after = grow(tmp_path, module, callback)
        assert len(callback.history) >= 2
        for record in callback.history:
            assert after.objectives[record.epoch] < before.objectives[record.epoch]
            assert record.objective_after == pytest.approx(after.objectives[record.epoch], rel=1e-12)
            assert after.numbers[record.epoch] == before.numbers[record.epoch] + record.num_added - record.num_pruned
        assert gate_set(module.net) == gates
        assert module.net.num_branches == len(module.net.gate_vectors()[0]) <= 7

    def test_a_dead_branch_is_replaced_by_one_of_its_gate_and_else_kept(self, tmp_path: Path) -> None:
        """With one branch a gate there is room for nothing but the dead ones' own gates."""
        module = gated(4)
        kill_(module.net, [0, 2, 3])
        gates, callback = gate_set(module.net), GrowBranches(max_branches=4)
        _, after = grow(tmp_path, module, callback)
        assert sum(record.num_pruned for record in callback.history) >= 1
        assert all(record.num_added == record.num_pruned for record in callback.history)
        assert set(after.numbers) == {4}
        assert gate_set(module.net) == gates

    def test_optimizer_state_follows(self, tmp_path: Path) -> None:
        callback = GrowBranches(max_branches=9)
        before, after = grow(tmp_path, gated(2), callback, max_epochs=5)
        record = callback.history[0]
        assert record.num_pruned == 0
        for old, new in zip(before.states[record.epoch], after.states[record.epoch], strict=True):
            assert torch.equal(new["exp_avg"][:2], old["exp_avg"])
            assert new["exp_avg"].shape[0] == after.numbers[record.epoch]
            assert not new["exp_avg"][2:].any()

    def test_the_bound_is_kept_when_branches_come_and_go(self, tmp_path: Path) -> None:
        certify = CertifyOptimality(every_n_epochs=2, rtol=1e-4, time_budget=1.0)
        callback = GrowBranches(max_branches=9)
        make_trainer(tmp_path, certify, callback, max_epochs=7).fit(gated(), make_loader(batch_size=12))
        bounds = [record.dual_bound for record in certify.history]
        assert len(callback.history) >= 1
        assert bounds == sorted(bounds)

    def test_a_fit_resumes(self, tmp_path: Path) -> None:
        trainer = make_trainer(tmp_path, CertifyOptimality(every_n_epochs=3), GrowBranches(max_branches=6), max_epochs=5)
        module = gated()
        trainer.fit(module, make_loader(batch_size=12))
        trainer.save_checkpoint(tmp_path / "grown.ckpt")
        assert module.net.num_branches > 3
        resumed, certify = gated(1), CertifyOptimality(every_n_epochs=3)
        second = make_trainer(tmp_path, certify, GrowBranches(max_branches=6), max_epochs=6)
        second.fit(resumed, make_loader(batch_size=12), ckpt_path=tmp_path / "grown.ckpt")
        assert torch.equal(resumed.net.gate_vectors()[0], module.net.gate_vectors()[0])
        assert len(certify.history) >= 3  # the stored bound was taken up, history and all

    def test_a_few_branches_are_led_to_the_certified_optimum(self, tmp_path: Path) -> None:
        module = gated(4, lr=0.02)
        kill_(module.net, [1, 2, 3])
        certify = CertifyOptimality(every_n_epochs=10, rtol=5e-3, stop_when_certified=True)
        trainer = make_trainer(tmp_path, certify, GrowBranches(max_branches=30), max_epochs=1500)
        trainer.fit(module, make_loader(batch_size=12))
        assert certify.last_certificate is not None
        assert certify.last_certificate.is_certified


@IGNORE_ADVICE
class TestRefusals:
    def fit(self, folder: Path, module: pl.LightningModule, *callbacks: pl.Callback, **options: Any) -> None:
        make_trainer(folder, *callbacks, **options).fit(module, make_loader())

    def test_without_a_certifier_or_before_it(self, tmp_path: Path) -> None:
        with pytest.raises(MisconfigurationException, match="0 CertifyOptimality callbacks before"):
            self.fit(tmp_path, Regression(), GrowBranches(4))
        with pytest.raises(MisconfigurationException, match="0 CertifyOptimality callbacks before"):
            self.fit(tmp_path, Regression(), GrowBranches(4), CertifyOptimality())

    def test_two_certifiers_need_a_name(self, tmp_path: Path) -> None:
        certifiers = CertifyOptimality(name="a"), CertifyOptimality(name="b")
        with pytest.raises(MisconfigurationException, match="2 CertifyOptimality"):
            self.fit(tmp_path, Regression(), *certifiers, GrowBranches(4))
        self.fit(tmp_path, Regression(), *certifiers, GrowBranches(4, certifier="b"), max_epochs=1)

    def test_a_certifier_in_the_background(self, tmp_path: Path) -> None:
        with pytest.raises(MisconfigurationException, match=r"Pass background=False"):
            self.fit(tmp_path, Regression(), CertifyOptimality(background=True), GrowBranches(4))

    def test_lbfgs(self, tmp_path: Path) -> None:
        module = Regression(make_optimizer=lambda net: torch.optim.LBFGS(net.parameters()))
        with pytest.raises(MisconfigurationException, match="LBFGS"):
            self.fit(tmp_path, module, CertifyOptimality(path_decay=0.1), GrowBranches(4))

    def test_averages_of_weights(self, tmp_path: Path) -> None:
        averages = StochasticWeightAveraging(swa_lrs=0.01)
        with pytest.raises(MisconfigurationException, match="StochasticWeightAveraging averages weights"):
            self.fit(tmp_path, Regression(), CertifyOptimality(), GrowBranches(4), averages)

    @pytest.mark.parametrize("option", ["static_graph", "mixed_precision", "delay_all_reduce_named_params", "ddp_comm_state"])
    def test_options_of_ddp(self, option: str) -> None:
        options: dict[str, Any] = {option: ["anything"]}
        strategy = DDPStrategy(**options)
        trainer = pl.Trainer(accelerator="cpu", devices=2, strategy=strategy, logger=False, enable_checkpointing=False)
        callback = GrowBranches(4)
        with pytest.raises(MisconfigurationException, match=option):
            callback.on_fit_start(trainer, Regression())

    def test_processes_whose_caller_keeps_the_old_network(self) -> None:
        trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp_fork", logger=False, enable_checkpointing=False)
        with pytest.raises(MisconfigurationException, match="'fork'"):
            GrowBranches(4).on_fit_start(trainer, Regression())

    def test_optimizer_whose_state_is_spread_over_the_ranks(self) -> None:
        class ZeroRedundancyOptimizer(SGD):
            """Stands for torch's, which needs a process group."""

        module = Regression()
        trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
        trainer.strategy.optimizers = [ZeroRedundancyOptimizer(module.parameters(), lr=0.1)]
        with pytest.raises(MisconfigurationException, match="ZeroRedundancyOptimizer"):
            GrowBranches(4).on_fit_start(trainer, module)

    @pytest.mark.parametrize(("name", "value"), [("max_branches", 0), ("max_branches", 2.5), ("max_added", True)])
    def test_arguments(self, name: str, value: Any) -> None:
        with pytest.raises(MisconfigurationException, match=name):
            GrowBranches(**({"max_branches": 3} | {name: value}))


def test_state_round_trips_and_pickles() -> None:
    callback = GrowBranches(5, certifier="certificate")
    record = GrowthRecord(epoch=1, num_added=2, num_pruned=0, objective_before=2.0, objective_after=1.0)
    callback.history.append(record)
    restored = GrowBranches(5, certifier="certificate")
    restored.load_state_dict(copy.deepcopy(callback.state_dict()))
    assert restored.history == [record]
    assert pickle.loads(pickle.dumps(callback)).state_key == callback.state_key != GrowBranches(5).state_key


def test_factored_state_follows_and_step_counts_stay() -> None:
    parameter = nn.Parameter(torch.zeros(3, 2, 4))
    optimizer = SGD([parameter], lr=0.1)
    optimizer.state[parameter] = {
        "row": torch.arange(6.0).reshape(3, 2, 1), "step": torch.tensor(7.0), "shared": torch.ones(4), "flag": True,
    }  # fmt: skip
    state_follows_branches_([optimizer], [parameter], torch.tensor([0, 2]), 1, num_before=3)
    state = optimizer.state[parameter]
    assert state["row"].flatten().tolist() == [0.0, 1.0, 4.0, 5.0, 0.0, 0.0]
    assert state["step"] == 7.0
    assert state["shared"].tolist() == [1.0] * 4
    assert state["flag"] is True
