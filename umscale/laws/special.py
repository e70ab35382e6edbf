"""The special functions that intervals need, from SciPy, at half of what importing them takes otherwise.

SciPy's import asks NumPy for every name it has, and so loads ``numpy.f2py``, a translator of Fortran: a third of a
second in which nothing is fitted. An empty module stands in for it while the import lasts.
"""

import sys
import types

import numpy

_stand_in = "numpy.f2py" not in sys.modules
if _stand_in:
    numpy.f2py = types.ModuleType("numpy.f2py")
try:
    from scipy.special import bdtr, betaincinv, chdtrc, chdtri, fdtrc, ndtr, ndtri, stdtr, stdtrit
finally:
    if _stand_in:
        del numpy.f2py

__all__ = ["bdtr", "betaincinv", "chdtrc", "chdtri", "fdtrc", "ndtr", "ndtri", "stdtr", "stdtrit"]
