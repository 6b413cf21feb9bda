"""The forward pass in chunks of branches, recomputed in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from torch_strongdual.functional.stacked_outputs import stacked_outputs

__all__ = ["chunked_outputs"]


def chunked_outputs(
    inputs: Tensor,  # shape: (num_samples, in_features)
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    activations: Callable[[slice], list[Callable[[Tensor], Tensor]]],
    chunk_size: int | None,
    *,
    evaluate: Callable[..., Tensor] = stacked_outputs,
) -> Tensor:  # shape: (num_samples, out_features)
    """Evaluate :func:`~torch_strongdual.functional.stacked_outputs.stacked_outputs` on ``chunk_size`` branches at a time.

    Args:
        inputs: See ``stacked_outputs``, as for the arguments below.
        weights: Tensors, not modules: recomputation may come when :func:`torch.func.functional_call` is over.
        biases: The last one is added once.
        activations: Maps a slice of the branches to their activations.
        chunk_size: ``None`` for all branches at once.
        evaluate: What to evaluate instead of ``stacked_outputs``, with the same arguments.
    """
    num_branches = weights[0].shape[0]
    if chunk_size is None or chunk_size >= num_branches:
        return evaluate(inputs, weights, biases, activations(slice(None)))
    # Split once: the gradient of a slice is as large as the whole, so slices would cost the square of the number of chunks.
    weight_chunks = zip(*[torch.split(weight, chunk_size) for weight in weights], strict=True)
    bias_chunks = [None if bias is None else torch.split(bias, chunk_size) for bias in biases[:-1]]
    outputs: Tensor | None = None
    for index, chunk_weights in enumerate(weight_chunks):
        chunk = _recomputed_outputs(
            evaluate,
            inputs,
            list(chunk_weights),
            [*[None if parts is None else parts[index] for parts in bias_chunks], biases[-1] if index == 0 else None],
            activations(slice(index * chunk_size, (index + 1) * chunk_size)),
        )
        outputs = chunk if outputs is None else outputs + chunk
    return cast(Tensor, outputs)


def _recomputed_outputs(
    evaluate: Callable[..., Tensor],
    inputs: Tensor,
    weights: list[Tensor],
    biases: list[Tensor | None],
    activations: list[Callable[[Tensor], Tensor]],
) -> Tensor:
    if not _can_recompute():
        return evaluate(inputs, weights, biases, activations)
    outputs = checkpoint(evaluate, inputs, weights, biases, activations, use_reentrant=False, preserve_rng_state=False)
    return cast(Tensor, outputs)


def _can_recompute() -> bool:
    # torch.func transforms switch saved tensor hooks off, which recomputation is made of; without gradients nothing is saved.
    if not torch.is_grad_enabled():
        return False
    return torch.compiler.is_compiling() or bool(torch._C._autograd._saved_tensors_hooks_is_enabled())  # type: ignore[attr-defined]
