"""What a sum of rows of layers does not share with one row of layers, nn.Sequential."""

from __future__ import annotations

from typing import NoReturn

from torch import nn

from torch_strongdual.errors import UnsupportedModelError

__all__ = ["SumOfRows"]

_ADVICE = (
    "A ParallelNet is a sum of branches, each a row of layers: length and items could be of either. Use `num_branches` and "
    "`branch(k)` for the branches, `children()` or `get_submodule('0')` for the layers of all branches."
)


class SumOfRows(nn.Module):
    """Refuses by name what would be ambiguous, and what cannot work."""

    def __len__(self) -> NoReturn:
        """Refused: it could be the number of branches or that of layers."""
        raise UnsupportedModelError(_ADVICE)

    def __getitem__(self, index: object) -> NoReturn:
        """Refused, and with it iteration and membership: items could be branches or layers."""
        raise UnsupportedModelError(_ADVICE)

    def __bool__(self) -> bool:
        """True, as for every module without a length."""
        return True

    def __prepare_scriptable__(self) -> NoReturn:
        """Refuse :func:`torch.jit.script`, which asks for this method by name."""
        raise UnsupportedModelError(
            "torch.jit.script cannot compile a ParallelNet. Use torch.export.export, torch.compile, or torch.jit.trace with an "
            "example of the inputs."
        )
