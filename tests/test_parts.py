"""Parts of users' packages: how they are found, what happens to broken, missing and doubled ones, what records say."""

import dataclasses
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from umscale import parts
from umscale.design.study import parse
from umscale.errors import UserError
from umscale.laws.forms import LAWS, law_named
from umscale.parts import MemoryPart, Options
from umscale.questions.question import find
from umscale.say.basis import absent_parts
from umscale.spec import DataSpec, MemorySpec, ModelSpec, OptimizerSpec, RunSpec, TrainSpec, read_run, to_dict
from umscale.store.store import Store
from umscale.testing import states
from umscale.training.record import spec_row
from umscale_cli import main

MODULE = """
from umscale.laws.forms import Slope, LocalLaw
from umscale.parts import MemoryPart, OptimizerPart
from umscale.questions.question import Question

LAW = LocalLaw(name="mine", source="me", formula="c0 + a·log2(m/m0)", slopes=(Slope(coefficient="a", symbols=("m",)),))
OTHER = LocalLaw(name="other", source="me", formula="c0", slopes=())
QUESTION = Question(asks="Why?", answer=lambda table, asked: None)
MEMORY = MemoryPart(layer=object, options={"depth": 2}, params=lambda d, m: 0, macs=lambda d, m: (0.0, 0.0))
OPTIMIZER = OptimizerPart(make=lambda parameters, options: None, options={"lr": 0.1})
"""


def install(folder: Path, name: str, entries: str, module: str = MODULE) -> None:
    """Put a distribution where ``folder`` on the path makes it found."""
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(textwrap.dedent(entries))
    (folder / f"{name}.py").write_text(module)


@pytest.fixture
def own(tmp_path, monkeypatch):
    install(
        tmp_path,
        "gloop",
        """
        [umscale.laws]
        mine = gloop:LAW
        misnamed = gloop:OTHER
        nothing = gloop:NOWHERE
        chinchilla = gloop:LAW
        [umscale.questions]
        why = gloop:QUESTION
        [umscale.memories]
        deep = gloop:MEMORY
        question = gloop:QUESTION
        [umscale.optimizers]
        sloth = gloop:OPTIMIZER
        """,
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("gloop", None)
    parts._load.cache_clear()


def test_a_law_and_a_question_are_found_by_name(own) -> None:
    assert law_named("mine").package == "gloop 1.0"
    assert find("why").asks == "Why?"
    assert law_named("chinchilla") is LAWS["chinchilla"], "umscale's own names cannot be taken"


def test_nothing_is_imported_before_a_part_is_named(own) -> None:
    assert [part.name for part in parts.offered("memories")] == ["deep", "question"]
    parse({"name": "x", "question": "why"}, "x.toml")
    assert "gloop" not in sys.modules
    code = "import umscale.spec, umscale_cli.main, sys; print('importlib.metadata' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False", "what is installed is not even looked at"


@pytest.mark.parametrize(
    ("do", "words"),
    [
        (lambda: law_named("min"), "no law is called 'min'.*did you mean 'mine'"),
        (lambda: law_named("misnamed"), "calls itself 'other'"),
        (lambda: law_named("nothing"), "cannot be loaded from gloop:NOWHERE .AttributeError"),
        (lambda: MemorySpec(kind="question"), "gloop:QUESTION is no MemoryPart"),
        (
            lambda: MemorySpec(kind="deep", options=Options({"width": 1})),
            "unknown key 'memory.options.width'",
        ),
        (lambda: MemorySpec(kind="deep", options=Options({"depth": "x"})), "is not a number"),
        (lambda: MemorySpec(kind="deep", tucker_rank=4), "not an option of kind 'deep'"),
        (lambda: MemorySpec(kind="deep", init="official"), "take paper or matched"),
        (lambda: MemorySpec(kind="pkm", options=Options({"depth": 1})), "not of 'pkm'"),
        (lambda: parse({"name": "x", "question": "wha"}, "x.toml"), "must be one of"),
        (lambda: find("wyh"), "no question is called 'wyh'"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(own, do, words) -> None:
    with pytest.raises(UserError, match=words) as caught:
        do()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "module", ["import no_such_module", "raise SystemExit(3)", "1 / 0", "this is no Python"]
)
def test_a_package_that_cannot_be_imported(tmp_path, monkeypatch, module) -> None:
    install(tmp_path, "snarl", "[umscale.laws]\nsnarled = snarl:LAW\n", module)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(
        UserError, match=r"law 'snarled' of snarl 1\.0 cannot be loaded from snarl:LAW"
    ) as caught:
        law_named("snarled")
    assert "\n" not in str(caught.value)
    parts._load.cache_clear()


def test_a_name_that_two_packages_offer(own, tmp_path, monkeypatch) -> None:
    second = tmp_path / "second"
    install(second, "gulp", "[umscale.laws]\nmine = gulp:LAW\n")
    monkeypatch.syspath_prepend(str(second))
    with pytest.raises(
        UserError, match=r"offered more than once, by gloop 1\.0 .* and gulp 1\.0 .*uninstall one"
    ):
        law_named("mine")


def test_the_listing_says_what_is_wrong_with_each(own) -> None:
    found = {row["name"]: row["state"] for row in states()}
    assert found["mine"] == found["why"] == found["deep"] == found["sloth"] == "ok"
    assert found["chinchilla"].startswith("not used: umscale has one")
    assert all(found[name].startswith("broken: ") for name in ("misnamed", "nothing", "question"))


@pytest.mark.parametrize(
    "argv",
    [
        ["fit", "enwik8_density", "--law", "nothing"],
        ["sweep", "quickstart", "--dry-run", "--set", "train.optimizer.kind=nothing"],
        ["sweep", "quickstart", "--dry-run", "--set", "model.memory.kind=question"],
        ["sweep", "quickstart", "--dry-run", "--no-measure", "--set", 'data.evaluations=["nothing"]'],
        ["parts", "--check", "nothing_at_all"],
    ],
)
def test_commands_say_it_in_a_line_and_exit_with_2(own, argv, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["umscale", *argv])
    with pytest.raises(SystemExit) as ended:
        main.main()
    said = capsys.readouterr().err.strip().splitlines()
    assert ended.value.code == 2
    assert len(said) == 1
    assert said[0].startswith("umscale: ")


# -- records --------------------------------------------------------------------------------------------------


def run_of(part: MemoryPart, **options) -> RunSpec:
    memory = MemorySpec(kind="under_test", n_keys=8, top_m=2, options=Options(options))
    return RunSpec(
        model=ModelSpec(d_model=32, n_heads=2, vocab_size=50, memory=memory),
        train=TrainSpec(rate_scaling="none"),  # which asks the layer for nothing
    )


def test_a_record_names_the_package_and_is_read_without_it(tmp_path) -> None:
    part = MemoryPart(
        layer=object, options={"depth": 2}, params=lambda d, m: 10 * d, macs=lambda d, m: (1.0, 2.0)
    )
    with parts.lent("memories", part):
        run = run_of(part, depth=3)
        assert run.model.memory.package == "under-test 0"
        assert run_of(part, depth=2).run_id == run_of(part).run_id != run.run_id, (
            "a default that is said is none"
        )
        row = spec_row(run)
    again = read_run(row["spec"])
    assert again == run
    assert again.run_id == run.run_id
    other = dataclasses.replace(run.model.memory, package="under-test 1")
    moved = dataclasses.replace(run, model=dataclasses.replace(run.model, memory=other))
    assert moved.run_id != run.run_id, "another version is another run"
    with pytest.raises(
        UserError, match=r"which is not installed here; install under-test==0 to train or count it"
    ):
        spec_row(again)
    (said,) = absent_parts(Store.create(tmp_path / "store"), [row["spec"]])
    assert "memory 'under_test' of under-test 0, which is not installed here (1 run)" in said


def test_ids_without_own_parts_are_as_they_were() -> None:
    assert RunSpec().run_id == "0c4b0b755bcce4fd"
    assert RunSpec(model=ModelSpec(memory=MemorySpec())).run_id == "6c62bf4f6acbb49e"
    assert RunSpec(data=DataSpec(evaluations=("copying",))).run_id == RunSpec().run_id, "it changes no run"


def test_a_study_that_varies_the_kind_forgets_the_options_of_the_other() -> None:
    from umscale.design.study import expand

    study = parse(
        {
            "name": "x",
            "axes": {"train.optimizer.kind": ["adamw", "muon"], "seed": [0]},
            "train": {"optimizer": {"kind": "muon", "options": {"lr": 0.1}}},
        },
        "x.toml",
    )
    found = [cell.run.train.optimizer for cell in expand(study, "float32") if cell.run]
    assert found == [OptimizerSpec(), OptimizerSpec(kind="muon", options=Options({"lr": 0.1}))]
    assert to_dict(found[1])["options"] == {"lr": 0.1}
