"""Look for a bound that is not one: random awkward problems, dual norm bounds and certificates against independent truth.

    python -m benchmarks.soundness_campaign --seconds 120 --seed 0 --json campaign.json

Every family gets an equal share of the time. A violation is an upper bound below an attained value, a lower bound above
the exact one, a proof of a target below an attained value, or a certificate above the optimum or refuted by
``verify_certificate``. The exit status is 1 if there is any.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks._campaign_cases import FAMILIES, Case
from benchmarks._campaign_certificates import CERTIFICATE_FAMILIES
from torch_strongdual.certification import Deadline
from torch_strongdual.certification.oracles import AutoOracle, BoundRequest

__all__ = ["FamilyResult", "run_family"]

FloatArray = NDArray[np.float64]

_REFERENCE_ERROR = 1e-13  # of the float64 references, relative to sum_i |Lam_i| |x_i|
_TARGETS = (1e-3, 1e-8, 1e-12)


@dataclass(kw_only=True)
class FamilyResult:
    """What came out of one family.

    Args:
        family: Its name.
        problems: How many were solved.
        checks: Comparisons made.
        violations: A sentence each; must be empty.
        median_tightness: Median of bound over truth (dual norms), or of the relative looseness (certificates).
        worst_tightness: The largest.
        seconds: Time spent.
    """

    family: str
    problems: int = 0
    checks: int = 0
    violations: list[str] = field(default_factory=list)
    median_tightness: float = math.nan
    worst_tightness: float = math.nan
    seconds: float = 0.0


def run_family(name: str, *, seconds: float, seed: int, max_problems: int = 10**9) -> FamilyResult:
    """Draw and check problems of one family until the time is over."""
    result, clock = FamilyResult(family=name), Deadline(seconds)
    tightness: list[float] = []
    while not clock.expired and result.problems < max_problems:
        generator = np.random.default_rng([seed, result.problems, *name.encode()])
        where = f"{name}, seed {seed}, problem {result.problems}"
        found = _check_dual_norm(FAMILIES[name](generator)) if name in FAMILIES else CERTIFICATE_FAMILIES[name](generator)
        for flaw, value in found:
            result.checks += 1
            if flaw:
                result.violations.append(f"{where}: {flaw}")
            if value is not None and math.isfinite(value):
                tightness.append(value)
        result.problems += 1
    if tightness:
        result.median_tightness, result.worst_tightness = statistics.median(tightness), max(tightness)
    result.seconds = clock.elapsed
    return result


def _check_dual_norm(case: Case) -> Iterator[tuple[str, float | None]]:
    """Flaws found (empty if none), and the tightness where it was measured."""
    oracle = AutoOracle()
    state = oracle.init(case.spec, case.inputs)
    found = oracle.bound(state, case.duals, BoundRequest(rtol=case.rtol, deadline=Deadline(case.seconds)))
    rows = case.spec.branch_inputs(case.inputs).numpy()
    duals = case.duals.numpy()
    first, second = (float(np.abs(a).max()) or 1.0 for a in (rows, duals))
    size = float(np.linalg.norm(rows / first, axis=1) @ np.linalg.norm(duals / second, axis=1)) * first * second
    error = _REFERENCE_ERROR * size
    yield (
        _said(found.upper < case.attained - error, f"upper {found.upper!r} < attained {case.attained!r}"),
        (found.upper / case.attained if case.attained > error else None),
    )
    yield _said(found.lower > found.upper, f"lower {found.lower!r} > upper {found.upper!r}"), None
    if case.is_exact:
        yield _said(found.lower > case.attained + error, f"lower {found.lower!r} > exact {case.attained!r}"), None
    bends = [slope for slope in case.spec.negative_slopes if slope != 1.0]
    if len(bends) == 1 and not case.spec.is_gated:
        own = [witness.weights[0][0].numpy() for witness in found.witnesses[:3]]
        for direction in [*case.directions, *own]:
            flaw = _said(_exceeds(rows, duals, direction, bends[0], found.upper), f"{found.upper!r} exceeded at {direction}")
            yield flaw, None
    for share in _TARGETS:
        target = case.attained * (1.0 - share) - error
        if target <= 0.0 or (not case.is_exact and share != _TARGETS[0]):
            continue
        request = BoundRequest(rtol=1e-9, target=target, deadline=Deadline(0.1))
        again = oracle.bound(state, case.duals, request)
        yield _said(again.upper <= target, f"target {target!r} proven, attained {case.attained!r}"), None


def _said(is_flaw: bool, sentence: str) -> str:
    return sentence if is_flaw else ""


def _exceeds(rows: FloatArray, duals: FloatArray, direction: FloatArray, slope: float, upper: float) -> bool:
    """Whether ``||Lam's(X u)|| > upper ||u||``, in rational arithmetic: no tolerance."""
    if not math.isfinite(upper):
        return False
    point = [Fraction(entry) for entry in direction.tolist()]
    image = [Fraction(0)] * duals.shape[1]
    for row, dual in zip(rows.tolist(), duals.tolist(), strict=True):
        hidden = sum((Fraction(x) * u for x, u in zip(row, point, strict=True)), Fraction(0))
        active = hidden if hidden > 0 else Fraction(slope) * hidden
        image = [total + Fraction(entry) * active for total, entry in zip(image, dual, strict=True)]
    return sum(entry * entry for entry in image) > Fraction(upper) ** 2 * sum(entry * entry for entry in point)


def report(results: list[FamilyResult]) -> str:
    """A table for people."""
    lines = [f"{'family':24} {'problems':>8} {'checks':>8} {'violations':>10} {'median':>10} {'worst':>10} {'seconds':>8}"]
    lines += [
        f"{r.family:24} {r.problems:8d} {r.checks:8d} {len(r.violations):10d} {r.median_tightness:10.6g} "
        f"{r.worst_tightness:10.4g} {r.seconds:8.1f}"
        for r in results
    ]
    return "\n".join([*lines, *(violation for r in results for violation in r.violations)])


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [*FAMILIES, *CERTIFICATE_FAMILIES]
    parser.add_argument("--seconds", type=float, default=120.0, help="time for all families together (default: 120)")
    parser.add_argument("--seed", type=int, default=0, help="problems differ from seed to seed (default: 0)")
    parser.add_argument("--families", nargs="+", choices=names, default=names, help="only these (default: all)")
    parser.add_argument("--json", type=Path, help="write the results here, too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results = []
    for name in options.families:
        begin = time.perf_counter()
        results.append(run_family(name, seconds=options.seconds / len(options.families), seed=options.seed))
        print(f"{name}: {results[-1].problems} problems in {time.perf_counter() - begin:.1f} s", file=sys.stderr)
    print(report(results))
    if options.json:
        options.json.write_text(json.dumps({"seed": options.seed, "results": [asdict(r) for r in results]}, indent=1))
    return int(any(r.violations for r in results))


if __name__ == "__main__":
    sys.exit(main())
