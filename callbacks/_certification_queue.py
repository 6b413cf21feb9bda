"""Where certifications run: at once, or one after the other in a thread while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from lightning.pytorch.utilities.seed import isolate_rng

from ._bound_keeper import Attempt

__all__ = ["CertificationQueue"]


class CertificationQueue:
    """Runs certifications in the order in which they come, one at a time, and hands back what came of them in that order.

    Args:
        background: Whether they run in a thread; otherwise :meth:`submit` returns when its certification is done.

    Example:
        >>> import math
        >>> from torch_strongdual.callbacks import CertificationRecord
        >>> numbers = dict.fromkeys(("primal_value", "dual_bound", "relative_gap", "path_decay", "seconds"), math.nan)
        >>> queue = CertificationQueue(background=True)
        >>> queue.submit(lambda: Attempt(record=CertificationRecord(epoch=3, **numbers)))
        >>> [attempt.record.epoch for attempt in queue.collect(wait=True)]
        [3]
        >>> queue.close()
    """

    def __init__(self, *, background: bool) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="certification") if background else None
        self._pending: list[Future[Attempt]] = []

    def __reduce__(self) -> tuple[Callable[[], CertificationQueue], tuple[()]]:
        """Copies are empty: what runs is collected here, and a thread cannot be copied."""
        return partial(CertificationQueue, background=self._pool is not None), ()

    @property
    def is_empty(self) -> bool:
        """Whether everything submitted was collected."""
        return not self._pending

    def submit(self, certify: Callable[[], Attempt]) -> None:
        """Run ``certify``, now or as soon as those before are done.

        Run at once, it leaves random number generators as they were. In a thread it has to draw from generators of its own:
        setting back a global one would undo what training draws meanwhile.
        """
        if self._pool is not None:
            self._pending.append(self._pool.submit(certify))
            return
        done: Future[Attempt] = Future()
        with isolate_rng():
            done.set_result(certify())
        self._pending.append(done)

    def peek(self) -> list[Attempt]:
        """Wait for everything submitted; what came of it stays to be collected."""
        return [future.result() for future in self._pending]

    def collect(self, *, wait: bool) -> list[Attempt]:
        """Take out what is done, first to last; with ``wait`` everything."""
        taken = []
        while self._pending and (wait or self._pending[0].done()):
            taken.append(self._pending.pop(0).result())
        return taken

    def close(self) -> None:
        """Wait for what was submitted, and end the thread; results can still be collected."""
        if self._pool is not None:
            self._pool.shutdown(wait=True)
