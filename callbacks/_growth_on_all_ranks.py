"""What growing needs under DDP: one decision for all ranks, and gradient buckets of the new shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

__all__ = ["check_buckets_can_grow", "from_first_rank", "renew_buckets_"]

T = TypeVar("T")

# What keeps buffers of the old shapes outside of the wrapper, or hooks on the parameters.
_FIXED_OPTIONS = ("static_graph", "mixed_precision", "delay_all_reduce_named_params")


def check_buckets_can_grow(strategy: Strategy, optimizers: Iterable[Optimizer]) -> None:
    """Refuse what cannot follow parameters whose shapes change under DDP.

    Raises:
        MisconfigurationException: Which names the option.
    """
    if not isinstance(strategy, DDPStrategy):
        return
    options = [name for name in _FIXED_OPTIONS if strategy._ddp_kwargs.get(name)]
    if strategy._ddp_comm_state is not None:
        options.append("ddp_comm_state")
    if strategy._start_method != "popen":
        raise MisconfigurationException(
            f"DDP starts its processes by {strategy._start_method!r}: the process that calls `fit` then gets the trained "
            "weights back into the network as it was before, which has not grown. Use strategy='ddp' in a script, or torchrun."
        )
    if options:
        raise MisconfigurationException(
            f"DDP is used with {', '.join(options)}, which does not allow parameters to change their shapes. Leave this out of "
            "DDPStrategy(...), or train without GrowBranches."
        )
    for optimizer in optimizers:  # told by name: importing the class imports much, with warnings
        if "ZeroRedundancyOptimizer" in (base.__name__ for base in type(optimizer).__mro__):
            raise MisconfigurationException(
                "ZeroRedundancyOptimizer keeps the state of a parameter on one rank only, in buckets that cannot follow "
                "branches that come and go; use the optimizer it wraps, such as PathAdamW."
            )


def from_first_rank(trainer: pl.Trainer, decide: Callable[[], T]) -> T:
    """Return on all ranks what ``decide`` returns on rank 0, which runs there only.

    Raises:
        RuntimeError: On the other ranks, if it fails on rank 0, which raises what it failed with: nobody is left waiting.
    """
    if not trainer.is_global_zero:
        decision, failure = trainer.strategy.broadcast((None, ""))
        if failure:
            raise RuntimeError(f"Rank 0 could not decide on new branches: {failure}")
        return decision  # type: ignore[return-value]  # what `decide` returned there
    try:
        decision = decide()
    except Exception as error:
        trainer.strategy.broadcast((None, f"{type(error).__name__}: {error}"))
        raise
    trainer.strategy.broadcast((decision, ""))
    return decision


def renew_buckets_(strategy: Strategy) -> None:
    """Wrap the module anew after parameters have changed their shapes; on all ranks at the same step. Nothing without DDP.

    The reducer of the old wrapper holds buckets of the old sizes, and the nodes that accumulate gradients, which know the old
    shapes. Both go with it, and have to be gone before the new one asks the parameters for such nodes.
    """
    wrapper = strategy.model
    if not (isinstance(strategy, DDPStrategy) and isinstance(wrapper, DistributedDataParallel)):
        return
    strategy.model = wrapper.module
    del wrapper.logger, wrapper.reducer  # the logger shares the reducer
    strategy.configure_ddp()
