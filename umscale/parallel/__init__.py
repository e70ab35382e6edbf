"""The address of a process of a run on several: ``python -m umscale.parallel.worker``. See docs/parallel.md."""
