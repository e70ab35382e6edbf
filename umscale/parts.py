"""Parts from users' packages: found by Python entry points, imported when a spec names one or a listing asks for it.

A package offers a part by a line in its pyproject.toml, under ``[project.entry-points."umscale.laws"]`` or another of
``GROUPS``. Finding one reads the metadata of installed packages and imports nothing; even that waits until a name is
looked for that is none of umscale's own.
"""

import contextlib
import functools
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from umscale.errors import UserError, nearest

if TYPE_CHECKING:
    import torch
    from torch import nn

Group = Literal["memories", "optimizers", "laws", "questions", "evaluations"]
GROUPS: Mapping[Group, str] = {
    "memories": "memory",
    "optimizers": "optimiser",
    "laws": "law",
    "questions": "question",
    "evaluations": "evaluation",
}
"""Group of entry points, without ``umscale.`` before it → what one of them is called in messages."""

Scalar = bool | int | float | str
BUILT_IN: Mapping[Group, Mapping[str, str]] = {"optimizers": {"muon": "umscale.training.muon:MUON"}}
"""Parts of umscale itself that are the same objects as a stranger's, by group and name."""

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_FIRST = 300
"""Characters of another package's message that are passed on."""


class Options(Mapping[str, Scalar]):
    """What a spec says of a part beyond its name: scalars by name, frozen and hashable."""

    __slots__ = ("_items",)

    def __init__(self, items: Mapping[str, Scalar] | None = None) -> None:
        # With types, lest 1, 1.0 and True be one key of a cache.
        self._items = tuple(sorted((k, type(v).__name__, v) for k, v in (items or {}).items()))

    def __getitem__(self, name: str) -> Scalar:
        for known, _, value in self._items:
            if known == name:
                return value
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return (name for name, _, _ in self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Options) and self._items == other._items

    def __hash__(self) -> int:
        return hash(self._items)

    def __repr__(self) -> str:
        return f"Options({dict(self)})"


NO_OPTIONS = Options()


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerPart:
    """An optimiser of hidden weights: what an entry point of ``umscale.optimizers`` names.

    Value tables, token-addressed tables and whatever it does not take stay with AdamW.
    """

    make: "Callable[[list[nn.Parameter], Mapping[str, Any]], torch.optim.Optimizer]"
    """Given parameters and all options, with ``lr`` as this run has it. The state of the optimiser that it returns must
    be tensors (a parameter's under its key), or a run could not be continued."""
    options: Mapping[str, Scalar]
    """Every option with its default. ``lr`` must be one: the peak learning rate at d_model 64; warm-up and decay are
    those of everything dense."""
    takes: Literal["matrices", "dense"] = "matrices"
    """``matrices``: weights of the linear maps inside the blocks, all of two dimensions; ``dense``: everything but
    tables, which is also embedding, head, norms, keys and experts."""
    width_exponent: float = 0.0
    """With ``train.rate_scaling = "shape"`` a model of width d gets ``lr (64 / d) ** width_exponent``."""
    check: Callable[[Mapping[str, Any]], None] = lambda options: None
    """Raises ValueError, in one line, for options that cannot be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPart:
    """A memory layer: what an entry point of ``umscale.memories`` names.

    What it finds rows by is its own; the rows, the value path after them, their initial size and learning rate and all
    axes of studies are those of every memory (``umscale.layers.memory``).
    """

    layer: Any
    """A subclass of ``umscale.layers.memory.Memory``."""
    options: Mapping[str, Scalar] = NO_OPTIONS
    """What ``[model.memory.options]`` may say, with defaults; the layer finds them merged by ``options_of``."""
    params: Callable[[int, Any], int]
    """Of (d_model, ``MemorySpec``): parameters of one layer that find rows, norms included; value path and rows left
    out. All are taken to be read once a step."""
    macs: Callable[[int, Any], tuple[float, float]]
    """Of the same: multiply-accumulates per token of projections that find rows, and of all else that does."""
    check: Callable[[int, Any], None] = lambda d_model, memory: None
    """Of the same: raises ValueError, in one line, for a shape that cannot be."""

    def options_of(self, memory: Any) -> dict[str, Any]:
        """Return the options of a ``MemorySpec``, those at their default too."""
        return {**self.options, **memory.options}


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationPart:
    """Something to measure of a model at every record: what an entry point of ``umscale.evaluations`` names."""

    evaluate: Callable[[Any], Mapping[str, float]]
    """Of ``umscale.training.own_evaluation.Measured``: numbers by name. It must leave weights as they are, and give the
    same numbers for the same weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A part by name, not imported so far."""

    group: Group
    name: str
    package: str
    """Name and version of the package that offers it; empty for umscale's own."""
    target: str
    """``module:attribute``."""

    @property
    def noun(self) -> str:
        """What it is, for messages: ``memory 'hashed' of own-parts 0.1.0``."""
        return f"{GROUPS[self.group]} {self.name!r}" + (f" of {self.package}" if self.package else "")

    def load(self, kind: type) -> Any:
        """Import the part and return it; ``kind`` is what it must be an instance of.

        Raises:
            UserError: it cannot be imported, or is something else.
        """
        found = load_any(self)
        if not isinstance(found, kind):
            raise UserError(f"{self.noun}: {self.target} is no {kind.__name__}, but {found!r:.200}")
        return found


_LENT: dict[Part, Any] = {}


@contextlib.contextmanager
def lent(group: Group, found: Any, name: str = "under_test") -> Iterator[Part]:
    """Offer an object as if a package did, so that a part can be tested before it is installed."""
    part = Part(group=group, name=name, package="under-test 0", target="lent")
    _LENT[part] = found
    try:
        yield part
    finally:
        del _LENT[part]


def load_any(part: Part) -> Any:
    """Import what a part names, whatever it is; raises ``UserError`` if that fails."""
    return _LENT[part] if part in _LENT else _load(part)


@functools.lru_cache(maxsize=256)
def _load(part: Part) -> Any:
    module, _, path = part.target.partition(":")
    try:
        found: Any = import_module(module)
        for name in filter(None, path.split(".")):
            found = getattr(found, name)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a stranger's module may do anything when it is imported
        words = " ".join(f"{type(error).__name__}: {error}".split())[:_FIRST]
        raise UserError(f"{part.noun} cannot be loaded from {part.target} ({words})") from None
    return found


def offered(group: Group) -> tuple[Part, ...]:
    """Return what installed packages offer, by name; several of one name where packages disagree."""
    return (*_offered(group, tuple(sys.path)), *(part for part in _LENT if part.group == group))


@functools.lru_cache(maxsize=64)
def _offered(group: Group, path: tuple[str, ...]) -> tuple[Part, ...]:
    from importlib.metadata import entry_points

    try:
        found = [
            Part(
                group=group,
                name=entry.name,
                package=_provider(entry.dist),
                target=entry.value.replace(" ", ""),
            )
            for entry in entry_points(group=f"umscale.{group}")
        ]
    except (ValueError, KeyError, AttributeError, OSError) as error:  # metadata that is no metadata
        words = " ".join(f"{type(error).__name__}: {error}".split())[:_FIRST]
        raise UserError(f"the entry points of installed packages cannot be read ({words})") from None
    return tuple(sorted(dict.fromkeys(found), key=lambda part: (part.name, part.package, part.target)))


def _provider(dist: Any) -> str:
    name = (dist.metadata["Name"] if dist is not None else None) or "an unnamed package"
    version = (dist.metadata["Version"] if dist is not None else None) or "without a version"
    return f"{name} {version}"


def find(group: Group, name: str, known: tuple[str, ...] = ()) -> Part:
    """Return the part of that name: umscale's own, or the one that an installed package offers.

    Args:
        known: further names that there are, for the message.

    Raises:
        UserError: there is none, or several packages offer one.
    """
    own = BUILT_IN.get(group, {})
    if name in own:
        return Part(group=group, name=name, package="", target=own[name])
    all_offered = offered(group)
    found = [part for part in all_offered if part.name == name]
    if len(found) > 1:
        who = " and ".join(f"{part.package} ({part.target})" for part in found)
        raise UserError(f"{GROUPS[group]} {name!r} is offered more than once, by {who}; uninstall one")
    if not found:
        names = [*known, *own, *(part.name for part in all_offered)]
        raise UserError(
            f"no {GROUPS[group]} is called {name!r}, here or in an installed package{nearest(name, names)}"
        )
    if not _NAME.fullmatch(name):
        raise UserError(f"{found[0].noun}: a name is 1 to 64 letters, digits, '_' and '-', a letter first")
    return found[0]


def absent(group: Group, name: str, package: str) -> str:
    """Return why a part of ``package`` (name and version) cannot be had here, in words; empty if it can."""
    if not package:
        return ""
    found = [part for part in offered(group) if part.name == name]
    if any(part.package == package for part in found):
        return ""
    here = f"here it is of {found[0].package}" if found else "which is not installed here"
    return f"{GROUPS[group]} {name!r} of {package}, {here}"


def require(group: Group, name: str, package: str) -> Part:
    """Return the part that a spec names, of the very package and version that it names.

    Raises:
        UserError: it is not installed, or in another version, which would make another run.
    """
    if words := absent(group, name, package):
        distribution, _, version = package.rpartition(" ")
        raise UserError(f"{words}; install {distribution}=={version} to train or count it")
    if not package:
        return find(group, name)
    return next(part for part in offered(group) if (part.name, part.package) == (name, package))
