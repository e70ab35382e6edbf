"""Figures: one function each, returning a matplotlib ``Figure``; matplotlib loads when one is drawn.

``umscale.figures.kinds`` knows them by name and draws them from a table and its laws.
"""

from umscale.plots.architectures import architectures
from umscale.plots.coefficients import coefficient_pairs
from umscale.plots.iso_flop import iso_flop
from umscale.plots.losses import loss_vs_density, loss_vs_size
from umscale.plots.plane import density_plane
from umscale.plots.predictions import predicted
from umscale.plots.ratio import memory_ratio
from umscale.plots.residuals import residuals
from umscale.plots.style import save
from umscale.plots.training import curves

__all__ = [
    "architectures",
    "coefficient_pairs",
    "curves",
    "density_plane",
    "iso_flop",
    "loss_vs_density",
    "loss_vs_size",
    "memory_ratio",
    "predicted",
    "residuals",
    "save",
]
