"""What every recipe needs around its experiment: options, seeds, versions, and a record on disk."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console

from torch_strongdual import __version__

__all__ = ["config_from_args", "environment", "option", "report_console", "seed_everything", "write_record"]

_PACKAGES = ("torch", "lightning", "numpy", "scipy", "scikit-learn", "clarabel")

Config = TypeVar("Config")


def option(default: Any, text: str, *, may_be_zero: bool = False) -> Any:
    """Return a field of a config dataclass that is an option of the command line, described by ``text``.

    Numbers have to be above zero, or may be zero if the default is, or ``may_be_zero``.
    """
    return dataclasses.field(default=default, metadata={"help": text, "may_be_zero": may_be_zero or default == 0})


def config_from_args(config_class: type[Config], argv: Sequence[str] | None, *, name: str, description: str) -> Config:
    """Fill a config dataclass from the command line: a field ``num_epochs`` is the option ``--num-epochs``.

    Mistakes end the program with a line that names the option, before the experiment rather than after it: numbers out of their
    range, and an ``output`` folder that cannot be written to.

    Args:
        config_class: A dataclass whose fields were made by :func:`option`; those that are ``False`` become switches.
        argv: Arguments; those of the process if ``None``.
        name: Name of the recipe.
        description: Shown by ``--help``.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m torch_strongdual.recipes.{name}",
        description=description,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]  # a dataclass always
        flag = "--" + field.name.replace("_", "-")
        if field.default is False:
            parser.add_argument(flag, action="store_true", help=field.metadata["help"])
        else:
            parser.add_argument(flag, type=type(field.default), default=field.default, help=field.metadata["help"])
    values = vars(parser.parse_args(argv))
    for field in dataclasses.fields(config_class):  # type: ignore[arg-type]
        mistake = _mistake(field, values[field.name])
        if mistake is not None:
            parser.error(f"argument --{field.name.replace('_', '-')}: {mistake}")
    return config_class(**values)


def _mistake(field: dataclasses.Field[Any], value: Any) -> str | None:
    """What is wrong with the value of an option; ``None`` if nothing is."""
    if field.name == "output":
        try:
            Path(value).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return f"the folder {value} cannot be made: {error}"
        return None if os.access(value, os.W_OK) else f"the folder {value} cannot be written to"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if 0 < value < math.inf or (value == 0 and field.metadata["may_be_zero"]):
        return None
    return f"{value} is out of range; expected a number {'>= 0' if field.metadata['may_be_zero'] else '> 0'}"


def seed_everything(seed: int) -> None:
    """Seed what recipes draw from."""
    torch.manual_seed(seed)


def report_console(width: int = 120) -> Console:
    """Where a recipe reports; what is not a terminal has no width, so tables get ``width`` characters there."""
    console = Console()
    return console if console.is_terminal else Console(width=width)


def environment() -> dict[str, Any]:
    """Return the versions and the machine a result was obtained with."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "num_cores": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "packages": {"torch_strongdual": __version__, **{package: _version(package) for package in _PACKAGES}},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write ``record`` as JSON, folders made as needed; numbers that JSON does not have become ``null``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_as_json(record), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _as_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _as_json(dataclasses.asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _as_json(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_as_json(entry) for entry in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
