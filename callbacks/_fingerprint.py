"""Recognising a training problem again after a restart."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from torch_strongdual.certification import TrainingProblem

from ._distinct_gates import gate_rows

__all__ = ["data_digest", "problem_fingerprint", "weights_digest"]


def data_digest(inputs: Tensor, targets: Tensor) -> str:
    """Return a hash of every bit of the data, their order, shapes and types."""
    digest = hashlib.sha256()
    for tensor in (inputs, targets):
        _add_tensor(digest, tensor)
    return digest.hexdigest()


def weights_digest(net: nn.Module) -> str:
    """Return a hash of every bit of the weights."""
    digest = hashlib.sha256()
    for parameter in net.parameters():
        _add_tensor(digest, parameter)
    return digest.hexdigest()


def problem_fingerprint(data: str, problem: TrainingProblem, loss: nn.Module) -> str:
    """Return a hash of all that a dual bound depends on.

    Args:
        data: What :func:`data_digest` gave for the data.
        problem: Penalty and architecture are taken from it, gates included.
        loss: The torch module of the loss.
    """
    spec = problem.spec
    digest = hashlib.sha256()
    for part in (
        data,
        f"{type(loss).__module__}.{type(loss).__qualname__} {_options(loss)!r}",
        f"{spec} {spec.input_bias} {spec.hidden_bias_layers} {spec.output_bias} {spec.flatten} {spec.negative_slopes!r}",
        *[repr(_options(pool)) for pool in ([] if spec.patch_map is None else spec.patch_map.pools)],
        f"{problem.penalty} {problem.path_decay!r}",
    ):
        digest.update(part.encode())
        digest.update(b"\0")
    for name, tensor in sorted(loss.state_dict().items()):
        digest.update(name.encode())
        _add_tensor(digest, tensor)
    gates = gate_rows(spec)
    if gates is not None:  # as a set
        _add_tensor(digest, torch.unique(gates, dim=0))
    return digest.hexdigest()


def _options(module: nn.Module) -> list[tuple[str, object]]:
    """What a module without layers was made with."""
    return sorted((name, value) for name, value in vars(module).items() if not name.startswith("_") and name != "training")


def _add_tensor(digest: hashlib._Hash, tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    flat = tensor.detach().cpu().reshape(-1).contiguous()
    if flat.numel():
        digest.update(flat.view(torch.uint8).numpy().data)
