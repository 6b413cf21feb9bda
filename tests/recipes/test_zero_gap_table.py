from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from torch_strongdual.recipes import zero_gap_table

# (data, layers) -> primal and dual value of the standard network, worked out by hand: L/2 times sums of s^(2/L)
STANDARD = {
    ("linear, s = (1, 1)", 2): (2.0, 2.0),
    ("linear, s = (1, 1)", 3): (3.0, 1.5 * 2.0 ** (2 / 3)),
    ("linear, s = (1, 1)", 4): (4.0, 2.0 * 2.0**0.5),
    ("linear, s = (3, 1)", 2): (4.0, 4.0),
    ("linear, s = (3, 1)", 3): (1.5 * (3.0 ** (2 / 3) + 1.0), 1.5 * 4.0 ** (2 / 3)),
    ("linear, s = (3, 1)", 4): (2.0 * (3.0**0.5 + 1.0), 4.0),
    ("ReLU, y = (1, -1)", 2): (2.0, 2.0),
    ("ReLU, y = (1, -1)", 3): (3.0, 1.5 * 2.0 ** (2 / 3)),
    ("ReLU, y = (1, -1)", 4): (4.0, 2.0 * 2.0**0.5),
    ("ReLU, y = (2, -1)", 2): (3.0, 3.0),
    ("ReLU, y = (2, -1)", 3): (1.5 * (2.0 ** (2 / 3) + 1.0), 1.5 * 3.0 ** (2 / 3)),
    ("ReLU, y = (2, -1)", 4): (2.0 * (2.0**0.5 + 1.0), 2.0 * 3.0**0.5),
    ("ReLU, y = (1, 1)", 2): (2.0, 2.0),
    ("ReLU, y = (1, 1)", 3): (1.5 * 2.0 ** (2 / 3), 1.5 * 2.0 ** (2 / 3)),
    ("ReLU, y = (1, 1)", 4): (2.0 * 2.0**0.5, 2.0 * 2.0**0.5),
}
# 0.25 * s - 0.25^2 / 2, summed
PARALLEL = {"(1, 1)": 0.4375, "(3, 1)": 0.9375, "(1, -1)": 0.4375, "(2, -1)": 0.6875}


def _check_rows(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        primal_value, dual_value = STANDARD[row["data"], row["num_layers"]]
        standard, parallel = row["standard"], row["parallel"]
        assert standard["primal_value"] == pytest.approx(primal_value, rel=1e-6)
        assert standard["dual_bound"] == pytest.approx(dual_value, rel=1e-6)
        assert standard["dual_bound"] <= dual_value * (1.0 + 1e-14)
        optimum = PARALLEL[row["data"].split("= ")[1]]
        assert parallel["primal_value"] == pytest.approx(optimum, rel=1e-6)
        assert parallel["dual_bound"] == pytest.approx(optimum, rel=1e-6)
        assert parallel["dual_bound"] <= optimum <= parallel["primal_value"]
        assert parallel["status"] == "CERTIFIED"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("zero_gap_table")


@pytest.fixture(scope="module")
def record(folder: Path) -> dict[str, Any]:
    return zero_gap_table.main(["--fast", "--num-fits", "1", "--output", str(folder)])


def test_numbers_agree_with_closed_forms(record: dict[str, Any]) -> None:
    assert record["agrees"] is True
    assert len(record["results"]) == 6
    _check_rows(record["results"])


def test_the_gap_is_where_the_theory_says(record: dict[str, Any]) -> None:
    gaps = {(row["data"], row["num_layers"]): row["standard"]["relative_gap"] for row in record["results"]}
    for (data, num_layers), gap in gaps.items():
        if num_layers == 2 or data == "ReLU, y = (1, 1)":
            assert abs(gap) < 1e-6
        else:
            assert gap > 0.1


def test_the_record_on_disk_is_the_one_returned(record: dict[str, Any], folder: Path) -> None:
    stored = json.loads((folder / "record.json").read_text())
    assert stored["results"] == json.loads(json.dumps(record["results"]))
    assert stored["config"]["path_decay"] == 0.25


def test_a_network_that_never_fits_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="None of 1 starts fitted"):
        zero_gap_table.main(["--fast", "--max-starts", "1", "--fit-tolerance", "1e-30", "--output", str(tmp_path)])


def test_help_names_the_options(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        zero_gap_table.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert "torch_strongdual.recipes.zero_gap_table" in text
    assert "--num-branches" in text


@pytest.mark.slow
def test_the_whole_table_agrees_with_closed_forms(tmp_path: Path) -> None:
    record = zero_gap_table.main(["--output", str(tmp_path)])
    assert len(record["results"]) == len(STANDARD)
    _check_rows(record["results"])
