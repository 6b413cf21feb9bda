"""Parallel networks: many branches of one architecture, summed, as one module."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from torch_strongdual._checks import check_non_negative
from torch_strongdual.errors import InvalidInputError, UnsupportedModelError
from torch_strongdual.functional.path_penalty import path_penalty
from torch_strongdual.nn import _branch_surgery as surgery
from torch_strongdual.nn._branch_layers import BranchLayers
from torch_strongdual.nn._chunk_size import ChunkSize, check_chunk_size, check_count
from torch_strongdual.nn._convolutional_forward import convolutional_outputs
from torch_strongdual.nn._convolutional_spec import convolutional_spec
from torch_strongdual.nn._dense_forward import dense_outputs
from torch_strongdual.nn._dense_spec import dense_spec
from torch_strongdual.nn._leaf_checks import check_leaves, check_local, check_local_leaves
from torch_strongdual.nn._path_param_groups import path_param_groups
from torch_strongdual.nn._stacked_gated_relu import StackedGatedReLU
from torch_strongdual.nn._stacked_layer import StackedLayer
from torch_strongdual.nn._sum_of_rows import SumOfRows
from torch_strongdual.nn._unchanged_layers import check_unchanged
from torch_strongdual.nn.branch_sequential import BranchSequential
from torch_strongdual.nn.branch_spec import BranchSpec

__all__ = ["ParallelNet"]


class ParallelNet(SumOfRows):
    r"""Sum of ``num_branches`` networks of one architecture, :math:`f(X) = \sum_k \phi_k(X) W_{L,k} + b`.

    Write the layers as for :class:`torch.nn.Sequential`; they are one branch. With the path penalty, training such a network
    has no duality gap as soon as there are enough branches, so that it can be certified globally optimal. The branches
    are evaluated together, from stacked parameters of shape ``(num_branches, out, in)``, named as those of
    :class:`torch.nn.Sequential` (``"0.weight"``, ``"2.bias"``).

    Branch 0 takes the weights of the layers given; the others are drawn as :class:`torch.nn.Linear` draws them. One branch
    is the same network as ``nn.Sequential(*layers)``, bit for bit.

    Supported layers: ``nn.Linear`` (two or more), ``nn.ReLU``, ``nn.LeakyReLU`` with a slope in [0, 1], ``nn.Identity``,
    :class:`~torch_strongdual.nn.gated_relu.GatedReLU`, and ``nn.Flatten`` in front; several activations may follow each other.
    Or convolutions first: ``nn.Conv1d`` or ``nn.Conv2d`` (``groups=1``, zero padding) with average, maximum and adaptive
    pooling, ``nn.Flatten`` behind the last of them, then ``nn.Linear``. Inputs are shared, so the first convolution is a single
    wide one; later ones are grouped. The penalty counts a kernel with its Frobenius norm, once, however often it is applied.

    A bias of the first layer counts as part of its weight. A bias of the last layer is one parameter of shape
    ``(out_features,)`` shared by all branches and not penalised. Biases in between can be trained but not certified.

    Layers with parameters are called only if a layer has hooks (:mod:`torch.nn.utils.prune` adds some, ``fully_shard`` too), or
    :mod:`torch.fx` records them: all branches at once then, whatever ``chunk_size`` and ``recompute`` say, and activations have
    the shape ``(num_branches, features, num_samples)``.

    Args:
        *layers: The layers of a branch, or one OrderedDict of them.
        num_branches: Number of branches, at least one.
        chunk_size: Evaluate this many branches at a time, through the whole depth; ``None``: all at once. The result is the
            same up to rounding. ``"auto"``: on a CPU, chunks of 4 MiB once the largest activation of all branches is above
            6 MiB, where they are up to twice as fast; all at once otherwise, and under :func:`torch.compile`.
        recompute: Keep no activations for the backward pass but compute them again, so that those of one chunk only are in
            memory, for about a third more time. (Inside :mod:`torch.func` transforms, which do not support it, they are kept.)
        device: Where the parameters live; that of the layers if ``None``.
        dtype: Of the parameters; that of the layers if ``None``. Gates are float64 always.

    Shape:
        - input: ``(..., in_features)``; ``(num_samples, ...)`` behind ``nn.Flatten``; ``(num_samples, channels, length)`` or
          ``(num_samples, channels, height, width)`` for convolutions
        - output: ``(..., out_features)``

    Raises:
        UnsupportedModelError: If a layer, or its place, is not supported; the message names it.
        ShapeError: If the widths of the layers do not fit; in the forward pass, if the input does not.
        InvalidInputError: If ``num_branches`` or ``chunk_size`` is not a positive integer.

    Example:
        >>> net = ParallelNet(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1), num_branches=64)
        >>> net(torch.zeros(5, 8)).shape
        torch.Size([5, 1])
        >>> {name: tuple(p.shape) for name, p in net.named_parameters()}
        {'0.weight': (64, 16, 8), '0.bias': (64, 16), '2.weight': (64, 1, 16), '2.bias': (1,)}

    References:
        Wang, Ergen, Pilanci, "Parallel Deep Neural Networks Have Zero Duality Gap", ICLR 2023.
        https://arxiv.org/abs/2110.06482
    """

    def __init__(
        self,
        *layers: nn.Module | OrderedDict[str, nn.Module],
        num_branches: int,
        chunk_size: ChunkSize = "auto",
        recompute: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_count("num_branches", num_branches)
        check_chunk_size(chunk_size)
        if dtype is not None and not dtype.is_floating_point:
            raise UnsupportedModelError(f"`dtype` is {dtype}; expected a real floating point dtype.")
        if len(layers) == 1 and isinstance(layers[0], OrderedDict):
            named: list[tuple[str, Any]] = list(layers[0].items())
        else:
            named = [(str(position), layer) for position, layer in enumerate(layers)]
        branch = BranchLayers.parse(named)
        self.chunk_size = chunk_size
        self.recompute = recompute
        self._layer_names = tuple(branch.modules)
        self._flatten = branch.flatten
        self._linear_names = branch.linear_names
        self._activation_names = branch.activation_names
        self._num_convolutions = branch.num_convolutions
        for name, layer in branch.modules.items():
            is_last = name == branch.linear_names[-1]
            self.add_module(name, surgery.stacked_layer(layer, num_branches, shared_bias=is_last, device=device, dtype=dtype))
        linears = self._linears
        linears[0].is_first, linears[-1].is_last = True, True

    @classmethod
    def from_sequential(
        cls,
        sequential: nn.Sequential,
        *,
        num_branches: int,
        chunk_size: ChunkSize = "auto",
        recompute: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Make a network whose branch 0 is a copy of ``sequential``; the other branches are drawn afresh.

        Args:
            sequential: The branch; it is not changed and shares nothing with the result.
            num_branches: See the class, as the other arguments.
            chunk_size: See the class.
            recompute: See the class.
            device: See the class.
            dtype: See the class.

        Raises:
            UnsupportedModelError: If ``sequential`` is not an :class:`torch.nn.Sequential` of supported layers.

        Example:
            >>> sequential = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
            >>> net = ParallelNet.from_sequential(sequential, num_branches=1)
            >>> torch.equal(net(torch.ones(2, 3)), sequential(torch.ones(2, 3)))
            True
        """
        if not isinstance(sequential, nn.Sequential):
            raise UnsupportedModelError(
                f"Expected an nn.Sequential, got {type(sequential).__name__}. Wrappers have to be taken off first "
                "(`.module` of DataParallel and DistributedDataParallel, `._orig_mod` of a compiled module)."
            )
        if type(sequential).forward not in (nn.Sequential.forward, BranchSequential.forward):
            raise UnsupportedModelError(
                f"{type(sequential).__name__} has a forward of its own, so it may compute something else than its layers in a "
                "row. Pass the layers themselves to ParallelNet if that is what it does."
            )
        layers = OrderedDict(sequential._modules.items())
        net = cls(
            layers,
            num_branches=num_branches,
            chunk_size=chunk_size,
            recompute=recompute,
            device=device,
            dtype=dtype,
        )
        return net.train(sequential.training)

    # Parts

    @property
    def _linears(self) -> list[StackedLayer]:
        return [cast(StackedLayer, self._modules[name]).up_to_date() for name in self._linear_names]

    @property
    def _between(self) -> list[list[nn.Module]]:
        return [[cast(nn.Module, self._modules[name]) for name in names] for names in self._activation_names]

    @property
    def _gates(self) -> list[StackedGatedReLU]:
        return [module for module in self.children() if isinstance(module, StackedGatedReLU)]

    @property
    def _stacks(self) -> list[StackedLayer | StackedGatedReLU]:
        return [*self._linears, *self._gates]

    @property
    def num_branches(self) -> int:
        """Number of branches."""
        return self._linears[0].weight.shape[0]

    @property
    def output_bias(self) -> nn.Parameter | None:
        """Bias of the last layer, shape ``(out_features,)``, shared by all branches and not penalised."""
        return self._linears[-1].bias

    def hidden_biases(self) -> list[Tensor | None]:
        """Biases of the hidden layers, ``num_layers - 1`` entries of shape ``(num_branches, out)`` or ``None``.

        The first entry is ``None`` always: the bias of the first layer is part of its weight.
        """
        return [None, *[linear.bias for linear in self._linears[1:-1]]]

    def branch_weights(self) -> list[Tensor]:
        """Branch weight list (see :class:`~torch_strongdual.nn.branch_spec.BranchSpec`), differentiable.

        One tensor a layer, of shape ``(num_branches, out, in)``; a first-layer bias is the last column of the first one, and a
        kernel is a row.
        """
        first, *others = self._linears
        weight = first.matrices()
        if first.bias is not None:
            weight = torch.cat([weight, first.bias.unsqueeze(-1)], dim=-1)
        return [weight, *[linear.matrices() for linear in others]]

    def gate_vectors(self) -> list[Tensor]:
        """Gates in the order of the GatedReLU layers, each of shape ``(num_branches, in_features)``, float64."""
        return [gates.gate_vector for gates in self._gates]

    @property
    def branch_spec(self) -> BranchSpec:
        """Architecture of a branch, with a copy of the gates.

        Raises:
            UnsupportedModelError: If its branches can be trained but not certified, whatever the oracle; if a layer was
                replaced by one that cannot be in a branch.
        """
        check_unchanged({name: self._modules.get(name) for name in self._layer_names}, self._linear_names)
        if self._num_convolutions:
            return convolutional_spec(self._linears, self._between, self.output_bias is not None)
        return dense_spec(self._linears, self._between, flatten=self._flatten)

    def __dir__(self) -> list[str]:
        """All names but ``branch_spec`` where it raises: :func:`torch.jit.trace` and others look at every attribute."""
        names: list[str] = super().__dir__()  # type: ignore[no-untyped-call]
        try:
            _ = self.branch_spec
        except UnsupportedModelError:
            names.remove("branch_spec")
        return names

    # Forward pass

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - the name nn.Sequential gives it
        """Return the sum of the outputs of all branches."""
        if self._num_convolutions:
            return convolutional_outputs(input, self._linears, self._between, self.chunk_size, recompute=self.recompute)
        return dense_outputs(
            input, self._linears, self._between, self.chunk_size, flatten=self._flatten, recompute=self.recompute
        )

    # Branches

    def branch(self, index: int) -> nn.Sequential:
        """Return branch ``index`` as a network of its own, a copy with the same names of layers.

        It has the shared output bias only if there is one branch, so that the branches sum to the network without it.

        Args:
            index: From ``-num_branches`` to ``num_branches - 1``.

        Returns:
            An :class:`torch.nn.Sequential`; for gated networks a
            :class:`~torch_strongdual.nn.branch_sequential.BranchSequential`.

        Raises:
            InvalidInputError: If there is no such branch, or the weights are sharded over processes.
        """
        num_branches = self.num_branches
        check_local(self._linears[0].weight)
        if not -num_branches <= index < num_branches:
            raise InvalidInputError(
                f"`index` is {index}; expected {-num_branches} to {num_branches - 1}: {num_branches} branches."
            )
        named = ((name, cast(nn.Module, self._modules[name])) for name in self._layer_names)
        layers = OrderedDict((name, surgery.copied_layer(layer, index, num_branches)) for name, layer in named)
        kind = BranchSequential if self._gates else nn.Sequential
        return kind(layers).train(self.training)

    def add_branches_(self, weights: Sequence[Tensor], *, gate_vectors: Sequence[Tensor] = ()) -> None:
        """Add branches at the end, in place.

        Parameters stay the same objects, so an optimizer goes on training them; their gradients are cleared, and state an
        optimizer keeps for them (momenta) has the old shape and must be extended or dropped. Hidden biases of new branches
        are zero.

        Args:
            weights: Branch weight list, as :meth:`branch_weights` gives it: tensors of shape ``(m, out, in)``, the first
                ``(m, out, in + 1)`` if the first layer has a bias. Converted to the dtype and device of the network.
            gate_vectors: For gated networks, one tensor of shape ``(m, in_features)`` for each GatedReLU, in order.

        Raises:
            ShapeError: If the weights or gates do not fit the architecture; the network is unchanged then.
            InvalidInputError: If they are not finite.
            UnsupportedModelError: If a weight is parametrized or masked.
        """
        check_local_leaves(self._linears, "to which branches can be added")
        surgery.append_branches_(self._linears, self._gates, weights, gate_vectors)

    def prune_(self, tol: float = 0.0, *, keep_gates: bool = False) -> Tensor:
        """Remove, in place, branches whose product penalty is at most ``tol`` times the largest one.

        At least one branch is kept. With ``tol = 0`` the outputs are unchanged, unless hidden layers past the first one have
        biases: what those add to a branch of penalty zero goes with the branch. For optimizers see :meth:`add_branches_`.

        Args:
            tol: Relative to the largest penalty.
            keep_gates: Whether to keep one branch, dead or not, of each gate (with several GatedReLU layers of each
                combination): the gates say which networks a certificate speaks of.

        Returns:
            Numbers of the branches kept, in increasing order, int64: what indexes an optimizer's state.

        Raises:
            InvalidInputError: If ``tol`` is negative or NaN, or a weight is not finite.
            UnsupportedModelError: If a weight is parametrized or masked.
        """
        check_non_negative("tol", tol)
        check_local_leaves(self._linears, "from which branches can be removed")
        gates = torch.cat(self.gate_vectors(), dim=1) if keep_gates and self._gates else None
        kept = surgery.large_branches(self.branch_weights(), tol, kinds=gates)
        for stacked in self._stacks:
            stacked.keep_(kept)
        return kept

    def balance_(self) -> None:
        """Give all layers of a branch the same Frobenius norm, in place; outputs do not change up to rounding.

        Branches with a zero layer are left as they are. Hidden biases are scaled along.

        Raises:
            InvalidInputError: If a weight is not finite.
            UnsupportedModelError: If a weight is parametrized or masked.
        """
        check_local_leaves(self._linears, "which can be rescaled")
        surgery.balance_branches_(self._linears, self.branch_weights())

    def reset_parameters(self) -> None:
        """Draw all branches, biases and gates anew (after ``to_empty`` from the meta device, for example).

        Raises:
            UnsupportedModelError: If a weight is parametrized or masked.
        """
        check_leaves(self._linears, "which can be drawn anew")
        for stacked in self._stacks:
            stacked.reset_parameters()

    # Penalty

    def path_penalty(self, kind: str = "product") -> Tensor:
        """Return the path penalty summed over branches: a scalar, differentiable, without ``path_decay``.

        Args:
            kind: ``"product"``, ``"power"`` or ``"l2_path"``, see :func:`torch_strongdual.functional.path_penalty`.

        Raises:
            InvalidInputError: If ``kind`` is unknown.
            UnsupportedModelError: If it is ``"l2_path"`` and there are convolutions.
        """
        self._check_penalty(kind)
        return path_penalty(self.branch_weights(), kind).sum()

    def path_param_groups(self, path_decay: float, penalty: str = "product") -> list[dict[str, Any]]:
        """Return parameter groups for an optimizer that applies the path penalty.

        Args:
            path_decay: Strength of the penalty.
            penalty: ``"product"``, ``"power"`` or ``"l2_path"``.

        Returns:
            A group with all weights and the first-layer bias, in which ``"layer_index"`` says for each parameter in which
            layer's norm it counts; and, if there are any, a group with the other biases, whose ``"path_decay"`` is zero.

        Raises:
            InvalidInputError: If ``path_decay`` is negative or not finite, or ``penalty`` unknown.
            UnsupportedModelError: If it is ``"l2_path"`` and there are convolutions; if a weight is parametrized or masked.
        """
        self._check_penalty(penalty)
        return path_param_groups(self._linears, path_decay, penalty)

    def _check_penalty(self, kind: str) -> None:
        if self._num_convolutions and kind == "l2_path":
            raise UnsupportedModelError(
                "The 'l2_path' penalty sums over paths through linear layers; a convolution uses a weight on many paths. "
                "Expected 'product' or 'power' for a network with convolutions."
            )

    def extra_repr(self) -> str:
        """Number of branches, and how they are evaluated where that was asked for."""
        chunks = "" if self.chunk_size == "auto" else f", chunk_size={self.chunk_size}"
        return f"num_branches={self.num_branches}{chunks}{', recompute=True' if self.recompute else ''}"
