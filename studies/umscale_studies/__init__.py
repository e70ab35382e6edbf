"""Study files, recorded results and reports that ship with umscale; data, and this loader."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent


def recorded() -> dict[str, Path]:
    """Return the recorded results stores that ship with umscale, by the name of their study."""
    return {path.parent.name: path.parent for path in sorted(ROOT.glob("recorded/*/store.json"))}


def shipped() -> dict[str, Path]:
    """Return the study files that ship with umscale, by name."""
    return {path.stem: path for path in sorted(ROOT.glob("*.toml"))}
