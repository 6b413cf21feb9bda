"""Certificates of global optimality."""

from torch_strongdual.certification._certify import certify as certify
from torch_strongdual.certification._dual_norm import dual_norm_bound as dual_norm_bound
from torch_strongdual.certification._dual_norm import max_path_decay as max_path_decay
from torch_strongdual.certification.certificate import Certificate as Certificate
from torch_strongdual.certification.certificate import CertificateScope as CertificateScope
from torch_strongdual.certification.certificate import CertificateStatus as CertificateStatus
from torch_strongdual.certification.certificate import DualBound as DualBound
from torch_strongdual.certification.deadline import Deadline as Deadline
from torch_strongdual.certification.dual_norm_bound import DualNormBound as DualNormBound
from torch_strongdual.certification.dual_norm_bound import Witness as Witness
from torch_strongdual.certification.dual_solver import DualSolver as DualSolver
from torch_strongdual.certification.training_problem import TrainingProblem as TrainingProblem
