from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image

from torch_strongdual.recipes import sparse_network


def test_few_of_many_branches_survive_at_a_certified_optimum(tmp_path: Path) -> None:
    record = sparse_network.main(["--fast", "--num-branches", "60", "--num-steps", "60", "--output", str(tmp_path)])
    assert record["is_certified"] is True
    assert len(record["results"]) == 2
    for result in record["results"]:
        assert 0.0 < result["dual_bound"] <= result["primal_value"] <= result["dual_bound"] * 1.0102
        assert 1 <= result["num_branches_reduced"] <= result["num_branches_certified"]
        assert result["num_branches_reduced"] <= min(result["most_needed"], result["num_branches"])
        assert result["reduced_primal_value"] <= result["primal_value"] * (1.0 + 1e-9)
    stored = json.loads((tmp_path / "record.json").read_text())
    assert stored["results"] == json.loads(json.dumps(record["results"]))
    assert float((matplotlib.image.imread(tmp_path / "branches.png")[:, :, :3] < 0.9).any(axis=2).mean()) > 0.02
