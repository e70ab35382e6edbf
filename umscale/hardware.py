"""What a decoding step takes on named hardware: a roofline over arithmetic, device memory and the link to the host.

    time = max(FLOPs / rate, bytes of device memory / bandwidth, bytes over the host link / its bandwidth)

for one step of a batch, the three overlapped as prefetching allows; the largest binds. An upper bound on speed, the
same for every architecture: kernels reach a part of it. Figures are vendors' data sheets, dense bfloat16 without
sparsity.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from umscale.accounting import cost, memory_access_bytes, prefetchable_bytes
from umscale.errors import UserError, nearest
from umscale.spec import ModelSpec, from_dict, read_toml

BYTES = 2.0
"""Of a parameter and of an entry of the key-value cache: bfloat16."""

Placement = Literal["device", "host"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Hardware:
    """One device and its link to host memory."""

    name: str
    flops_per_second: float
    """Dense bfloat16 matrix products."""
    bytes_per_second: float
    """Of device memory."""
    host_bytes_per_second: float
    """Over the host link, one direction."""
    memory_bytes: float
    """Of the device."""
    source: str = ""

    def __post_init__(self) -> None:
        for field in ("flops_per_second", "bytes_per_second", "host_bytes_per_second", "memory_bytes"):
            value = getattr(self, field)
            if not value > 0:
                raise UserError(f"hardware {self.name!r}: {field} must be positive, not {value}")


_PCIE5 = 64e9
_SHEET = "NVIDIA data sheet, SXM, dense bfloat16; host link PCIe 5.0 x16"
HARDWARE = {
    h.name: h
    for h in (
        Hardware(
            name="h100",
            flops_per_second=989e12,
            bytes_per_second=3.35e12,
            host_bytes_per_second=_PCIE5,
            memory_bytes=80e9,
            source=_SHEET,
        ),
        Hardware(
            name="h200",
            flops_per_second=989e12,
            bytes_per_second=4.8e12,
            host_bytes_per_second=_PCIE5,
            memory_bytes=141e9,
            source=_SHEET,
        ),
        Hardware(
            name="b200",
            flops_per_second=2250e12,
            bytes_per_second=8e12,
            host_bytes_per_second=_PCIE5,
            memory_bytes=180e9,
            source=_SHEET,
        ),
    )
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DecodeTime:
    """Seconds of one decoding step of ``batch`` tokens, each term as if it were alone."""

    batch: int
    tables: Placement
    """Where token-addressed tables lie; everything else is on the device."""
    compute: float
    device_memory: float
    host_link: float
    fits: bool
    """Whether what lies on the device fits into it, the cache of ``batch`` sequences included."""

    @property
    def seconds(self) -> float:
        """Of the step."""
        return max(self.compute, self.device_memory, self.host_link)

    @property
    def binds(self) -> str:
        """The largest term, in words."""
        terms = {"compute": self.compute, "device memory": self.device_memory, "host link": self.host_link}
        return max(terms, key=lambda name: terms[name])

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary, with what follows from the terms."""
        return asdict(self) | {
            "seconds": self.seconds,
            "seconds_per_token": self.seconds / self.batch,
            "binds": self.binds,
        }


def load_hardware(name: str) -> Hardware:
    """Return hardware by name, or from a TOML file with the fields of ``Hardware``.

    Raises:
        UserError: no such name or file, or a field that is missing, unknown or not positive.
    """
    if name in HARDWARE:
        return HARDWARE[name]
    path = Path(name)
    if path.suffix != ".toml":
        raise UserError(f"no hardware {name!r}{nearest(name, HARDWARE)}; or give a .toml file")
    tree = {"name": path.stem} | read_toml(path)
    missing = {"flops_per_second", "bytes_per_second", "host_bytes_per_second", "memory_bytes"} - set(tree)
    if missing:
        raise UserError(f"{path.name}: {', '.join(sorted(missing))} missing")
    return from_dict(Hardware, tree, path.name)


def decode_time(
    model: ModelSpec, hardware: Hardware, batch: int, context: int, tables: Placement = "device"
) -> DecodeTime:
    """Return what one decoding step takes: ``batch`` sequences, each with ``context`` tokens behind it."""
    sizes = cost(model, seq_len=1)
    # One token attends to its whole context, not to the mean of a training window.
    scores = model.n_layers * 2.0 * model.d_model * (context - 1)  # ``sizes`` counts one token of it
    flops = batch * 2 * (sizes.macs.total + scores)
    cache = batch * context * model.n_layers * 2 * model.d_model * BYTES
    known = prefetchable_bytes(model, batch, BYTES)
    shared = model.n_layers * 4 * model.d_model**2 + model.vocab_size * model.d_model  # attention, head
    read = memory_access_bytes(model, batch, BYTES) + shared * BYTES + cache
    held = sizes.total_params_with_embedding * BYTES + cache
    on_host = tables == "host"
    if on_host:
        read, held = read - known, held - sizes.ngram_params * BYTES
    return DecodeTime(
        batch=batch,
        tables=tables,
        compute=flops / hardware.flops_per_second,
        device_memory=read / hardware.bytes_per_second,
        host_link=known / hardware.host_bytes_per_second if on_host else 0.0,
        fits=held <= hardware.memory_bytes,
    )
