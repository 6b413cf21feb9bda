"""Checks of a callback's arguments, with Lightning's exception for mistakes in the set-up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from torch_strongdual._checks import check_in, check_positive
from torch_strongdual.certification.oracles import AbstractDualNormOracle
from torch_strongdual.certification.training_problem import CERTIFIED_PENALTIES
from torch_strongdual.errors import InvalidInputError

from ._trained_objective import is_supported_loss
from ._training_data import check_data

__all__ = ["check_arguments"]


def check_arguments(arguments: dict[str, Any]) -> None:
    """Raise MisconfigurationException unless all arguments of CertifyOptimality are of their kind and in their range."""
    for name, check in _CHECKS.items():
        value = arguments[name]
        if value is not None or name in _REQUIRED:
            try:
                check(name, value)
            except InvalidInputError as error:
                raise MisconfigurationException(str(error)) from error


def _check_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidInputError(f"`{name}` is {value!r}; expected an integer >= 1.")


def _check_text(name: str, value: object) -> None:
    if not (isinstance(value, str) and value):
        raise InvalidInputError(f"`{name}` is {value!r}; expected a string that is not empty.")


def _check_switch(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise InvalidInputError(f"`{name}` is {value!r}; expected True or False.")


def _check_oracle(name: str, value: object) -> None:
    if not isinstance(value, AbstractDualNormOracle):
        raise InvalidInputError(f"`{name}` is of type {type(value).__name__}; expected a dual norm oracle.")


def _check_loss(name: str, value: object) -> None:
    if not (isinstance(value, nn.Module) and is_supported_loss(value)):
        raise InvalidInputError(
            f"`{name}` is {value!r}; expected a loss module with a known conjugate and a reduction, such as nn.MSELoss()."
        )


def _check_penalty(name: str, value: str) -> None:
    check_in(name, value, CERTIFIED_PENALTIES)


_REQUIRED = frozenset({"every_n_epochs", "rtol", "time_budget", "name", "background"})
_CHECKS: dict[str, Callable[[str, Any], None]] = {
    "every_n_epochs": _check_count,
    "net": _check_text,
    "loss": _check_loss,
    "path_decay": check_positive,
    "penalty": _check_penalty,
    "data": lambda name, value: check_data(value),
    "oracle": _check_oracle,
    "rtol": check_positive,
    "time_budget": check_positive,
    "name": _check_text,
    "background": _check_switch,
}
