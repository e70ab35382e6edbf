"""`umscale doctor` finds what is missing, says what to do, writes nothing and gives nothing away."""

import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from umscale import doctor
from umscale_cli.main import app
from umscale_kernels import native

ROOT = Path(__file__).resolve().parents[1]
SECRET = "hunter2hunter2"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A home folder of its own, without caches, corpora or UMSCALE_ variables."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("UMSCALE_CACHE", "UMSCALE_DATA", "UMSCALE_NATIVE", "XDG_CACHE_HOME", "XDG_DATA_HOME", "CXX"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def by_name(found: doctor.Diagnosis) -> dict[str, doctor.Check]:
    return {check.name: check for check in found.checks}


def test_a_machine_like_this_can_sweep_and_nothing_is_written(home):
    found = doctor.diagnose()
    assert found.can_sweep
    checks = by_name(found)
    assert checks["store"].found.startswith("~/umscale-runs: ")
    assert checks["corpora"].value == ["kjv"]
    assert "umscale data prepare" in checks["corpora"].todo
    assert list(home.iterdir()) == []


def test_without_a_compiler_it_says_which_kernels_run_and_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = doctor.diagnose()
    assert found.can_sweep
    checks = by_name(found)
    assert checks["compiler"].state == "less"
    assert "g++" in checks["compiler"].todo
    assert checks["kernels"].value == "aten"


def test_kernels_that_are_not_compiled_yet_are_named(home):
    ahead = native.outlook()
    if not ahead.compiler:
        pytest.skip("no compiler")
    assert set(ahead.waiting) == set(native._SOURCES)
    assert not (home / ".cache").exists()
    native._library.cache_clear()
    try:
        assert native.library("rms_norm") is not None
    finally:
        native._library.cache_clear()
    assert "rms_norm" not in native.outlook().waiting
    assert "8 are compiled" not in by_name(doctor.diagnose())["kernels"].found


def test_a_store_that_cannot_be_blocks(home):
    (home / "taken").write_text("a file")
    result = CliRunner().invoke(app, ["doctor", "--store", "taken/store", "--json"])
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["can_sweep"] is False
    assert [check["name"] for check in found["checks"] if check["state"] == "blocks"] == ["store"]
    assert CliRunner().invoke(app, ["doctor", "--json"]).exit_code == 0


def test_a_torch_that_cannot_be_loaded_blocks(monkeypatch):
    real = doctor.importlib.import_module

    def broken(name: str) -> object:
        if name == "torch":
            raise OSError("libcudart.so.12: cannot open shared object file")
        return real(name)

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    found = doctor.diagnose()
    assert not found.can_sweep
    assert "libcudart" in by_name(found)["torch"].found


def test_a_corpus_that_is_damaged_is_said(home):
    folder = home / ".local" / "share" / "umscale" / "corpora" / "mine"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{")
    check = by_name(doctor.diagnose())["corpora"]
    assert (check.state, "umscale data list" in check.todo) == ("less", True)


def test_nothing_secret_is_shown(monkeypatch):
    for name in ("AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    shown = CliRunner().invoke(app, ["doctor", "--json"]).stdout
    assert SECRET not in shown
    assert str(Path.home()) not in shown


def test_an_address_that_nobody_answers_blocks_and_keeps_its_password(monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    url = f"s3://user:{SECRET}@bucket/store?endpoint_override=127.0.0.1:9&scheme=http"
    found = doctor.diagnose(url)
    assert not found.can_sweep
    assert SECRET not in json.dumps(doctor.to_json(found))


def test_every_extra_is_known():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(doctor.EXTRAS) == set(declared) - {"dev", "docs"}
    assert set(doctor.requirements()) <= set(doctor.EXTRAS)
