"""Engines that took long to build, on disk: whole or not at all."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
from pathlib import Path

from ..errors import OutputFileError, reason
from ..files import write_atomically

log = logging.getLogger(__name__)

_PLACES = {"win32": ("LOCALAPPDATA", "AppData/Local"), "darwin": ("", "Library/Caches")}


class EngineCache:
    """A folder of engines, by default in this user's caches. A file is the SHA-256 of an engine and the engine.

    Two processes may share it. Where it cannot be read or written, a line in the log says so, and work goes on.
    """

    def __init__(self, directory: Path | None = None) -> None:
        variable, usual = _PLACES.get(sys.platform, ("XDG_CACHE_HOME", ".cache"))
        base = os.environ.get(variable) or Path.home() / usual
        self.directory = directory or Path(base, "metasrgan-edge")

    def get(self, key: str) -> bytes | None:
        """The engine for this key, or None."""
        path = self._path(key)
        try:
            content = path.read_bytes()
            if hashlib.sha256(content[32:]).digest() != content[:32]:
                raise ValueError("it is damaged")
            return content[32:]
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("the cached engine %s cannot be read (%s): it is built again", path, reason(error))
            return None

    def put(self, key: str, engine: bytes) -> None:
        """Keep an engine."""
        content = hashlib.sha256(engine).digest() + engine
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path(key), content, overwrite=True)
        except (OutputFileError, OSError) as error:
            log.warning("the engine is not kept, and will be built again next time: %s", reason(error))

    def files(self) -> list[Path]:
        """All engines."""
        return sorted(self.directory.glob("*.engine"))

    def clear(self) -> int:
        """Remove them all; how many there were."""
        files = self.files()
        for path in files:
            path.unlink(missing_ok=True)
        return len(files)

    def _path(self, key: str) -> Path:
        return self.directory / (re.sub(r"[^\w.-]+", "_", key) + ".engine")
