from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from torch_strongdual.certification import CertificateStatus, certify
from torch_strongdual.certification.oracles import AngularSweepOracle
from torch_strongdual.errors import InvalidInputError, ShapeError, UnsupportedLossError, UnsupportedModelError
from torch_strongdual.metrics import DualityGap
from torch_strongdual.nn import ParallelNet
from torch_strongdual.optim import PathAdamW

PATH_DECAY = 0.05
OPTIONS: dict[str, Any] = {"loss": nn.MSELoss(), "path_decay": PATH_DECAY, "time_budget": 0.3}


def make_net() -> ParallelNet:
    return ParallelNet(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False), num_branches=4)


def make_data(num_samples: int = 12) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(num_samples, 2, generator=generator)
    return inputs, inputs[:, :1].relu() - 0.5 * inputs.sum(1, keepdim=True).relu()


def make_metric(net: nn.Module | None = None, **options: Any) -> DualityGap:
    return DualityGap(make_net() if net is None else net, **(OPTIONS | options))


def filled(net: nn.Module | None = None, **options: Any) -> DualityGap:
    metric = make_metric(net, **options)
    inputs, targets = make_data()
    for part in (slice(0, 5), slice(5, 10), slice(10, 12)):
        metric.update(inputs[part], targets[part])
    return metric


def primal_value(metric: DualityGap) -> float:
    metric.compute()
    assert metric.certificate is not None
    return metric.certificate.primal_value


# Value


def test_batches_give_what_certify_gives_on_all_data() -> None:
    net = make_net()
    metric = filled(net, time_budget=5.0)
    gap = metric.compute()
    direct = certify(net, *make_data(), loss=nn.MSELoss(), path_decay=PATH_DECAY, time_budget=5.0)
    assert gap.shape == ()
    assert gap.dtype == torch.float64
    assert gap.item() == pytest.approx(direct.relative_gap, rel=1e-3)
    assert metric.certificate is not None
    assert metric.certificate.primal_value == direct.primal_value
    assert gap.item() == metric.certificate.relative_gap


def test_the_gap_closes_when_the_network_is_trained() -> None:
    net = make_net()
    metric = filled(net, rtol=0.02, time_budget=2.0)
    before = metric.compute()
    inputs, targets = make_data()
    for lr in (0.05, 0.01, 0.002):
        optimizer = PathAdamW(net.path_param_groups(PATH_DECAY), lr=lr)
        for _ in range(200):
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.mse_loss(net(inputs), targets))
            optimizer.step()
    after = metric.compute()  # not the value of before, though nothing was added
    assert after < 0.02 < before
    assert metric.certificate is not None
    assert metric.certificate.is_certified


def test_nothing_proven_is_infinite() -> None:
    metric = make_metric()
    inputs, targets = make_data()
    inputs[0, 0] = torch.nan
    metric.update(inputs, targets)
    assert metric.compute().item() == torch.inf
    assert metric.certificate is not None
    assert metric.certificate.status is CertificateStatus.NUMERICAL_FAILURE


def test_options_reach_the_certificate() -> None:
    metric = filled(path_decay=0.2, penalty="l2_path", rtol=0.3, oracle=AngularSweepOracle())
    metric.compute()
    certificate = metric.certificate
    assert certificate is not None
    assert (certificate.path_decay, certificate.penalty, certificate.rtol) == (0.2, "l2_path", 0.3)
    assert certificate.evidence["oracle"] == "AngularSweepOracle"


def test_classification_with_labels() -> None:
    net = ParallelNet(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 3), num_branches=4)
    metric = DualityGap(net, loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 1.0])), path_decay=0.1, time_budget=0.3)
    metric.update(make_data()[0], torch.arange(12) % 3)
    assert 0.0 <= metric.compute() <= 1.0 + 1e-12
    assert metric.state_dict() == {}


# As a metric


def test_constants_are_declared() -> None:
    metric = make_metric()
    assert isinstance(metric, Metric)
    assert metric.higher_is_better is False
    assert metric.is_differentiable is False
    assert metric.full_state_update is False
    for name in ("higher_is_better", "is_differentiable"):
        with pytest.raises(RuntimeError, match="Can't change const"):
            setattr(metric, name, True)


def test_it_is_drawn_as_other_metrics_are() -> None:
    pytest.importorskip("matplotlib")
    metric = DualityGap(make_net(), **OPTIONS)
    metric.update(*make_data())
    _, axes = metric.plot()
    assert len(axes.get_lines()) >= 1
    metric.plot([torch.tensor(0.5), torch.tensor(0.1)])


def test_reset_forgets() -> None:
    metric = filled()
    metric.compute()
    metric.reset()
    assert [metric.certificate] == [None]
    with pytest.warns(UserWarning, match="called before"), pytest.raises(InvalidInputError, match="no samples; call `update"):
        metric.compute()
    inputs, targets = make_data()
    metric.update(inputs[:3], targets[:3])
    metric.compute()
    assert metric.certificate is not None
    assert metric.certificate.dual_point is not None
    assert metric.certificate.dual_point.shape == (3, 1)


def test_empty_batches_count_for_nothing() -> None:
    metric = make_metric()
    metric.update(*make_data(0))
    with pytest.raises(InvalidInputError, match=r"at least one sample"):
        metric.compute()
    metric.update(*make_data())
    metric.update(*make_data(0))
    assert primal_value(metric) == primal_value(filled(metric._model.module))


def test_forward_gives_the_value_of_the_batch_and_collects_it() -> None:
    net = make_net()
    metric = make_metric(net)
    inputs, targets = make_data()
    for part in (slice(0, 4), slice(4, 12)):
        on_batch = metric(inputs[part], targets[part])
        assert metric.certificate is not None
        assert on_batch.item() == metric.certificate.relative_gap
        alone = certify(net, inputs[part], targets[part], loss=nn.MSELoss(), path_decay=PATH_DECAY, time_budget=0.1)
        assert metric.certificate.primal_value == alone.primal_value
    assert primal_value(metric) == primal_value(filled(net))


def test_caching_is_for_those_who_ask() -> None:
    net = make_net()
    cached, fresh = filled(net, compute_with_cache=True), filled(net)
    before = cached.compute(), fresh.compute()
    with torch.no_grad():
        net.branch_weights()[-1].mul_(3.0)
    assert torch.equal(cached.compute(), before[0])
    assert not torch.equal(fresh.compute(), before[1])


def test_inputs_are_detached_and_keep_their_type() -> None:
    metric = make_metric()
    inputs, targets = make_data()
    metric.update(inputs.double().requires_grad_(), targets.double())
    assert not metric.inputs[0].requires_grad
    assert metric.inputs[0].dtype == torch.float64
    assert not metric.compute().requires_grad


def test_collections_hold_several() -> None:
    net = make_net()
    metrics = MetricCollection({"weak": make_metric(net, path_decay=0.01), "strong": make_metric(net, path_decay=0.1)})
    metrics.update(*make_data())
    metrics.update(*make_data())
    values = metrics.compute()
    assert set(values) == {"weak", "strong"}
    decays = {metric.certificate.path_decay for metric in metrics.values(copy_state=False)}  # type: ignore[union-attr]
    assert decays == {0.01, 0.1}


# The model is referred to


def test_the_model_is_no_part_of_the_metric() -> None:
    metric = filled()
    metric.persistent(True)
    assert set(metric.state_dict()) == {"inputs", "targets"}
    assert list(metric.parameters()) == []
    assert list(metric.children()) == []
    assert metric.double() is metric
    assert metric._model.module.state_dict()["0.weight"].dtype == torch.float32


def test_state_dicts_round_trip() -> None:
    net = make_net()
    metric, other = filled(net), make_metric(net)
    metric.persistent(True)
    other.persistent(True)
    other.load_state_dict(metric.state_dict())
    assert torch.equal(torch.cat(other.inputs), make_data()[0])
    assert torch.equal(torch.cat(other.targets), make_data()[1])


def test_clones_share_the_model_and_nothing_else() -> None:
    net = make_net()
    metric = filled(net)
    clone = metric.clone()
    assert isinstance(clone, DualityGap)
    assert clone._model.module is net
    clone.update(make_data()[0], 2.0 * make_data()[1])
    assert len(metric.inputs) == 3
    with torch.no_grad():
        net.branch_weights()[-1].mul_(2.0)
    assert primal_value(metric) == primal_value(filled(net)) != primal_value(clone)


def test_copies_of_a_module_that_holds_both_refer_to_its_own_model() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make_net()
            self.gap = make_metric(self.net)

    holder = Holder()
    copied = copy.deepcopy(holder)
    assert copied.gap._model.module is copied.net
    assert copied.net is not holder.net
    assert set(holder.state_dict()) == {"net.0.weight", "net.2.weight"}


def test_pickling_takes_the_model_along() -> None:
    metric = filled()
    metric.compute()
    restored = pickle.loads(pickle.dumps(metric))
    assert restored.certificate.primal_value == primal_value(metric)
    restored.update(make_data()[0], 2.0 * make_data()[1])
    assert primal_value(restored) != primal_value(metric)


def test_hashes_differ() -> None:
    net = make_net()
    metrics = [make_metric(net), make_metric(net), filled(net)]
    assert len({hash(metric) for metric in metrics}) == 3


# Several processes


def gathers(others: dict[torch.Size, Tensor]) -> Callable[..., list[Tensor]]:
    """What all_gather gives on rank 0 of two, where rank 1 has the tensors ``others``."""

    def gather(tensor: Tensor, group: Any = None) -> list[Tensor]:
        return [tensor, others[tensor.shape[1:]]]

    return gather


def test_the_samples_of_all_processes_are_gathered() -> None:
    net = make_net()
    inputs, targets = make_data()
    mine, other = (inputs[:7], targets[:7]), {part.shape[1:]: part[7:] for part in (inputs, targets)}
    metric = make_metric(net, distributed_available_fn=lambda: True, dist_sync_fn=gathers(other))
    metric.update(mine[0][:3], mine[1][:3])
    metric.update(mine[0][3:], mine[1][3:])
    assert primal_value(metric) == primal_value(filled(net))
    assert [len(part) for part in metric.inputs] == [3, 4]  # its own again


# Mistakes


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"path_decay": 0.0}, "`path_decay` is 0.0"),
        ({"path_decay": float("nan")}, "`path_decay` is nan"),
        ({"penalty": "l1"}, "`penalty` is 'l1'"),
        ({"rtol": -1.0}, "`rtol` is -1.0"),
        ({"time_budget": 0.0}, "`time_budget` is 0.0"),
        ({"oracle": "auto"}, "`oracle` is of type str; expected a dual norm oracle"),
    ],
)
def test_arguments_out_of_range(options: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidInputError, match=match):
        make_metric(**options)


def test_unknown_keywords_are_refused_as_in_torchmetrics() -> None:
    with pytest.raises(ValueError, match="Unexpected keyword arguments: `beta`"):
        make_metric(beta=1.0)


def test_models_without_branches_and_losses_without_conjugate_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="has no branches"):
        make_metric(nn.Linear(2, 1))
    for loss in (nn.KLDivLoss(), nn.MSELoss, nn.functional.mse_loss, "mse"):
        with pytest.raises(UnsupportedLossError, match="expected an instance of"):
            make_metric(loss=loss)
    with pytest.raises(UnsupportedLossError, match="reduction 'none'"):
        make_metric(loss=nn.MSELoss(reduction="none"))


def test_batches_have_to_be_tensors_of_equal_length() -> None:
    metric = make_metric()
    inputs, targets = make_data()
    with pytest.raises(ShapeError, match=r"`inputs` has shape \(12, 2\) and `targets` \(5, 1\)"):
        metric.update(inputs, targets[:5])
    with pytest.raises(ShapeError, match=r"`inputs` has shape \(\)"):
        metric.update(torch.tensor(1.0), torch.tensor(1.0))
    with pytest.raises(InvalidInputError, match="`targets` is of type list; expected a tensor"):
        metric.update(inputs, [1.0] * 12)  # type: ignore[arg-type]
    assert metric.inputs == metric.targets == []


def test_samples_have_to_be_of_one_shape() -> None:
    metric = make_metric()
    inputs, targets = make_data()
    metric.update(inputs, targets)
    with pytest.raises(ShapeError, match=r"`inputs` has shape \(12, 1\), and the batch before \(12, 2\)"):
        metric.update(inputs[:, :1], targets)
    with pytest.raises(ShapeError, match=r"`targets` has shape \(12,\), and the batch before \(12, 1\)"):
        metric.update(inputs, targets[:, 0])
    assert len(metric.inputs) == len(metric.targets) == 1
