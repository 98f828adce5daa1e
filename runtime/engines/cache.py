"""Engines that took long to build, on disk: whole or not at all."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
from collections.abc import Callable
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

    def get(self, key: str, build: Callable[[], bytes]) -> bytes:
        """The engine for this key, built and kept where there is none yet."""
        path = self.directory / (re.sub(r"[^\w.-]+", "_", key) + ".engine")
        try:
            content = path.read_bytes()
            if hashlib.sha256(content[32:]).digest() == content[:32]:
                return content[32:]
            log.warning("the cached engine %s is damaged: it is built again", path)
        except FileNotFoundError:
            pass
        except OSError as error:
            log.warning("the cached engine %s cannot be read (%s): it is built again", path, reason(error))
        engine = build()
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_atomically(path, hashlib.sha256(engine).digest() + engine, overwrite=True)
        except (OutputFileError, OSError) as error:
            log.warning("the engine is not kept, and will be built again next time: %s", reason(error))
        return engine

    def files(self) -> list[Path]:
        """All engines."""
        return sorted(self.directory.glob("*.engine"))

    def clear(self) -> int:
        """Remove them all; how many there were."""
        files = self.files()
        for path in files:
            path.unlink(missing_ok=True)
        return len(files)
