from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from torch_strongdual.recipes._run import config_from_args, environment, option, write_record


@dataclass(frozen=True)
class _Config:
    num_epochs: int = option(3, "epochs")
    rtol: float = option(0.5, "tolerance")
    fast: bool = option(False, "less")


@dataclass(frozen=True)
class Checked:
    num_epochs: int = option(3, "epochs")
    rate: float = option(0.1, "rate")
    noise: float = option(0.2, "noise", may_be_zero=True)
    seed: int = option(0, "seed")
    output: str = option("runs", "folder")


def _parsed(*argv: str) -> _Config:
    return config_from_args(_Config, argv, name="x", description="y")


def test_options_fill_the_config() -> None:
    assert _parsed() == _Config()
    assert _parsed("--num-epochs", "7", "--fast") == _Config(num_epochs=7, fast=True)
    assert _parsed("--rtol", "0.1").rtol == 0.1


def test_unknown_options_end_the_program(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _parsed("--epochs", "many")
    assert "--epochs" in capsys.readouterr().err


def test_records_are_json_whatever_they_hold(tmp_path: Path) -> None:
    path = tmp_path / "new" / "record.json"
    write_record(path, {"config": _Config(), "values": (1.0, float("inf"), float("nan")), "path": tmp_path})
    assert json.loads(path.read_text()) == {
        "config": {"num_epochs": 3, "rtol": 0.5, "fast": False},
        "values": [1.0, None, None],
        "path": str(tmp_path),
    }


def test_the_environment_names_versions() -> None:
    packages = environment()["packages"]
    assert packages["torch"]
    assert packages["torch_strongdual"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--num-epochs", "0"], "argument --num-epochs: 0 is out of range; expected a number > 0"),
        (["--seed", "-1"], "argument --seed: -1 is out of range; expected a number >= 0"),
        (["--rate", "-1"], "argument --rate: -1.0 is out of range"),
        (["--rate", "nan"], "argument --rate: nan is out of range"),
        (["--output", __file__], "argument --output: the folder"),
    ],
)
def test_mistakes_are_told_before_the_experiment(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        config_from_args(Checked, ["--output", str(tmp_path), *arguments], name="example", description="Text.")
    assert message in capsys.readouterr().err


def test_what_may_be_zero_may_be_and_the_output_folder_is_made(tmp_path: Path) -> None:
    arguments = ["--noise", "0", "--seed", "0", "--output", str(tmp_path / "a" / "b")]
    assert config_from_args(Checked, arguments, name="example", description="Text.").noise == 0.0
    assert (tmp_path / "a" / "b").is_dir()
