from __future__ import annotations

import copy
import math
import pickle
import threading
from collections.abc import Callable

import pytest
import torch

from torch_strongdual.callbacks import CertificationRecord
from torch_strongdual.callbacks._bound_keeper import Attempt
from torch_strongdual.callbacks._certification_queue import CertificationQueue

PATIENCE = 30.0  # seconds that no test waits unless something is wrong


def attempt(epoch: int, before: Callable[[], object] = lambda: None) -> Callable[[], Attempt]:
    def certify() -> Attempt:
        before()
        numbers = dict.fromkeys(("primal_value", "dual_bound", "relative_gap", "path_decay", "seconds"), math.nan)
        return Attempt(record=CertificationRecord(epoch=epoch, **numbers))

    return certify


def epochs(attempts: list[Attempt]) -> list[int]:
    return [entry.record.epoch for entry in attempts]


@pytest.mark.parametrize("background", [False, True])
def test_results_come_in_order_and_once(background: bool) -> None:
    queue = CertificationQueue(background=background)
    for epoch in range(5):
        queue.submit(attempt(epoch))
    assert epochs(queue.peek()) == [0, 1, 2, 3, 4]
    assert epochs(queue.collect(wait=True)) == [0, 1, 2, 3, 4]
    assert queue.is_empty
    assert queue.collect(wait=True) == []
    queue.close()


def test_it_runs_while_others_work_and_collects_no_more_than_is_done() -> None:
    queue, go, begun = CertificationQueue(background=True), threading.Event(), threading.Event()
    queue.submit(attempt(0))
    assert epochs(queue.peek()) == [0]

    def hold() -> None:
        begun.set()
        go.wait(PATIENCE)

    queue.submit(attempt(1, hold))
    queue.submit(attempt(2))
    assert begun.wait(PATIENCE)
    assert epochs(queue.collect(wait=False)) == [0]
    go.set()
    assert epochs(queue.collect(wait=True)) == [1, 2]
    queue.close()


def test_closing_waits_and_loses_nothing() -> None:
    queue, finished = CertificationQueue(background=True), threading.Event()
    queue.submit(attempt(3, finished.set))
    queue.close()
    assert finished.is_set()
    assert epochs(queue.collect(wait=False)) == [3]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("certification")]


@pytest.mark.parametrize("background", [False, True])
def test_what_is_no_result_is_raised(background: bool) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    def submit_and_collect() -> None:
        queue.submit(attempt(0, interrupt))
        queue.collect(wait=True)

    queue = CertificationQueue(background=background)
    with pytest.raises(KeyboardInterrupt):
        submit_and_collect()
    assert queue.is_empty
    queue.close()


def test_run_at_once_it_leaves_random_numbers_alone() -> None:
    queue, before = CertificationQueue(background=False), torch.get_rng_state()
    queue.submit(attempt(0, lambda: torch.rand(3)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("background", [False, True])
def test_copies_are_empty_and_of_the_same_kind(background: bool) -> None:
    queue = CertificationQueue(background=background)
    queue.submit(attempt(1))
    for other in (copy.deepcopy(queue), pickle.loads(pickle.dumps(queue))):
        assert other.is_empty
        other.submit(attempt(2))
        assert len(other.collect(wait=True)) == 1
        other.close()
    assert len(queue.collect(wait=True)) == 1
    queue.close()
