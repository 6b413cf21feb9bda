from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog
from torch import Tensor

from tests.contracts.oracle_cases import OracleCase, bent_spec, gated_spec, linear_spec
from tests.contracts.oracle_contract import OracleContract, check_witnesses
from tests.references.planar import exact_planar_dual_norm
from tests.references.sampled_deep_dual_norm import sampled_deep_dual_norm
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.dual_norm_bound import DualNormBound
from torch_strongdual.certification.oracles._depth.deep_witnesses import improved_branches, mixed_branch, valued_witnesses
from torch_strongdual.certification.oracles._depth.sample_groups import SampleGroups
from torch_strongdual.certification.oracles._depth.slope_search import find_slopes
from torch_strongdual.certification.oracles._depth.slope_tree import Leaf, SlopeTree
from torch_strongdual.certification.oracles.abstract_oracle import BoundRequest
from torch_strongdual.certification.oracles.abstract_two_layer_oracle import AbstractTwoLayerOracle
from torch_strongdual.certification.oracles.angular_sweep_oracle import AngularSweepOracle
from torch_strongdual.certification.oracles.depth_recursion import DepthRecursion
from torch_strongdual.certification.oracles.quadratic_relaxation import QuadraticRelaxation
from torch_strongdual.certification.oracles.row_space import RowSpace
from torch_strongdual.nn.branch_spec import BranchActivation, BranchSpec

FloatArray = NDArray[np.float64]


def spec_of(slopes: tuple[float, ...], *, in_features: int = 2, width: int = 6, num_outputs: int = 1) -> BranchSpec:
    activations = tuple(BranchActivation(negative_slope=slope) for slope in slopes)
    return BranchSpec(widths=(in_features, *(width,) * len(slopes), num_outputs), activations=activations)


def drawn(seed: int, num_rows: int, in_features: int, num_outputs: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(num_rows, in_features, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(num_rows, num_outputs, generator=generator, dtype=torch.float64)


def bound_of(
    spec: BranchSpec,
    inputs: Tensor,
    duals: Tensor,
    *,
    inner: AbstractTwoLayerOracle | None = None,
    rtol: float = 1e-2,
    target: float | None = None,
) -> DualNormBound:
    oracle = DepthRecursion(inner or AngularSweepOracle())
    request = BoundRequest(rtol=rtol, target=target, deadline=Deadline(30.0))
    return oracle.bound(oracle.init(spec, inputs), duals, request)


def reference(spec: BranchSpec, inputs: Tensor, duals: Tensor, *, num_starts: int = 48, num_steps: int = 120) -> float:
    """What ascent over explicit branches reaches."""
    return sampled_deep_dual_norm(
        inputs.numpy(),
        duals.numpy()[:, 0],
        hidden_widths=(*spec.hidden_widths[:-1], 1),
        slopes=spec.negative_slopes,
        num_starts=num_starts,
        num_steps=num_steps,
    )


class TestDepthRecursion(OracleContract):
    """On duals of one sign, where the dual norm of deep branches is that of two-layer ones."""

    rtol = 1e-2
    looseness = None

    def make_oracle(self) -> DepthRecursion:
        return DepthRecursion(AngularSweepOracle())

    def make_cases(self) -> list[OracleCase]:
        inputs, duals = drawn(0, 6, 2)
        duals = duals.abs()
        truth = exact_planar_dual_norm(inputs.numpy(), duals.numpy())
        mixed = OracleCase(name="mixed signs", spec=spec_of((0.1, 0.1)), inputs=inputs, dual_point=drawn(1, 6, 2)[1])
        positive = OracleCase(name="positive", spec=spec_of((0.0, 0.0)), inputs=inputs, dual_point=duals, truth=truth)
        return [positive, mixed]

    def make_unsupported_specs(self) -> list[BranchSpec]:
        gated = gated_spec(3, 2, 1, gates=(torch.ones(1, 3),))
        others = [
            linear_spec(3, 2, 2, 1),
            bent_spec(3, 2, 1),
            gated,
            spec_of((0.0, -0.1)),
            spec_of((0.0, 1.5)),
            spec_of((0.1,) * 7),
        ]
        return [*super().make_unsupported_specs(), *others]


class TestSoundness:
    @pytest.mark.parametrize("slopes", [(0.0, 0.0), (0.1, 0.1), (0.5, 0.0), (0.0, 0.0, 0.0), (0.1, 0.0, 0.3)])
    def test_ascent_over_branches_never_exceeds_the_bound(self, slopes: tuple[float, ...]) -> None:
        spec = spec_of(slopes)
        for seed in range(3):
            inputs, duals = drawn(seed, 3 + 2 * seed, 2)
            found = bound_of(spec, inputs, duals)
            assert found.lower <= found.upper
            assert found.upper >= reference(spec, inputs, duals) * (1 - 1e-13)
            check_witnesses(OracleCase(name=str(seed), spec=spec, inputs=inputs, dual_point=duals), found)

    def test_three_dimensions_with_a_relaxation_inside(self) -> None:
        spec = spec_of((0.0, 0.0), in_features=3)
        for seed in range(2):
            inputs, duals = drawn(seed, 8, 3)
            found = bound_of(spec, inputs, duals, inner=QuadraticRelaxation())
            assert found.upper >= reference(spec, inputs, duals) * (1 - 1e-13)

    def test_deeper_relu_branches_reach_what_two_layers_reach(self) -> None:
        for seed in range(3):
            inputs, duals = drawn(seed, 9, 2)
            two_layers = exact_planar_dual_norm(inputs.numpy(), duals.numpy())
            found = bound_of(spec_of((0.0, 0.0)), inputs, duals)
            assert found.upper >= two_layers * (1 - 1e-13)
            assert found.lower >= two_layers * (1 - 1e-6)

    def test_a_target_below_an_attained_value_is_not_proven(self) -> None:
        for seed in range(4):
            inputs, duals = drawn(seed, 9, 2)
            attained = reference(spec_of((0.0, 0.0)), inputs, duals)
            assert bound_of(spec_of((0.0, 0.0)), inputs, duals, target=0.99 * attained).upper >= attained * (1 - 1e-13)

    @pytest.mark.parametrize("num_outputs", [2, 3])
    def test_several_outputs(self, num_outputs: int) -> None:
        spec = spec_of((0.0, 0.0), num_outputs=num_outputs)
        inputs, duals = drawn(0, 7, 2, num_outputs)
        found = bound_of(spec, inputs, duals)
        generator = np.random.default_rng(0)
        directions = generator.standard_normal((6, num_outputs))
        for direction in directions / np.linalg.norm(directions, axis=1, keepdims=True):
            along = duals @ torch.from_numpy(direction[:, None])
            assert found.upper >= reference(spec, inputs, along, num_starts=24) * (1 - 1e-13)
        check_witnesses(OracleCase(name="outputs", spec=spec, inputs=inputs, dual_point=duals), found)
        assert f"of {num_outputs} outputs" in str(found.stats["outputs"])

    def test_outputs_of_rank_one_are_one_output(self) -> None:
        """Two classes: the columns of the dual point are opposite."""
        inputs, duals = drawn(0, 9, 2)
        alone = bound_of(spec_of((0.0, 0.0)), inputs, duals)
        found = bound_of(spec_of((0.0, 0.0), num_outputs=2), inputs, torch.cat([duals, -duals], dim=1))
        assert found.upper == pytest.approx(2**0.5 * alone.upper, rel=1e-2)
        assert found.lower == pytest.approx(2**0.5 * alone.lower, rel=1e-2)

    @pytest.mark.parametrize("num_outputs", [2, 3])
    def test_duals_without_negative_entries_have_the_two_layer_norm(self, num_outputs: int) -> None:
        """``||Lam'(h)_+||`` is then monotone in ``(h)_+``, which is at most a mixture of features."""
        inputs, duals = drawn(4, 10, 2, num_outputs)
        truth = exact_planar_dual_norm(inputs.numpy(), duals.abs().numpy())
        found = bound_of(spec_of((0.0, 0.0), num_outputs=num_outputs), inputs, duals.abs())
        assert truth * (1 - 1e-13) <= found.upper <= 1.03 * truth
        assert found.lower == pytest.approx(truth, rel=1e-4)

    def test_outputs_of_samples_on_perpendicular_rays(self) -> None:
        """Every sample has its own output, rows are orthonormal: features are the unit vectors without negative entries."""
        duals = torch.diag(torch.tensor([3.0, -4.0])).double()
        found = bound_of(spec_of((0.0, 0.0), num_outputs=2), torch.eye(2).double(), duals)
        assert 4.0 <= found.upper <= 4.0 * 1.02
        assert found.lower == pytest.approx(4.0, rel=1e-6)

    def test_what_the_inner_oracle_refuses_leaves_a_trivial_bound(self) -> None:
        inputs, duals = drawn(0, 9, 3)
        found = bound_of(spec_of((0.0, 0.0), in_features=3), inputs, duals)
        assert found.upper == pytest.approx(float(inputs.norm() * duals.norm()))
        assert "rank" in str(found.stats["limited_by"])


class TestKnownValues:
    @pytest.mark.parametrize("depth", [2, 3])
    def test_duals_of_one_sign_have_the_two_layer_norm(self, depth: int) -> None:
        inputs, duals = drawn(3, 12, 2)
        truth = exact_planar_dual_norm(inputs.numpy(), duals.abs().numpy())
        for sign in (1.0, -1.0):
            found = bound_of(spec_of((0.0,) * depth), inputs, sign * duals.abs())
            assert truth * (1 - 1e-14) <= found.upper <= truth * (1 + 1e-9)
            assert found.lower == pytest.approx(truth, rel=1e-6)

    def test_data_of_rank_one(self) -> None:
        """Two rays; with duals of one sign on each of them the larger of the two sums."""
        generator = np.random.default_rng(0)
        for _ in range(3):
            t, v = generator.standard_normal(8), generator.standard_normal(3)
            duals = np.abs(generator.standard_normal(8)) * np.where(t > 0, 1.0, -1.0)
            sides = [abs(float(duals @ np.maximum(sign * t, 0.0))) for sign in (1, -1)]
            truth = float(np.linalg.norm(v)) * max(sides)
            inputs = torch.from_numpy(np.outer(t, v))
            found = bound_of(spec_of((0.0, 0.0), in_features=3), inputs, torch.from_numpy(duals[:, None]))
            assert truth * (1 - 1e-13) <= found.upper <= truth * (1 + 2e-2)
            assert found.lower == pytest.approx(truth, rel=1e-9)

    def test_almost_linear_activations_give_the_norm_of_the_linear_map(self) -> None:
        inputs, duals = drawn(0, 10, 2)
        truth = float((inputs.T @ duals).norm())
        found = bound_of(spec_of((1 - 1e-9, 1 - 1e-9)), inputs, duals, rtol=1e-4)
        assert found.upper == pytest.approx(truth, rel=1e-3)
        assert found.lower == pytest.approx(truth, rel=1e-6)

    def test_identity_layers_change_nothing(self) -> None:
        inputs, duals = drawn(1, 8, 2)
        plain = bound_of(spec_of((0.1, 0.0)), inputs, duals)
        for slopes in ((1.0, 0.1, 0.0), (0.1, 1.0, 0.0), (0.1, 0.0, 1.0)):
            padded = bound_of(spec_of(slopes), inputs, duals)
            assert padded.upper == pytest.approx(plain.upper, rel=1e-9)

    def test_biases_enter_as_a_column_of_ones(self) -> None:
        inputs, duals = drawn(2, 8, 1)
        activations = (BranchActivation(), BranchActivation())
        with_bias = BranchSpec(widths=(1, 3, 3, 1), activations=activations, input_bias=True)
        appended = torch.cat([inputs, torch.ones_like(inputs)], dim=1)
        first, second = bound_of(with_bias, inputs, duals), bound_of(spec_of((0.0, 0.0)), appended, duals)
        assert first.upper == second.upper


class TestTightness:
    @pytest.mark.parametrize("slopes", [(0.0, 0.0), (0.0, 0.0, 0.0), (0.1, 0.2)])
    def test_parallel_samples_whose_duals_cancel_count_for_nothing(self, slopes: tuple[float, ...]) -> None:
        """Features of ``x`` and ``2 x`` are in the ratio 1 : 2, so that duals 2 and -1 add up to nothing."""
        inputs, _ = drawn(0, 4, 2)
        duals = torch.tensor([[2.0], [-1.0], [0.0], [0.5]]).double()
        inputs[1] = 2.0 * inputs[0]
        truth = 0.5 * float(inputs[3].norm())
        assert truth * (1 - 1e-13) <= bound_of(spec_of(slopes), inputs, duals, rtol=1e-3).upper <= truth * (1 + 1e-3)

    def test_noise_costs_little_where_samples_are_dense(self) -> None:
        """Lines alone give 2.7 to 3.4 times what a branch attains."""
        inputs, duals = drawn(0, 150, 2)
        assert bound_of(spec_of((0.0, 0.0)), inputs, duals).ratio <= 1.6

    def test_never_looser_than_lines_alone(self) -> None:
        for seed in range(2):
            inputs, duals = drawn(seed, 24, 2)
            rows, column = RowSpace.of(inputs.numpy()).rows, duals.numpy()[:, 0]
            groups = SampleGroups.neighbours(rows, column, most_pairs=100, most_stars=100)
            tree = SlopeTree.of(column, (0.0, 0.0), groups)
            search = find_slopes(tree, rows, starts=np.zeros((0, 2)), rtol=1e-3, enough=0.0, deadline=Deadline())
            found = max(_planar_maximum(rows, leaf) for leaf in search.tree.leaves(search.choices))
            assert found <= _best_lines(rows, column) * (1 + 1e-3)

    def test_residuals_of_fitted_networks(self) -> None:
        ratios = []
        for seed, num_rows in enumerate((20, 40)):
            for num_steps in (80, 400):
                inputs, residual = _fitted(seed, num_rows, num_steps)
                ratios.append(bound_of(spec_of((0.0, 0.0)), inputs, residual).ratio)
        assert float(np.median(ratios)) <= 1.1
        assert max(ratios) < math.inf

    def test_optimised_slopes_are_better_than_middle_ones(self) -> None:
        inputs, duals = drawn(0, 20, 2)
        found = bound_of(spec_of((0.0, 0.0)), inputs, duals)
        middle = 0.0
        for sign in (1.0, -1.0):
            tree = SlopeTree.of(sign * duals.numpy()[:, 0], (0.0, 0.0))
            middle = max([middle, *(_planar_maximum(inputs.numpy(), leaf) for leaf in tree.leaves(tree.middle()))])
        assert found.upper <= 0.95 * middle


class TestMemory:
    def test_asked_again_it_goes_on_where_it_stopped(self) -> None:
        inputs, duals = drawn(0, 60, 2)
        oracle = DepthRecursion(AngularSweepOracle())
        fresh = oracle.bound(oracle.init(spec_of((0.0, 0.0)), inputs), duals, BoundRequest(deadline=Deadline(30.0)))
        state = oracle.init(spec_of((0.0, 0.0)), inputs)
        short = oracle.bound(state, duals, BoundRequest(deadline=Deadline(1e-9)))
        longer = oracle.bound(state, duals, BoundRequest(deadline=Deadline(30.0)))
        again = oracle.bound(state, duals, BoundRequest(deadline=Deadline(30.0)))
        assert short.upper > 1.05 * longer.upper
        assert longer.upper == pytest.approx(fresh.upper, rel=1e-2)
        assert again.upper <= longer.upper

    def test_other_duals_are_not_taken_for_known_ones(self) -> None:
        inputs, duals = drawn(0, 9, 2)
        oracle = DepthRecursion(AngularSweepOracle())
        state = oracle.init(spec_of((0.0, 0.0)), inputs)
        oracle.bound(state, duals, BoundRequest(deadline=Deadline(30.0)))
        moved = duals.clone()
        moved[0] += 3.0
        found = oracle.bound(state, moved, BoundRequest(deadline=Deadline(30.0)))
        assert found.upper >= reference(spec_of((0.0, 0.0)), inputs, moved) * (1 - 1e-13)
        assert found.upper == pytest.approx(bound_of(spec_of((0.0, 0.0)), inputs, moved).upper, rel=1e-2)


class TestReasons:
    def test_says_that_the_relaxation_is_at_its_best(self) -> None:
        inputs, duals = drawn(0, 12, 2)
        found = bound_of(spec_of((0.3, 0.0, 0.3)), inputs, duals)
        assert found.ratio > 1.01
        assert "relaxation of depth" in str(found.stats["limited_by"])
        assert "more time will not help" in str(found.stats["limited_by"])

    def test_says_that_time_ran_out(self) -> None:
        inputs, duals = drawn(0, 60, 2)
        oracle = DepthRecursion(AngularSweepOracle())
        found = oracle.bound(oracle.init(spec_of((0.0, 0.0)), inputs), duals, BoundRequest(deadline=Deadline(1e-9)))
        assert found.upper >= found.lower > 0
        assert str(found.stats["limited_by"]).startswith("time")

    def test_says_nothing_where_the_bound_is_as_tight_as_asked_for(self) -> None:
        inputs, duals = drawn(3, 12, 2)
        assert "limited_by" not in bound_of(spec_of((0.0, 0.0)), inputs, duals.abs()).stats


class TestWitnesses:
    def test_several_units_are_mixed_at_no_cost_in_norm(self) -> None:
        inputs, duals = drawn(0, 9, 3)
        spec = BranchSpec(widths=(3, 4, 2, 3, 1), activations=(BranchActivation(),) * 3)
        units = np.linalg.qr(np.random.default_rng(0).standard_normal((3, 3)))[0]
        weights = np.array([0.5, -0.3, 0.2])  # absolute values add up to one
        branch = mixed_branch(spec, units, weights)
        assert branch is not None
        found = valued_witnesses(spec, inputs.numpy(), duals.numpy(), [branch])[0]
        features = np.maximum(np.maximum(inputs.numpy() @ units.T, 0.0) @ weights, 0.0)
        assert found.value == pytest.approx(abs(float(features @ duals.numpy()[:, 0])), rel=1e-12)
        check_witnesses(
            OracleCase(name="mixed", spec=spec, inputs=inputs, dual_point=duals),
            DualNormBound(upper=math.inf, lower=found.value, witnesses=(found,)),
        )

    def test_ascent_starts_from_the_witnesses_and_improves_a_poor_one(self) -> None:
        inputs, duals = drawn(0, 9, 3)
        spec = spec_of((0.0, 0.1), in_features=3)
        generator = torch.Generator().manual_seed(0)
        poor = tuple(torch.randn(out, fan_in, generator=generator, dtype=torch.float64) for out, fan_in in ((6, 3), (6, 6)))
        before = valued_witnesses(spec, inputs.numpy(), duals.numpy(), [poor])
        found = improved_branches(spec, inputs.numpy(), duals.numpy(), before, Deadline())
        after = valued_witnesses(spec, inputs.numpy(), duals.numpy(), found)
        assert after[0].value > 1.2 * before[0].value
        assert improved_branches(spec, inputs.numpy(), duals.numpy(), (), Deadline()) == []

    def test_more_units_than_the_layer_has_are_left_out(self) -> None:
        spec = BranchSpec(widths=(3, 2, 1, 1), activations=(BranchActivation(),) * 2)
        branch = mixed_branch(spec, np.eye(3), np.array([0.2, -0.5, 0.3]))
        assert branch is not None
        assert branch[0].shape == (2, 3)
        assert torch.count_nonzero(branch[0][:, 0]) == 0  # the unit of least weight

    def test_linear_layers_in_between_are_left_to_single_units(self) -> None:
        activations = (BranchActivation(), BranchActivation(negative_slope=1.0), BranchActivation())
        spec = BranchSpec(widths=(3, 2, 2, 2, 1), activations=activations)
        assert mixed_branch(spec, np.eye(3), np.ones(3) / 3) is None


def _planar_maximum(rows: FloatArray, leaf: Leaf) -> float:
    """Maximum of the leaf's problem over the disc, without what rounding may take from it."""
    problem = leaf.on(rows)
    return exact_planar_dual_norm(problem.rows, problem.duals, problem.linear, one_sided=True)


def _best_lines(rows: FloatArray, duals: FloatArray) -> float:
    """The bound for two ReLUs that the best lines give, no group of samples: a linear program over directions of the plane."""
    angles = np.linspace(0.0, 2.0 * np.pi, 2000)
    features = np.maximum(np.stack([np.cos(angles), np.sin(angles)], axis=1) @ rows.T, 0.0)
    gained, lost = features @ np.maximum(duals, 0.0), features * np.maximum(-duals, 0.0)
    # Slopes, then the level: gained - lost t <= level, lost t <= level.
    left = np.concatenate([np.hstack([-lost, -np.ones((2000, 1))]), np.hstack([lost, -np.ones((2000, 1))])])
    found = linprog(
        np.append(np.zeros(len(rows)), 1.0),
        A_ub=left,
        b_ub=np.concatenate([-gained, np.zeros(2000)]),
        bounds=[*[(0.0, 1.0)] * len(rows), (0.0, None)],
    )
    assert found.status == 0
    return float(found.fun)


def _fitted(seed: int, num_rows: int, num_steps: int) -> tuple[Tensor, Tensor]:
    """Inputs, and the residual of a two-layer net after some steps of Adam on noisy targets of a small teacher."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = normal(num_rows, 2)
    targets = (inputs @ normal(2, 3)).relu() @ normal(3, 1)
    targets = targets + 0.5 * targets.std() * normal(num_rows, 1)
    path_decay = 0.1 * exact_planar_dual_norm(inputs.numpy(), targets.numpy())
    first, last = normal(2, 30).requires_grad_(), normal(30, 1).mul(0.1).requires_grad_()
    optimizer = torch.optim.Adam([first, last], lr=0.03)
    for _ in range(num_steps):
        optimizer.zero_grad()
        penalty = 0.5 * path_decay * (first.square().sum() + last.square().sum())
        loss = 0.5 * (targets - (inputs @ first).relu() @ last).square().sum() + penalty
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        return inputs, targets - (inputs @ first).relu() @ last
