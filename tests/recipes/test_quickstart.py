from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest

from torch_strongdual.recipes import quickstart

NAMES = ["two-layer ReLU", "three-layer linear", "gated ReLU", "ReLU classifier"]


def _check_record(record: dict[str, Any], rtol: float) -> None:
    assert record["is_certified"] is True
    assert record["is_nontrivial"] is True
    assert [result["name"] for result in record["results"]] == NAMES
    for result in record["results"]:
        _check_result(result, rtol)


def _check_result(result: dict[str, Any], rtol: float, *, factor: float = 1.0, certificates: int = 3) -> None:
    assert result["is_certified"] is True
    assert result["status"] == "CERTIFIED"
    assert result["primal_value"] >= result["dual_bound"] > 0.0
    assert result["relative_gap"] == pytest.approx(1.0 - result["dual_bound"] / result["primal_value"], abs=1e-12)
    assert result["relative_gap"] <= rtol
    assert result["live_branches"] >= result["distinct_branches"] >= result["min_distinct_branches"]
    assert result["path_decay"] == pytest.approx(0.1 * factor * result["max_path_decay"][0])
    bounds = [entry["dual_bound"] for entry in result["history"]]
    assert bounds == sorted(bounds)
    assert len(bounds) == result["num_certificates"] >= certificates
    assert all(entry["primal_value"] >= bounds[-1] for entry in result["history"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart")


@pytest.fixture(scope="module")
def record(folder: Path) -> dict[str, Any]:
    return quickstart.main(["--fast", "--output", str(folder)])


def test_all_four_networks_are_certified(record: dict[str, Any]) -> None:
    _check_record(record, rtol=0.01)


def test_relu_networks_need_three_different_branches(record: dict[str, Any]) -> None:
    required = {result["name"]: result["min_distinct_branches"] for result in record["results"]}
    assert required["two-layer ReLU"] == required["ReLU classifier"] == 3
    assert min(required.values()) >= 1


def test_the_record_on_disk_is_the_one_returned(record: dict[str, Any], folder: Path) -> None:
    stored = json.loads((folder / "record.json").read_text())
    assert stored["results"] == json.loads(json.dumps(record["results"]))
    assert stored["config"]["fast"] is True
    assert stored["config"]["seed"] == 0
    assert {"torch", "lightning", "torch_strongdual"} <= set(stored["environment"]["packages"])


def test_the_picture_has_four_panels_of_content(record: dict[str, Any], folder: Path) -> None:
    pixels = matplotlib.image.imread(folder / "certificates.png")
    height, width = pixels.shape[:2]
    assert height > 800
    assert width > 1200
    for rows in (slice(0, height // 2), slice(height // 2, height)):
        for columns in (slice(0, width // 2), slice(width // 2, width)):
            assert float((pixels[rows, columns, :3] < 0.9).any(axis=2).mean()) > 0.02


def test_a_network_that_is_not_trained_is_reported_as_open(tmp_path: Path) -> None:
    record = quickstart.main(["--fast", "--num-epochs", "1", "--time-budget", "0.2", "--output", str(tmp_path)])
    assert record["is_certified"] is False
    assert any(result["status"] != "CERTIFIED" for result in record["results"])
    assert all(math.isfinite(result["primal_value"]) for result in record["results"])


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        quickstart.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "torch_strongdual.recipes.quickstart" in text
    assert "--output" in text
    assert "--fast" in text


@pytest.mark.slow
def test_the_exit_status_says_that_something_is_not_certified(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "torch_strongdual.recipes.quickstart",
        "--fast",
        "--num-epochs",
        "1",
        "--output",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == ""
    assert "open" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_every_seed_is_certified_with_margin(seed: int, tmp_path: Path) -> None:
    record = quickstart.main(["--seed", str(seed), "--output", str(tmp_path)])
    assert record["results"][-1]["name"] == "wide two-layer ReLU"
    _check_result(record["results"].pop(), rtol=0.01, factor=2.0, certificates=1)
    _check_record(record, rtol=0.005)
