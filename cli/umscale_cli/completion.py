"""What a shell completes: names of studies and stores, beside files and folders."""

from collections.abc import Iterable
from pathlib import Path


def studies(incomplete: str) -> list[str]:
    """Studies that ship with umscale and study files that begin so."""
    import umscale_studies

    return [*_named(umscale_studies.shipped(), incomplete), *_paths(incomplete, (".toml",))]


def stores(incomplete: str) -> list[str]:
    """Studies swept here or recorded with umscale, and folders that begin so."""
    import umscale_studies
    from umscale_cli.runs import DEFAULT_ROOT

    swept = (path.parent.name for path in DEFAULT_ROOT.glob("*/store.json"))
    return [*_named({*swept, *umscale_studies.recorded()}, incomplete), *_paths(incomplete, ())]


def sources(incomplete: str) -> list[str]:
    """Stores, and tables that begin so."""
    tables = (".csv", ".tsv", ".parquet", ".jsonl", ".ndjson", ".json", ".gz")
    return list(dict.fromkeys([*stores(incomplete), *_paths(incomplete, tables)]))


def _named(names: Iterable[str], incomplete: str) -> list[str]:
    return sorted(name for name in names if name.startswith(incomplete))


def _paths(incomplete: str, suffixes: tuple[str, ...]) -> list[str]:
    """Return folders, with a slash, and files with one of the suffixes, whose path begins so."""
    folder, slash, start = incomplete.rpartition("/")
    try:
        found = sorted(Path(f"{folder}{slash}" or ".").iterdir())
    except OSError:
        return []
    named = [
        path for path in found if path.name.startswith(start) and (start or not path.name.startswith("."))
    ]
    return [
        f"{folder}{slash}{path.name}{'/' if path.is_dir() else ''}"
        for path in named
        if path.is_dir() or path.suffix in suffixes
    ]
