from __future__ import annotations

import json
from pathlib import Path

from torch_strongdual.recipes import digits_convolution


def test_small_kernels_and_linear_branches_are_certified(tmp_path: Path) -> None:
    options = ["--fast", "--num-samples", "20", "--num-branches", "6", "--num-steps", "150", "--output", str(tmp_path)]
    record = digits_convolution.main(options)
    assert record["is_certified"] is True
    results = {result["name"]: result for result in record["results"]}
    assert [result["rank"] for name, result in results.items() if name.startswith("2x2")] == [4.0, 5.0]
    assert results["3x3 linear"]["relative_gap"] < 1e-3
    for result in results.values():
        assert 0.0 < result["dual_bound"] <= result["primal_value"]
        assert result["dual_norm_ratio"] >= 1.0
        assert result["distinct_patches"] < result["patches"]
        assert result["is_certified"] or not result["expects_certificate"]
    assert json.loads((tmp_path / "record.json").read_text())["results"] == json.loads(json.dumps(record["results"]))
