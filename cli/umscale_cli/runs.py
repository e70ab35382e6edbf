"""``umscale runs`` lists what a store holds; ``umscale show`` explains one run."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umscale.escape import plain
from umscale_cli.completion import stores
from umscale_cli.console import (
    GAP,
    JsonFlag,
    column_width,
    count,
    duration,
    note,
    note_left_out,
    number,
    out,
    percent,
    print_json,
)

if TYPE_CHECKING:
    from umscale.store.store import Store

DEFAULT_ROOT = Path("umscale-runs")
"""Where sweeps write unless told otherwise: a folder a study."""

StudyArgument = Annotated[
    str,
    typer.Argument(
        help="A results store, or the name of a study swept here or recorded with umscale.",
        autocompletion=stores,
    ),
]


def open_store(where: str) -> "Store":
    """Open a store given by URL, by folder, by a study's name in ./umscale-runs, or among the recorded ones."""
    import umscale_studies
    from umscale.errors import UserError, nearest
    from umscale.files import is_url
    from umscale.store.store import Store

    if is_url(where):
        return Store.open(where)
    shipped = umscale_studies.recorded()
    for root in (Path(where), DEFAULT_ROOT / where, shipped.get(where)):
        if root is not None and (found := Store.open_if_any(root)):
            return found
    known = [*(p.parent.name for p in DEFAULT_ROOT.glob("*/store.json")), *shipped]
    hint = nearest(where, known) if known else "; `umscale sweep quickstart` makes one"
    raise UserError(f"no results store at {where!r}{hint}")


def is_recorded(store: "Store") -> bool:
    """Whether a store ships with umscale, and so is not a place to write to."""
    import umscale_studies

    return store.is_folder and store.root in umscale_studies.recorded().values()


def results_folder(store: "Store", study: str) -> Path:
    """Return where figures go: into the store, or ./umscale-runs/STUDY when that is recorded or object storage."""
    if store.is_folder and not is_recorded(store):
        return store.root
    return DEFAULT_ROOT / study.partition("?")[0].rstrip("/").rpartition("/")[2]


def warn_damaged(store: "Store") -> None:
    """Name the files that could not be read."""
    redo = (
        "the run is left out" if is_recorded(store) else "`umscale sweep` with the same study trains it again"
    )
    for path in store.damaged:
        note(f"warning: {path} is damaged; {redo}")


def runs(
    study: StudyArgument,
    status: Annotated[
        str | None,
        typer.Option(
            help="Only runs with this status: running, paused, finished, diverged, infeasible, failed or pruned."
        ),
    ] = None,
    probes: Annotated[
        bool, typer.Option("--probes", help="How the runs do on generated tasks (data.probes) instead.")
    ] = False,
    json_: JsonFlag = False,
) -> None:
    """List the runs of a store: sizes, losses before and after the decay, status."""
    from umscale.errors import UserError, nearest
    from umscale.store.schema import schema
    from umscale.store.store import STATUSES

    if status not in (None, *STATUSES):
        raise UserError(f"--status {status!r} is none of {', '.join(STATUSES)}{nearest(status, STATUSES)}")
    store = open_store(study)
    if probes:
        _list_probes(store, study, status, json_)
    elif json_:
        columns = store.columns(status=status)
        names = [n for n in columns if n != "spec"]
        whole = {field.name for field in schema("runs") if str(field.type) == "int64"}
        rows = [
            {n: _int(columns[n][i]) if n in whole else columns[n][i] for n in names}
            for i in range(len(columns["run_id"]))
        ]
        print_json(rows)
    else:
        print_runs(store, out(), status)
    warn_damaged(store)
    _note_absent(store)


def _note_absent(store: "Store") -> None:
    """Say which parts of users' packages made runs here and are not installed."""
    from umscale.say.basis import absent_parts

    specs = store.read("runs")["spec"].unique().drop_null().to_pylist()
    for sentence in absent_parts(store, specs):
        note(f"note: {sentence}")


def _int(value: float) -> int | None:
    """Return a count that a table of floats holds; it is missing where that is NaN."""
    return None if math.isnan(value) else int(value)


def _list_probes(store: "Store", study: str, status: str | None, json_: bool) -> None:
    """Print how often the likeliest symbol was right, by run and task."""
    from umscale.errors import UserError

    rows = store.probes(status)
    if json_:
        print_json(rows)
        return
    if not rows and status and store.probes(None):
        raise UserError(f"no {status} run of {study!r} has probes")
    if not rows:
        raise UserError(
            f'{study!r} holds no probes; sweep with --set \'data.probes=["recall", "facts"]\' to have them measured'
        )
    print_probes(rows, out())


def print_probes(rows: list[dict[str, Any]], console: Any) -> None:
    """Print a row per cell, budget and stage: symbols right by task, and stored bits per parameter."""
    from rich.table import Table

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    facts = any(row["stored_bits"] is not None for row in rows)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("run", "cell", "budget", "stage"):
        table.add_column(name, justify="right" if name == "budget" else "left", no_wrap=True)
    for name in (*tasks, *(("bits", "bits/param") if facts else ())):
        table.add_column(name, justify="right", no_wrap=True)
    by_record: dict[tuple[str, str, int, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        key = row["run_id"], row["label"] or "", row["budget"], row["stage"]
        by_record.setdefault(key, {})[row["task"]] = row
    blank = ("", "", "")
    chances = {row["task"]: row["chance"] for row in rows}
    table.add_row("chance", *blank, *(percent(chances[task]) for task in tasks))
    for (run_id, label, budget, stage), found in by_record.items():
        stored = next((row for row in found.values() if row["stored_bits"] is not None), None)
        bits = (count(stored["stored_bits"]), number(stored["bits_per_param"])) if stored else ()
        shares = (percent(found[task]["accuracy"]) if task in found else "–" for task in tasks)
        table.add_row(run_id[:8], label, count(budget), stage, *shares, *bits)
    ceilings = {task: [row["ceiling"] for row in rows if row["task"] == task] for task in tasks}
    known = ([value for value in values if value is not None] for values in ceilings.values())
    spans = ((min(values), max(values)) if values else (math.nan, math.nan) for values in known)
    table.add_row("ceiling", *blank, *(f"{a:.0%}–{b:.0%}" if a < b else percent(a, 0) for a, b in spans))
    console.print(table)


def print_runs(store: "Store", console: Any, status: str | None = None) -> None:
    """Print a row per run and budget."""
    from rich.table import Table

    from umscale.results.budgets import budget_rows, differently_made, paused

    columns = store.columns(status=status)
    rows = [_shown(row) for row in budget_rows(columns)]
    names, cell = _fitting(rows, console.width)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for name in names:
        left = name in ("run", "cell", "status")
        width = cell if name == "cell" else column_width(name, rows)
        table.add_column(name, justify="left" if left else "right", no_wrap=True, width=width)
    for row in rows:
        table.add_row(*(row[name] for name in names))
    console.print(table)
    note_left_out([name for name in COLUMNS if name not in names])
    if words := paused(columns):
        note(f"{words}; `umscale sweep` without --until goes on with them")
    if words := differently_made(columns):
        note(f"note: {words}")


def pack(study: StudyArgument, json_: JsonFlag = False) -> None:
    """Put each table of a finished store into one file, in place of one for every run.

    Everything reads it as before; runs that are added or repeated later lie beside and win.
    """
    from umscale.errors import UserError

    store = open_store(study)
    if is_recorded(store):
        raise UserError(f"{store.name} ships with umscale and is not written to")
    packed = store.pack()
    if json_:
        print_json(packed)
    else:
        print(
            ", ".join(f"{table}: {n} file{'s' * (n > 1)} in one" for table, n in packed.items())
            or "packed already"
        )


def _shown(row: Mapping[str, Any]) -> dict[str, str]:
    """Return a run and budget as it is shown, by column."""
    density, mcp, speed = (row[name] for name in ("density", "mcp", "tokens_per_second"))
    return {
        "run": row["run_id"][:8],
        "cell": plain(row["label"] or ""),
        "N_s": count(row["sparse_params"]),
        "rho": "–" if math.isnan(density) else f"{density:.2e}",
        "MCP": percent(mcp),
        "budget": count(row["budget"]),
        "stable": number(row.get("loss_stable")),
        "annealed": number(row.get("loss_annealed")),
        "averaged": number(row.get("ema_annealed")),
        "tokens/s": "–" if math.isnan(speed) else f"{speed:,.0f}",
        "status": row["status"],
    }


COLUMNS = (
    "run",
    "cell",
    "N_s",
    "rho",
    "MCP",
    "budget",
    "stable",
    "annealed",
    "averaged",
    "tokens/s",
    "status",
)
NARROWEST_CELL = 12


def _fitting(rows: Sequence[Mapping[str, str]], width: int) -> tuple[list[str], int]:
    """Return the columns for which there is room, and the width of that of the cells; ids and losses always stay.

    The first to go are those that say least; then labels are cut, and last go the averaged weights.
    """
    names = list(COLUMNS)
    whole = column_width("cell", rows)
    status = ["status"] if {row["status"] for row in rows} <= {"finished"} else []
    for name in ("tokens/s", *status, "MCP", "rho", "N_s", "", "averaged", "status", "budget"):
        others = sum(column_width(n, rows) + GAP for n in names if n != "cell")
        least = whole if name in ("tokens/s", *status, "MCP", "rho", "N_s") else min(whole, NARROWEST_CELL)
        if others + least <= width:
            return names, min(whole, width - others)
        if name in names:
            names.remove(name)
    return names, NARROWEST_CELL


def locate(run: str, study: str = "") -> "tuple[Store, str]":
    """Return the store that holds a run, and its id, given the beginning of that.

    Args:
        study: where to look; every store in ./umscale-runs if empty.

    Raises:
        UserError: no run begins so, or several do.
    """
    from umscale.errors import UserError
    from umscale.store.store import Store

    if study:
        stores = [open_store(study)]
    else:
        stores = [Store.open(p.parent) for p in sorted(DEFAULT_ROOT.glob("*/store.json"))]
    found = [(store, run_id) for store in stores for run_id in store.statuses() if run_id.startswith(run)]
    if not found:
        raise UserError(f"no run {run!r} here; `umscale runs STUDY` lists them")
    if len(found) > 1:
        ids = ", ".join(sorted({run_id for _, run_id in found}))
        raise UserError(f"run {run!r} is ambiguous: {ids}; give more digits, or say where with --study")
    return found[0]


RunArgument = Annotated[str, typer.Argument(help="A run id, or the beginning of one.")]
WhereOption = Annotated[
    str, typer.Option("--study", help="The store that holds it; default: every store here.")
]


def show(
    run: RunArgument,
    study: WhereOption = "",
    json_: JsonFlag = False,
) -> None:
    """Explain one run: its spec, cost, results and provenance."""
    store, run_id = locate(run, study)
    cell: dict[str, Any] = next((c for c in store.read("cells").to_pylist() if c["run_id"] == run_id), {})
    records = [row for row in store.read("runs").to_pylist() if row["run_id"] == run_id]
    first = records[0]
    if json_:
        for record in records:
            for name in ("spec", "versions"):
                record[name] = _held(record[name]) or None
        study_toml = as_study(first | {"spec": json.dumps(first["spec"])}) if first["spec"] else None
        print_json({"store": store.name, "cell": cell, "records": records, "study_toml": study_toml})
        return
    _print_run(store, cell, first, records)


def _print_run(
    store: "Store", cell: dict[str, Any], first: dict[str, Any], records: list[dict[str, Any]]
) -> None:
    console = out()
    console.print(
        f"run {first['run_id']}   {cell.get('label', '')}   {first['status']}   (study {first['study']})"
    )
    if first["reason"]:
        console.print(f"reason: {first['reason']}")
    achieved = _held(cell.get("achieved"))
    for name, target in _held(cell.get("wanted")).items():
        got = achieved.get(name)
        if isinstance(target, (int, float)) and target and isinstance(got, (int, float)):
            console.print(f"  {name}: target {target:.6g}, achieved {got:.6g} ({got / target - 1:+.2%})")
    if first["spec"] is None:
        return
    console.print(
        f"cost: {count(first['total_params'])} parameters ({count(first['active_params'])} active, no embeddings); "
        f"{count(first['sparse_params'])} sparse, {count(first['active_sparse_params'])} of them active; "
        f"{count(first['flops_per_token'])} FLOPs per token forward; MCP {first['mcp']:.1%}"
    )
    for record in records:
        if record["loss"] is None:
            continue
        console.print(
            f"  {count(record['budget'])} tokens, {record['stage']} (at {count(record['tokens'])}): "
            f"loss {record['loss']:.4f} nats/token, averaged weights {record['loss_ema']:.4f}, "
            f"{record['bits_per_byte']:.4f} bits/byte"
        )
        if record["value_use"]:
            use = ", ".join(f"{share:.0%}" for share in record["value_use"])
            entropy = ", ".join(f"{share:.2f}" for share in record["value_entropy"])
            console.print(f"    values used by layer: {use}; entropy relative to uniform: {entropy}")
    last = records[-1]
    if last["train_seconds"] is not None:
        console.print(
            f"time: {duration(last['train_seconds'])} training, {duration(last['eval_seconds'])} evaluating, "
            f"{last['tokens_per_second']:,.0f} tokens/s, peak memory {last['peak_memory_bytes'] / 2**20:.0f} MiB"
        )
    versions = ", ".join(f"{k} {v}" for k, v in _held(first["versions"]).items() if v)
    console.print(
        f"made with: {versions}; revision {first['git_revision'] or 'not a git checkout'}; {first['precision']} matrix "
        f"products, {first['kernels']} kernels on {first['device']} ({first['machine']})"
    )
    console.print(f"data: {first['corpus']} {first['data_hash'][:16]}")
    console.print("to train it again, save this as a .toml file and give it to umscale sweep:\n")
    console.print(as_study(first))


def _held(text: str | None) -> dict[str, Any]:
    """Return the object that a column holds as JSON, empty where there is none; raises UserError for anything else."""
    from umscale.errors import UserError
    from umscale.trees import parse_object

    try:
        return parse_object(text) if text else {}
    except ValueError as error:
        raise UserError(f"a record of this run cannot be read ({error})") from None


def as_study(record: dict[str, Any]) -> str:
    """Return a record's run as the TOML text of a study with that run alone."""
    from umscale.spec import to_toml

    tree = _held(record["spec"])
    seed = tree.pop("seed", 0)
    return to_toml({"name": f"run-{record['run_id'][:8]}", "axes": {"seed": [seed]}, **tree})
