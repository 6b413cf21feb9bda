"""Train parallel networks in PyTorch with a certificate of global optimality."""

from torch_strongdual._version import __version__ as __version__
