from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from benchmarks._campaign_cases import FAMILIES, Case
from benchmarks._campaign_certificates import CERTIFICATE_FAMILIES
from benchmarks.soundness_campaign import main, run_family


@pytest.mark.parametrize("family", ["planar", "linear", "gated", "tight"])
def test_a_few_problems_of_the_fast_families(family: str) -> None:
    result = run_family(family, seconds=5.0, seed=11, max_problems=20)
    assert result.violations == []
    assert result.problems > 0
    assert result.checks >= 4 * result.problems
    assert result.median_tightness <= 1 + 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("family", [*FAMILIES, *CERTIFICATE_FAMILIES])
def test_a_slice_of_every_family(family: str) -> None:
    result = run_family(family, seconds=15.0, seed=12)
    assert result.violations == []
    assert result.checks > 0


@pytest.mark.parametrize("family", ["planar", "linear"])
def test_a_truth_that_is_larger_is_reported(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The campaign can find violations: with attained values a millionth too large it does."""

    def inflated(generator: object) -> Case:
        case = true_family(generator)  # type: ignore[arg-type]
        return dataclasses.replace(case, attained=case.attained * (1 + 1e-6))

    true_family = FAMILIES[family]
    monkeypatch.setitem(FAMILIES, family, inflated)
    result = run_family(family, seconds=5.0, seed=11, max_problems=10)
    assert any("< attained" in violation for violation in result.violations)


def test_command_line_writes_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "campaign.json"
    assert main(["--seconds", "0.2", "--families", "linear", "--json", str(path)]) == 0
    found = json.loads(path.read_text())["results"]
    assert [result["family"] for result in found] == ["linear"]
    assert found[0]["violations"] == []
    assert "linear" in capsys.readouterr().out
