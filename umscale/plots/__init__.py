"""Figures: one function each, returning a matplotlib ``Figure``; matplotlib loads when one is drawn."""

from umscale.plots.architectures import architectures
from umscale.plots.losses import loss_vs_density, loss_vs_size
from umscale.plots.style import save
from umscale.plots.training import curves

__all__ = ["architectures", "curves", "loss_vs_density", "loss_vs_size", "save"]
