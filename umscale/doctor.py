"""What a machine can do, what it lacks, and what to do about that: looked up, nothing trained, nothing written.

Every check says what was found; one that found something missing says what to do, in a line. Paths are shown with ``~``
for the home folder, and of the environment only what a check is about, so that the answer can be pasted anywhere.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from umscale.data.corpus import EMBEDDED, corpora_folder, list_corpora
from umscale.errors import UserError
from umscale.files import is_url
from umscale.machine import physical_cores, processor_name
from umscale.say.blocks import Block, Bullets, Grid, Heading, Paragraph
from umscale.say.numbers import count

State = Literal["ok", "less", "blocks"]
"""Fine; missing, and sweeps do without; missing, and no sweep can run."""

EXTRAS = {
    "slurm": "sweeps as Slurm jobs, `--executor slurm`",
    "ray": "sweeps on a Ray cluster, `--executor ray`",
    "trackers": "TensorBoard and Weights & Biases, `umscale sweep --track`",
    "term": "figures in the terminal, `umscale plot --term`",
    "bench": "other implementations beside ours, `umscale bench`",
}
"""What each extra of the package is for; ``dev`` and ``docs`` are for those who change umscale."""
LEAST_DISK_BYTES = 1_000_000_000
"""Free space below which a store or a cache is said to be short: checkpoints and records of a small sweep."""
LEAST_MEMORY_BYTES = 2_000_000_000
"""Memory below which the quickstart's two workers are said not to fit."""
NO_LIMIT_BYTES = 1 << 60
"""A limit of a control group above this is none."""
CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16")
"""Flags of processors, x86-64 and ARM, that multiply bf16."""
SHOWN_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve", "bf16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What was found of one thing."""

    name: str
    found: str
    state: State = "ok"
    todo: str = ""
    """What to do about something missing; empty where nothing is."""
    value: Any = None
    """The finding for machines, where words are not enough."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """All checks, in the order they are shown."""

    checks: tuple[Check, ...]

    @property
    def can_sweep(self) -> bool:
        """Whether a sweep can run here."""
        return all(check.state != "blocks" for check in self.checks)

    def blocks(self) -> list[Block]:
        """The findings as a table, then what to do."""
        marks = {"ok": "", "less": "less", "blocks": "MISSING"}
        rows = tuple((check.name, marks[check.state], check.found) for check in self.checks)
        verdict = "A sweep can run here." if self.can_sweep else "No sweep can run here yet."
        todo = tuple(f"{check.name}: {check.todo}" for check in self.checks if check.todo)
        said: list[Block] = [Grid(caption="", head=("", "", "found"), sides="lll", rows=rows)]
        if todo:
            said += [Heading(text="What to do"), Bullets(items=todo)]
        return [*said, Paragraph(text=verdict)]


def to_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return the diagnosis for ``--json``."""
    return {"can_sweep": diagnosis.can_sweep, "checks": [asdict(check) for check in diagnosis.checks]}


def diagnose(store: str = "umscale-runs", *, build: bool = False) -> Diagnosis:
    """Look at this machine.

    Args:
        store: where results would go: a folder, which need not exist, or the URL of an object store, which is asked for
            its state.
        build: compile the kernels that are not compiled yet, into the cache; otherwise nothing is written.
    """
    checks = [*_software()]
    torch_works = all(check.state != "blocks" for check in checks)
    checks += _processor()
    if torch_works:
        checks += [*_precision(), *_kernels(build), *_gpus()]
    checks += [_memory(), _store(store), _cache_disk(), _corpora(), *_executors(), *_extras()]
    return Diagnosis(checks=tuple(checks))


# ---------------------------------------------------------------------------------------------------------
# Software


def _software() -> Iterator[Check]:
    from umscale import __version__

    yield Check(name="umscale", found=__version__, value=__version__)
    version = platform.python_version()
    old = sys.version_info < (3, 11)
    yield Check(
        name="python",
        found=f"{version} on {platform.system()} {platform.machine()}",
        state="blocks" if old else "ok",
        todo="umscale needs Python 3.11 or later: make a virtual environment with one" if old else "",
        value=version,
    )
    try:
        torch = importlib.import_module("torch")
    except (ImportError, OSError) as error:  # OSError: a library of it cannot be loaded
        lost = " ".join(str(error).split())[:200]
        yield Check(name="torch", found=lost, state="blocks", todo="`pip install torch` in this environment")
        return
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "for CPUs"
    yield Check(name="torch", found=f"{torch.__version__}, {build}", value=str(torch.__version__))
    triton = _version("triton")
    yield Check(
        name="triton",
        found=triton or "not installed",
        state="ok" if triton or not _nvidia_driver() else "less",
        todo="" if triton or not _nvidia_driver() else "`pip install triton`: GPU kernels are made with it",
        value=triton or None,
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


# ---------------------------------------------------------------------------------------------------------
# Processor, kernels, GPUs


def _processor() -> Iterator[Check]:
    flags = _cpu_flags()
    shown = ", ".join(flag for flag in SHOWN_FLAGS if flag in flags) or "instruction sets unknown"
    cores, quota = physical_cores(), _cpu_quota()
    limited = f", limited to {quota:.3g} by its container" if quota is not None and quota < cores else ""
    yield Check(
        name="processor",
        found=f"{processor_name()}: {cores} cores{limited}; {shown}",
        value={"cores": cores, "quota": quota, "flags": sorted(flags & set(SHOWN_FLAGS))},
    )


def _cpu_flags() -> set[str]:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    found = re.search(r"(?m)^(?:flags|Features)\s*:(.*)$", text)
    return set(found[1].split()) if found else set()


def _cpu_quota() -> float | None:
    """Cores that a control group grants; None without a limit."""
    try:
        granted, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return None
    return None if granted == "max" else int(granted) / int(period)


def _precision() -> Iterator[Check]:
    from umscale.machine import matmul_rate

    has = sorted(_cpu_flags() & set(CPU_BF16))
    rates = {name: matmul_rate(name, seconds=0.1) for name in ("float32", "bfloat16")}
    ratio = rates["bfloat16"] / rates["float32"]
    words = f"native bf16 ({', '.join(has)})" if has else "no native bf16"
    yield Check(
        name="precision",
        found=f"{words}; measured just now, matrix products of bf16 at {ratio:.2g} times the speed of fp32 "
        f"({rates['float32'] / 1e9:.3g} GFLOP/s)",
        value={"bf16_native": bool(has), "flops": rates},
    )


def _kernels(build: bool) -> Iterator[Check]:
    from umscale_kernels import native

    if not native.wanted():
        yield Check(
            name="kernels",
            found="aten: UMSCALE_NATIVE is 0, so stock PyTorch is used",
            state="less",
            todo="unset UMSCALE_NATIVE for compiled kernels, several times faster",
            value="aten",
        )
        return
    ahead = native.outlook()
    yield Check(
        name="compiler",
        found=ahead.compiler or "none found (tried $CXX, g++, c++, clang++)",
        state="ok" if ahead.compiler else "less",
        todo="" if ahead.compiler else "install one, as in `apt-get install g++`, or name it in $CXX",
        value=ahead.compiler or None,
    )
    if build:
        for remark in native.remarks():
            yield Check(name="kernels", found=remark, state="less", todo="the reason stands there")
        ahead = native.outlook()
    if not ahead.compiler:
        yield Check(
            name="kernels", found="aten: stock PyTorch, for want of a compiler", state="less", value="aten"
        )
    elif ahead.waiting:
        yield Check(
            name="kernels",
            found=f"native, of which {len(ahead.waiting)} are compiled at first use: {', '.join(ahead.waiting)}",
            todo="" if build else "`umscale doctor --build` compiles them now, in about half a minute",
            value="native",
        )
    else:
        yield Check(name="kernels", found="native: all compiled", value="native")
    yield _cache(ahead.folder)


def _cache(folder: Path) -> Check:
    there = _existing(folder)
    stat = os.statvfs(there)
    why = ""
    if not os.access(there, os.W_OK | os.X_OK):
        why = "cannot be written"
    elif stat.f_flag & os.ST_NOEXEC:
        why = "lies on a filesystem that runs nothing"
    return Check(
        name="kernel cache",
        found=f"{shown(folder)}{' ' + why if why else ', writable'}",
        state="less" if why else "ok",
        todo="name another folder in $UMSCALE_CACHE; until then a private temporary one is used"
        if why
        else "",
    )


def _nvidia_driver() -> bool:
    return Path("/proc/driver/nvidia/version").exists()


def _gpus() -> Iterator[Check]:
    import torch

    from umscale_kernels.backends import triton_runs

    if not torch.cuda.is_available():
        blind = _nvidia_driver()
        reason = "an NVIDIA driver is here, but this torch does not use it" if blind else "none"
        yield Check(
            name="GPUs",
            found=reason,
            state="less" if blind else "ok",
            todo="install torch built for CUDA: pytorch.org/get-started has the command" if blind else "",
            value=[],
        )
        return
    found: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count()):
        one = torch.cuda.get_device_properties(index)
        found.append({"name": one.name, "capability": f"{one.major}.{one.minor}", "bytes": one.total_memory})
    fast = triton_runs()
    names = "; ".join(
        f"{one['name']} ({gigabytes(one['bytes'])}, capability {one['capability']})" for one in found
    )
    yield Check(
        name="GPUs",
        found=f"{names}; {'Triton kernels' if fast else 'stock PyTorch kernels'}",
        state="ok" if fast else "less",
        todo=""
        if fast
        else "Triton kernels need an NVIDIA GPU of capability 8.0 or more (Ampere) and `pip install triton`",
        value=found,
    )


# ---------------------------------------------------------------------------------------------------------
# Room


def shown(path: Path) -> str:
    """Return a path as it is shown: with ``~`` for the home folder."""
    absolute = path.absolute()
    try:
        return str(Path("~") / absolute.relative_to(Path.home()))
    except (ValueError, RuntimeError):
        return str(absolute)


def gigabytes(n_bytes: float) -> str:
    """Return a size of memory or disk in GB of 10^9 bytes."""
    return f"{n_bytes / 1e9:,.3g} GB"


def _existing(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    absolute = path.absolute()
    return next(one for one in (absolute, *absolute.parents) if one.is_dir())


def _memory() -> Check:
    available = _available_bytes()
    if available is None:
        return Check(name="memory", found="unknown")
    short = available < LEAST_MEMORY_BYTES
    return Check(
        name="memory",
        found=f"{gigabytes(available)} available",
        state="less" if short else "ok",
        todo="`--workers 1`, or a smaller train.batch_size" if short else "",
        value=available,
    )


def _available_bytes() -> int | None:
    """Memory that processes can still get, the limit of a control group heeded."""
    try:
        text = Path("/proc/meminfo").read_text(encoding="ascii")
    except OSError:
        return None
    found = re.search(r"MemAvailable:\s+(\d+) kB", text)
    if found is None:
        return None
    available = int(found[1]) * 1024
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text(encoding="ascii"))
        used = int((group / "memory.current").read_text(encoding="ascii"))
    except (OSError, ValueError):  # no such group, or "max"
        return available
    return min(available, max(limit - used, 0)) if limit < NO_LIMIT_BYTES else available


def _store(store: str) -> Check:
    if is_url(store):
        return _object_store(store)
    folder = Path(store).absolute()
    there = _existing(folder)
    free = shutil.disk_usage(there).free
    blocking = [one for one in (folder, *folder.parents) if one.exists() and not one.is_dir()]
    if blocking or not os.access(there, os.W_OK | os.X_OK):
        why = f"{shown(blocking[0])} is a file" if blocking else f"{shown(there)} cannot be written"
        return Check(
            name="store",
            found=f"{shown(folder)}: {why}",
            state="blocks",
            todo="work in a folder of your own, or name a store with --store",
            value=free,
        )
    return _disk("store", folder, free)


def _disk(name: str, folder: Path, free: int) -> Check:
    short = free < LEAST_DISK_BYTES
    return Check(
        name=name,
        found=f"{shown(folder)}: {gigabytes(free)} free",
        state="less" if short else "ok",
        todo="make room: checkpoints, records and caches of a sweep take up to some gigabytes"
        if short
        else "",
        value=free,
    )


def _object_store(url: str) -> Check:
    from umscale.store.store import Store
    from umscale.urls import redact

    name = redact(url)
    try:
        found = Store.open_if_any(url)
    except UserError as error:
        return Check(
            name="store", found=str(error), state="blocks", todo="docs/many-machines.md has the URLs"
        )
    return Check(
        name="store", found=f"{name}: reached, {'a store' if found else 'no store there yet'}", value=name
    )


def _cache_disk() -> Check:
    folder = corpora_folder()
    return _disk("corpora disk", folder, shutil.disk_usage(_existing(folder)).free)


def _corpora() -> Check:
    corpora, problems = list_corpora()
    names = [f"{one.name} ({count(one.train_tokens)} tokens)" for one in corpora]
    if not any(one.name == EMBEDDED for one in corpora):
        names.append(f"{EMBEDDED} (embedded)")
    todo = "`umscale data prepare FILE` makes one of your text" if len(names) == 1 else ""
    if problems:
        todo = f"{len(problems)} cannot be read: `umscale data list` says why"
    return Check(
        name="corpora",
        found=", ".join(names),
        state="less" if problems else "ok",
        todo=todo,
        value=[one.name for one in corpora] + [EMBEDDED] * (len(names) > len(corpora)),
    )


# ---------------------------------------------------------------------------------------------------------
# Executors and extras


def _executors() -> Iterator[Check]:
    from umscale.execute.ray import check_ray
    from umscale.execute.slurm import check_slurm

    yield Check(name="executor local", found="processes of this machine")
    checks: dict[str, Callable[[], None]] = {"slurm": check_slurm, "ray": lambda: check_ray(None)}
    for name, check in checks.items():
        try:
            check()
        except UserError as error:
            said = str(error).removeprefix(f"--executor {name}").removeprefix(":").strip()
            yield Check(name=f"executor {name}", found=f"no: {said}", value=False)
        else:
            yield Check(name=f"executor {name}", found="can be used", value=True)


def _extras() -> Iterator[Check]:
    for extra, packages in requirements().items():
        missing = [package for package in packages if not _version(package)]
        held = ", ".join(f"{package} {_version(package)}" for package in packages if _version(package))
        purpose = EXTRAS[extra]
        yield Check(
            name=f"extra {extra}",
            found=f"not installed ({purpose})" if missing else held,
            todo=f"`pip install 'umscale[{extra}]'` if you want {purpose}" if missing else "",
            value=not missing,
        )


def requirements() -> dict[str, list[str]]:
    """Return what each extra installs, as the installed package declares it; empty where umscale is not installed."""
    try:
        declared = importlib.metadata.requires("umscale") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    found: dict[str, list[str]] = {}
    for line in declared:
        wanted = re.fullmatch(r"([A-Za-z0-9._-]+).*;.*extra == [\"'](.+?)[\"'].*", line)
        if wanted and wanted[2] in EXTRAS:
            found.setdefault(wanted[2], []).append(wanted[1])
    return found
