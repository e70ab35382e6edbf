"""`umscale report`: a page that holds what the library computes, needs nothing else, and survives any store."""

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from typer.testing import CliRunner

import umscale_studies
from umscale.data.corpus import open_corpus
from umscale.design.study import expand, load_study, parse
from umscale.questions import density_over_size
from umscale.questions.architectures import compare_architectures
from umscale.questions.memory_to_ffn import memory_to_ffn
from umscale.questions.question import Asked
from umscale.render.html import to_html
from umscale.render.markdown import to_markdown
from umscale.report.build import build
from umscale.report.diagnostics import diagnostics
from umscale.report.evidence import Evidence, gather
from umscale.report.lead import answer, question_words
from umscale.report.limits import limits
from umscale.report.reproduce import reproduce, since_then
from umscale.say.blocks import Page, Verdict
from umscale.store.schema import STAGES
from umscale.store.store import Store
from umscale.training.record import spec_row
from umscale_cli.main import app, main

RUN = CliRunner()
RESOURCES = {"src", "href", "xlink:href", "data", "poster", "srcset", "action", "background"}
INSIDE = ("#", "data:image/png;base64,")
VOID = {"meta", "img", "br", "wbr", "hr", "link", "input"}
HOSTILE = "<img src=x onerror=alert(1)>\"'`](javascript:alert(1)) & ../../etc"


class Reader(HTMLParser):
    """Checks that elements nest, and collects text, references and the names of elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.elements: set[str] = set()
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.references += [value or "" for name, value in attrs if name in RESOURCES]
        assert not [name for name, _ in attrs if name.startswith("on")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


@pytest.fixture(scope="module")
def density() -> Page:
    return build(recorded("enwik8_density"), "enwik8_density")


def recorded(name: str) -> Store:
    return Store.open(umscale_studies.recorded()[name])


def written(value: float, digits: int = 4) -> str:
    return f"{value:.{digits}f}".replace("-", "−")


def test_a_page_needs_nothing_but_itself(density):
    html = to_html(density)
    found = Reader(html)
    for reference in found.references:
        assert reference.startswith(INSIDE), reference
    assert not found.elements & {"script", "link", "iframe", "object", "embed", "base"}
    assert not re.search(r"@import|url\((?!#)", html)
    assert len(found.ids) == len(set(found.ids))
    for name in re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', html):
        assert "".join(name) in found.ids
    assert len(html.encode()) < 2_000_000


def test_the_verdict_is_the_librarys(density):
    text = Reader(to_html(density)).text
    found = density_over_size.answer(recorded("enwik8_density").columns(), Asked())
    assert len(density.answers) == 1
    assert density.answers[0].verdict.startswith("Supported and falls with tokens before and after the decay")
    for verdict in found.verdicts:
        readings = (verdict.from_law, verdict.from_pairs) if verdict.loss == "loss" else (verdict.from_law,)
        for reading in readings:
            names = (
                ("delta_m", "delta_n", "difference", "paper") if verdict.loss == "loss" else ("difference",)
            )
            for one in filter(None, (getattr(reading, name) for name in names)):
                assert f"{written(one.value)}[{written(one.low)}, {written(one.high)}]" in text.replace(
                    " [", "["
                )
    for section in found.laws.sections:
        for uncertainty in section.uncertainty:
            for name, one in uncertainty.coefficients().items():
                row = f"{name}{written(one.value)}[{written(one.low)}, {written(one.high)}]yes"
                assert row in text, row


def test_markdown_says_the_same(density):
    markdown = to_markdown(density, "figures")
    for one in density.answers:
        assert one.verdict in markdown
    for picture in density.pictures:
        assert f"](figures/{picture.file[0]})" in markdown
    numbers = set(re.findall(r"\d\.\d{4}\b", Reader(to_html(density)).text))
    assert numbers <= set(re.findall(r"\d\.\d{4}\b", markdown))


def test_the_sections_come_in_order(density):
    assert [section.title for section in density.sections] == [
        "Design", "Cost", "Figures", "Laws", "Noise", "Diagnostics", "What this study does not show",
        "How to reproduce", "Versions",
    ]  # fmt: skip
    html = to_html(density)
    assert "umscale sweep study.toml\n" in html
    assert "table_weight_decay = &#34;coupled&#34;" in html
    assert "name = &#34;enwik8_density&#34;" in html
    assert "459e29292b2b" in html
    assert "d22c94d8e528c3c6bce438aaa5cf0abc6f6656e206cb02cbbeb61c80394e30f5" in html


def test_a_store_keeps_its_meaning_and_says_what_the_shipped_study_has_otherwise_today():
    name = "enwik8_density"
    now = load_study(name).to_dict()
    store = recorded(name)
    nothing = store.columns(status=None)
    evidence = Evidence(
        store=store, source=name, name=name, question="density-over-size", tree=store.study_tree(), every=nothing,
        table=nothing, cells=[], probes=[], answer=None, noise=(), search=None, refused="", unread="", damaged=(),
    )  # fmt: skip
    assert {"model.memory.preselect_cap", "train.table_weight_decay", "train.score_energy"} <= {
        *since_then(evidence)
    }
    said, commands = reproduce(evidence)[1:3]
    assert "not the one that comes with umscale as enwik8_density" in said.text
    assert "`train.table_weight_decay`" in said.text
    assert commands.text.startswith("umscale sweep study.toml\n")
    shipped = dataclasses.replace(evidence, tree=now)
    assert since_then(shipped) == ()
    assert reproduce(shipped)[1].text.startswith("umscale sweep enwik8_density\n")
    assert since_then(dataclasses.replace(evidence, name="my own")) is None


def test_architectures_are_compared(tmp_path):
    files = []
    for folder in ("a", "b"):
        target = tmp_path / folder / "page.html"
        result = RUN.invoke(app, ["report", "enwik8_architectures", "--out", str(target), "--json"])
        assert result.exit_code == 0, result.output
        paths = [Path(path) for path in json.loads(result.stdout)["files"]]
        assert paths[:2] == [target, target.with_suffix(".md")]
        files.append([path.read_bytes() for path in paths])
    assert files[0] == files[1], "the same store gives the same bytes"
    text = Reader(files[0][0].decode()).text
    for one in compare_architectures(recorded("enwik8_architectures").columns()):
        assert f"{written(one.noise)} nats ({one.freedom} degrees of freedom)" in text
        for row in one.rows:
            assert written(row.loss) in text
            if row.difference:
                d = row.difference
                assert f"{written(d.value)}[{written(d.low)}, {written(d.high)}]" in text
    assert "Lowest loss: moe-8of75 before and after the decay" in text
    best = compare_architectures(recorded("enwik8_architectures").columns(), baseline="moe-8of75")
    apart = [all(row.difference.low > 0 for row in one.rows if row.difference) for one in best]
    assert text.count("all others lie above it") == sum(apart)
    assert text.count("not told apart from it") == len(apart) - sum(apart)
    assert "umscale_studies/recorded" not in text


def test_a_search_shows_its_front():
    evidence = gather(recorded("enwik8_search"), "enwik8_search")
    first, front = answer(evidence)[:2]
    assert first.verdict == "13 of 48 trials that no other beats"
    assert front.rows[0][-4:] == ("2.2761", "397k", "3.44M", "451k")
    assert "searched" in question_words(evidence)


# -- stores made here -----------------------------------------------------------------------------------------

MODEL = {
    "d_model": 32,
    "n_layers": 1,
    "n_heads": 2,
    "ffn": {"d_ffn": 64},
    "memory": {"n_keys": 16, "top_m": 4},
}


def made(root: Path, finished: int | None = None, until: int | None = None, **study) -> Store:
    """A store of a study whose first ``finished`` runs are done, the next failed; losses from a rule.

    With ``until``, all runs are paused after that budget.
    """
    tree = {
        "name": "made",
        "model": MODEL,
        "axes": {"top_m": [2, 4, 8], "n_keys": [8, 16], "tokens": [100_000]},
    }
    tree |= study
    plan = parse(tree, "made.toml")
    cells = expand(plan, "float32", open_corpus("kjv"))
    store = Store.create(root)
    store.write_design(plan, cells)
    context = {
        "device": "cpu",
        "versions": json.dumps({"umscale": "0", "torch": HOSTILE}),
        "machine": HOSTILE,
    }
    runs = {cell.run_id: cell for cell in cells if cell.run is not None}
    for i, cell in enumerate(runs.values()):
        run = cell.run
        if finished is not None and i > finished:
            break
        if finished is not None and i == finished:
            store.write_run(spec_row(run), plan.name, status="failed", reason=HOSTILE, context=context)
            break
        loss = 3 - 0.03 * run.model.memory.top_m**0.5 - 0.002 * run.model.memory.n_keys + 0.01 * run.seed
        records = [
            {
                "budget": budget, "stage": stage, "tokens": budget, "loss": loss + 0.1 * (stage == "stable"),
                "loss_ema": loss, "bits_per_byte": loss, "bits_per_byte_ema": loss, "train_seconds": 10.0,
                "eval_seconds": 1.0, "tokens_per_second": 1e4, "peak_memory_bytes": 2**30,
            }
            for budget in run.train.budgets[: run.budgets_until(until)]
            for stage in STAGES
        ]  # fmt: skip
        curve = [
            {"phase": "trunk", "tokens": 4096 * k, "loss": 5 / k, "train_seconds": k} for k in range(1, 20)
        ]
        probes = [
            {
                "budget": run.train.budgets[-1], "stage": stage, "task": task, "n_answers": 64, "answer_symbols": 2,
                "accuracy": 0.25 + 0.125 * (stage == "annealed"), "chance": 0.0625, "ceiling": 1.0,
            }
            for stage in STAGES
            for task in ("needle", "recall")
        ]  # fmt: skip
        store.write_run(
            spec_row(run),
            plan.name,
            status="finished" if until is None else "paused",
            reason="" if until is None else f"until {until:,} of {run.train.budgets[-1]:,} tokens",
            records=records,
            curve=curve,
            probes=probes,
            context=context,
        )
    return store


def text_of(store: Store) -> str:
    return Reader(to_html(build(store, "made"))).text


NOISE = {"question": "noise", "axes": {"top_m": [2, 4], "tokens": [100_000], "seed": [0, 1]}}
"""A study with one figure: quickly drawn."""


def test_one_seed_one_budget_two_compensations(tmp_path):
    store = made(tmp_path / "s", compensation=["none", "iso_active"])
    evidence = gather(store, "made")
    answers = [block for block in answer(evidence) if isinstance(block, Verdict)]
    assert [one.verdict.rpartition(" (")[2] for one in answers] == [
        "active parameters held equal)",
        "nothing compensated)",
    ]
    assert {v.compensation for v in evidence.answer.verdicts} == {"none", "iso_active"}
    said = " ".join(limits(evidence))
    assert "There is one seed" in said
    assert "There is one token budget" in said


def test_probes_have_a_table(tmp_path):
    text = text_of(made(tmp_path / "s", **NOISE))
    assert "cellneedlerecall" in text
    assert "top_m=237.5%37.5%" in text
    assert "top_m=225.0%25.0%" in text
    assert "chance6.2%6.2%" in text


def test_without_probes_there_is_no_such_section(density):
    assert "Probes" not in [section.title for section in density.sections]


def test_where_nothing_has_finished_the_page_says_so(tmp_path):
    text = text_of(made(tmp_path / "s", finished=0))
    assert "No answer" in text
    assert "No run has finished yet." in text
    assert "1 failed, 5 not begun or in progress" in text


def test_a_study_in_progress_is_preliminary(tmp_path):
    text = text_of(made(tmp_path / "s", finished=3, **NOISE))
    assert "Preliminary: 3 of 4 planned runs have finished." in text


def test_a_study_done_in_parts_is_read_and_its_rest_predicted(tmp_path):
    axes = {"top_m": [2, 4, 8], "n_keys": [8, 12, 16], "tokens": [100_000, 200_000, 400_000], "seed": [0, 1]}
    study = {"axes": axes, "question": "noise"}
    store = made(tmp_path / "s", until=200_000, **study)
    words = "18 runs are paused, until 200,000 of 400,000 tokens"
    evidence = gather(store, "made")
    assert answer(evidence)[0].text == f"Preliminary: {words}."
    assert f"{words}: `umscale sweep` without --until goes on" in " ".join(limits(evidence))
    assert diagnostics(evidence)[0].text == "No run failed or diverged."
    assert words in RUN.invoke(app, ["runs", str(tmp_path / "s")]).output

    seal = str(tmp_path / "seal.json")
    asked = ["--law", "trend", "--at", "tokens=400k", "--draws", "20"]
    sealed = RUN.invoke(app, ["predict", str(tmp_path / "s"), *asked, "--seal", seal])
    assert sealed.exit_code == 0, sealed.output

    def waiting() -> int:
        checked = RUN.invoke(app, ["fit", str(tmp_path / "s"), "--check", seal, "--json"])
        assert checked.exit_code == 0, checked.output
        return json.loads(checked.stdout)["waiting"]

    before = waiting()
    assert before > 0
    made(tmp_path / "s", **study)
    assert waiting() == 0


def test_cells_that_cannot_be_built_are_named(tmp_path):
    store = made(
        tmp_path / "s",
        question="noise",
        axes={"top_m": [4, 8], "n_keys": [8, 64], "tokens": [100_000]},
        compensation="iso_flops",
    )
    cells = [cell for cell in store.read("cells").to_pylist() if cell["reason"]]
    assert cells
    text = text_of(store)
    assert "Cells that cannot be built" in text
    assert " ".join(cells[0]["reason"].split()) in text


@pytest.mark.parametrize("question", ["architectures", "memory-to-ffn", "learning-rates", "noise"])
def test_every_question_gives_a_page(tmp_path, question):
    store = made(
        tmp_path / "s", question=question, axes={"top_m": [2, 4, 8], "tokens": [100_000], "seed": [0, 1]}
    )
    page = build(store, "made")
    assert page.answers
    Reader(to_html(page))
    if question == "memory-to-ffn":
        found = memory_to_ffn(store.columns(), stage="annealed")
        assert found.mcp is None or f"{found.mcp.value:.1%}" in Reader(to_html(page)).text


def test_a_choice_of_the_trainer_gives_a_page(tmp_path):
    axes = {
        "top_m": [2, 8], "n_keys": [16, 32], "train.table_weight_decay": ["coupled", 0.0], "tokens": [100_000],
        "seed": [0, 1],
    }  # fmt: skip
    page = build(made(tmp_path / "s", question="trainer-choice", axes=axes), "made")
    text = Reader(to_html(page)).text
    assert "Recommended: table_weight_decay = " in text
    assert "delta_m" in text
    assert "documents" in text


def test_hostile_words_are_shown_not_read(tmp_path):
    store = made(tmp_path / "s", finished=3, question="architectures", description=HOSTILE)
    rows = store.read("cells").to_pylist()
    for path in (tmp_path / "s" / "cells").glob("*.parquet"):
        path.unlink()
    hostile = [row | {"label": f"{i}{HOSTILE}", "compensation": HOSTILE} for i, row in enumerate(rows)]
    store.write_rows("cells", "hostile", [*rows, *hostile])
    page = build(store, HOSTILE)
    found = Reader(to_html(page))
    assert "script" not in found.elements
    assert not [reference for reference in found.references if not reference.startswith(INSIDE)]
    assert "onerror=alert(1)>" in found.text
    markdown = re.sub(r"^(`{3,}).*?^\1", "", to_markdown(page, "figures"), flags=re.DOTALL | re.MULTILINE)
    plain = re.sub(r"`[^`]*`", "", markdown)
    assert not re.search(r"(?<!\\)<(?!/?details>|/?summary>)", plain)
    assert not re.search(r"\]\((?!figures/)", plain)
    for picture in page.pictures:
        assert re.fullmatch(r"[A-Za-z0-9_.-]+", picture.file[0])


def test_a_damaged_file_and_an_unreadable_study_are_named(tmp_path):
    root = tmp_path / "s"
    shutil.copytree(umscale_studies.recorded()["enwik8_architectures"], root)
    (root / "study.toml").write_text("axes = 3\n")
    damaged = next(iter(sorted((root / "runs").iterdir())))
    damaged.write_bytes(damaged.read_bytes()[:-20])
    text = Reader(to_html(build(Store.open(root), "s"))).text
    assert f"runs/{damaged.name}" in text
    assert "The study file is not used" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report", "enwik8_densty"], "did you mean 'enwik8_density'"),
        (
            ["report", "enwik8_architectures", "--out", "page.pdf"],
            "must be a folder or a file that ends in .html",
        ),
        (["report", "EMPTY"], "holds no runs yet"),
        (
            ["report", "enwik8_architectures", "--out", "mine/README.html"],
            "mine/README.md is not of `umscale report`",
        ),
        (
            ["report", "enwik8_architectures", "--out", "taken"],
            "cannot write taken/report.md: it is a folder",
        ),
        (
            ["report", "enwik8_architectures", "--out", "shut"],
            "cannot write shut/report-figures: it is no folder",
        ),
        (["runs", "enwik8_architectures", "--status", "finishd"], "did you mean 'finished'"),
        (["runs", "enwik8_architectures", "--probes"], "holds no probes"),
    ],
)
def test_errors_are_one_line(tmp_path, monkeypatch, capsys, arguments, words):
    Store.create(tmp_path / "EMPTY")
    for folder in ("mine", "taken/report.md", "shut"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("mine/README.md", "shut/report-figures"):
        (tmp_path / file).write_text("notes")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["umscale", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert words in printed.err
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "mine" / "README.md").read_text() == "notes"
