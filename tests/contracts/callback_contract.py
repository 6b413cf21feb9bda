"""What every callback for Lightning has to fulfil: a guest that leaves the training as it is."""

from __future__ import annotations

import copy
import pickle
import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

__all__ = ["CallbackContract", "RandomStates"]


class RandomStates(pl.Callback):
    """Notes the state of all random number generators, and the number of threads, where hooks of others have run."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def _note(self) -> None:
        numpy_state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002  (the global one is what is watched)
        assert isinstance(numpy_state, dict)
        python_state, threads = random.getstate(), torch.get_num_threads()
        grad, dtype = torch.is_grad_enabled(), torch.get_default_dtype()
        key = (numpy_state["key"].tobytes(), numpy_state["pos"])
        self.seen.append((torch.get_rng_state().numpy().tobytes(), key, python_state, threads, grad, dtype))

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self._note()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self._note()


class CallbackContract:
    """Inherited tests. The callback has to come after nothing and before nothing: it is the only one."""

    num_epochs: int = 4

    def make_callback(self) -> pl.Callback:
        raise NotImplementedError

    def make_module(self) -> pl.LightningModule:
        """Always with the same weights."""
        raise NotImplementedError

    def make_loader(self) -> DataLoader[Any]:
        """Shuffled by the global generator."""
        raise NotImplementedError

    def make_trainer(self, folder: Path, *callbacks: pl.Callback, **options: Any) -> pl.Trainer:
        raise NotImplementedError

    def fit(self, folder: Path, *callbacks: pl.Callback, **options: Any) -> tuple[pl.LightningModule, pl.Trainer]:
        for seed in (torch.manual_seed, np.random.seed, random.seed):
            seed(7)
        module = self.make_module()
        trainer = self.make_trainer(folder, *callbacks, **({"max_epochs": self.num_epochs} | options))
        trainer.fit(module, self.make_loader())
        return module, trainer

    # ---------------------------------------------------------------- training stays as it is

    def test_weights_are_the_same_bit_for_bit(self, tmp_path: Path) -> None:
        with_it, _ = self.fit(tmp_path, self.make_callback())
        without, _ = self.fit(tmp_path)
        other = without.state_dict()
        assert all(torch.equal(value, other[name]) for name, value in with_it.state_dict().items())
        start = self.make_module().state_dict()
        assert not all(torch.equal(value, start[name]) for name, value in other.items())

    def test_random_states_and_threads_are_left_alone(self, tmp_path: Path) -> None:
        watched, alone = RandomStates(), RandomStates()
        self.fit(tmp_path, self.make_callback(), watched)
        self.fit(tmp_path, alone)
        assert watched.seen == alone.seen
        assert len({state[0] for state in alone.seen}) > 1  # shuffling draws from the watched generator

    def test_gradients_and_mode_are_left_alone(self, tmp_path: Path) -> None:
        with_it, _ = self.fit(tmp_path, self.make_callback())
        without, _ = self.fit(tmp_path)
        other: dict[str, Tensor] = dict(without.named_parameters())
        for name, parameter in with_it.named_parameters():
            assert (parameter.grad is None) == (other[name].grad is None)
            assert parameter.requires_grad == other[name].requires_grad
        assert with_it.training == without.training

    # ---------------------------------------------------------------- state

    def test_a_fresh_state_round_trips(self) -> None:
        state = self.make_callback().state_dict()
        restored = self.make_callback()
        restored.load_state_dict(copy.deepcopy(state))
        assert_same(restored.state_dict(), state)

    def test_the_state_after_a_fit_round_trips(self, tmp_path: Path) -> None:
        callback = self.make_callback()
        self.fit(tmp_path, callback)
        state = callback.state_dict()
        restored = self.make_callback()
        restored.load_state_dict(copy.deepcopy(state))
        assert_same(restored.state_dict(), state)
        assert_same(callback.state_dict(), state)  # loading takes nothing out of it

    def test_checkpoints_load_with_weights_only(self, tmp_path: Path) -> None:
        callback = self.make_callback()
        _, trainer = self.fit(tmp_path, callback)
        trainer.save_checkpoint(tmp_path / "after.ckpt")
        stored = torch.load(tmp_path / "after.ckpt", weights_only=True)["callbacks"][callback.state_key]
        assert_same(stored, callback.state_dict())

    def test_pickles_before_and_after_a_fit(self, tmp_path: Path) -> None:
        callback = self.make_callback()
        assert pickle.loads(pickle.dumps(callback)).state_key == callback.state_key
        self.fit(tmp_path, callback)
        assert_same(pickle.loads(pickle.dumps(callback)).state_dict(), callback.state_dict())

    # ---------------------------------------------------------------- when not to act

    def test_a_dry_run_leaves_no_trace(self, tmp_path: Path) -> None:
        callback = self.make_callback()
        _, trainer = self.fit(tmp_path, callback, fast_dev_run=True)
        assert trainer.callback_metrics == {}
        assert_same(callback.state_dict(), self.make_callback().state_dict())

    def test_validation_and_testing_alone_leave_the_state_alone(self, tmp_path: Path) -> None:
        callback = self.make_callback()
        module, trainer = self.fit(tmp_path, callback)
        state = callback.state_dict()
        trainer.validate(module, self.make_loader(), verbose=False)
        assert_same(callback.state_dict(), state)

    def test_a_second_fit_starts_anew(self, tmp_path: Path) -> None:
        callback, fresh = self.make_callback(), self.make_callback()
        self.fit(tmp_path, callback)
        _, trainer = self.fit(tmp_path, callback)
        _, other = self.fit(tmp_path, fresh)
        assert trainer.callback_metrics.keys() == other.callback_metrics.keys()
        assert jsonable_shape(callback.state_dict()) == jsonable_shape(fresh.state_dict())


def assert_same(first: Any, second: Any) -> None:
    """Equal types, structure and numbers; NaN is equal to NaN."""
    assert type(first) is type(second)
    if isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            assert_same(first[key], second[key])
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            assert_same(one, other)
    elif isinstance(first, Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)
    else:
        assert first == second or (first != first and second != second)


def jsonable_shape(state: Any) -> Any:
    """The structure of a state without its numbers, which time limits may change; lists of the state keep their length."""
    if isinstance(state, dict):
        return {key: jsonable_shape(value) for key, value in state.items() if key not in ("points", "witnesses")}
    if isinstance(state, list):
        return [jsonable_shape(value) for value in state]
    return tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__
