"""Certification computes in float64 on the CPU, whatever is set for the program around it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

__all__ = ["with_own_defaults"]

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def with_own_defaults(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Run ``function`` with the CPU as default device and outside of inference mode.

    A default device set by ``torch.set_default_device`` would put some tensors elsewhere than the rest; and inference mode,
    in which Lightning validates, records no gradients, which descent needs.

    Args:
        function: To wrap.
    """

    @functools.wraps(function)
    def wrapped(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        with contextlib.ExitStack() as stack:
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(mode=False))
            if torch.get_default_device().type != "cpu":  # entered only if needed: it intercepts every call of torch
                stack.enter_context(torch.device("cpu"))
            return function(*args, **kwargs)

    return wrapped
