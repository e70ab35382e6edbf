"""C++ kernels behind a plain C ABI: compiled at first use, cached, loaded through ctypes.

No PyTorch header is included, so a build takes seconds. The cache key covers the source, the flags, the compiler's
version and the CPU, hence one shared home directory may serve different machines. Where the cache cannot be written,
a folder of the user's own among the temporary files stands in: the kernels decide the last bits of a run, so a
read-only home must not change them. `UMSCALE_NATIVE=0` switches the path off; without a working compiler every caller
falls back to stock PyTorch. `remarks` says what became of it.
"""

import ctypes
import dataclasses
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

log = logging.getLogger(__name__)

_COMPILERS = ("g++", "c++", "clang++")
_PARALLEL = (("-fopenmp",), ())
"""Tried in turn: a compiler may come without an OpenMP runtime."""
_BUILD_TIMEOUT_S = 300

# Source and its own flags, by operation. Rounding is part of what `select` computes, so no FMA there.
_SOURCES = {
    "attention": ("attention/attention.cpp", "-ffp-contract=fast"),
    "cross_entropy": ("cross_entropy/cross_entropy.cpp", "-ffp-contract=fast"),
    "key_select": ("key_select/key_select.cpp", "-ffp-contract=fast"),
    "select": ("select/select.cpp", "-ffp-contract=off"),
    "lookup": ("lookup/lookup.cpp", "-ffp-contract=fast"),
    "rms_norm": ("rms_norm/rms_norm.cpp", "-ffp-contract=fast", "-fopenmp-simd"),
    "swiglu": ("swiglu/swiglu.cpp", "-ffp-contract=fast"),
    "table_adamw": ("table_adamw/table_adamw.cpp", "-ffp-contract=off", "-fno-math-errno"),
}


_problems: dict[str, str] = {}
"""Why operations run without their compiled kernels."""
_stand_ins: list[str] = []
"""What took the place of a cache that cannot be written."""


def cache_dir() -> Path:
    """`$UMSCALE_CACHE`, else `$XDG_CACHE_HOME/umscale`, else `~/.cache/umscale`; private to the user.

    Raises OSError where it cannot be made.
    """
    path = _cache_path()
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def _cache_path() -> Path:
    if explicit := os.environ.get("UMSCALE_CACHE"):
        return Path(explicit) / "native"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "umscale" / "native"


def _stand_in() -> Path:
    """A folder among the temporary files that is this user's alone, for a cache that cannot be written.

    Raises OSError where there is none: what others may write is not loaded.
    """
    path = Path(tempfile.gettempdir()) / f"umscale-native-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{path} is not a folder of this user's alone")
    return path


def remarks() -> list[str]:
    """Build all kernels and return what a user should know of it, a line each: none when all is as it should be."""
    if os.environ.get("UMSCALE_NATIVE", "1") == "0":
        return []
    in_use()  # builds what is not built yet
    by_reason: dict[str, list[str]] = {}
    for op, reason in _problems.items():
        by_reason.setdefault(reason, []).append(op)
    lost = [
        f"{', '.join(ops)} run in stock PyTorch instead of compiled kernels, so losses differ from those made with "
        f"them as two seeds do: {reason}"
        for reason, ops in by_reason.items()
    ]
    return [*_stand_ins, *lost]


def in_use() -> str:
    """What the CPU's kernels are, for a record: `native`, `aten` for stock PyTorch, or which of them are missing."""
    missing = [op for op in _SOURCES if library(op) is None]
    if not missing:
        return "native"
    return "aten" if len(missing) == len(_SOURCES) else f"native without {', '.join(missing)}"


@dataclasses.dataclass(frozen=True, slots=True)
class Outlook:
    """What a run here would compute with, as far as that is known without compiling or writing anything."""

    compiler: str
    """The command and the first line of its ``--version``; empty without a compiler."""
    waiting: tuple[str, ...]
    """Operations that are not in the cache yet, to be compiled at first use."""
    folder: Path
    """The cache."""


def outlook() -> Outlook:
    """Say what compiled kernels there are and which are still to be compiled; `in_use` builds, this does not."""
    folder = _cache_path()
    try:
        compiler = _compiler()
        version = _version(tuple(compiler)).decode(errors="replace").partition("\n")[0]
    except (OSError, subprocess.SubprocessError, RuntimeError):
        return Outlook("", tuple(_SOURCES), folder)
    waiting = []
    for op, (source, *flags) in _SOURCES.items():
        path = Path(__file__).parent / source
        commands = [_command(compiler, (*flags, *parallel)) for parallel in _PARALLEL]
        if not any((folder / _file_name(path, compiler, one)).exists() for one in commands):
            waiting.append(op)
    return Outlook(f"{shlex.join(compiler)}: {version}", tuple(waiting), folder)


def library(op: str) -> ctypes.CDLL | None:
    """The compiled kernels of `op`, built now if need be; None when switched off or not possible."""
    return _library(op) if wanted() else None


def wanted() -> bool:
    """Whether C++ kernels are switched on."""
    return os.environ.get("UMSCALE_NATIVE", "1") != "0"


def available(op: str) -> bool:
    """Whether `library(op)` is there; a constant to `torch.compile`, which cannot look into ctypes."""
    return library(op) is not None


# Not a decorator: the type checker would lose the signature.
available = torch.compiler.assume_constant_result(available)


@functools.cache
def _library(op: str) -> ctypes.CDLL | None:
    source, *flags = _SOURCES[op]
    try:
        return _load(Path(__file__).parent / source, tuple(flags))
    except (OSError, subprocess.SubprocessError, RuntimeError) as error:
        log.debug("native %s kernel is unavailable, using stock PyTorch: %s", op, error)
        _problems[op] = str(error)
        return None


def function(op: str, name: str, *argtypes: type) -> Callable[..., int]:
    """C function `name` of `op`. Raises RuntimeError when the library is not available."""
    loaded = library(op)
    if loaded is None:
        raise RuntimeError(
            f"the native {op} kernel is not available: it needs a C++ compiler and UMSCALE_NATIVE unset or 1"
        )
    found = getattr(loaded, name)
    if found.argtypes is None:
        found.argtypes, found.restype = argtypes, ctypes.c_int
    return found


def _load(source: Path, flags: tuple[str, ...]) -> ctypes.CDLL:
    compiler = _compiler()
    errors: list[Exception] = []
    for folder in (
        cache_dir,
        _stand_in,
    ):  # the first may be read-only, full, or on a filesystem without execution
        for parallel in _PARALLEL:
            try:
                found = ctypes.CDLL(str(_built(compiler, source, (*flags, *parallel), folder())))
            except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
                errors.append(error)
                continue
            if folder is _stand_in and not _stand_ins:
                _stand_ins.append(
                    f"the cache of compiled kernels cannot be used ({errors[0]}), so they are kept in {folder()}; "
                    "$UMSCALE_CACHE names another folder"
                )
            return found
        if all(isinstance(error, subprocess.CalledProcessError) for error in errors):
            break  # no fault of the folder
    last = errors[-1]
    detail = last.stderr if isinstance(last, subprocess.CalledProcessError) else str(last)
    raise RuntimeError(" ".join(detail.split())[:500])


def _compiler() -> list[str]:
    """`$CXX`, else the first C++ compiler on the path. Raises RuntimeError when there is none."""
    wanted = shlex.split(os.environ.get("CXX", ""))
    for command in (wanted, *([name] for name in _COMPILERS)):
        if command and shutil.which(command[0]):
            return command
    raise RuntimeError(f"no C++ compiler found (tried {', '.join(_COMPILERS)})")


def _built(compiler: list[str], source: Path, flags: tuple[str, ...], folder: Path) -> Path:
    """Path of the shared library in `folder`, compiled unless there. Safe when several processes build at once."""
    command = _command(compiler, flags)
    target = folder / _file_name(source, compiler, command)
    if not target.exists():
        handle, partial = tempfile.mkstemp(dir=folder, prefix=f".{source.stem}-", suffix=".so")
        os.close(handle)
        try:
            subprocess.run(
                [*command, str(source), "-o", partial],
                check=True,
                capture_output=True,
                text=True,
                timeout=_BUILD_TIMEOUT_S,
            )
            os.replace(partial, target)
        finally:
            Path(partial).unlink(missing_ok=True)
    return target


def _command(compiler: Sequence[str], flags: Sequence[str]) -> list[str]:
    return [*compiler, "-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", *flags]


def _file_name(source: Path, compiler: Sequence[str], command: list[str]) -> str:
    """Name of the library that the compiler's command makes of the source on this processor."""
    key = hashlib.sha256()
    headers = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.h"))]
    for part in (
        source.read_bytes(),
        *headers,
        repr(command).encode(),
        _version(tuple(compiler)),
        _cpu(),
    ):
        key.update(hashlib.sha256(part).digest())
    return f"{source.stem}-{key.hexdigest()[:20]}.so"


@functools.cache
def _version(compiler: tuple[str, ...]) -> bytes:
    return subprocess.run([*compiler, "--version"], check=True, capture_output=True, timeout=60).stdout


@functools.cache
def _cpu() -> bytes:
    """What `-march=native` depends on: the processor's model and instruction sets."""
    wanted = ("model name", "flags", "Features", "CPU part")
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0].splitlines()
    except OSError:
        lines = []
    parts = [line for line in lines if line.startswith(wanted)]
    return "\n".join([platform.machine(), platform.processor(), *parts]).encode()
