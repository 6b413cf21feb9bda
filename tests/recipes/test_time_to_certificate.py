from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image

from torch_strongdual.recipes import time_to_certificate


def test_the_race_is_won_with_proof_and_nobody_gets_below_the_bound(tmp_path: Path) -> None:
    record = time_to_certificate.main(["--fast", "--time-budget", "3", "--output", str(tmp_path)])
    assert record["is_certified"] is True
    (result,) = record["results"]
    ours, *rivals = result["methods"]
    assert 0.0 <= ours["own_gap"] <= 0.01
    assert [rival["own_gap"] for rival in rivals] == [None, None]
    for row in result["methods"]:
        assert row["objective"] >= result["dual_bound"] > 0.0
    assert ours["objective"] - min(rival["objective"] for rival in rivals) <= 0.01 * ours["objective"]
    for trace in result["traces"]:
        assert trace["objectives"] == sorted(trace["objectives"], reverse=True)
        assert trace["seconds"] == sorted(trace["seconds"])
    stored = json.loads((tmp_path / "record.json").read_text())
    assert stored["results"][0]["methods"] == json.loads(json.dumps(result["methods"]))
    assert float((matplotlib.image.imread(tmp_path / "race.png")[:, :, :3] < 0.9).any(axis=2).mean()) > 0.01
