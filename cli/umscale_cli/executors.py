"""Where workers run: the options that commands which start workers share, and the executor they choose."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umscale_cli.console import count, note

if TYPE_CHECKING:
    from umscale.execute.executor import Executor
    from umscale.execute.job import Job
    from umscale.store.store import Store

KINDS = ("local", "slurm", "ray")
SCHEDULED_WORKERS = 8
"""Default number of workers where a scheduler finds the cores."""
WAITING = ("PENDING", "CONFIGURING", "REQUEUED", "SUSPENDED")
"""States of a Slurm job that does not run yet."""

ExecutorOption = Annotated[
    str,
    typer.Option(
        "--executor", metavar="NAME", help="Where workers run: local, slurm or ray.", show_default="local"
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Workers; default: one a physical core, or --per-gpu a GPU; with slurm and ray 8.",
        show_default=False,
    ),
]
ThreadsOption = Annotated[int, typer.Option(min=1, help="Threads of each worker.")]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
PerGpuOption = Annotated[
    int | None,
    typer.Option(
        "--per-gpu", min=1, metavar="N", help="Workers that share a GPU (local, ray).", show_default="1"
    ),
]
PartitionOption = Annotated[
    str | None, typer.Option("--partition", metavar="NAME", help="slurm: partition.", show_default=False)
]
TimeOption = Annotated[
    str | None,
    typer.Option(
        "--time",
        metavar="LIMIT",
        help="slurm: time limit of a job: minutes, HH:MM:SS, D-HH:MM.",
        show_default="60",
    ),
]
SlurmOption = Annotated[
    list[str] | None,
    typer.Option(
        "--slurm", metavar="KEY=VALUE", help="slurm: a parameter of sbatch, as in gres=gpu:1; repeatable."
    ),
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="HOST:PORT",
        help="ray: a running cluster; else one is started here.",
        show_default=False,
    ),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """An executor that can be had, not yet started."""

    kind: str
    workers: int
    open: "Callable[[Store, Job], Executor]"
    """Raises UserError if no cluster answers."""


def choose(
    kind: str,
    workers: int | None,
    threads: int,
    device: str,
    *,
    per_gpu: int | None = None,
    partition: str | None = None,
    time: str | None = None,
    slurm: Sequence[str] | None = None,
    address: str | None = None,
    planning: bool = False,
) -> Choice:
    """Check the options together and return the executor they describe.

    Args:
        planning: nothing will be started, so that neither Slurm nor Ray need be here.

    Raises:
        UserError: an unknown name, an option of another executor, an executor that is not installed.
    """
    from umscale.errors import UserError, nearest

    if kind not in KINDS:
        raise UserError(f"--executor {kind!r} must be one of {', '.join(KINDS)}{nearest(kind, KINDS)}")
    check_device(device)
    belongs = {
        "--per-gpu": (per_gpu, ("local", "ray")),
        "--partition": (partition, ("slurm",)),
        "--time": (time, ("slurm",)),
        "--slurm": (slurm, ("slurm",)),
        "--address": (address, ("ray",)),
    }
    for option, (value, kinds) in belongs.items():
        if value and kind not in kinds:
            raise UserError(f"{option} goes with --executor {' or '.join(kinds)}, not {kind}")
    match kind:
        case "slurm":
            return _slurm(
                workers or SCHEDULED_WORKERS, threads, device, partition, time, slurm or (), planning
            )
        case "ray":
            return _ray(workers or SCHEDULED_WORKERS, threads, device, address, per_gpu or 1, planning)
    return _local(workers, threads, device, per_gpu)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExecutorOptions:
    """Options of commands that start workers anywhere."""

    executor: ExecutorOption = "local"
    workers: WorkersOption = None
    threads: ThreadsOption = 1
    device: DeviceOption = "auto"
    per_gpu: PerGpuOption = None
    partition: PartitionOption = None
    time_: TimeOption = None
    slurm: SlurmOption = None
    address: AddressOption = None

    def choice(self, *, planning: bool) -> Choice:
        """The executor they describe, as ``choose`` says."""
        return choose(
            self.executor,
            self.workers,
            self.threads,
            self.device,
            per_gpu=self.per_gpu,
            partition=self.partition,
            time=self.time_,
            slurm=self.slurm,
            address=self.address,
            planning=planning,
        )


def check_device(device: str) -> None:
    """Raise UserError unless ``device`` is a kind that there is."""
    from umscale.errors import UserError

    if device not in ("auto", "cpu", "cuda"):
        raise UserError(f"--device {device!r} must be auto, cpu or cuda")


def _local(workers: int | None, threads: int, device: str, per_gpu: int | None) -> Choice:
    from umscale.errors import UserError
    from umscale.execute.local import LocalExecutor, visible_gpus
    from umscale.machine import physical_cores

    gpus = visible_gpus(device)
    if not gpus and device == "cuda":
        raise UserError("--device cuda: torch sees no GPU here; use --device cpu")
    if not gpus and per_gpu:
        raise UserError("--per-gpu: torch sees no GPU here; use --workers")
    n_workers = workers or len(gpus) * (per_gpu or 1) or physical_cores()

    def start(store: "Store", job: "Job") -> "Executor":
        return LocalExecutor(store, job, n_workers, threads, device, gpus)

    return Choice(kind="local", workers=n_workers, open=start)


def _slurm(
    workers: int,
    threads: int,
    device: str,
    partition: str | None,
    time: str | None,
    pairs: Sequence[str],
    planning: bool,
) -> Choice:
    from umscale.errors import UserError
    from umscale.execute.slurm import SlurmExecutor, Terms, check_slurm, minutes

    extra = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (key and equals):
            raise UserError(f"--slurm {pair!r}: give KEY=VALUE, as in account=abc")
        extra[key] = value
    limit = {"minutes": minutes(time)} if time else {}
    terms = Terms(partition=partition, extra=extra, **limit)
    if not planning:
        check_slurm()

    def start(store: "Store", job: "Job") -> "Executor":
        return SlurmExecutor(store, job, workers, threads, device, terms)

    return Choice(kind="slurm", workers=workers, open=start)


def _ray(
    workers: int, threads: int, device: str, address: str | None, per_gpu: int, planning: bool
) -> Choice:
    from umscale.execute.ray import RayExecutor, check_ray

    if not planning:
        check_ray(address)

    def start(store: "Store", job: "Job") -> "Executor":
        return RayExecutor(store, job, workers, threads, device, address, per_gpu)

    return Choice(kind="ray", workers=workers, open=start)


@contextlib.contextmanager
def stopping_noted() -> Iterator[None]:
    """Say what the wait after Ctrl-C, SIGTERM or SIGHUP is for."""
    try:
        yield
    except KeyboardInterrupt:
        note("stopping: workers write their checkpoints ...")
        raise


class Remarks:
    """What workers say of their machines, each thing once."""

    def __init__(self, elsewhere: bool = False) -> None:
        self.elsewhere = elsewhere
        self.said: set[str] = set()

    def line(self, event: dict[str, Any]) -> str:
        """Return the line to show for an event; empty for one that is no remark, or was shown before."""
        if event["event"] != "remark":
            return ""
        where = f"on {event['host']}: " if self.elsewhere else ""
        text = f"{where}{event['text']}"
        if text in self.said:
            return ""
        self.said.add(text)
        return text


def recorded(label: str, event: dict[str, Any]) -> str:
    """Say what a ``record`` event brings."""
    losses = f"loss {event['loss']:.4f}, averaged {event['loss_ema']:.4f} nats"
    return f"{label}: {count(event['budget'])} tokens, {event['stage']}: {losses}"


def parting(event: dict[str, Any]) -> str:
    """Say what an ``exit`` or ``requeued`` event means; nothing for a worker that simply had no more to do."""
    if event["event"] == "requeued":
        return "a worker was sent back to the queue; its run is checkpointed"
    code = event["code"]
    if code == 0:
        return ""
    how = "was lost" if code is None else f"died (exit {code})"
    return f"a worker {how}; its run continues from its checkpoint ({event['log']})"
