from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch

from torch_strongdual.recipes import spiral_certificate
from torch_strongdual.recipes.spiral_certificate import spiral


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("spiral_certificate")


@pytest.fixture(scope="module")
def record(folder: Path) -> dict[str, Any]:
    return spiral_certificate.main(["--fast", "--output", str(folder)])


def test_networks_are_certified_at_both_sizes(record: dict[str, Any]) -> None:
    assert record["is_certified"] is True
    assert [result["num_samples"] for result in record["results"]] == [15, 30]
    for result in record["results"]:
        assert 0.0 < result["dual_bound"] <= result["primal_value"]
        assert result["relative_gap"] == pytest.approx(1.0 - result["dual_bound"] / result["primal_value"], abs=1e-12)
        assert result["relative_gap"] <= 0.01
        assert 1 <= result["num_branches_reduced"] <= result["num_branches"]


def test_record_and_picture_are_written(record: dict[str, Any], folder: Path) -> None:
    stored = json.loads((folder / "record.json").read_text())
    assert stored["results"] == json.loads(json.dumps(record["results"]))
    pixels = matplotlib.image.imread(folder / "spiral.png")
    for half in (pixels[:, : pixels.shape[1] // 2, :3], pixels[:, pixels.shape[1] // 2 :, :3]):
        assert float((half < 0.9).any(axis=2).mean()) > 0.01


def test_a_network_that_is_not_certified_is_reported_as_open(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--sizes", "15", "--time-budget", "1e-3", "--loss", "squared", "--output", str(tmp_path)]
    record = spiral_certificate.main(arguments)
    assert record["is_certified"] is False
    assert record["results"][0]["limited_by"] in " ".join(capsys.readouterr().out.split())


def test_arms_are_turned_copies_without_noise() -> None:
    inputs, arms = spiral(30, noise=0.0, seed=0)
    assert arms.bincount().tolist() == [10, 10, 10]
    radius = inputs.norm(dim=1)
    torch.testing.assert_close(radius[:10], radius[10:20])
    angle = torch.atan2(inputs[:, 0], inputs[:, 1])
    turn = (angle[10:20] - angle[:10] - 4.0) / (2.0 * torch.pi)
    torch.testing.assert_close(turn, turn.round())


def test_an_unknown_loss_is_named() -> None:
    with pytest.raises(SystemExit, match="cross_entropy, squared"):
        spiral_certificate.main(["--loss", "hinge"])
