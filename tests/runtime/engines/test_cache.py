from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.engines.cache import EngineCache
from tests.conftest import ROOT

PARTS = "tensorrt 10.1", "T400 4GB", "7 5", "604", "a" * 64
KEY = " ".join(PARTS)
ENGINE = bytes(range(256)) * 40


def never() -> bytes:
    raise AssertionError("it is built again")


def test_an_engine_is_found_by_all_of_its_key(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "made" / "when needed")
    assert cache.get(KEY, lambda: ENGINE) == ENGINE
    (path,) = cache.files()
    assert cache.get(KEY, never) == ENGINE
    for k, part in enumerate(PARTS):
        assert cache.get(" ".join([*PARTS[:k], f"{part}1", *PARTS[k + 1 :]]), lambda: b"another") == b"another"
    assert path.name == f"tensorrt_10.1_T400_4GB_7_5_604_{'a' * 64}.engine"  # on any file system, and for a person


def test_a_damaged_engine_is_built_again_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = EngineCache(tmp_path)
    cache.get(KEY, lambda: ENGINE)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    damaged = [good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :] for place in (0, 5000, len(good) - 1)]
    for bad in (*damaged, b"", good[:-1], good + b"x", good[:20]):
        path.write_bytes(bad)
        caplog.clear()
        assert cache.get(KEY, lambda: ENGINE) == ENGINE
        assert "is damaged: it is built again" in caplog.text
        assert cache.get(KEY, never) == ENGINE


def test_a_folder_that_cannot_be_used_costs_a_warning_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    cache = EngineCache(tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        assert cache.get(KEY, lambda: ENGINE) == ENGINE
    assert "cannot be read (" in caplog.text
    assert "not kept" in caplog.text
    assert cache.files() == []
    assert cache.clear() == 0


def test_the_log_keeps_no_frame_alive(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """An error in a log record would keep the engine that asked, and its memory on the GPU."""
    cache = EngineCache(tmp_path)
    (tmp_path / f"{KEY.replace(' ', '_')}.engine").mkdir()
    cache.get(KEY, lambda: ENGINE)
    assert len(caplog.records) == 2
    assert not any(isinstance(value, BaseException) for record in caplog.records for value in record.args or ())


def test_two_processes_write_one_whole_engine(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from runtime.engines.cache import EngineCache
cache = EngineCache(Path({str(tmp_path)!r}))
for k in range(200):
    for path in cache.files() if k % 2 else ():
        path.unlink(missing_ok=True)
    found = cache.get({KEY!r}, lambda: bytes([k]) * 100_000)
    assert len(found) == 100_000 and len(set(found)) == 1
"""
    both = [subprocess.Popen([sys.executable, "-W", "error", "-c", code], cwd=ROOT) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert len(EngineCache(tmp_path).files()) == EngineCache(tmp_path).clear() == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("system", "variable", "usual"),
    [("linux", "XDG_CACHE_HOME", ".cache"), ("win32", "LOCALAPPDATA", "AppData/Local"), ("darwin", None, "Library/Caches")],
)
def test_the_default_folder_is_the_systems(
    system: str, variable: str | None, usual: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    assert EngineCache().directory == tmp_path / usual / "metasrgan-edge"
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
        assert EngineCache().directory == tmp_path / "elsewhere" / "metasrgan-edge"
