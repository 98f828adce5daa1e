from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.engines.cache import EngineCache

ROOT = Path(__file__).parents[3]
KEY = {"graph": "a" * 64, "library": "tensorrt 10.1", "gpu": "T4, 7.5", "largest": "544"}
ENGINE = bytes(range(256)) * 40


def test_found_by_all_of_its_key(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "made" / "when needed")
    assert cache.get(KEY) is None
    cache.put(KEY, ENGINE)
    assert cache.get(KEY) == ENGINE
    assert EngineCache(cache.directory).get(dict(reversed(KEY.items()))) == ENGINE
    for part in KEY:
        assert cache.get({**KEY, part: KEY[part] + "x"}) is None


def test_a_damaged_engine_is_built_again_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = EngineCache(tmp_path)
    cache.put(KEY, ENGINE)
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    for place in (5, len(good) - 5000, len(good) - 1):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        assert cache.get(KEY) is None
    for bad in (b"", good[:-1], good + b"x", good[:100], b"{}\n", b"\xff\xfe\n"):
        path.write_bytes(bad)
        caplog.clear()
        assert cache.get(KEY) is None
        assert "built again" in caplog.text
        assert len(cache.entries()) == 1
    cache.put(KEY, ENGINE)
    assert cache.get(KEY) == ENGINE


def test_those_used_longest_ago_leave_first(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, max_bytes=3 * len(ENGINE) + 3000)
    keys = [{**KEY, "gpu": str(k)} for k in range(4)]
    for k, key in enumerate(keys[:3]):
        cache.put(key, ENGINE)
        os.utime(cache._path(key), (k, k))
    assert cache.get(keys[0]) == ENGINE  # used now
    cache.put(keys[3], ENGINE)
    assert [cache.get(key) is not None for key in keys] == [True, False, True, True]
    cache = EngineCache(tmp_path, max_bytes=10)
    cache.put(KEY, ENGINE)  # larger than all there may be, and kept: it is needed now
    assert [entry.key for entry in cache.entries()] == [KEY]


def test_a_folder_that_cannot_be_used_costs_a_warning_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    cache = EngineCache(tmp_path / "file")
    with caplog.at_level(logging.WARNING):
        cache.put(KEY, ENGINE)
        assert cache.get(KEY) is None
    assert "not kept" in caplog.text
    assert cache.entries() == []
    assert cache.clear() == 0


def test_two_processes_write_one_whole_engine(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from runtime.engines.cache import EngineCache
cache = EngineCache(Path({str(tmp_path)!r}))
for k in range(200):
    cache.put({KEY!r}, bytes([k]) * 100_000)
    found = cache.get({KEY!r})
    assert found is not None and len(found) == 100_000 and len(set(found)) == 1
"""
    both = [subprocess.Popen([sys.executable, "-W", "error", "-c", code], cwd=ROOT) for _ in range(2)]
    assert [process.wait(timeout=60) for process in both] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_librarys_own_folder_is_listed_and_cleared(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path)
    cache.put(KEY, ENGINE)
    folder = cache.folder("b" * 64)
    folder.mkdir()
    (folder / "TensorrtExecutionProvider_1.engine").write_bytes(b"12345")
    assert sorted(entry.bytes for entry in cache.entries())[0] == 5
    assert cache.clear() == 2
    assert list(tmp_path.iterdir()) == []
