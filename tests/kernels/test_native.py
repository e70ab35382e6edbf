"""Building, caching and doing without the C++ path."""

import logging
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from umscale_kernels import available_backends, default_backend, lookup, native
from umscale_kernels.backends import resolve

KERNELS = Path(__file__).parents[2] / "kernels"
HAS_NATIVE = "native" in available_backends("lookup")
needs_compiler = pytest.mark.skipif(not HAS_NATIVE, reason="no compiler")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and nothing loaded yet."""
    monkeypatch.setenv("UMSCALE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("UMSCALE_NATIVE", "1")
    native._library.cache_clear()
    yield tmp_path / "cache"
    native._library.cache_clear()


def lookup_works() -> bool:
    rows, values = torch.tensor([[0, 2]]), torch.arange(6.0).view(3, 2)
    return lookup(None, torch.ones(1, 2, 1), rows, None, values).tolist() == [[4.0, 6.0]]


def test_without_a_compiler_stock_pytorch_runs(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with caplog.at_level(logging.DEBUG, "umscale_kernels"):
        assert "native" not in (*available_backends("lookup"), *available_backends("select"))
        assert default_backend() == "aten"
        assert lookup_works()
    assert sum("no C++ compiler found" in line for line in caplog.messages) == 2  # one line per operation
    assert not list(cache.rglob("*.so"))
    with pytest.raises(RuntimeError, match="needs a C\\+\\+ compiler"):
        lookup(None, torch.ones(1, 1, 1), torch.zeros(1, 1).long(), None, torch.ones(1, 1), backend="native")


def test_a_compiler_that_fails_is_not_fatal(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "broken-c++"
    broken.write_text("#!/bin/sh\ncase $1 in --version) echo 1;; *) echo no such flag >&2; exit 1;; esac\n")
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    with caplog.at_level(logging.DEBUG, "umscale_kernels"):
        assert default_backend() == "aten"
        assert lookup_works()
    assert "no such flag" in caplog.text
    assert list(cache.rglob("*.*")) == []


def test_the_environment_switches_it_off(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UMSCALE_NATIVE", "0")
    assert "native" not in available_backends("select")
    assert lookup_works()
    assert not cache.exists()


@needs_compiler
def test_two_processes_may_build_at_once(cache: Path) -> None:
    program = "from umscale_kernels import native; assert native.library('lookup') is not None"
    env = {**os.environ, "PYTHONPATH": str(KERNELS)}
    both = [subprocess.Popen([sys.executable, "-c", program], env=env) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    folder = cache / "native"
    (built,) = folder.iterdir()  # one library, no partial files
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    written = built.stat().st_mtime_ns
    assert native.library("lookup") is not None
    assert lookup_works()
    assert built.stat().st_mtime_ns == written  # loaded, not built again


def test_records_can_name_the_path() -> None:
    assert default_backend("cpu", torch.float64) == "aten"
    assert default_backend("cpu", torch.float32) == ("native" if HAS_NATIVE else "aten")
    assert resolve("select", "auto", "cpu", torch.float32, native_supported=False) == "aten"
    with pytest.raises(ValueError, match="does not take"):
        resolve("lookup", "native", "cpu", torch.float64)
    with pytest.raises(ValueError, match="op must be one of"):
        available_backends("softmax")


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Temporary files of this test's own."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setattr(native, "_stand_ins", [])
    monkeypatch.setattr(native, "_problems", {})
    monkeypatch.setattr(native, "_SOURCES", {"swiglu": native._SOURCES["swiglu"]})  # quickest to build
    return folder


@needs_compiler
@pytest.mark.parametrize("fault", ["a file in its place", "not executable"])
def test_a_cache_that_cannot_be_used_does_not_change_the_kernels(
    cache: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if fault == "a file in its place":
        cache.write_text("")
    else:
        plain = native.ctypes.CDLL

        def load(path: str) -> object:
            if Path(path).is_relative_to(cache):
                raise OSError("failed to map segment from shared object")
            return plain(path)

        monkeypatch.setattr(native.ctypes, "CDLL", load)
    assert native.in_use() == "native"
    (remark,) = native.remarks()
    assert "cache of compiled kernels cannot be used" in remark
    assert "UMSCALE_CACHE" in remark
    (folder,) = temporary.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert len(list(folder.iterdir())) == 1


@needs_compiler
def test_nothing_is_loaded_from_where_others_may_write(cache: Path, temporary: Path) -> None:
    cache.write_text("")
    (temporary / f"umscale-native-{os.getuid()}").mkdir(mode=0o777)
    (temporary / f"umscale-native-{os.getuid()}").chmod(0o777)
    assert native.in_use() == "aten"
    (remark,) = native.remarks()
    assert "swiglu run in stock PyTorch" in remark
    assert "not a folder of this user's alone" in remark
