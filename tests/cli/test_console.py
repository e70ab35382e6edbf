"""What reaches a terminal: nothing that steers it, in whatever encoding it has, and no traceback when it is gone."""

import os
import pty
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from umscale.escape import plain, plain_lines
from umscale.store.store import Store
from umscale_cli.console import note, out
from umscale_cli.main import main

EVIL = "a\x1b[2Jb\x07c\x9b31md\u202ee\u2028f\rg\bh\x7f"
BAD = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")


@pytest.fixture
def store(tmp_path):
    made = Store.create(tmp_path / "store")
    for i, run_id in enumerate(("a" * 16, "b" * 16, "c" * 16)):
        row = {
            "run_id": run_id,
            "study": EVIL,
            "status": "finished",
            "reason": EVIL,
            "budget": 1000,
            "seed": i,
        }
        row |= {
            "density": 0.1,
            "mcp": 0.2,
            "sparse_params": 100,
            "tokens_per_second": 5.0,
            "top_m": 4,
            "n_keys": 8,
        }
        row |= {
            "architecture": EVIL,
            "corpus": EVIL,
            "machine": EVIL,
            "versions": "{}",
            "spec": None,
            "data_hash": "x",
        }
        rows = [
            row | {"stage": stage, "loss": 2.0 + i, "loss_ema": 2.0 + i} for stage in ("stable", "annealed")
        ]
        made.write_rows("runs", run_id, rows)
        cell = {"run_id": run_id, "study": EVIL, "label": f"top_m=4 {EVIL} seed={i}", "compensation": "none"}
        made.write_rows(
            "cells", run_id, [cell | {"seed": i, "targets": "{}", "wanted": "{}", "achieved": "{}"}]
        )
    return made


def run(*arguments: object, **options):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)} | options.pop("env", {})
    command = [sys.executable, "-m", "umscale_cli.main", *map(str, arguments)]
    return subprocess.run(command, env=environment, check=False, **options)


def test_every_character_that_is_no_text_is_escaped():
    for number in range(sys.maxunicode + 1):
        character = chr(number)
        if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp", "Cs"):
            assert plain(character).isascii(), hex(number)
    assert plain("é東🙂 x\u00a0\u202f") == "é東🙂 x\u00a0\u202f"
    assert plain_lines("a\nb\x1b") == "a\nb\\x1b"


def test_consoles_and_notes_show_no_control_characters(capsys):
    from rich.table import Table

    table = Table(title=EVIL, caption=EVIL)
    table.add_column(EVIL)
    table.add_row(EVIL)
    out().print(table)
    out().print(EVIL)
    note(EVIL)
    said = capsys.readouterr()
    for text in (said.out, said.err):
        assert text.count("\\x1b[2J") >= 1
        assert not BAD.search(text)


@pytest.mark.parametrize("command", ["runs", "show", "fit", "plot --list", "report", "runs --json"])
def test_labels_of_strangers_reach_no_output_raw(store, capsys, monkeypatch, tmp_path, command):
    name, *options = command.split()
    target = "aaaa" if name == "show" else str(store.root)
    more = ["--study", str(store.root)] if name == "show" else options
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["umscale", name, target, *more])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr()
    assert not BAD.search(said.out), said.out
    assert not BAD.search(said.err), said.err
    for path in [*tmp_path.rglob("*.html"), *tmp_path.rglob("*.md"), *tmp_path.rglob("*.svg")]:
        assert not BAD.search(path.read_text().replace("\t", " ")), path


def test_pages_hold_no_control_characters():
    from umscale.render.html import to_html
    from umscale.render.markdown import to_markdown
    from umscale.say.blocks import Listing, Page, Paragraph, Section

    page = Page(
        title=EVIL, subtitle=EVIL, question=EVIL, lead=(Paragraph(text=EVIL),), footer=EVIL,
        sections=(Section(title=EVIL, blocks=(Listing(text=EVIL),)),),
    )  # fmt: skip
    for text in (to_html(page), to_markdown(page, "figures")):
        assert not BAD.search(text.replace("\\t", ""))
        assert "x1b[2J" in text.replace("\\", "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_any_encoding_takes_what_is_shown(store, encoding):
    label = [{"run_id": "a" * 16, "study": "s", "label": "größe=東 ×", "compensation": "none", "seed": 0}]
    store.write_rows("cells", "a" * 16, label)
    done = run("runs", store.root, capture_output=True, env={"PYTHONIOENCODING": encoding})
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    shown = done.stdout.decode(encoding)
    assert "2.0000" in shown
    assert ("東" if encoding == "utf-8" else "\\u6771") in shown
    if encoding == "ascii":
        assert "\u2013" not in shown


def test_the_posix_locale_is_no_obstacle():
    done = run(
        "laws",
        capture_output=True,
        env={"LC_ALL": "POSIX", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("command", ["laws", "laws --json", "--help", "--version", "cost"])
def test_a_full_disk_under_stdout_is_one_line(command):
    with open("/dev/full", "wb") as full:
        done = run(*command.split(), stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 1
    (line,) = done.stderr.decode().splitlines()
    assert "the output cannot be written (No space left on device)" in line


def test_closed_streams_are_no_obstacle(store):
    shell = f"exec {sys.executable} -m umscale_cli.main runs {store.root}"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for closed in (">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"):
        done = subprocess.run(
            ["sh", "-c", f"{shell} {closed}"], env=environment, capture_output=True, check=False
        )
        assert done.returncode == 0, (closed, done.stderr)
        assert b"Traceback" not in done.stderr + done.stdout


def test_a_terminal_that_is_gone_is_no_reason_to_fail():
    ours, theirs = pty.openpty()
    saved = sys.stderr
    sys.stderr = os.fdopen(theirs, "w")
    os.close(ours)
    try:
        note("nobody reads this")
    finally:
        sys.stderr = saved
