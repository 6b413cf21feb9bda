"""Whether two training problems are the same, and whether the data of one still are what they were."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from torch_strongdual.certification.training_problem import TrainingProblem

__all__ = ["ProblemIdentity"]


class ProblemIdentity:
    """What a proven bound belongs to: every bit of inputs, targets, options of the loss, penalty and architecture.

    Args:
        problem: The inputs are those it was given, not a copy.
    """

    def __init__(self, problem: TrainingProblem) -> None:
        self._problem = problem
        self._version = _version(problem.inputs)
        self._digest = ""

    def has_changed(self) -> bool:
        """Whether torch has written to the inputs since; what others write to shared memory is not seen."""
        return _version(self._problem.inputs) != self._version

    def digest(self) -> str:
        """A hash, computed once; gates count as a set, as bounds speak of all of them."""
        if not self._digest:
            self._digest = _digest_of(self._problem)
        return self._digest


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version  # tensors made in inference mode have no count


def _digest_of(problem: TrainingProblem) -> str:
    spec, loss = problem.spec, problem.loss
    gates = [vectors for activation in spec.activations for vectors in activation.gate_vectors]
    pools = [] if spec.patch_map is None else [sorted(_options(pool)) for pool in spec.patch_map.pools]
    return _hash(
        [
            problem.inputs,
            loss.targets,
            f"{problem.penalty} {problem.path_decay!r}",
            f"{spec} {spec.input_bias} {spec.output_bias} {spec.flatten} {spec.negative_slopes!r} {pools}",
            type(loss).__qualname__,
            *[part for name, value in sorted(vars(loss).items()) for part in (name, value)],
            *([torch.unique(torch.cat(gates, dim=1) + 0.0, dim=0)] if gates else []),  # a zero has no sign
        ]
    )


def _options(module: nn.Module) -> list[tuple[str, str]]:
    """What a module without parameters was made with."""
    return [(name, repr(value)) for name, value in vars(module).items() if not name.startswith("_") and name != "training"]


def _hash(parts: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            digest.update(part.detach().cpu().resolve_neg().reshape(-1).contiguous().view(torch.uint8).numpy().data)
        else:
            digest.update(repr(part).encode() + b"\0")
    return digest.hexdigest()
