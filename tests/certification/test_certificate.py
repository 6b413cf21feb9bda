from __future__ import annotations

import dataclasses
import math
import pickle

import pytest
import torch

from torch_strongdual.certification import Certificate, CertificateScope, CertificateStatus, DualBound
from torch_strongdual.errors import CertificationError


def make(**changes: object) -> Certificate:
    values: dict[str, object] = {
        "primal_value": 2.0,
        "dual_bound": 1.5,
        "dual_point": torch.zeros(3, 1),
        "rtol": 1e-2,
        "scale": 2.0,
        "path_decay": 0.1,
        "penalty": "product",
        "status": CertificateStatus.GAP_OPEN,
        "scope": CertificateScope.GLOBAL,
    }
    return Certificate(**(values | changes))  # type: ignore[arg-type]


def test_gap_and_relative_gap() -> None:
    certificate = make()
    assert certificate.gap == 0.5
    assert certificate.relative_gap == 0.25
    assert not certificate.is_certified


def test_zero_over_zero_is_no_gap() -> None:
    assert make(primal_value=0.0, dual_bound=0.0, scale=0.0).relative_gap == 0.0
    assert make(primal_value=1.0, dual_bound=0.0, scale=0.0).relative_gap == math.inf


@pytest.mark.parametrize("primal", [2.0, math.nan, math.inf])
def test_nothing_proven_is_an_infinite_gap(primal: float) -> None:
    certificate = make(primal_value=primal, dual_bound=-math.inf, dual_point=None)
    assert certificate.gap == math.inf
    assert certificate.relative_gap == math.inf
    assert "nothing proven" in str(certificate)


def test_text_says_what_was_proven_and_what_to_do() -> None:
    text = str(make())
    assert "proven optimum in [1.5, 2]" in text
    assert "gap 25 %" in text
    assert CertificateStatus.GAP_OPEN.value in text
    text = str(make(status=CertificateStatus.CERTIFIED, dual_bound=1.99))
    assert "globally optimal to 0.5 % among all parallel networks" in text


def test_raise_if_uncertified_carries_the_certificate() -> None:
    certificate = make()
    with pytest.raises(CertificationError, match="not certified at 1 %") as caught:
        certificate.raise_if_uncertified()
    assert caught.value.certificate is certificate
    make(status=CertificateStatus.CERTIFIED).raise_if_uncertified()


def test_certificates_are_immutable_and_pickle() -> None:
    certificate = make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        certificate.dual_bound = 3.0  # type: ignore[misc]
    copy = pickle.loads(pickle.dumps(certificate))
    assert copy.relative_gap == certificate.relative_gap
    assert copy.status is certificate.status


def test_vacuous_bound_says_nothing() -> None:
    bound = DualBound.vacuous()
    assert bound.value == -math.inf
    assert bound.dual_point is None


def test_every_status_is_advice() -> None:
    for status in CertificateStatus:
        assert status.value.endswith(".")
        assert len(status.value) > 40


def test_a_notebook_shows_numbers_without_the_point() -> None:
    text = repr(make())
    assert "dual_bound=" in text
    assert "tensor(" not in text
    assert "dual_point" not in text
