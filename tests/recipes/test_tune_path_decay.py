from __future__ import annotations

import json
import math
from pathlib import Path

import matplotlib.image
import pytest

from torch_strongdual.errors import InvalidInputError
from torch_strongdual.recipes import tune_path_decay
from torch_strongdual.recipes.tune_path_decay import Evaluation, tune


@pytest.mark.parametrize("data", ["diabetes", "wine"])
def test_the_gradient_finds_what_a_grid_finds(data: str, tmp_path: Path) -> None:
    record = tune_path_decay.main(["--fast", "--data", data, "--output", str(tmp_path)])
    assert record["is_certified"] is True
    tuned, grid = record["best_tuned"], record["best_on_grid"]
    assert tuned.validation_loss <= 1.02 * grid.validation_loss
    assert len(record["tuned"]) <= 4 == len(record["grid"])
    assert record["slope_by_differences"] == pytest.approx(tuned.slope, rel=1e-2, abs=1e-5)
    stored = json.loads((tmp_path / "record.json").read_text())
    assert stored["best_tuned"]["path_decay"] == tuned.path_decay
    assert float((matplotlib.image.imread(tmp_path / "validation.png")[:, :, :3] < 0.9).any(axis=2).mean()) > 0.02


def test_tuning_finds_where_the_slope_vanishes_from_both_sides() -> None:
    def evaluate(path_decay: float) -> Evaluation:
        distance = math.log(path_decay / 0.3)
        return Evaluation(
            path_decay=path_decay,
            validation_loss=1.0 + math.cosh(distance),
            slope=math.sinh(distance),
            test_loss=0.0,
            relative_gap=0.0,
            is_certified=True,
            num_branches=1,
        )

    for start in (0.01, 0.3, 20.0):
        found = tune(evaluate, start, 12)
        assert abs(math.log(found[-1].path_decay / 0.3)) < 0.01
        assert len(found) <= 9
    assert len(tune(evaluate, 1e6, 3)) == 3


def test_other_data_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="diabetes, wine"):
        tune_path_decay.main(["--data", "iris"])
