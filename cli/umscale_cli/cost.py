"""``umscale cost``: parameters, FLOPs and memory access of a model, without training anything."""

from pathlib import Path
from typing import Annotated, Any

import typer

from umscale_cli.console import JsonFlag, SetOption, count, out, print_json


def cost(
    model: Annotated[
        str, typer.Argument(help="A preset (ultramem_v2-227m) or a .toml file with a [model] table.")
    ],
    batch: Annotated[
        str, typer.Option(help="Tokens decoded together, for memory access.")
    ] = "1,16,64,256,1024,4096",
    seq_len: Annotated[int, typer.Option(min=1, help="Context length of the attention scores.")] = 2048,
    set_: SetOption = None,
    json_: JsonFlag = False,
) -> None:
    """Count a model's parameters, FLOPs and memory access per token."""
    from umscale.accounting import cost as count_cost
    from umscale.accounting import memory_access_bytes
    from umscale.errors import UserError

    try:
        batches = [int(b) for b in batch.split(",")]
    except ValueError:
        batches = []
    if not batches or min(batches) < 1:
        raise UserError(f"--batch {batch!r} must be whole numbers such as 1,16,64")
    spec, source, remark = _load(model, set_ or [])
    found = count_cost(spec, seq_len)
    access = {b: memory_access_bytes(spec, b) for b in batches}
    if json_:
        print_json(
            {
                "model": model,
                "source": source,
                "note": remark,
                "seq_len": seq_len,
                "cost": found.to_dict(),
                "memory_access_bytes_per_step": access,
            }
        )
        return
    from rich.table import Table

    table = Table(
        title=f"{model}  {source}", title_justify="left", box=None, show_header=False, pad_edge=False
    )
    whole, active = found.total_params_with_embedding, found.active_params_with_embedding
    rows: list[tuple[str, str, str]] = [
        (
            "total parameters",
            count(found.total_params),
            f"{count(whole)} with embedding",
        ),
        (
            "active parameters",
            count(found.active_params),
            f"{count(active)} with embedding",
        ),
        ("sparse parameters N_s", count(found.sparse_params), "all rows of the value tables"),
        (
            "active sparse A_s",
            count(found.active_sparse_params),
            f"{found.activated_values} values a layer and token",
        ),
        ("density rho", f"{found.density:.3e}" if found.sparse_params else "–", "A_s / N_s"),
        ("MCP", f"{found.mcp:.2%}", "memory / (memory + FFN) work"),
        ("memory-to-FFN ratio", f"{found.memory_to_ffn:.3f}", "MCP / (1 - MCP)"),
        ("forward FLOPs per token", count(found.flops_per_token), f"at context {seq_len}, head included"),
    ]
    for row in rows:
        table.add_row(*row)
    parts = found.to_dict()["flops_by_part"]
    for part, flops in parts.items():
        table.add_row(f"  {part.replace('_', ' ')}", count(flops), f"{flops / found.flops_per_token:.1%}")
    for b, bytes_ in access.items():
        table.add_row(f"weights read, batch {b}", f"{bytes_ / 1e6:.4g} MB", "bf16, FFN and memory, per step")
    out().print(table)
    if remark:
        out().print(f"note: {remark}")


def _load(model: str, overrides: list[str]) -> tuple[Any, str, str]:
    from umscale.presets import preset
    from umscale.spec import ModelSpec, apply_overrides, from_dict, read_toml, to_dict

    path = Path(model)
    if path.suffix == ".toml":
        tree = apply_overrides(read_toml(path), overrides)
        return from_dict(ModelSpec, tree.get("model", {}), "model"), f"({path.name})", ""
    found = preset(model)
    tree = apply_overrides({"model": to_dict(found.model)}, overrides)
    return from_dict(ModelSpec, tree["model"], "model"), f"({found.source})", found.note
