"""Callbacks for Lightning."""

from .certification_record import CertificationRecord as CertificationRecord
from .certify_optimality import CertifyOptimality as CertifyOptimality
