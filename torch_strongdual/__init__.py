"""Train parallel networks in PyTorch with a certificate of global optimality."""

from torch_strongdual._version import __version__ as __version__
from torch_strongdual.certification import Certificate as Certificate
from torch_strongdual.certification import CertificateStatus as CertificateStatus
from torch_strongdual.certification import certify as certify
from torch_strongdual.certification import dual_norm_bound as dual_norm_bound
from torch_strongdual.certification import max_path_decay as max_path_decay
from torch_strongdual.certification import optimize_to_certificate as optimize_to_certificate
from torch_strongdual.certification import verify_certificate as verify_certificate
from torch_strongdual.losses import HalfSquaredLoss as HalfSquaredLoss
from torch_strongdual.nn import GatedReLU as GatedReLU
from torch_strongdual.nn import ParallelNet as ParallelNet
from torch_strongdual.optim import PathAdamW as PathAdamW
from torch_strongdual.optim import PathSGD as PathSGD

__all__ = [
    "Certificate",
    "CertificateStatus",
    "GatedReLU",
    "HalfSquaredLoss",
    "ParallelNet",
    "PathAdamW",
    "PathSGD",
    "__version__",
    "certify",
    "dual_norm_bound",
    "max_path_decay",
    "optimize_to_certificate",
    "verify_certificate",
]
