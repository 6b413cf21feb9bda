"""What every dual norm oracle has to fulfil. Subclass :class:`OracleContract` and give an oracle and cases."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.references.sampled_dual_norm import sampled_dual_norm
from torch_strongdual.certification.deadline import Deadline
from torch_strongdual.certification.dual_norm_bound import DualNormBound, Witness
from torch_strongdual.certification.oracles.abstract_oracle import AbstractDualNormOracle, BoundRequest
from torch_strongdual.errors import UnsupportedModelError
from torch_strongdual.functional.branch_features import branch_features
from torch_strongdual.nn.branch_spec import BranchActivation, BranchSpec

from .oracle_cases import OracleCase

__all__ = ["OracleContract", "check_witnesses"]

REFERENCE_ERROR = 1e-13  # of ||X||_F ||Lam||_F: what the truth of a case may be wrong by


class OracleContract:
    """Inherited tests. Class attributes say what the oracle promises.

    Args:
        rtol: Asked for in every request.
        looseness: Largest ``upper / lower`` on the cases; ``None`` promises nothing.
        seconds: Time each call gets.
        proves: Whether upper bounds are finite; ``False`` for searches.
    """

    rtol: float = 1e-9
    looseness: float | None = 1.0 + 1e-9
    seconds: float = 20.0
    proves: bool = True
    _cases: list[OracleCase]
    _bounds: dict[OracleCase, DualNormBound]

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls._cases, cls._bounds = [], {}

    def make_oracle(self) -> AbstractDualNormOracle:
        raise NotImplementedError

    def make_cases(self) -> list[OracleCase]:
        raise NotImplementedError

    def make_unsupported_specs(self) -> list[BranchSpec]:
        return [BranchSpec(widths=(3, 2, 2, 1), activations=(BranchActivation(),) * 2, hidden_bias_layers=(1,))]

    # ---------------------------------------------------------------- helpers

    @property
    def cases(self) -> list[OracleCase]:
        """What :meth:`make_cases` gives, made once a class: the truths take enumerations."""
        if not self._cases:
            self._cases.extend(self.make_cases())
        return self._cases

    def usual_bound(self, case: OracleCase) -> DualNormBound:
        """The bound of ``case``. Most tests compare with that of one of :attr:`cases` as it is: computed once a class."""
        if not any(case is one for one in self.cases):
            return self.bound(case)
        if case not in self._bounds:
            self._bounds[case] = self.bound(case)
        return self._bounds[case]

    def bound(self, case: OracleCase, *, target: float | None = None, seconds: float | None = None) -> DualNormBound:
        """One call on a fresh state."""
        oracle = self.make_oracle()
        return oracle.bound(oracle.init(case.spec, case.inputs), case.dual_point, self.request(target, seconds))

    def request(self, target: float | None = None, seconds: float | None = None) -> BoundRequest:
        return BoundRequest(rtol=self.rtol, target=target, deadline=Deadline(self.seconds if seconds is None else seconds))

    def check_same(self, case: OracleCase, other: OracleCase, factor: float = 1.0) -> None:
        """``other`` has ``factor`` times the dual norm of ``case``: the intervals have to overlap."""
        first, second = self.usual_bound(case), self.bound(other)
        error = 2 * REFERENCE_ERROR * case.magnitude()
        assert first.lower - error <= second.upper / factor, case.name
        assert second.lower / factor - error <= first.upper, case.name
        if self.looseness is not None:
            assert second.upper / factor <= self.looseness * first.upper + error, case.name
            assert first.upper <= self.looseness * second.upper / factor + error, case.name

    def check_sound(self, case: OracleCase, found: DualNormBound) -> None:
        """Ordered, above what sampling finds, and with true witnesses."""
        assert found.lower <= found.upper, case.name
        error = REFERENCE_ERROR * case.magnitude()
        assert found.upper >= _sampled(case) - error, case.name
        if self.looseness is not None and found.lower > 0:
            assert found.upper <= self.looseness * found.lower + error, (case.name, found.ratio)
        check_witnesses(case, found)

    # ------------------------------------------------------------------ tests

    def test_bounds_enclose_the_truth(self) -> None:
        known = 0
        for case in self.cases:
            found = self.usual_bound(case)
            self.check_sound(case, found)
            if case.truth is None:
                continue
            known += 1
            error = REFERENCE_ERROR * case.magnitude()
            assert found.upper >= case.truth - error, case.name
            assert found.lower <= case.truth + error, case.name
            assert math.isfinite(found.upper) == self.proves, case.name
        assert known > 0, "a contract without a known truth tests nothing"

    def test_a_second_call_on_the_same_state_is_as_good(self) -> None:
        for case in self.cases:
            oracle = self.make_oracle()
            state = oracle.init(case.spec, case.inputs)
            oracle.bound(state, case.dual_point, self.request())
            self.check_sound(case, oracle.bound(state, case.dual_point, self.request()))
            changed = case.but(dual_point=case.dual_point.flip(0), truth=None)
            self.check_sound(changed, oracle.bound(state, changed.dual_point, self.request()))

    def test_a_target_just_below_the_truth_is_never_proven(self) -> None:
        for case in self.cases:
            if case.truth is None:
                continue
            for distance in (1e-2, 1e-6):
                found = self.bound(case, target=case.truth * (1 - distance), seconds=2.0)
                assert found.upper >= case.truth - REFERENCE_ERROR * case.magnitude(), case.name

    def test_order_of_samples_does_not_matter(self) -> None:
        for case in self.cases:
            order = torch.randperm(len(case.inputs), generator=torch.Generator().manual_seed(0))
            self.check_same(case, case.but(inputs=case.inputs[order], dual_point=case.dual_point[order]))

    def test_rotation_of_the_inputs_does_not_matter(self) -> None:
        for case in self.cases:
            size = case.spec.widths[0]
            rotation = torch.from_numpy(np.linalg.qr(np.random.default_rng(1).standard_normal((size, size)))[0])
            self.check_same(case, case.but(inputs=case.inputs @ rotation, spec=_rotated(case.spec, rotation)))

    def test_rotation_of_the_outputs_does_not_matter(self) -> None:
        for case in self.cases:
            size = case.spec.out_features
            rotation = torch.from_numpy(np.linalg.qr(np.random.default_rng(2).standard_normal((size, size)))[0])
            self.check_same(case, case.but(dual_point=case.dual_point @ rotation))
            self.check_same(case, case.but(dual_point=-case.dual_point))

    @pytest.mark.parametrize("scale", [3e-150, 7e149])
    def test_scale_of_the_dual_point_factors_out(self, scale: float) -> None:
        for case in self.cases:
            self.check_same(case, case.but(dual_point=case.dual_point * scale), scale)

    @pytest.mark.parametrize("scale", [3e-150, 7e149])
    def test_scale_of_the_inputs_factors_out(self, scale: float) -> None:
        for case in self.cases:
            if not case.spec.input_bias:
                self.check_same(case, case.but(inputs=case.inputs * scale), scale)

    def test_a_sample_can_be_split_in_two(self) -> None:
        for case in self.cases:
            parts = torch.cat([0.25 * case.dual_point[:1], 0.75 * case.dual_point[:1], case.dual_point[1:]])
            self.check_same(case, case.but(inputs=torch.cat([case.inputs[:1], case.inputs]), dual_point=parts))

    def test_samples_without_weight_do_not_matter(self) -> None:
        for case in self.cases:
            if not case.spec.input_bias:
                inputs = torch.cat([case.inputs, torch.zeros_like(case.inputs[:2])])
                duals = torch.cat([case.dual_point, torch.ones_like(case.dual_point[:2])])
                self.check_same(case, case.but(inputs=inputs, dual_point=duals))
            inputs = torch.cat([case.inputs, case.inputs[:2].flip(0)])
            duals = torch.cat([case.dual_point, torch.zeros_like(case.dual_point[:2])])
            self.check_same(case, case.but(inputs=inputs, dual_point=duals))

    def test_one_sample(self) -> None:
        for case in self.cases:
            single = case.but(inputs=case.inputs[:1], dual_point=case.dual_point[:1], truth=None)
            self.check_sound(single, self.bound(single))

    def test_columns_of_very_different_size(self) -> None:
        for case in self.cases:
            sizes = torch.ones(case.spec.widths[0], dtype=torch.float64)
            sizes[0] = 1e3
            spec = _rotated(case.spec, torch.diag(1 / sizes))  # gates stay as they are
            scaled = case.but(inputs=case.inputs * sizes, spec=spec, truth=None)
            self.check_sound(scaled, self.bound(scaled))

    def test_a_zero_dual_point_has_norm_zero(self) -> None:
        for case in self.cases:
            found = self.bound(case.but(dual_point=torch.zeros_like(case.dual_point)))
            assert found.lower == 0.0, case.name
            assert found.upper <= 1e-300 or not self.proves, case.name
            found = self.bound(case.but(inputs=torch.zeros_like(case.inputs)))
            assert found.lower <= found.upper, case.name
            assert found.lower == 0.0 or case.spec.input_bias, case.name

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_non_finite_numbers_prove_nothing(self, value: float) -> None:
        for case in self.cases[:2]:
            duals, inputs = case.dual_point.clone(), case.inputs.clone()
            duals[0, 0], inputs[0, 0] = value, value
            for spoiled in (case.but(dual_point=duals), case.but(inputs=inputs)):
                found = self.bound(spoiled)
                assert found.upper == math.inf, case.name
                assert found.lower == 0.0, case.name
                assert "finite" in str(found.stats["limited_by"]), case.name

    def test_single_precision_inputs_are_taken_as_they_are(self) -> None:
        for case in self.cases:
            single = case.inputs.float()
            self.check_same(case.but(inputs=single.double()), case.but(inputs=single))

    def test_results_repeat_to_the_bit(self) -> None:
        for case in self.cases:
            first, second = self.usual_bound(case), self.bound(case)
            assert (first.upper, first.lower) == (second.upper, second.lower), case.name
            assert len(first.witnesses) == len(second.witnesses), case.name
            for one, other in zip(first.witnesses, second.witnesses, strict=True):
                assert all(torch.equal(a, b) for a, b in zip(one.weights, other.weights, strict=True)), case.name

    def test_an_expired_deadline_returns_at_once(self) -> None:
        for case in self.cases:
            self.usual_bound(case)  # whatever is compiled, is compiled now
            begin = time.process_time()
            found = self.bound(case, seconds=0.0)
            assert time.process_time() - begin < 2.0, case.name
            assert found.lower <= found.upper, case.name
            if case.truth is not None:
                assert found.upper >= case.truth - REFERENCE_ERROR * case.magnitude(), case.name

    def test_arguments_stay_as_they_are(self) -> None:
        for case in self.cases:
            inputs, duals = case.inputs.clone(), case.dual_point.clone()
            self.bound(case)
            assert torch.equal(inputs, case.inputs), case.name
            assert torch.equal(duals, case.dual_point), case.name

    def test_stats_are_strings_and_numbers(self) -> None:
        for case in self.cases:
            assert all(isinstance(v, float | str) for v in self.usual_bound(case).stats.values()), case.name

    def test_what_is_not_supported_is_refused_by_name(self) -> None:
        oracle = self.make_oracle()
        for spec in self.make_unsupported_specs():
            reason = oracle.supports(spec)
            assert reason is not None, spec
            with pytest.raises(UnsupportedModelError, match=r"\w+"):
                oracle.init(spec, torch.zeros(2, spec.widths[0]))
        for case in self.cases:
            assert oracle.supports(case.spec) is None, case.name


def check_witnesses(case: OracleCase, found: DualNormBound) -> None:
    """Witnesses are unit-norm branches of the spec that have the value they claim, best first, and ``lower`` is the first."""
    values = [w.value for w in found.witnesses]
    assert values == sorted(values, reverse=True), case.name
    assert found.lower == (values[0] if values else 0.0), case.name
    for witness in found.witnesses:
        assert witness.value > 0.0, case.name
        _check_weights(case.spec, witness)
        features = _features(case, witness)
        attained = float(torch.linalg.matrix_norm(_scaled_product(case.dual_point, features)))
        scale = float(case.dual_point.abs().max())
        error = 1e-9 * witness.value + 1e-12 * case.magnitude()
        assert abs(attained * scale - witness.value) <= error, (case.name, attained * scale, witness.value)
        inner = float((_scaled_product(case.dual_point, features) * witness.weights[-1]).sum()) * scale
        assert abs(inner - witness.value) <= error, (case.name, "the last layer is not the direction of the value")


def _scaled_product(duals: Tensor, features: Tensor) -> Tensor:  # (c, h)
    """``Lam' phi`` with the largest entry of Lam brought to one, so that nothing overflows when squared."""
    product: Tensor = (duals / duals.abs().max()).T @ features
    return product


def _check_weights(spec: BranchSpec, witness: Witness) -> None:
    widths = (spec.in_features, *spec.hidden_widths, spec.out_features)
    assert [tuple(w.shape) for w in witness.weights] == [(o, i) for i, o in pairwise(widths)]
    for weight in witness.weights:
        assert weight.dtype == torch.float64
        assert abs(float(torch.linalg.norm(weight)) - 1.0) < 1e-12
    assert (witness.gate_index is not None) == spec.is_gated


def _features(case: OracleCase, witness: Witness) -> Tensor:  # (n, h)
    masks = case.spec.gate_masks(case.inputs)
    mask = None if masks is None or witness.gate_index is None else masks[witness.gate_index : witness.gate_index + 1]
    hidden = [w[None] for w in witness.weights[:-1]]
    return branch_features(case.matrix(), hidden, case.spec.negative_slopes, mask)[0]


def _sampled(case: OracleCase) -> float:
    """Best value of random branches, in the units of the case; scaled so that no square overflows."""
    masks = case.spec.gate_masks(case.inputs)
    matrix, duals = case.matrix().numpy(), case.dual_point.numpy()
    units = [max(float(np.abs(a).max()), np.finfo(float).tiny) for a in (matrix, duals)]
    value = sampled_dual_norm(
        matrix / units[0],
        duals / units[1],
        hidden_widths=case.spec.hidden_widths,
        slopes=case.spec.negative_slopes,
        masks=None if masks is None else masks.numpy(),
        num_samples=40,
        num_refined=1,
        num_steps=60,
    )
    return value * units[0] * units[1]


def _rotated(spec: BranchSpec, map_of_inputs: Tensor) -> BranchSpec:
    """The spec whose gates on ``X @ map`` are those of ``spec`` on X, for an orthogonal or diagonal map given as its inverse
    transpose (for orthogonal maps: itself)."""

    def changed(activations: tuple[BranchActivation, ...]) -> Iterator[BranchActivation]:
        for activation in activations:
            gates = tuple(g.to(torch.float64) @ map_of_inputs for g in activation.gate_vectors)
            yield dataclasses.replace(activation, gate_vectors=gates)

    return dataclasses.replace(spec, activations=tuple(changed(spec.activations)))
