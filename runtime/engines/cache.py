"""Engines that took long to build, on disk: found by all that they depend on, whole or not at all, within a limit."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import OutputFileError
from ..files import write_atomically

log = logging.getLogger(__name__)

_SUFFIX = ".engine"
_FOLDER = ".engines"
MAX_BYTES = 1 << 30


def default_directory() -> Path:
    """Where this user's caches lie, as the system has it."""
    home = Path.home()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA", home / "AppData" / "Local"))
    elif sys.platform == "darwin":
        base = home / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME", home / ".cache"))
    return base / "metasrgan-edge"


@dataclass(frozen=True)
class Entry:
    """A cached engine."""

    path: Path
    key: dict[str, str]
    bytes: int
    used: float  # seconds since the epoch


class EngineCache:
    """A folder of engines. A file is the key as a line of JSON, the SHA-256 of what follows, and the engine.

    Two processes may share it. Where it cannot be read or written, a line in the log says so, and work goes on.
    """

    def __init__(self, directory: Path, max_bytes: int = MAX_BYTES) -> None:
        self.directory, self._max_bytes = directory, max_bytes

    def get(self, key: Mapping[str, str]) -> bytes | None:
        """The engine for exactly this key, or None."""
        path = self._path(key)
        try:
            head, _, rest = path.read_bytes().partition(b"\n")
            engine = _unseal(rest)
            if json.loads(head) == dict(key) and engine is not None:
                os.utime(path)
                return engine
            log.warning("the cached engine %s is damaged: it is built again", path)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            log.warning("the cached engine %s cannot be read (%s): it is built again", path, error)
        return None

    def put(self, key: Mapping[str, str], engine: bytes) -> None:
        """Keep an engine, and remove those used longest ago where there are too many."""
        head = json.dumps(dict(key), sort_keys=True).encode() + b"\n"
        try:
            os.makedirs(self.directory, exist_ok=True)
            content = head + _seal(engine)
            write_atomically(self._path(key), lambda file: file.write(content), overwrite=True)
            newest_first = sorted(self.entries(), key=lambda entry: -entry.used)
            total = 0
            for entry in newest_first:
                total += entry.bytes
                if total > self._max_bytes and entry is not newest_first[0]:
                    _remove(entry.path)
        except (OutputFileError, OSError) as error:
            log.warning("the engine is not kept, and will be built again next time: %s", error)

    def folder(self, name: str) -> Path:
        """A folder for a library that keeps files of its own."""
        return self.directory / f"{name[:32]}{_FOLDER}"

    def entries(self) -> list[Entry]:
        """All engines of the folder, the last used first."""
        found = []
        for path in self.directory.glob(f"*{_FOLDER}"):
            size = sum(file.stat().st_size for file in path.glob("*"))
            found.append(Entry(path, {"library": "onnxruntime TensorrtExecutionProvider"}, size, path.stat().st_mtime))
        for path in self.directory.glob(f"*{_SUFFIX}"):
            try:
                with path.open("rb") as file:
                    key = json.loads(file.readline(65536))
                found.append(Entry(path, key, path.stat().st_size, path.stat().st_mtime))
            except (OSError, ValueError):
                found.append(Entry(path, {}, 0, 0.0))
        return sorted(found, key=lambda entry: -entry.used)

    def clear(self) -> int:
        """Remove them all; how many there were."""
        entries = self.entries()
        for entry in entries:
            _remove(entry.path)
        return len(entries)

    def _path(self, key: Mapping[str, str]) -> Path:
        return self.directory / f"{hashlib.sha256(json.dumps(dict(key), sort_keys=True).encode()).hexdigest()[:32]}{_SUFFIX}"


def _seal(content: bytes) -> bytes:
    """Content behind its SHA-256, for a file that may be damaged."""
    return hashlib.sha256(content).digest() + content


def _unseal(sealed: bytes) -> bytes | None:
    """The content of `_seal`, or None where it is damaged."""
    digest, content = sealed[:32], sealed[32:]
    return content if digest == hashlib.sha256(content).digest() else None


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
