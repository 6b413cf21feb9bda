"""Functionals of deep pre-activations, taken down the layers to functionals of the first one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._depth.sample_groups import SampleGroups
from torch_strongdual.certification.oracles._verified_psd import gamma
from torch_strongdual.certification.oracles.row_space import UNIT_ROUNDOFF
from torch_strongdual.certification.oracles.sphere_problem import SphereProblem

__all__ = ["Choices", "Functional", "Leaf", "SlopeTree"]

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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Choices:
    r"""What a bound may choose freely: any numbers are valid.

    Args:
        slopes: :math:`\tau` of every inner node, shape (num_inner, n).
        flows: How much of the duals each group takes, nonnegative, shape (p,).
    """

    slopes: FloatArray
    flows: FloatArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Leaf:
    r"""A functional of the first pre-activations ``X u``: f(h), and what the groups add.

    With flow F and :math:`y = \sum_j c_j h_j` that is :math:`F (h_i - y)_+` for sign +1, and for -1
    :math:`F (y - h_i)_+ + F b (\sum_j c_j (h_j)_+ - (y)_+)`, whose last term vanishes for pairs.

    Args:
        functional: f.
        groups: Samples i and j, weights c.
        flows: F, nonnegative.
        sign: Product of the signs on the way from the root.
        bend: b, one minus the slope left of zero of the activation on ``X u``.
    """

    functional: Functional
    groups: SampleGroups
    flows: FloatArray
    sign: float
    bend: float

    @property
    def is_never_positive(self) -> bool:
        """Whether the maximum is certainly zero."""
        return self.functional.is_never_positive and not self.flows.any()

    @property
    def sample_slopes(self) -> FloatArray:
        """Upper bounds on Lipschitz constants in each sample."""
        return self.functional.sample_slopes + (1.0 if self.sign > 0 else 3.0) * self.groups.sample_slopes(self.flows)

    def on(self, rows: FloatArray) -> SphereProblem:
        r"""The one-sided problem :math:`\max f(Xu)`: duals :math:`\alpha + \beta`, rounded up, and :math:`-X'\beta`."""
        duals = self.functional.above + self.functional.below
        # Rounding up keeps the bound valid, since (h)_+ >= 0; -X'beta is rounded to nearest, which the caller has to allow for.
        duals = np.where(duals != 0, np.nextafter(duals, np.inf), duals)
        linear = -(rows.T @ self.functional.below)[:, None]
        used = self.flows > 0
        if used.any():
            combined = self.groups.combinations(rows)
            apart = self.sign * (rows[self.groups.centres] - combined)
            several = used & (self.groups.sizes > 1) & (self.sign < 0)
            if several.any():
                added = duals + self.bend * self.groups.member_duals(self.flows)
                duals = np.where(added != duals, np.nextafter(added, np.inf), duals)
            rows = np.concatenate([rows, apart[used], combined[several]])
            taken = self.flows[several] * (self.bend * (1.0 - 8 * UNIT_ROUNDOFF))
            duals = np.concatenate([duals, self.flows[used], -taken])
        return SphereProblem(rows=rows, duals=duals[:, None], linear=linear, one_sided=True)

    def rounding(self, rows: FloatArray) -> float:
        """What the value of :meth:`on` is off by on the unit ball: sums of n terms in ``-X'beta``, and rows of groups."""
        num_terms = rows.shape[0] + rows.shape[1] + 4
        share = float(np.abs(self.functional.below) @ np.linalg.norm(rows, axis=1))
        return gamma(num_terms) * share + 2.0 * float(self.flows @ self.groups.rounding(rows)) * (
            1.0 + gamma(len(self.flows) + 4)
        )


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

    Groups of samples may be taken out of the root and bounded together, see :class:`SampleGroups`.

    Args:
        duals: :math:`\lambda` (n,).
        last_slope: Slope left of zero of the last activation.
        slopes: Slopes left of zero of the activations below, last layer first.
        groups: What may be bounded together; pairs only, unless there are two activations.
        is_deeper: Whether more ReLUs follow than ``slopes`` says (all of them ReLU): one more leaf, of the groups alone.
        signs: Of the last pre-activations where they are known, (n,), 0 elsewhere; ``None`` if none is. The leaves then bound
            the maximum over pre-activations with these signs.
    """

    duals: FloatArray
    last_slope: float
    slopes: tuple[float, ...]
    groups: SampleGroups
    is_deeper: bool = False
    signs: FloatArray | None = None

    @classmethod
    def of(cls, duals: FloatArray, activations: Sequence[float], groups: SampleGroups | None = None) -> SlopeTree:
        r"""Tree of :math:`\lambda' s(g)`, ``activations`` being all slopes, first layer first.

        If all are zero two suffice: :math:`\tau = \alpha` at each further layer leaves the functionals as they are, and a
        deeper ReLU branch reaches what a shallower one does, so that the bound does not depend on the depth beyond three
        (beyond two without groups).
        """
        kept = tuple(activations)
        groups = SampleGroups.none(len(duals)) if groups is None else groups
        is_deeper = not any(kept) and len(kept) > 2
        if not any(kept):
            kept = kept[:2]
        if (is_deeper or len(kept) > 2) and (groups.sizes > 1).any():
            raise ValueError("groups of several samples need two activations")
        return cls(duals=duals, last_slope=kept[-1], slopes=kept[-2::-1], groups=groups, is_deeper=is_deeper)

    @property
    def num_inner(self) -> int:
        """Number of nodes that are convexified."""
        return int(2 ** len(self.slopes) - 1)

    @property
    def num_leaves(self) -> int:
        """Number of leaves."""
        return self.num_inner + 1 + int(self.is_deeper)

    @property
    def bend(self) -> float:
        """One minus the slope left of zero of the first activation."""
        return 1.0 - self.slopes[-1]

    def slope_at(self, node: int) -> float:
        """Slope of the activation between an inner ``node`` and its children."""
        return self.slopes[(node + 1).bit_length() - 1]

    def sign_at(self, node: int) -> float:
        """Product of the signs on the way from the root to ``node``."""
        sign = 1.0
        while node > 0:
            sign = sign if node % 2 == 1 else -sign
            node = (node - 1) // 2
        return sign

    def leaf_sign(self, leaf: int) -> float:
        """The same of a leaf; +1 for that of the groups alone."""
        return 1.0 if leaf > self.num_inner else self.sign_at(self.num_inner + leaf)

    def with_groups(self, groups: SampleGroups) -> SlopeTree:
        """The same tree with other groups."""
        return replace(self, groups=groups)

    def with_sign(self, sample: int, sign: float) -> SlopeTree:
        """For the pre-activations that have ``sign`` at ``sample`` in addition."""
        signs = np.zeros(len(self.duals)) if self.signs is None else self.signs.copy()
        signs[sample] = sign
        return replace(self, signs=signs)

    def _convexified(self, node: int, functional: Functional, slopes: FloatArray) -> Functional:
        r"""Convex and nowhere smaller; at the root only where the signs are those known.

        Where :math:`g \le 0` every line :math:`\tau g` with :math:`-\tau \ge \beta` is above; where :math:`g \ge 0`, every one
        with :math:`\tau \ge \alpha`.
        """
        found = functional.convexified(slopes)
        if node or self.signs is None:
            return found
        tau = np.where(self.signs < 0, np.minimum(slopes, -functional.below), np.maximum(slopes, functional.above))
        known = self.signs != 0
        return Functional(above=np.where(known, tau, found.above), below=np.where(known, -tau, found.below))

    def root(self, flows: FloatArray) -> Functional:  # shape: (p,)
        """Functional of the pre-activations of the last activation, without what the groups take; rounded upward."""
        least, most = self.groups.left_over(self.duals, flows)
        return Functional(above=most, below=_product_rounded_up(self.last_slope, -least))

    def nodes(self, choices: Choices) -> list[Functional]:
        r"""All functionals, groups apart: the inner ones convexified with ``choices`` of :math:`\tau`, then the leaves."""
        found = [self.root(choices.flows)]
        for node in range(self.num_inner):
            found[node] = self._convexified(node, found[node], choices.slopes[node])
            found.extend(found[node].behind(self.slope_at(node), sign) for sign in (1, -1))
        return found

    def leaves(self, choices: Choices) -> list[Leaf]:
        """Functionals of the first pre-activations ``X u``."""
        functionals = self.nodes(choices)[self.num_inner :]
        if self.is_deeper:
            nothing = np.zeros(len(self.duals))
            functionals.append(Functional(above=nothing, below=nothing))
        signs = [self.leaf_sign(leaf) for leaf in range(len(functionals))]
        return [
            Leaf(functional=functional, groups=self.groups, flows=choices.flows, sign=sign, bend=self.bend)
            for functional, sign in zip(functionals, signs, strict=True)
        ]

    def middle(self) -> Choices:
        r"""Choices of :math:`\tau` in the middle of their ranges, no groups."""
        slopes = np.zeros((self.num_inner, len(self.duals)))
        flows = np.zeros(self.groups.number)
        found = [self.root(flows)]
        for node in range(self.num_inner):
            slopes[node] = 0.5 * (found[node].above - found[node].below)
            found[node] = self._convexified(node, found[node], slopes[node])
            found.extend(found[node].behind(self.slope_at(node), sign) for sign in (1, -1))
        return Choices(slopes=slopes, flows=flows)
