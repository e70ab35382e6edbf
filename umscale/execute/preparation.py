"""What comes before a sweep's first worker: the cells of its study, and a store that is fit to be written to."""

import os

from umscale.design.study import Cell, Study, expand
from umscale.machine import resolve_precision
from umscale.store.store import Store


def planned(study: Study, root: str | os.PathLike[str]) -> tuple[list[Cell], str]:
    """Return a study's cells, and what precision ``auto`` means in the store at ``root`` if there is one."""
    known = Store.open_if_any(root)
    precision = (known.pinned_precision() if known else None) or resolve_precision(
        study.reference.train.precision
    )
    return expand(study, precision), precision


def ready(root: str | os.PathLike[str], precision: str) -> tuple[Store, list[str]]:
    """Open a store for training, made first where there is none; return it and what was damaged and set aside."""
    opened = Store.create(root)
    if opened.pinned_precision() is None:
        opened.pin_precision(precision)
    return opened, opened.repair()
