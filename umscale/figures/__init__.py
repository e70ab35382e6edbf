"""From a table to its figures: laws fitted and questions answered, then drawn by ``umscale.plots``."""
