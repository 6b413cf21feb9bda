"""Functionals taken down the layers, against branches, exact maxima in the plane and rational arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.certification.oracles.test_depth_recursion import drawn
from tests.references.planar import exact_planar_dual_norm
from torch_strongdual.certification.oracles._depth.sample_groups import SampleGroups
from torch_strongdual.certification.oracles._depth.slope_tree import Choices, Functional, Leaf, SlopeTree

FloatArray = NDArray[np.float64]


class TestSlopeTree:
    @pytest.mark.parametrize(
        "slopes",
        [(0.0, 0.0), (0.1, 0.5), (0.0, 0.3), (0.5, 0.0), (0.1, 0.1, 0.1), (0.3, 0.0, 0.2), (0.0, 0.0, 0.0), (0.0,) * 4],
    )
    def test_every_choice_of_slopes_gives_a_bound(self, slopes: tuple[float, ...]) -> None:
        """Thousands of branches on small problems against the exact maxima of the leaves."""
        generator = np.random.default_rng(len(slopes))
        for seed in range(30):
            num_rows = int(generator.integers(3, 10))
            inputs, duals = (tensor.numpy() for tensor in drawn(seed, num_rows, 2))
            most = 3 if len(slopes) == 2 else 1
            tree = SlopeTree.of(duals[:, 0], slopes, _any_groups(generator, num_rows, number=6 * (seed % 2), most=most))
            choices = Choices(
                slopes=generator.standard_normal((tree.num_inner, num_rows)),
                flows=np.maximum(generator.standard_normal(tree.groups.number), 0.0),
            )
            upper = max(_planar_maximum(inputs, leaf) for leaf in tree.leaves(choices))
            assert upper >= _largest_of_random_branches(inputs, duals[:, 0], slopes, seed) - 1e-13

    @pytest.mark.parametrize("slopes", [(0.0, 0.0), (0.2, 0.1), (0.0, 0.3), (0.0, 0.0, 0.0)])
    def test_known_signs_bound_the_branches_that_have_them(self, slopes: tuple[float, ...]) -> None:
        generator = np.random.default_rng(1)
        for seed in range(40):
            num_rows = int(generator.integers(3, 8))
            inputs, duals = (tensor.numpy() for tensor in drawn(seed, num_rows, 2))
            units, weights = generator.standard_normal((3, 2)), generator.standard_normal(3)
            hidden = inputs @ (units / np.linalg.norm(units, axis=1, keepdims=True)).T
            for slope in slopes[:-1]:
                hidden = np.where(hidden > 0, hidden, slope * hidden)
            last = hidden @ (weights / np.abs(weights).sum())
            value = float(duals[:, 0] @ np.where(last > 0, last, slopes[-1] * last))
            most = 3 if len(slopes) == 2 else 1
            tree = SlopeTree.of(duals[:, 0], slopes, _any_groups(generator, num_rows, number=3 * (seed % 2), most=most))
            for sample in generator.choice(num_rows, 2, replace=False):
                tree = tree.with_sign(int(sample), float(np.sign(last[sample])))
            choices = Choices(
                slopes=generator.standard_normal((tree.num_inner, num_rows)),
                flows=np.maximum(generator.standard_normal(tree.groups.number), 0.0),
            )
            assert max(_planar_maximum(inputs, leaf) for leaf in tree.leaves(choices)) >= value - 1e-13

    def test_a_known_sign_takes_away_what_is_lost_on_the_other_side(self) -> None:
        """One sample, where it is not positive: nothing is gained, whatever its dual is."""
        tree = SlopeTree.of(np.array([5.0]), (0.0, 0.0)).with_sign(0, -1.0)
        leaves = tree.leaves(tree.middle())
        assert max(_planar_maximum(np.array([[1.0, 0.0]]), leaf) for leaf in leaves) == 0.0

    def test_functionals_are_rounded_upward_through_the_layers(self) -> None:
        generator = np.random.default_rng(0)
        functional = Functional(above=generator.standard_normal(100), below=generator.standard_normal(100))
        convex = functional.convexified(generator.standard_normal(100))
        assert (convex.above >= functional.above).all()
        assert (convex.below >= functional.below).all()
        assert (convex.above + convex.below >= 0).all()
        for slope in (0.0, 0.1, 1.0):
            deeper = functional.behind(slope, -1)
            assert np.array_equal(deeper.above, functional.below)
            assert (deeper.below.astype(np.longdouble) >= np.longdouble(slope) * functional.above.astype(np.longdouble)).all()
            assert deeper.below == pytest.approx(slope * functional.above, abs=1e-15)

    def test_convex_functionals_stay_as_they_are(self) -> None:
        functional = Functional(above=np.array([1.0, -1.0]), below=np.array([-1.0, 2.0]))
        convex = functional.convexified(np.array([7.0, 7.0]))
        assert np.array_equal(convex.above, functional.above)
        assert np.array_equal(convex.below, functional.below)

    def test_identities_give_the_linear_functional(self) -> None:
        duals = np.array([1.0, -2.0, 3.0])
        tree = SlopeTree.of(duals, (1.0, 1.0, 1.0))
        for leaf in tree.leaves(tree.middle()):
            assert np.array_equal(np.abs(leaf.functional.above), np.abs(duals))
            assert np.array_equal(leaf.functional.above, -leaf.functional.below)

    def test_groups_alone_are_one_more_leaf_of_deeper_relu_branches(self) -> None:
        groups = _any_groups(np.random.default_rng(0), 3, number=2)
        assert SlopeTree.of(np.ones(3), (0.0,) * 2, groups).num_leaves == 2
        for depth in (3, 5):
            assert SlopeTree.of(np.ones(3), (0.0,) * depth, groups).num_leaves == 3

    def test_groups_of_several_samples_behind_more_activations_are_refused(self) -> None:
        groups = _any_groups(np.random.default_rng(0), 5, number=9, most=3)
        for slopes in ((0.0, 0.0, 0.0), (0.1, 0.0, 0.2)):
            with pytest.raises(ValueError, match="groups of several samples need two activations"):
                SlopeTree.of(np.ones(5), slopes, groups)

    def test_leaves_are_what_the_groups_say(self) -> None:
        """Values of the problems handed to the inner oracle, against the formula written out; never below it."""
        generator = np.random.default_rng(0)
        rows, groups = generator.standard_normal((6, 3)), _any_groups(generator, 6, number=8, most=3)
        tree = SlopeTree.of(generator.standard_normal(6), (0.3, 0.1), groups)
        choices = Choices(slopes=generator.standard_normal((1, 6)), flows=generator.random(8))
        points = generator.standard_normal((50, 3))
        hidden = points @ rows.T
        for leaf in tree.leaves(choices):
            functional = leaf.functional
            expected = np.maximum(hidden, 0.0) @ functional.above + np.maximum(-hidden, 0.0) @ functional.below
            for p in range(8):
                members, weights = groups.members[groups.groups == p], groups.weights[groups.groups == p]
                combined = hidden[:, members] @ weights
                extra = np.maximum(leaf.sign * (hidden[:, groups.centres[p]] - combined), 0.0)
                if leaf.sign < 0:
                    extra += 0.7 * (np.maximum(hidden[:, members], 0.0) @ weights - np.maximum(combined, 0.0))
                expected += choices.flows[p] * extra
            assert leaf.on(rows).values(points) == pytest.approx(expected, abs=1e-12)
            per_unit = groups.values(hidden, leaf.sign, tree.bend) @ choices.flows
            assert per_unit + _without_groups(leaf).on(rows).values(points) == pytest.approx(expected, abs=1e-12)

    def test_deep_relu_needs_two_layers_of_functionals(self) -> None:
        assert SlopeTree.of(np.ones(3), (0.0,) * 7).num_inner == 1
        assert SlopeTree.of(np.ones(3), (0.0, 0.1, 0.0)).num_inner == 3


class TestSampleGroups:
    def test_what_groups_leave_over_is_rounded_both_ways(self) -> None:
        generator = np.random.default_rng(0)
        duals, groups = generator.standard_normal(5), _any_groups(generator, 5, number=40, most=3)
        flows = generator.random(40) * (generator.random(40) < 0.7)
        exact = [Fraction(dual) for dual in duals.tolist()]
        for i, flow in zip(groups.centres.tolist(), flows.tolist(), strict=True):
            exact[i] -= Fraction(flow)
        for p, j, weight in zip(groups.groups.tolist(), groups.members.tolist(), groups.weights.tolist(), strict=True):
            exact[j] += Fraction(float(flows[p])) * Fraction(weight)
        least, most = groups.left_over(duals, flows)
        assert all(low <= true <= high for low, true, high in zip(least.tolist(), exact, most.tolist(), strict=True))
        assert np.max(most - least) < 1e-14 * float(np.abs(duals).sum() + groups.sample_slopes(flows).sum())

    def test_rows_of_groups_are_off_by_no_more_than_they_say(self) -> None:
        generator = np.random.default_rng(0)
        rows, groups = generator.standard_normal((6, 3)), _any_groups(generator, 6, number=30, most=3)
        combined, limits = groups.combinations(rows), groups.rounding(rows)
        apart = rows[groups.centres] - combined
        for p in range(30):
            exact = [Fraction(0)] * 3
            for j, weight in zip(groups.members[groups.groups == p], groups.weights[groups.groups == p], strict=True):
                exact = [e + Fraction(float(weight)) * Fraction(float(x)) for e, x in zip(exact, rows[j], strict=True)]
            centre = [Fraction(float(x)) for x in rows[groups.centres[p]]]
            off = [Fraction(float(found)) - true for found, true in zip(combined[p], exact, strict=True)]
            off_apart = [Fraction(float(a)) - (x - true) for a, x, true in zip(apart[p], centre, exact, strict=True)]
            for errors in (off, off_apart):
                assert sum(error * error for error in errors) <= Fraction(float(limits[p])) ** 2


def _planar_maximum(rows: FloatArray, leaf: Leaf) -> float:
    """Maximum of the leaf's problem over the disc, without what rounding may take from it."""
    problem = leaf.on(rows)
    return exact_planar_dual_norm(problem.rows, problem.duals, problem.linear, one_sided=True)


def _without_groups(leaf: Leaf) -> Leaf:
    groups = SampleGroups.none(leaf.groups.num_samples)
    return Leaf(functional=leaf.functional, groups=groups, flows=np.zeros(0), sign=leaf.sign, bend=leaf.bend)


def _any_groups(generator: np.random.Generator, num_rows: int, *, number: int, most: int = 1) -> SampleGroups:
    """Groups of any samples, signs of their duals apart."""
    sizes = generator.integers(1, most + 1, size=number)
    groups = np.repeat(np.arange(number), sizes)
    return SampleGroups(
        centres=generator.integers(num_rows, size=number),
        groups=groups,
        members=generator.integers(num_rows, size=len(groups)),
        weights=np.exp(generator.standard_normal(len(groups))),
        num_samples=num_rows,
    )


def _largest_of_random_branches(inputs: FloatArray, duals: FloatArray, slopes: tuple[float, ...], seed: int) -> float:
    """``duals'phi`` (signed) of 300 branches with hidden widths 1 to 3."""
    generator = np.random.default_rng(seed)
    best = 0.0
    for index in range(3):
        width = index + 1
        hidden = np.broadcast_to(inputs, (100, *inputs.shape))
        fans = [inputs.shape[1], *(width,) * (len(slopes) - 1), 1]
        for fan_in, fan_out, slope in zip(fans[:-1], fans[1:], slopes, strict=True):
            layer = generator.standard_normal((100, fan_in, fan_out))
            hidden = hidden @ (layer / np.linalg.norm(layer, axis=(1, 2), keepdims=True))
            hidden = np.where(hidden >= 0, hidden, slope * hidden)
        best = max(best, float(np.max(hidden[:, :, 0] @ duals)))
    return best
