"""What the map from torch modules accepts, and what it says when it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from torch_strongdual.errors import InvalidInputError, ShapeError, UnsupportedLossError
from torch_strongdual.losses import HalfSquaredLoss, HuberFamilyLoss, LogisticLoss, SoftmaxLoss, conjugate_loss

REAL_LOSSES = [nn.MSELoss(), nn.L1Loss(), nn.HuberLoss(), nn.SmoothL1Loss(), nn.BCEWithLogitsLoss(), HalfSquaredLoss()]


class _OwnMSELoss(nn.MSELoss):
    def forward(self, *tensors: Tensor) -> Tensor:
        return 2 * super().forward(*tensors)


def _patched_loss() -> nn.Module:
    loss = nn.MSELoss()
    loss.forward = lambda *tensors: tensors[0].sum()  # type: ignore[method-assign]
    return loss


@pytest.mark.parametrize(
    ("loss", "kind"),
    [(loss, LogisticLoss if isinstance(loss, nn.BCEWithLogitsLoss) else HuberFamilyLoss) for loss in REAL_LOSSES],
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_vectors_are_columns_if_there_is_one_output(loss: nn.Module, kind: type, dtype: torch.dtype) -> None:
    targets = torch.tensor([0.1, 0.7, 1.0], dtype=dtype)
    dual_loss = conjugate_loss(loss, targets, num_outputs=1)
    assert isinstance(dual_loss, kind)
    assert dual_loss.targets.shape == (3, 1)
    assert torch.equal(dual_loss.targets[:, 0], targets.double())
    outputs = torch.tensor([[1.0], [2.0], [-3.0]], dtype=torch.float64)
    assert float(dual_loss.value(outputs)) == pytest.approx(float(loss(outputs[:, 0], targets.double())), rel=1e-14)


@pytest.mark.parametrize("loss", REAL_LOSSES)
@pytest.mark.parametrize(("shape", "num_outputs"), [((4,), 2), ((4, 1), 2), ((4, 3), 2), ((4, 2, 1), 2), ((), 1), ((4, 2), 1)])
def test_targets_that_do_not_fit_the_outputs_are_refused(loss: nn.Module, shape: tuple[int, ...], num_outputs: int) -> None:
    with pytest.raises(ShapeError, match=rf"{num_outputs} outputs; expected \(num_samples, {num_outputs}\)"):
        conjugate_loss(loss, torch.ones(shape), num_outputs=num_outputs)


@pytest.mark.parametrize("loss", [*REAL_LOSSES, nn.CrossEntropyLoss()])
@pytest.mark.parametrize("shape", [(0,), (0, 2), (3, 0)])
def test_empty_targets_are_refused(loss: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidInputError, match="`targets` is empty"):
        conjugate_loss(loss, torch.ones(shape), num_outputs=2)


@pytest.mark.parametrize("loss", [*REAL_LOSSES, nn.CrossEntropyLoss()])
def test_nan_targets_are_refused(loss: nn.Module) -> None:
    with pytest.raises(InvalidInputError, match="2 non-finite of 4"):
        conjugate_loss(loss, torch.tensor([[0.0, float("nan")], [float("inf"), 1.0]]), num_outputs=2)


@pytest.mark.parametrize("loss", REAL_LOSSES)
def test_integer_targets_of_real_losses_are_refused(loss: nn.Module) -> None:
    with pytest.raises(InvalidInputError, match=r"dtype torch.int64; expected floating point"):
        conjugate_loss(loss, torch.tensor([0, 1]), num_outputs=1)


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        (nn.NLLLoss(), "NLLLoss"),
        (nn.BCELoss(), "BCELoss"),
        (_OwnMSELoss(), "_OwnMSELoss"),
        (_patched_loss(), "MSELoss"),
        (nn.functional.mse_loss, "function"),
        (None, "NoneType"),
    ],
)
def test_losses_without_a_known_conjugate_are_refused(loss: Any, name: str) -> None:
    with pytest.raises(UnsupportedLossError, match=rf"{name}; expected an instance of one of MSELoss, .*HalfSquaredLoss"):
        conjugate_loss(loss, torch.ones(2, 1), num_outputs=1)


def test_a_class_in_place_of_an_instance() -> None:
    with pytest.raises(UnsupportedLossError, match=r"class torch.*MSELoss; expected an instance of it: `MSELoss\(\)`"):
        conjugate_loss(nn.MSELoss, torch.ones(2, 1), num_outputs=1)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "loss_class", [nn.MSELoss, nn.L1Loss, nn.HuberLoss, nn.SmoothL1Loss, nn.BCEWithLogitsLoss, nn.CrossEntropyLoss]
)
def test_losses_without_reduction_are_refused(loss_class: type[nn.Module]) -> None:
    with pytest.raises(UnsupportedLossError, match=rf"{loss_class.__name__} has reduction 'none'; expected 'mean' or 'sum'"):
        conjugate_loss(loss_class(reduction="none"), torch.ones(2, 2), num_outputs=2)


def test_legacy_arguments_are_what_torch_makes_of_them() -> None:
    with pytest.warns(UserWarning, match="deprecated"):
        loss = nn.MSELoss(size_average=False)
    assert float(conjugate_loss(loss, torch.ones(3, 1), num_outputs=1).value(torch.zeros(3, 1))) == 3.0


def test_element_weights_of_binary_cross_entropy_are_refused() -> None:
    with pytest.raises(UnsupportedLossError, match=r"`weight` of shape \(1,\)"):
        conjugate_loss(nn.BCEWithLogitsLoss(weight=torch.ones(1)), torch.ones(2, 1), num_outputs=1)


@pytest.mark.parametrize("num_outputs", [0, -1, 1.0])
def test_numbers_of_outputs_that_are_none_are_refused(num_outputs: Any) -> None:
    with pytest.raises(InvalidInputError, match="`num_outputs` is"):
        conjugate_loss(nn.MSELoss(), torch.ones(2, 1), num_outputs=num_outputs)


def test_targets_that_are_no_tensor_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="of class list"):
        conjugate_loss(nn.MSELoss(), [1.0], num_outputs=1)  # type: ignore[arg-type]


class TestCrossEntropyTargets:
    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            ([0, 3, 1, 5], r"2 of 4 labels outside the classes, first 3; expected labels from 0 to 2 for 3 outputs"),
            ([0, -1], r"1 of 2 labels outside the classes, first -1"),
        ],
    )
    def test_labels_outside_the_classes_are_refused(self, labels: list[int], message: str) -> None:
        with pytest.raises(InvalidInputError, match=message):
            conjugate_loss(nn.CrossEntropyLoss(), torch.tensor(labels), num_outputs=3)

    @pytest.mark.parametrize(("ignore_index", "label"), [(-100, -100), (1, 1)])
    def test_ignored_labels_are_refused_where_they_occur(self, ignore_index: int, label: int) -> None:
        loss = nn.CrossEntropyLoss(ignore_index=ignore_index)
        assert isinstance(conjugate_loss(loss, torch.tensor([0, 2]), num_outputs=3), SoftmaxLoss)
        with pytest.raises(UnsupportedLossError, match=rf"1 labels equal to `ignore_index` {ignore_index}"):
            conjugate_loss(loss, torch.tensor([0, label]), num_outputs=3)

    @pytest.mark.parametrize("dtype", [torch.int32, torch.uint8, torch.bool])
    def test_labels_of_other_integer_types_are_refused(self, dtype: torch.dtype) -> None:
        with pytest.raises(InvalidInputError, match=r"expected int64 class labels\. Convert"):
            conjugate_loss(nn.CrossEntropyLoss(), torch.tensor([0, 1]).to(dtype), num_outputs=2)

    def test_labels_as_floats_are_refused(self) -> None:
        with pytest.raises(InvalidInputError, match=r"float32; expected int64 class labels"):
            conjugate_loss(nn.CrossEntropyLoss(), torch.tensor([0.0, 1.0]), num_outputs=2)

    @pytest.mark.parametrize("targets", [torch.ones(4, 3), torch.ones(4, 2, 5), torch.zeros(4, 5, dtype=torch.int64)])
    def test_other_shapes_are_refused(self, targets: Tensor) -> None:
        with pytest.raises(ShapeError, match=r"int64 class labels \(num_samples,\), or class probabilities \(num_samples, 2\)"):
            conjugate_loss(nn.CrossEntropyLoss(), targets, num_outputs=2)

    def test_numbers_that_are_no_probabilities_are_refused(self) -> None:
        with pytest.raises(InvalidInputError, match=r"2 of 4 numbers outside \[0, 1\] \(from -1 to 2\)"):
            conjugate_loss(nn.CrossEntropyLoss(), torch.tensor([[-1.0, 2.0], [0.5, 0.5]]), num_outputs=2)

    @pytest.mark.parametrize(
        ("weight", "error", "message"),
        [
            (torch.ones(2), ShapeError, r"`weight` of shape \(2,\); expected \(3,\)"),
            (torch.tensor([1.0, -1.0, 1.0]), InvalidInputError, "class weight -1"),
            (torch.tensor([1.0, float("nan"), 1.0]), InvalidInputError, "1 non-finite"),
            (torch.tensor([0.0, 1.0, 0.0]), InvalidInputError, "weights of all labels are zero"),
        ],
    )
    def test_weights_that_make_no_sense_are_refused(self, weight: Tensor, error: type[Exception], message: str) -> None:
        with pytest.raises(error, match=message):
            conjugate_loss(nn.CrossEntropyLoss(weight=weight), torch.tensor([0, 2]), num_outputs=3)

    def test_one_class_is_refused(self) -> None:
        with pytest.raises(ShapeError, match="BCEWithLogitsLoss"):
            conjugate_loss(nn.CrossEntropyLoss(), torch.tensor([0, 0]), num_outputs=1)


def test_later_changes_of_float64_targets_change_nothing() -> None:
    targets = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    loss = conjugate_loss(nn.MSELoss(), targets, num_outputs=1)
    targets.zero_()
    assert loss.targets.tolist() == [[1.0], [2.0]]
