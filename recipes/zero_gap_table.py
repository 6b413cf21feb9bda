r"""Where the duality gap is, and where it is not: standard against parallel networks of two, three and four layers.

After Table 1 of the paper. Data are small enough that everything has a closed form: linear networks on the identity with
targets of singular values :math:`s`, and ReLU networks on the rank-one data :math:`X = (1, -1)'` with targets
:math:`y = (p, q)`, where :math:`s = (|p|, |q|)`.

**Standard** (one branch). The problem of the paper, to fit the data exactly with least weight decay:

.. math::
   P = \min \tfrac12 \sum_l \|W_l\|_F^2 \;\text{ subject to }\; f(X) = Y, \qquad
   D = \tfrac L2 \Big( \max_\Lambda \langle \Lambda, Y \rangle / \kappa(\Lambda) \Big)^{2/L}
     = \tfrac L2 \Big( \sum_i s_i \Big)^{2/L}

*P, trained* is the value that an augmented Lagrangian method with L-BFGS reaches, the best of several starts among those that
fit to ``fit_tolerance``: an attained value up to that tolerance, not a proof that there is no better one. *D, proven* is the
paper's dual at the point :math:`\Lambda` that ``certify`` found for the parallel network beside it, with the dual norm
:math:`\kappa(\Lambda)` it proved. Closed forms: :math:`P = \tfrac L2 \sum_i s_i^{2/L}` for linear networks and for ReLU
targets of different signs, and :math:`P = D` for ReLU targets of the same sign.

**Parallel** (several branches). Fitting with regularisation, the problem that ``certify`` is about:

.. math::
   P = D = \min \tfrac12 \|f(X) - Y\|_F^2 + \beta \sum_k \prod_l \|W_{l,k}\|_F
         = \sum_i \begin{cases} \beta s_i - \beta^2 / 2 & s_i > \beta \\ s_i^2 / 2 & s_i \le \beta \end{cases}

*P, trained* is the objective ``PathSGD`` reaches, *D, proven* the bound of ``certify``. The two problems are different ones, so
compare gaps, not values.

Run it with ``python -m torch_strongdual.recipes.zero_gap_table``. It prints the table, writes ``record.json``, and exits with
status 1 if a number is further than ``tolerance`` from its closed form.

References:
    Wang, Ergen, Pilanci, "Parallel Deep Neural Networks Have Zero Duality Gap", ICLR 2023. https://arxiv.org/abs/2110.06482
"""

from __future__ import annotations

import itertools
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn

from torch_strongdual.certification import Certificate, certify
from torch_strongdual.losses import HalfSquaredLoss
from torch_strongdual.nn import ParallelNet
from torch_strongdual.optim import PathSGD

from ._run import config_from_args, environment, option, report_console, seed_everything, write_record

__all__ = ["Config", "main"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Options of the recipe."""

    seed: int = option(0, "seed of the first start; the others follow")
    num_fits: int = option(3, "starts of each standard network that have to fit; the best of them counts")
    max_starts: int = option(60, "starts of each standard network, at most")
    fit_tolerance: float = option(1e-7, "largest error at which a standard network counts as fitting the data")
    path_decay: float = option(0.25, "strength of the path penalty of the parallel networks, below all s_i")
    num_branches: int = option(16, "branches of each parallel network")
    rtol: float = option(1e-7, "relative gap at which training of a parallel network ends")
    tolerance: float = option(1e-6, "relative distance allowed between a number and its closed form")
    output: str = option("runs/zero_gap_table", "folder for record.json")
    fast: bool = option(False, "two and three layers, and half of the data, only")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Data, depth and activation of one row."""

    data: str
    activation: type[nn.Module]
    num_layers: int
    hidden_features: int
    inputs: Tensor
    targets: Tensor
    strengths: tuple[float, ...]  # the s_i of the closed forms
    is_one_sided: bool  # ReLU targets of the same sign: one path of units can serve both

    def layers(self) -> list[nn.Module]:
        """Return the layers of a branch, drawn afresh."""
        hidden = [self.hidden_features] * (self.num_layers - 1)
        widths = [self.inputs.shape[1], *hidden, self.targets.shape[1]]
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out, bias=False, dtype=torch.float64), self.activation()]
        return layers[:-1]

    def standard_optimum(self) -> float:
        """Closed form of P of the standard network."""
        if self.is_one_sided:
            return self.standard_dual()
        power = 2.0 / self.num_layers
        return self.num_layers / 2.0 * math.fsum(strength**power for strength in self.strengths)

    def standard_dual(self) -> float:
        """Closed form of D of the standard network."""
        power = 2.0 / self.num_layers
        return float(self.num_layers / 2.0 * sum(self.strengths) ** power)

    def parallel_optimum(self, path_decay: float) -> float:
        """Closed form of P and D of the parallel network."""
        return sum(path_decay * s - path_decay**2 / 2.0 if s > path_decay else s**2 / 2.0 for s in self.strengths)


def problems(config: Config) -> Iterator[Problem]:
    """Yield the rows of the table."""
    identity = torch.eye(2, dtype=torch.float64)
    two_sided = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    for singular_values in [(3.0, 1.0)] if config.fast else [(1.0, 1.0), (3.0, 1.0)]:
        targets = torch.diag(torch.tensor(singular_values, dtype=torch.float64))
        yield from _depths("linear, s = ({:g}, {:g})", nn.Identity, 2, identity, targets, singular_values, config)
    for values in [(2.0, -1.0), (1.0, 1.0)] if config.fast else [(1.0, -1.0), (2.0, -1.0), (1.0, 1.0)]:
        targets = torch.tensor(values, dtype=torch.float64)[:, None]
        yield from _depths("ReLU, y = ({:g}, {:g})", nn.ReLU, 8, two_sided, targets, values, config)


def _depths(
    data: str,
    activation: type[nn.Module],
    hidden_features: int,
    inputs: Tensor,
    targets: Tensor,
    values: tuple[float, float],
    config: Config,
) -> Iterator[Problem]:
    for num_layers in (2, 3) if config.fast else (2, 3, 4):
        yield Problem(
            data=data.format(*values),
            activation=activation,
            num_layers=num_layers,
            hidden_features=hidden_features,
            inputs=inputs,
            targets=targets,
            strengths=(abs(values[0]), abs(values[1])),
            is_one_sided=activation is nn.ReLU and values[0] * values[1] > 0.0,
        )


# The standard network: least weight decay under exact fit.


def train_standard(problem: Problem, config: Config) -> tuple[float, float]:
    """Return half the weight decay of the best fit over all starts, and the largest error of that fit.

    Raises:
        RuntimeError: If no start fits the data.
    """
    found = []
    for start in range(config.max_starts):
        seed_everything(config.seed + start)
        net = nn.Sequential(*problem.layers())
        for weight in net.parameters():
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)  # from torch's smaller weights deep nets collapse to zero
        error = _fit_with_least_decay(net, problem, config.fit_tolerance)
        if error <= config.fit_tolerance:
            found.append((_half_decay(net).item(), error))
        if len(found) == config.num_fits:
            break
    if not found:
        raise RuntimeError(
            f"None of {config.max_starts} starts fitted {problem.data} with {problem.num_layers} layers to "
            f"{config.fit_tolerance:g}. Raise --max-starts."
        )
    return min(found)


def _half_decay(net: nn.Module) -> Tensor:
    return 0.5 * torch.stack([parameter.square().sum() for parameter in net.parameters()]).sum()


def _fit_with_least_decay(net: nn.Module, problem: Problem, fit_tolerance: float) -> float:
    """Minimise the weight decay under exact fit by the augmented Lagrangian method; return the largest error left."""
    stiffness, multipliers = 100.0, torch.zeros_like(problem.targets)
    error = math.inf
    for _ in range(15):
        optimizer = torch.optim.LBFGS(
            net.parameters(),
            max_iter=200,
            history_size=30,
            tolerance_grad=1e-11,
            tolerance_change=1e-15,
            line_search_fn="strong_wolfe",
        )

        def objective(optimizer: torch.optim.LBFGS = optimizer, multipliers: Tensor = multipliers) -> float:
            optimizer.zero_grad()
            violation = net(problem.inputs) - problem.targets
            value = _half_decay(net) + (multipliers * violation).sum() + 0.5 * stiffness * violation.square().sum()
            value.backward()
            return float(value.detach().item())

        optimizer.step(objective)  # type: ignore[no-untyped-call]  # torch has no types here
        with torch.no_grad():
            violation = net(problem.inputs) - problem.targets
        previous, error = error, violation.abs().max().item()
        if error <= 0.01 * fit_tolerance or (error > 1e-3 and error > 0.5 * previous):
            break  # done, or stuck where some units are dead
        multipliers = multipliers + stiffness * violation
    return error


# The parallel network: regularised fit.


def train_parallel(problem: Problem, config: Config) -> Certificate:
    """Train until certified, at most 16 x 500 steps; return the last certificate."""
    seed_everything(config.seed)
    net = ParallelNet(*problem.layers(), num_branches=config.num_branches)
    loss = HalfSquaredLoss()
    optimizer = PathSGD(net.path_param_groups(config.path_decay), lr=0.05, momentum=0.95)
    for _ in range(16):
        for _ in range(500):
            optimizer.zero_grad()
            loss(net(problem.inputs), problem.targets).backward()
            optimizer.step()
        certificate = certify(
            net, problem.inputs, problem.targets, loss=loss, path_decay=config.path_decay, rtol=config.rtol, time_budget=5.0
        )
        if certificate.is_certified:
            break
    return certificate


def paper_dual(problem: Problem, certificate: Certificate) -> float:
    """Return the paper's dual of the standard network at the point that ``certificate`` proves."""
    if certificate.dual_point is None:
        return -math.inf
    products = certificate.dual_point * problem.targets
    rounding = 2.0**-48 * float(products.abs().sum())  # four products and their sum, each rounded by 2^-53
    lower = max(0.0, float(products.sum()) - rounding) / float(certificate.evidence["dual_norm_upper"])
    return float(problem.num_layers / 2.0 * lower ** (2.0 / problem.num_layers)) * (1.0 - 2.0**-48)


def solve(problem: Problem, config: Config) -> dict[str, Any]:
    """Measure both networks of a row, beside their closed forms."""
    start = time.perf_counter()
    primal_value, fit_error = train_standard(problem, config)
    certificate = train_parallel(problem, config)
    standard = {
        "primal_value": primal_value,
        "primal_closed_form": problem.standard_optimum(),
        "fit_error": fit_error,
        "dual_bound": paper_dual(problem, certificate),
        "dual_closed_form": problem.standard_dual(),
    }
    optimum = problem.parallel_optimum(config.path_decay)
    parallel = {
        "primal_value": certificate.primal_value,
        "primal_closed_form": optimum,
        "dual_bound": certificate.dual_bound,
        "dual_closed_form": optimum,
        "status": certificate.status.name,
        "oracle": certificate.evidence.get("oracle", ""),
    }
    return {
        "data": problem.data,
        "num_layers": problem.num_layers,
        "standard": _judged(standard),
        "parallel": _judged(parallel),
        "seconds": time.perf_counter() - start,
    }


def _judged(cell: dict[str, Any]) -> dict[str, Any]:
    """Add the gap, and the largest relative distance from a closed form."""
    errors = [abs(cell[name] / cell[form] - 1.0) for name, form in _CLOSED_FORMS]
    error = max(errors) if all(map(math.isfinite, errors)) else math.inf
    return {**cell, "relative_gap": 1.0 - cell["dual_bound"] / cell["primal_value"], "closed_form_error": error}


_CLOSED_FORMS = (("primal_value", "primal_closed_form"), ("dual_bound", "dual_closed_form"))


def _table(rows: Sequence[dict[str, Any]], path_decay: float) -> Table:
    caption = (
        "Standard: half the weight decay of the best exact fit found, and the paper's dual. Parallel: half the squared error "
        f"plus {path_decay:g} times the path penalty, and the bound of `certify`. In brackets: closed forms. The two are "
        "different problems: compare gaps."
    )
    table = Table(title="Duality gap of standard and of parallel networks", caption=caption)
    table.add_column("network and data", no_wrap=True)
    table.add_column("L", justify="right")
    for kind in ("standard", "parallel"):
        for heading in ("P, trained", "D, proven", "gap"):
            table.add_column(f"{kind}\n{heading}", justify="right", no_wrap=True)
    for row in rows:
        cells = []
        for kind in ("standard", "parallel"):
            cell = row[kind]
            cells += [f"{cell[name]:.6f} ({cell[form]:.6f})" for name, form in _CLOSED_FORMS]
            gap = abs(cell["relative_gap"])
            cells.append("< 0.0001 %" if gap < 1e-6 else f"{100 * gap:.1f} %")
        table.add_row(row["data"], str(row["num_layers"]), *cells)
    return table


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the recipe.

    Args:
        argv: Options; those of the process if ``None``.

    Returns:
        The record that is written as JSON; ``record["agrees"]`` says whether all numbers agree with their closed forms.
    """
    description = "Compare the duality gaps of standard and parallel networks with closed forms."
    config = config_from_args(Config, argv, name="zero_gap_table", description=description)
    console = report_console(width=140)
    start = time.perf_counter()
    rows = [solve(problem, config) for problem in track(list(problems(config)), "training", console=console)]
    worst = max(row[kind]["closed_form_error"] for row in rows for kind in ("standard", "parallel"))
    record = {
        "recipe": "zero_gap_table",
        "config": config,
        "environment": environment(),
        "results": rows,
        "largest_closed_form_error": worst,
        "agrees": worst <= config.tolerance,
        "seconds": time.perf_counter() - start,
    }
    output = Path(config.output) / "record.json"
    write_record(output, record)
    console.print(_table(rows, config.path_decay))
    console.print(
        f"Largest relative distance from a closed form: {worst:.1e}. Took {record['seconds']:.0f} s. Wrote {output}.",
        soft_wrap=True,
    )
    return record


if __name__ == "__main__":
    sys.exit(0 if main()["agrees"] else 1)
