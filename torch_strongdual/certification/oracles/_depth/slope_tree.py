"""Functionals of deep pre-activations, taken down the layers to functionals of the first one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles.sphere_problem import SphereProblem

__all__ = ["Functional", "SlopeTree"]

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Functional:
    r""":math:`f(h) = \sum_i \alpha_i (h_i)_+ + \beta_i (-h_i)_+` of the pre-activations h of one layer on all samples.

    Args:
        above: :math:`\alpha` (n,).
        below: :math:`\beta` (n,).
    """

    above: FloatArray
    below: FloatArray

    @property
    def is_never_positive(self) -> bool:
        """Whether the maximum is certainly zero, at ``h = 0``."""
        return bool((self.above <= 0).all() and (self.below <= 0).all())

    @property
    def sample_slopes(self) -> FloatArray:
        """Lipschitz constants in each sample."""
        return np.maximum(np.abs(self.above), np.abs(self.below))

    def convexified(self, slopes: FloatArray) -> Functional:
        r"""A convex functional that is nowhere smaller.

        Where :math:`\alpha + \beta < 0` the term is the concave :math:`\min(\alpha h, -\beta h) \le \tau h` for every
        :math:`\tau \in [\alpha, -\beta]`; ``slopes`` (:math:`\tau`) are clipped to that range. Nothing is rounded: the sign of
        a floating-point sum is right, and so are negation and clipping.
        """
        concave = self.above + self.below < 0
        tau = np.clip(slopes, self.above, np.maximum(-self.below, self.above))
        return Functional(above=np.where(concave, tau, self.above), below=np.where(concave, -tau, self.below))

    def behind(self, slope: float, sign: int) -> Functional:
        r"""Of h, with :math:`g = \pm s(h)` put in, s the activation with ``slope`` >= 0 left of zero; rounded upward."""
        first, last = (self.above, self.below) if sign > 0 else (self.below, self.above)
        return Functional(above=first, below=_product_rounded_up(slope, last))

    def on(self, rows: FloatArray) -> SphereProblem:
        r"""The one-sided problem :math:`\max f(Xu)`: duals :math:`\alpha + \beta`, rounded up, and :math:`-X'\beta`."""
        duals = self.above + self.below
        # Rounding up keeps the bound valid, since (h)_+ >= 0; -X'beta is rounded to nearest, which the caller has to allow for.
        duals = np.where(duals != 0, np.nextafter(duals, np.inf), duals)
        return SphereProblem(rows=rows, duals=duals[:, None], linear=-(rows.T @ self.below)[:, None], one_sided=True)


def _product_rounded_up(factor: float, values: FloatArray) -> FloatArray:
    """``factor * values``, never below the exact product."""
    if factor in (0.0, 1.0):
        return factor * values + 0.0
    product = factor * values
    return np.where(values != 0, np.nextafter(product, np.inf), 0.0)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SlopeTree:
    r"""What remains of a functional of the last pre-activations after convexifying it layer by layer.

    The pre-activations g of a layer lie in the absolute convex hull of the features :math:`\phi` of unit branches that end
    below it: :math:`g = \sum_j w_j \|w'_j\| \phi_j` with :math:`\sum |w_j| \|w'_j\| \le \|w\| \|W'\| \le 1`. A convex f attains
    its maximum over the hull at some :math:`+\phi` or :math:`-\phi`, and :math:`\phi = s(h)` with h one layer deeper. So every
    layer replaces a functional by two, one for each sign; the dual norm is at most the largest maximum among the leaves.
    Nodes are numbered as in a heap: the children of i are 2i + 1 (plus) and 2i + 2 (minus).

    Args:
        root: Functional of the pre-activations of the last activation.
        slopes: Slopes left of zero of the activations below, last layer first.
    """

    root: Functional
    slopes: tuple[float, ...]

    @classmethod
    def of(cls, duals: FloatArray, activations: Sequence[float]) -> SlopeTree:  # shape of duals: (n,)
        r"""Tree of :math:`\lambda' s(g)`, ``activations`` being all slopes, first layer first.

        If all are zero two suffice: :math:`\tau = \alpha` at each further layer leaves the functionals as they are, and a
        deeper ReLU branch reaches what a shallower one does, so that the bound does not depend on the depth beyond two.
        """
        kept = tuple(activations)
        if not any(kept):
            kept = kept[:2]
        root = Functional(above=duals, below=_product_rounded_up(kept[-1], -duals))
        return cls(root=root, slopes=kept[-2::-1])

    @property
    def num_inner(self) -> int:
        """Number of nodes that are convexified."""
        return int(2 ** len(self.slopes) - 1)

    def slope_at(self, node: int) -> float:
        """Slope of the activation between an inner ``node`` and its children."""
        return self.slopes[(node + 1).bit_length() - 1]

    def nodes(self, choices: FloatArray) -> list[Functional]:  # shape: (num_inner, n)
        r"""All functionals: the inner ones convexified with ``choices`` of :math:`\tau`, then the leaves."""
        found = [self.root]
        for node in range(self.num_inner):
            found[node] = found[node].convexified(choices[node])
            found.extend(found[node].behind(self.slope_at(node), sign) for sign in (1, -1))
        return found

    def leaves(self, choices: FloatArray) -> list[Functional]:
        """Functionals of the first pre-activations ``X u``."""
        return self.nodes(choices)[self.num_inner :]

    def middle(self) -> FloatArray:  # shape: (num_inner, n)
        r"""Choices of :math:`\tau` in the middle of their ranges."""
        choices = np.zeros((self.num_inner, len(self.root.above)))
        found = [self.root]
        for node in range(self.num_inner):
            choices[node] = 0.5 * (found[node].above - found[node].below)
            found[node] = found[node].convexified(choices[node])
            found.extend(found[node].behind(self.slope_at(node), sign) for sign in (1, -1))
        return choices
