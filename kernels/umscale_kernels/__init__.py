"""Tensor functions for sparse memory layers: no modules, no configuration.

One folder per operation: `reference.py` defines it (any dtype), the files beside it compute the same faster, and
its `__init__.py` holds the one function that dispatches.
"""

from umscale_kernels.attention import attention
from umscale_kernels.backends import available_backends, default_backend, kernels_in_use
from umscale_kernels.cross_entropy import cross_entropy
from umscale_kernels.grouped_mm import grouped_mm
from umscale_kernels.grouped_mm.ffn import expert_ffn
from umscale_kernels.key_scores import key_scores
from umscale_kernels.key_select import key_select, shared_scores
from umscale_kernels.lookup import lookup, lookup_linked
from umscale_kernels.lookup.dots import row_dots
from umscale_kernels.lookup.traffic import LookupTraffic, lookup_traffic_bytes
from umscale_kernels.rank1 import rank1_vectors
from umscale_kernels.rms_norm import rms_norm
from umscale_kernels.select import Selection, select
from umscale_kernels.swiglu import swiglu
from umscale_kernels.table_adamw import table_adamw
from umscale_kernels.usage import count_rows

__all__ = [
    "LookupTraffic",
    "Selection",
    "attention",
    "available_backends",
    "count_rows",
    "cross_entropy",
    "default_backend",
    "expert_ffn",
    "grouped_mm",
    "kernels_in_use",
    "key_scores",
    "key_select",
    "lookup",
    "lookup_linked",
    "lookup_traffic_bytes",
    "rank1_vectors",
    "rms_norm",
    "row_dots",
    "select",
    "shared_scores",
    "swiglu",
    "table_adamw",
]
