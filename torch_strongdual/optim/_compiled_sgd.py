"""PathSGD's step in compiled code on the CPU: as much memory traffic as a step of SGD.

A step in operations of torch passes over all weights several times: for their norms, for the gradient step, for the norms
after it, for shortening. Here a branch goes through all of this before the next is read, while it is in the cache.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

__all__ = ["step_compiled", "takes_compiled_step"]

_logger = logging.getLogger(__name__)

# Below this many weights a step takes microseconds either way, and importing the compiler a second.
_SMALLEST = 2**15
_NUMBERS_A_THREAD = 2**18
_LIKE = {dtype: torch.empty(0, dtype=dtype).numpy() for dtype in (torch.float32, torch.float64)}


def takes_compiled_step(
    params: Sequence[Tensor], grads: Sequence[Tensor | None], buffers: Sequence[Tensor | None], layers: Sequence[int]
) -> bool:
    """Whether :func:`step_compiled` can take these: plain tensors of some size in the memory of the host, nothing frozen.

    Args:
        params: The layers of stacked branches.
        grads: Their gradients.
        buffers: Their momentum buffers, all ``None`` or none.
        layers: Number of the layer of each parameter.
    """
    if torch.compiler.is_compiling() or len(layers) != len(params) or params[0].dtype not in _LIKE:
        return False
    if sum(param.numel() for param in params) < _SMALLEST:
        return False
    made = [buffer for buffer in buffers if buffer is not None]
    if len(made) not in (0, len(params)):
        return False
    is_usable = all(_is_plain(param, params[0]) and param.shape[0] == params[0].shape[0] for param in params)
    for others in (grads, made) if made else (grads,):
        # also where parameters were replaced and the rest is from before: nothing beyond its memory may be read
        pairs = zip(others, params, strict=True)
        is_usable = is_usable and all(
            other is not None and other.shape == param.shape and _is_plain(other, param) for other, param in pairs
        )
    return is_usable


def step_compiled(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    buffers: Sequence[Tensor | None],
    layers: Sequence[int],
    *,
    path_decay: float,
    lr: float,
    momentum: float,
    dampening: float,
    nesterov: bool,
    maximize: bool,
) -> list[Tensor | None]:
    """Do what :func:`torch_strongdual.optim.path_sgd.path_sgd` does for the product form of the penalty.

    Args:
        params: The layers; changed in place.
        grads: Gradients of the loss.
        buffers: Momentum buffers, changed in place, or ``None`` before the first step.
        layers: Number of the layer of each parameter.
        path_decay: See :class:`torch_strongdual.optim.PathSGD`; so for all that follow.
        lr: Learning rate.
        momentum: Momentum factor.
        dampening: Dampening of the momentum.
        nesterov: Whether to use Nesterov momentum.
        maximize: Whether to maximise the loss.

    Returns:
        The buffers, made where there were none.
    """
    sign = -1.0 if maximize else 1.0
    is_first = momentum == 0 or buffers[0] is None
    share = 1.0 if is_first else 1 - dampening
    gain = 1 + momentum if nesterov else 1.0
    made: list[Tensor] = []
    if momentum != 0:
        made = [torch.zeros_like(param) if buffer is None else buffer for param, buffer in zip(params, buffers, strict=True)]
    along_grad = lr * sign * (1 + momentum * share if nesterov else share)
    along_buffer = lr * momentum * (momentum if nesterov else 1.0)
    numbers = (path_decay, lr * gain, share, along_grad, along_buffer, momentum, sign * share)
    _run([params, grads, made or params], layers, numbers)
    torch.autograd.graph.increment_version([*params, *made])
    return list(made or buffers)


def _is_plain(tensor: Tensor, like: Tensor) -> bool:
    return (
        type(tensor) in _PLAIN_TYPES
        and tensor.dtype == like.dtype
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and tensor.is_contiguous()
        and not tensor.is_neg()
    )


_PLAIN_TYPES = (torch.Tensor, torch.nn.Parameter)


def _run(memory: Sequence[Sequence[Tensor]], layers: Sequence[int], numbers: Sequence[float]) -> None:
    """Step all branches, in several threads if torch may use them."""
    params = memory[0]
    like, step_branches = _LIKE[params[0].dtype], _kernel(params[0].dtype)
    addresses = np.array([[tensor.data_ptr() for tensor in row] for row in memory])
    num_branches = params[0].shape[0]
    sizes = np.array([param.numel() // num_branches for param in params])
    scalars = [like.dtype.type(number) for number in numbers]
    numbers_of_layers = np.array(layers)

    def step(start: int, stop: int) -> None:
        step_branches(addresses, sizes, numbers_of_layers, start, stop, *scalars, like)

    num_threads = min(torch.get_num_threads(), num_branches, -(-num_branches * int(sizes.sum()) // _NUMBERS_A_THREAD))
    if num_threads == 1:
        step(0, num_branches)
        return
    # the branches are independent, so the result does not depend on how many threads there are
    ends = [num_branches * thread // num_threads for thread in range(num_threads + 1)]
    list(_threads(os.getpid(), torch.get_num_threads()).map(step, ends[:-1], ends[1:]))


@functools.cache
def _kernel(dtype: torch.dtype) -> Callable[..., None]:
    """The compiled step for numbers of this dtype, or as loaded from Numba's cache; says so where that takes a while."""
    from torch_strongdual._compiled_kernel import when_compiled  # imports Numba
    from torch_strongdual.optim._path_sgd_kernel import step_branches

    like = _LIKE[dtype]
    with when_compiled(_announce):  # for no branches
        step_branches(np.zeros((3, 1), int), np.zeros(1, int), np.zeros(1, int), 0, 0, *[like.dtype.type(0)] * 7, like)
    compiled: Callable[..., None] = step_branches
    return compiled


def _announce() -> None:
    _logger.warning("Compiling the step of PathSGD for this machine, once: a few seconds.")


@functools.lru_cache(maxsize=1)
def _threads(process: int, number: int) -> ThreadPoolExecutor:
    """Threads of this process: those of one it was forked from are gone."""
    return ThreadPoolExecutor(number, thread_name_prefix="path-sgd")
