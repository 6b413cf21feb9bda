"""A second opinion on certificates, from slow code that shares nothing with what issued them."""

from torch_strongdual.certification.verification._verify import verify_certificate as verify_certificate
from torch_strongdual.certification.verification.verification_report import VerificationReport as VerificationReport
from torch_strongdual.certification.verification.verification_report import VerificationVerdict as VerificationVerdict
