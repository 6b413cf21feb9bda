"""Every exception and warning this package raises. Imports nothing of ours.

Each error also inherits the builtin a caller would expect, so ``except ValueError`` keeps working. A message says what
was given, what was expected and what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch_strongdual.certification.certificate import Certificate

__all__ = [
    "CertificationError",
    "InvalidInputError",
    "MissingDependencyError",
    "NotDifferentiableError",
    "NumericalWarning",
    "ShapeError",
    "SolverError",
    "SoundnessError",
    "StrongDualError",
    "StrongDualWarning",
    "UnsupportedLossError",
    "UnsupportedModelError",
]


class StrongDualError(Exception):
    """Root of all errors of this package."""


class InvalidInputError(StrongDualError, ValueError):
    """An argument has a value that cannot be used: NaN, a negative rate, a label outside the classes."""


class ShapeError(InvalidInputError):
    """A tensor has another shape, or number of dimensions, than the operation needs."""


class UnsupportedModelError(StrongDualError, TypeError):
    """The model, a layer of it, or its pair with the penalty has no dual here. The message names what was found."""


class UnsupportedLossError(StrongDualError, TypeError):
    """The loss, or an option of it, has no conjugate here. The message names it."""


class SolverError(StrongDualError, RuntimeError):
    """A convex solver did not return a solution.

    Args:
        message: What was being solved.
        solver: Name of the solver.
        solver_status: Its own word for what happened.
    """

    def __init__(self, message: str, *, solver: str, solver_status: str) -> None:
        super().__init__(message)
        self.solver = solver
        self.solver_status = solver_status


class NotDifferentiableError(StrongDualError, ArithmeticError):
    """A derivative was asked for where there is none: at a kink, or where the optimum is not unique. The message says which."""


class CertificationError(StrongDualError, RuntimeError):
    """A certificate was demanded and could not be given; it carries the one that was reached.

    Args:
        message: Why.
        certificate: What was proven.
    """

    def __init__(self, message: str, *, certificate: Certificate) -> None:
        super().__init__(message)
        self.certificate = certificate


class SoundnessError(StrongDualError, RuntimeError):
    """A proven lower bound came out above an attained value: a bug in the bound, never to be clamped away.

    Args:
        message: Which bound.
        primal_value: The attained value.
        dual_bound: The bound that cannot be one.
    """

    def __init__(self, message: str, *, primal_value: float, dual_bound: float) -> None:
        super().__init__(message)
        self.primal_value = primal_value
        self.dual_bound = dual_bound


class MissingDependencyError(StrongDualError, ImportError):
    """An optional package is not installed.

    Args:
        package: Name on the package index.
        purpose: What it is needed for.
    """

    def __init__(self, package: str, *, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package!r}, which is not installed: pip install {package}")
        self.package = package


class StrongDualWarning(UserWarning):
    """Root of all warnings of this package."""


class NumericalWarning(StrongDualWarning, RuntimeWarning):
    """Non-finite numbers, or rounding as large as what is measured, were met."""
