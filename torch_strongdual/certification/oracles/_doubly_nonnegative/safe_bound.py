"""Upper bounds from multipliers of the doubly nonnegative relaxation, proven in floating point."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from torch_strongdual.certification.oracles._doubly_nonnegative.levels import best_levels
from torch_strongdual.certification.oracles._doubly_nonnegative.lift import Lift
from torch_strongdual.certification.oracles._doubly_nonnegative.product_multipliers import ProductMultipliers
from torch_strongdual.certification.oracles._doubly_nonnegative.reduced_form import AbstractForm, DenseForm, SparseForm
from torch_strongdual.certification.oracles._verified_psd import gamma, semidefinite_shift

__all__ = ["safe_upper", "safe_upper_of_products"]

FloatArray = NDArray[np.float64]


def safe_upper(lift: Lift, multipliers: FloatArray) -> float:
    r"""Upper bound on :math:`G'u + \lambda'z` over the part of the unit sphere that ``lift`` describes; ``inf`` if not found.

    *Any* ``multipliers`` do: they are first moved to where :math:`e'Se \ge 0` for every true lifted vector e, namely S >= 0
    on products of z and s (free on :math:`z_i s_i = 0`), :math:`\|S_{u,z_i}\| \le S_{1,z_i}`, likewise for s, and 0 elsewhere.
    Then
    :math:`G'u + \lambda'z \le e'(C + S)e = g'Hg` with :math:`H = E'(C + S)E`. For any numbers a, b and c, subtracting
    :math:`c z_i s_i = 0` from the form, :math:`K = \operatorname{diag}(a, bI, 0) - H \succeq -\delta I` gives
    :math:`a + b - g'Hg \ge -\delta \|g\|^2`, where :math:`\|g\|^2 \le 2 + \sum_i \|x_i\|^2`. Neither S nor a, b, c need to be
    accurate; :math:`\delta` is proven by a Cholesky factorisation of the computed K.

    The computed H differs from the true one by at most :math:`\gamma |E|'|C + S||E|`, entry by entry; as
    :math:`|E||g|` is at most :math:`y = (1, 1_r, \|x_i\|, 2\|x_i\|)`, that changes the form by at most
    :math:`\gamma y'|C + S|y`.

    Args:
        lift: What to maximise, and which signs are decided.
        multipliers: Finite or not; only the symmetric part's upper triangle is read. Shape (1 + r + 2 n, 1 + r + 2 n).
    """
    if not np.isfinite(multipliers).all():
        return math.inf
    return _proven(lift, DenseForm(lift, multipliers))


def safe_upper_of_products(lift: Lift, multipliers: ProductMultipliers) -> float:
    """The same as :func:`safe_upper` from sparse multipliers: any do.

    Args:
        lift: What to maximise, and which signs are decided.
        multipliers: Finite or not.
    """
    return _proven(lift, SparseForm(lift, multipliers)) if multipliers.is_finite else math.inf


def _proven(lift: Lift, form: AbstractForm) -> float:
    reduced = form.reduced()
    if not np.isfinite(reduced).all():
        return math.inf
    try:
        levels = best_levels(lift, reduced)
    except np.linalg.LinAlgError:
        return math.inf
    if not math.isfinite(levels.total):
        return math.inf
    form.subtract(levels.price)
    first = 1 + lift.rank
    slack = -form.reduced()
    slack[0, 0] += levels.constant
    slack[np.arange(1, first), np.arange(1, first)] += levels.curvature
    shift = semidefinite_shift(slack)
    norms = np.linalg.norm(lift.rows, axis=1) * (1.0 + gamma(lift.rank + 4))
    sizes = np.concatenate([np.ones(first), norms, 2.0 * norms])
    # The last two are the rounding of the two additions to the diagonal, on |g_1| = ||u|| = 1.
    forming = form.magnitude(sizes) + abs(levels.constant) + abs(levels.curvature)
    upper = levels.constant + levels.curvature + gamma(4 * lift.length + 32) * forming
    upper += shift * (2.0 + float(norms @ norms)) * (1.0 + gamma(lift.num_rows + 8))
    return upper if math.isfinite(upper) else math.inf
