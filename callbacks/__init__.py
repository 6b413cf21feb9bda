"""Callbacks for Lightning."""

from .certification_record import CertificationRecord as CertificationRecord
from .certify_optimality import CertifyOptimality as CertifyOptimality
from .grow_branches import GrowBranches as GrowBranches
from .growth_record import GrowthRecord as GrowthRecord
