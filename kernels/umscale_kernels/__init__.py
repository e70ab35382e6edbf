"""Tensor functions for sparse memory layers: no modules, no configuration.

One folder per operation: `reference.py` defines it (any dtype), the files beside it compute the same faster, and
its `__init__.py` holds the one function that dispatches.
"""

from umscale_kernels.backends import available_backends, default_backend
from umscale_kernels.lookup import lookup
from umscale_kernels.rank1 import rank1_vectors
from umscale_kernels.rms_norm import rms_norm
from umscale_kernels.select import Selection, select
from umscale_kernels.swiglu import swiglu
from umscale_kernels.usage import count_rows

__all__ = [
    "Selection",
    "available_backends",
    "count_rows",
    "default_backend",
    "lookup",
    "rank1_vectors",
    "rms_norm",
    "select",
    "swiglu",
]
