"""Writing a file whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from .errors import OutputFileError


def check_output(path: Path, overwrite: bool) -> None:
    """Raise OutputFileError, before any work is done, where `path` cannot become a new file."""
    if path.is_dir():
        raise OutputFileError(f"{path} is a folder: name a file")
    if path.exists() and not overwrite:
        raise OutputFileError(f"{path} exists already: name another file, or allow replacing it (--force)")
    if not path.absolute().parent.is_dir():
        raise OutputFileError(f"{path} cannot be written: the folder {path.absolute().parent} does not exist, make it first")


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any], overwrite: bool) -> None:
    """Call `write` on a temporary file beside `path`, then move it into place; on any failure nothing is left behind.

    Raises OutputFileError where the path is taken (and `overwrite` is false) or cannot be written, a full disk included.
    """
    check_output(path, overwrite)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        check_output(path, overwrite)
        os.replace(temporary, path)
    except OSError as error:
        if isinstance(error, OutputFileError):
            raise
        raise OutputFileError(
            f"{path} could not be written ({error.strerror or error}): nothing was left behind; "
            "free space or choose another place"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
