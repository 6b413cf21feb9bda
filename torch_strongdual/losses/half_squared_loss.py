"""Half the squared distance to the targets, the loss of the theory, as a module to train with."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from torch_strongdual.errors import ShapeError

__all__ = ["HalfSquaredLoss"]


@final
class HalfSquaredLoss(nn.Module):
    r"""The loss :math:`\tfrac12 \|F - Y\|_F^2`, summed over samples and outputs.

    This is the loss most papers on convex duality of networks state their results for; its residual is ``targets - outputs``
    without a factor. Unlike :class:`torch.nn.MSELoss` it never broadcasts.

    Shape:
        - outputs: any
        - targets: that of ``outputs``
        - result: scalar, in the dtype of ``outputs``

    Raises:
        ShapeError: If the shapes differ.

    Example:
        >>> import torch
        >>> HalfSquaredLoss()(torch.tensor([[3.0], [1.0]]), torch.tensor([[1.0], [1.0]]))
        tensor(2.)
    """

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the scalar loss."""
        if outputs.shape != targets.shape:
            raise ShapeError(
                f"`outputs` has shape {tuple(outputs.shape)} and `targets` {tuple(targets.shape)}; expected equal shapes, "
                "because broadcasting would compare every sample with every target. For targets of shape (num_samples,) and "
                "one output use `targets[:, None]`."
            )
        return 0.5 * (outputs - targets).square().sum()
