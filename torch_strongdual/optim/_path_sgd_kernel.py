"""The compiled step of PathSGD: one branch after the other, so that each is read from memory once.

Imported only when used, since Numba is. Memory is given by addresses, which spares a compilation for every number of layers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

from torch_strongdual._compiled_kernel import KERNEL_OPTIONS

__all__ = ["step_branches"]

_kernel = njit(**KERNEL_OPTIONS)
_part = njit(**KERNEL_OPTIONS, no_cpython_wrapper=True, no_cfunc_wrapper=True)


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(context: Any, address: Any, like: Any) -> Any:
    """The address as a pointer to numbers of the dtype of ``like``."""
    pointer = types.CPointer(like.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(pointer))

    return pointer(address, like), generate


@_part
def _row(address, row, size, like):  # type: ignore[no-untyped-def]
    return carray(_pointer(address + row * size * like.itemsize, like), (size,))


@_part
def _squares(weight, grad, along_grad):  # type: ignore[no-untyped-def]
    """Squared norms of the weights before and after the gradient step."""
    before = after = weight.dtype.type(0)
    for i in range(weight.size):
        moved = weight[i] - along_grad * grad[i]
        before += weight[i] * weight[i]
        after += moved * moved
    return before, after


@_part
def _squares_with_momentum(weight, grad, buffer, along_grad, along_buffer):  # type: ignore[no-untyped-def]
    before = after = weight.dtype.type(0)
    for i in range(weight.size):
        moved = weight[i] - along_grad * grad[i] - along_buffer * buffer[i]
        before += weight[i] * weight[i]
        after += moved * moved
    return before, after


@_part
def _write(weight, grad, along_grad, multiplier):  # type: ignore[no-untyped-def]
    for i in range(weight.size):
        weight[i] = multiplier * (weight[i] - along_grad * grad[i])


@_part
def _write_with_momentum(  # type: ignore[no-untyped-def]
    weight, grad, buffer, along_grad, along_buffer, momentum, share, multiplier, pull
):
    for i in range(weight.size):
        moved = weight[i] - along_grad * grad[i] - along_buffer * buffer[i]
        buffer[i] = momentum * buffer[i] + share * grad[i] + pull * moved
        weight[i] = multiplier * moved


@_part
def _shorten(before, after, rates, multipliers, pulls, lr_gain):  # type: ignore[no-untyped-def]
    """Write the multipliers of the layers of one branch and the pulls on their buffers, as ``ImplicitStep`` defines them."""
    real = before.dtype.type
    info = np.finfo(before.dtype)
    last = before.size - 1
    collapsed = False
    for layer in range(last + 1):
        threshold = lr_gain * rates[layer]
        norm = after[layer] if not after[layer] < info.tiny else info.tiny  # NaN stays NaN
        quotient = threshold / norm
        multipliers[layer] = real(1) - (quotient if not quotient > 1 else real(1))
        pulls[layer] = rates[layer] / norm
        if lr_gain > 0 and pulls[layer] > real(1) / lr_gain:
            pulls[layer] = real(1) / lr_gain
        if layer < last and threshold > 0 and after[layer] <= threshold:
            collapsed = True
            takeover = before[last] / norm
            multipliers[layer] = takeover if not takeover > info.max else info.max
    if collapsed:
        multipliers[last] = real(0)


@_kernel
def step_branches(  # type: ignore[no-untyped-def]
    addresses, sizes, layers, start, stop, path_decay, lr_gain, rate_share, along_grad, along_buffer, momentum, share, like
):
    """Step the branches from ``start`` to ``stop``.

    Args:
        addresses: Of weights, gradients and buffers, a row each; buffers are not read if ``momentum`` is zero. Their memory is
            contiguous, branch after branch.
        sizes: Numbers a branch has in each parameter.
        layers: Number of the layer of each parameter.
        start: First branch.
        stop: Behind the last branch.
        path_decay: Weight of the penalty.
        lr_gain: Factor of the rates in the thresholds.
        rate_share: How much of a gradient enters the buffers.
        along_grad: The step is that along the gradient by this length ...
        along_buffer: ... and along the old buffer by this one.
        momentum: Factor of the old buffer in the new one.
        share: Factor of the gradient in it.
        like: Any array of the dtype; so are the numbers.
    """
    num_layers = layers.max() + 1
    before, after = np.empty(num_layers, like.dtype), np.empty(num_layers, like.dtype)
    rates, multipliers, pulls = np.empty_like(before), np.empty_like(before), np.empty_like(before)
    for branch in range(start, stop):
        before[:] = 0
        after[:] = 0
        for i in range(sizes.size):
            weight, grad = _row(addresses[0, i], branch, sizes[i], like), _row(addresses[1, i], branch, sizes[i], like)
            if momentum == 0:
                squares = _squares(weight, grad, along_grad)
            else:
                buffer = _row(addresses[2, i], branch, sizes[i], like)
                squares = _squares_with_momentum(weight, grad, buffer, along_grad, along_buffer)
            before[layers[i]] += squares[0]
            after[layers[i]] += squares[1]
        for layer in range(num_layers):
            before[layer] = np.sqrt(before[layer])
            after[layer] = np.sqrt(after[layer])
        for layer in range(num_layers):
            rates[layer] = path_decay * rate_share
            for other in range(num_layers):
                if other != layer:
                    rates[layer] *= before[other]
        _shorten(before, after, rates, multipliers, pulls, lr_gain)
        for i in range(sizes.size):
            layer = layers[i]
            weight, grad = _row(addresses[0, i], branch, sizes[i], like), _row(addresses[1, i], branch, sizes[i], like)
            if momentum == 0:
                _write(weight, grad, along_grad, multipliers[layer])
            else:
                buffer = _row(addresses[2, i], branch, sizes[i], like)
                _write_with_momentum(
                    weight, grad, buffer, along_grad, along_buffer, momentum, share, multipliers[layer], pulls[layer]
                )
