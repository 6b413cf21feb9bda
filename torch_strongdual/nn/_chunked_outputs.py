"""The forward pass in chunks of branches, and its recomputation in the backward pass."""

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
    recompute: bool = False,
    evaluate: Callable[..., Tensor] = stacked_outputs,
) -> Tensor:  # shape: (num_samples, out_features)
    """Evaluate :func:`~torch_strongdual.functional.stacked_outputs.stacked_outputs` on ``chunk_size`` branches at a time.

    Args:
        inputs: See ``stacked_outputs``, as for the arguments below.
        weights: Tensors, not modules: recomputation may come when :func:`torch.func.functional_call` is over.
        biases: The last one is added once.
        activations: Maps a slice of the branches to their activations.
        chunk_size: ``None`` for all branches at once.
        recompute: Whether to keep no activations for the backward pass but compute them again, a chunk at a time.
        evaluate: What to evaluate instead of ``stacked_outputs``, with the same arguments.
    """
    num_branches = weights[0].shape[0]
    evaluate = _recomputing(evaluate) if recompute and _can_recompute() else evaluate
    if chunk_size is None or chunk_size >= num_branches:
        return evaluate(inputs, weights, biases, activations(slice(None)))
    # Split once: the gradient of a slice is as large as the whole, so slices would cost the square of the number of chunks.
    weight_chunks = zip(*[torch.split(weight, chunk_size) for weight in weights], strict=True)
    bias_chunks = [None if bias is None else torch.split(bias, chunk_size) for bias in biases[:-1]]
    outputs: Tensor | None = None
    for index, chunk_weights in enumerate(weight_chunks):
        chunk = evaluate(
            inputs,
            list(chunk_weights),
            [*[None if parts is None else parts[index] for parts in bias_chunks], biases[-1] if index == 0 else None],
            activations(slice(index * chunk_size, (index + 1) * chunk_size)),
        )
        outputs = chunk if outputs is None else outputs + chunk
    return cast(Tensor, outputs)


def _recomputing(evaluate: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def outputs(*arguments: object) -> Tensor:
        return cast(Tensor, checkpoint(evaluate, *arguments, use_reentrant=False, preserve_rng_state=False))

    return outputs


def _can_recompute() -> bool:
    # torch.func transforms switch saved tensor hooks off, which recomputation is made of; without gradients nothing is saved.
    if not torch.is_grad_enabled():
        return False
    return torch.compiler.is_compiling() or bool(torch._C._autograd._saved_tensors_hooks_is_enabled())  # type: ignore[attr-defined]
