"""Every command line in the documentation is one that the command line takes; templates hold what they should."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from umscale_cli.main import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "deploy").iterdir()))
IN_A_BLOCK = re.compile(r"^(?: {4}|#\s+|\s*exec )(umscale .*)$")
WITHOUT_VALUES = re.compile(r"\s\.\.\.(?=\s|;|$)")


def commands():
    """Command lines of indented blocks, in whole: continued lines joined, several of a line apart."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in text.splitlines():
            if line_of := IN_A_BLOCK.match(line):
                found += [(page.name, part) for part in words_of(line_of[1])]
    return found


def words_of(line):
    """Arguments of each command of a line, without comments and redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|>")
    lexer.whitespace_split = True
    parts, words, skip = [], [], False
    for word in lexer:
        if word in (";", "&&", "|"):
            parts.append(words)
            words = []
        elif word == ">":
            skip = True
        elif skip:
            skip = False
        else:
            words.append(word)
    parts.append(words)
    return [part for part in parts if part and part[0] == "umscale"]


@pytest.mark.parametrize(
    ("page", "words"), commands(), ids=lambda value: " ".join(value) if isinstance(value, list) else value
)
def test_every_command_is_taken(page, words):
    if words[-1] == "..." or "..." in words:
        words = words[: words.index("...") - words[words.index("...") - 1].startswith("--")]
    command = typer.main.get_command(app)
    rest = words[1:]
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        assert rest[0] in command.commands, f"{page}: no command {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    with command.make_context(words[0], list(rest), resilient_parsing=True) as context:
        assert not context.args
    known = {name for option in command.params for name in (*option.opts, *option.secondary_opts)}
    known |= {"--help", "-h", "--version", "--install-completion", "--show-completion"}
    for word in rest:
        if re.fullmatch(r"--[a-z][a-z0-9-]*", word.partition("=")[0]):
            assert word.partition("=")[0] in known, f"{page}: {words} has no option {word}"


def test_the_documentation_has_commands():
    assert len(commands()) > 100


def test_templates_are_what_they_say():
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load((ROOT / "deploy" / "kubernetes-job.yaml").read_text(encoding="utf-8"))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert container["args"][0] == "worker"
    mounts = {one["name"] for one in container["volumeMounts"]}
    assert mounts == {one["name"] for one in job["spec"]["template"]["spec"]["volumes"]}
    sky = yaml.safe_load((ROOT / "deploy" / "skypilot.yaml").read_text(encoding="utf-8"))
    assert "umscale worker" in sky["run"]
    subprocess.run(["bash", "-n", str(ROOT / "deploy" / "slurm-workers.sh")], check=True)


def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("material")
    if shutil.which("mkdocs") is None:
        pytest.skip("mkdocs is not on the path")
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--quiet",
        "--site-dir",
        str(tmp_path / "site"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 20
    outside = [
        p
        for p in pages
        if re.search(r"<(?:script|link)[^>]+(?:src|href)=\"https?://(?!www.w3)", p.read_text("utf-8"))
    ]
    assert outside == []
