"""``umscale data``: prepare or generate corpora, and see which there are."""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from umscale_cli.console import (
    GAP,
    JsonFlag,
    column_width,
    count,
    err,
    note,
    note_left_out,
    number,
    out,
    print_json,
)

if TYPE_CHECKING:
    from umscale.data.corpus import Corpus, Manifest

app = typer.Typer(help="Prepare, generate and inspect corpora.", no_args_is_help=True)

PLAIN_SECONDS = 10.0
LEFT_OUT_SHOWN = 10
"""Files left out that are named; ``--json`` names more."""
STAGES = {
    "checksums": "hashing sources",
    "sample": "sampling text for the tokenizer",
    "generate": "generating text",
    "tokens": "writing tokens",
    "verify": "checking files",
}


@app.callback()
def group() -> None:
    """Prepare, generate and inspect corpora."""


@app.command("prepare")
def prepare(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="PATH...", help="Text, JSON, CSV or Parquet files (also .gz .xz .zst .bz2), or folders."
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Of the corpus; default: the first file's name.", show_default=False)
    ] = None,
    tokenizer: Annotated[
        str, typer.Option(help="bytes, bpe:VOCAB (trained on this text) or a tokenizer.json.")
    ] = "bytes",
    documents: Annotated[
        str,
        typer.Option(
            help="What a document is in plain text: auto, file, page (a MediaWiki dump), blank:BYTES (cut at a "
            r"blank line after BYTES), or the text that separates documents (\n, \f, \t are understood)."
        ),
    ] = "auto",
    text_field: Annotated[
        str | None,
        typer.Option(
            help="Field or column with the text of a row (JSON, CSV, Parquet).", show_default="text"
        ),
    ] = None,
    validation_fraction: Annotated[float, typer.Option(help="Share of documents held out.")] = 0.01,
    force: Annotated[bool, typer.Option("--force", help="Replace a corpus of that name.")] = False,
    json_: JsonFlag = False,
) -> None:
    """Turn text into a named corpus: token shards, a train/validation split, a manifest."""
    from umscale.data.prepare import prepare as prepare_corpus

    with _progress() as progress:
        corpus = prepare_corpus(
            paths,
            name=name,
            tokenizer=tokenizer,
            documents=documents,
            text_field=text_field,
            validation_fraction=validation_fraction,
            force=force,
            progress=progress,
        )
    manifest = corpus.manifest
    for remark in _remarks(manifest):
        note(remark)
    if json_:
        print_json(_tree(corpus))
        return
    _print_corpus(corpus)
    note(f"use it in a study with --set data.corpus={corpus.name}")


def _remarks(m: "Manifest") -> list[str]:
    """Return what did not become training text, a line each."""
    found = [f"left out: {line}" for line in m.left_out[:LEFT_OUT_SHOWN]]
    if m.skipped_files > len(found):
        found.append(f"left out: {m.skipped_files - len(found)} more files")
    rows = {"null": m.null_rows, "empty": m.empty_rows, "a header without text": m.header_rows}
    if any(rows.values()):
        said = ", ".join(f"{n:,} {what}" for what, n in rows.items() if n)
        found.append(f"rows without text: {said}")
    if m.undecodable_documents:
        found.append(
            f"warning: {m.undecodable_documents} document(s) are not UTF-8; what could not be read became U+FFFD (the "
            "bytes tokenizer keeps everything)"
        )
    if m.lost_bytes:
        n_bytes = m.lost_bytes + m.train.n_bytes + m.validation.n_bytes
        found.append(
            f"warning: the tokenizer has no tokens for {m.lost_bytes:,} of {n_bytes:,} bytes of text "
            f"({m.lost_bytes / n_bytes:.2%}): they are lost, and bits per byte are of what is left (bpe:VOCAB and the "
            "bytes tokenizer keep everything)"
        )
    return found


@app.command("generate")
def generate(
    name: Annotated[str, typer.Argument(help="Of the corpus.")],
    tokens: Annotated[
        str, typer.Option(help="How long it is, in bytes (10M, 1.5e6), held-out documents included.")
    ] = "10M",
    kind: Annotated[
        str,
        typer.Option(help="Of source; markov-facts: Zipfian Markov text with key-value facts in between."),
    ] = "markov-facts",
    seed: Annotated[int, typer.Option(help="Of the source's tables and of what is drawn from them.")] = 0,
    alphabet: Annotated[int, typer.Option(help="Letters of the text, 2 to 26.")] = 26,
    order: Annotated[int, typer.Option(help="Letters that the next one depends on, 0 to 2.")] = 2,
    branching: Annotated[int, typer.Option(help="Letters that can follow a context.")] = 8,
    zipf: Annotated[float, typer.Option(help="Exponent of the probabilities of what follows.")] = 1.0,
    facts: Annotated[str, typer.Option(help="Keys with a value to memorise; 0 leaves them out.")] = "4096",
    fact_rate: Annotated[
        float, typer.Option(help="Probability that a fact begins where the text could go on.")
    ] = 0.05,
    fact_zipf: Annotated[float, typer.Option(help="Exponent of the keys' probabilities.")] = 1.0,
    value_symbols: Annotated[int, typer.Option(help="Digits of a value.")] = 4,
    document: Annotated[
        int, typer.Option(help="Bytes of a document; at most data.seq_len, for the floor to be reachable.")
    ] = 256,
    validation_fraction: Annotated[float, typer.Option(help="Share of documents held out.")] = 0.01,
    force: Annotated[bool, typer.Option("--force", help="Replace a corpus of that name.")] = False,
    json_: JsonFlag = False,
) -> None:
    """Generate a corpus whose entropy is known exactly: the loss that no model can beat, with and without memory."""
    from umscale.data.synthetic import MarkovFacts
    from umscale.data.synthetic_corpus import generate as generate_corpus
    from umscale.spec import from_dict, quantity

    chosen = {
        "kind": kind,
        "seed": seed,
        "alphabet": alphabet,
        "order": order,
        "branching": branching,
        "zipf": zipf,
        "facts": facts,
        "fact_rate": fact_rate,
        "fact_zipf": fact_zipf,
        "value_symbols": value_symbols,
        "document": document,
    }
    source = from_dict(MarkovFacts, chosen)
    with _progress() as progress:
        corpus = generate_corpus(
            name,
            source,
            int(quantity(tokens, "--tokens")),
            validation_fraction=validation_fraction,
            force=force,
            progress=progress,
        )
    if json_:
        print_json(_tree(corpus))
        return
    _print_corpus(corpus)
    note(f"use it in a study with --set data.corpus={corpus.name}")


@app.command("list")
def list_(json_: JsonFlag = False) -> None:
    """List the prepared corpora and the embedded one."""
    from rich.table import Table

    from umscale.data.corpus import EMBEDDED, list_corpora

    corpora, problems = list_corpora()
    if json_:
        print_json({"corpora": [_tree(corpus) for corpus in corpora], "problems": problems})
        return
    rows = [
        {
            "corpus": corpus.name,
            "train tokens": count(corpus.manifest.train.tokens),
            "validation": count(corpus.manifest.validation.tokens),
            "documents": count(corpus.manifest.train.documents + corpus.manifest.validation.documents),
            "vocabulary": count(corpus.vocab_size),
            "tokenizer": _tokenizer(corpus),
            "floor": number(corpus.floor_nats),
            "without facts": number(corpus.floor_without_facts_nats),
            "hash": corpus.hash[:12],
        }
        for corpus in corpora
    ]
    if EMBEDDED not in {corpus.name for corpus in corpora}:
        unknown = dict.fromkeys(LISTED, "–")
        rows.append(
            unknown | {"corpus": EMBEDDED, "tokenizer": "with umscale", "hash": "prepared on first use"}
        )
    if all(corpus.floor_nats is None for corpus in corpora):
        rows = [{k: v for k, v in row.items() if k not in FLOORS} for row in rows]
    console = out()
    rows, gone = _fitting(rows, console.width)
    table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0))
    for column in rows[0]:
        left = column in ("corpus", "tokenizer", "hash")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row.values())
    console.print(table)
    note_left_out(gone)
    for problem in problems:
        note(f"warning: {problem}")


@app.command("info")
def info(
    name: Annotated[str, typer.Argument(help="Name of a corpus, or the path of one.")],
    verify: Annotated[bool, typer.Option("--verify", help="Check the SHA-256 of every file.")] = False,
    json_: JsonFlag = False,
) -> None:
    """Show what a corpus holds and where it came from."""
    from umscale.data.corpus import open_corpus, verify_corpus

    corpus = open_corpus(name)
    if verify:
        with _progress() as progress:
            verify_corpus(corpus, lambda done, total: progress("verify", done, total))
        note("every file is as it was written")
    if json_:
        print_json(_tree(corpus))
        return
    _print_corpus(corpus)


FLOORS = ("floor", "without facts")
LISTED = ("corpus", "train tokens", "validation", "documents", "vocabulary", "tokenizer", *FLOORS, "hash")


def _fitting(rows: list[dict[str, str]], width: int) -> tuple[list[dict[str, str]], list[str]]:
    """Return rows of the columns for which ``width`` has room, and the columns that went; names and sizes stay."""
    gone: list[str] = []
    for name in ("vocabulary", "documents", "hash", "tokenizer", "without facts", "validation"):
        if sum(column_width(k, rows) + GAP for k in rows[0]) <= width:
            break
        if name in rows[0]:
            gone.append(name)
            rows = [{k: v for k, v in row.items() if k != name} for row in rows]
    return rows, gone


def _print_corpus(corpus: "Corpus") -> None:
    from rich.table import Table
    from rich.text import Text

    m = corpus.manifest
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = [("corpus", corpus.name), ("folder", str(corpus.path)), ("hash", corpus.hash)]
    n_documents = m.train.documents + m.validation.documents
    held_out = (
        f" ({m.validation.documents / n_documents:.2%} of all, {m.recipe.validation_fraction:.2%} asked for)"
    )
    for title, split in (("training", m.train), ("validation", m.validation)):
        rows.append(
            (
                title,
                f"{split.tokens:,} tokens, {split.n_bytes:,} bytes in {split.documents:,} document(s)"
                + (held_out if split is m.validation else ""),
            )
        )
    trained = f", trained on {m.tokenizer.sample_bytes:,} bytes" if m.tokenizer.sample_bytes else ""
    rows.append(
        (
            "tokenizer",
            f"{_tokenizer(corpus)}: {corpus.vocab_size:,} ids, {corpus.bytes_per_token:.2f} bytes a token{trained}",
        )
    )
    if g := m.generated:
        s = g.source
        rows += [
            (
                "generated",
                f"{s.kind}, seed {s.seed}: {s.alphabet} letters, order {s.order}, {s.branching} successors a context "
                f"(exponent {s.zipf:g}); {s.facts:,} facts of {s.value_symbols} digits at rate {s.rate:g} "
                f"(exponent {s.fact_zipf:g}); documents of {s.document} bytes",
            ),
            (
                "floor",
                f"{g.floor_nats:.6f} nats a token, exact; {g.floor_without_facts_nats:.6f} without memory of facts",
            ),
        ]
    for i, source in enumerate(m.sources[:5]):
        rows.append(
            (
                "" if i else "sources",
                f"{source.name} ({source.kind}, {source.n_bytes:,} bytes, documents: {source.documents})",
            )
        )
    if len(m.sources) > 5:
        rows.append(("", f"and {len(m.sources) - 5} more (--json lists all)"))
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    out().print(table)


def _tokenizer(corpus: "Corpus") -> str:
    tokenizer = corpus.manifest.recipe.tokenizer
    return "BPE from a file" if tokenizer.startswith("file:") else tokenizer


def _tree(corpus: "Corpus") -> dict[str, Any]:
    from umscale.data.corpus import to_tree

    return {"path": str(corpus.path), **to_tree(corpus.manifest)}


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a progress callback: a live bar on a terminal, else a line now and then, both on stderr."""
    console = err()
    if not console.is_terminal:
        last = time.monotonic()

        def line(stage: str, done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last >= PLAIN_SECONDS:
                last = time.monotonic()
                note(f"{STAGES[stage]}: {done / max(1, total):.0%}")

        yield line
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks: dict[str, Any] = {}

        def bar(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(STAGES[stage], total=total)
            bars.update(tasks[stage], completed=done, total=total)

        yield bar
