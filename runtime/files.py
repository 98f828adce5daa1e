"""Files, each written whole or not at all, and arrays too large for memory."""

from __future__ import annotations

import contextlib
import errno
import math
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .errors import OutputFileError, reason

_TAKEN = "exists already: name another file, or allow replacing it (--force)"


def check_output(path: Path, overwrite: bool) -> None:
    """Raise OutputFileError, before any work is done, where `path` cannot become a new file."""
    folder = path.absolute().parent
    if os.path.isdir(path):
        raise OutputFileError(f"{path} is a folder: name a file")
    if os.path.lexists(path) and not overwrite:
        raise OutputFileError(f"{path} {_TAKEN}")
    if not os.path.isdir(folder):
        raise OutputFileError(f"{path} cannot be written: the folder {folder} is not there for you, make it first")
    if not os.access(folder, os.W_OK):
        raise OutputFileError(f"{path} cannot be written: the folder {folder} is read-only, name another place")


def write_atomically(
    path: Path, write: Callable[[IO[bytes]], Any], overwrite: bool, check: Callable[[Path], Any] = lambda finished: None
) -> None:
    """Call `write` on a temporary file beside `path`, then move it into place; on any failure nothing is left behind.

    `check` is given the finished file before it gets its name: what it raises prevents that. A link is written through.
    Raises OutputFileError where the path is taken (and `overwrite` is false) or cannot be written, a full disk included.
    """
    check_output(path, overwrite)
    target = path.resolve()
    temporary = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        check(temporary)
        if overwrite:
            os.replace(temporary, target)
        else:
            _move_new(temporary, target)
    except FileExistsError:
        raise OutputFileError(f"{path} {_TAKEN}") from None
    except OSError as error:
        raise OutputFileError(
            f"{path} could not be written ({error.strerror or error}): nothing was left behind; "
            "free space or choose another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_folder(
    folder: Path, files: Iterable[tuple[str, Callable[[IO[bytes]], Any]]], overwrite: bool, ours: str = r"(?!)"
) -> None:
    """Make a folder of (name, write) files beside its place, then move it there; on any failure nothing is left behind.

    What an existing folder holds is replaced where it is empty, or where `overwrite` is true and the regular expression `ours`
    fits every name in it: it gives way between two renames, and comes back where the second one fails. Raises OutputFileError
    where the place is taken or cannot be written, a full disk included.
    """
    check_folder(folder, overwrite, ours)
    target = folder.resolve()
    temporary, old = (target.with_name(f".{secrets.token_hex(8)}.{kind}") for kind in ("part", "old"))
    try:
        os.mkdir(temporary)
        for name, write in files:
            with open(temporary / name, "xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        if overwrite and os.path.isdir(target):
            check_folder(folder, overwrite, ours)  # somebody may have put something there meanwhile
            os.rename(target, old)
        os.rename(temporary, target)  # which replaces an empty folder, and no other
    except OutputFileError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise OutputFileError(f"{folder} {_TAKEN}") from None
        raise OutputFileError(
            f"{folder} could not be written ({error.strerror or error}): nothing was left behind; "
            "free space or choose another place"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            if os.path.isdir(old) and not os.path.lexists(target):
                os.rename(old, target)
        for rest in (temporary, old):
            shutil.rmtree(rest, ignore_errors=True)


def check_folder(folder: Path, overwrite: bool, ours: str = r"(?!)") -> None:
    """Raise OutputFileError, before any work is done, where `write_folder` could not write to `folder`."""
    if not os.path.isdir(folder):
        check_output(folder, overwrite=False)
        return
    try:
        names = os.listdir(folder)
    except OSError as error:
        raise OutputFileError(f"{folder} cannot be looked into ({reason(error)}): name another folder") from None
    if names and not overwrite:
        raise OutputFileError(f"{folder} {_TAKEN}")
    if foreign := next((name for name in names if not re.fullmatch(ours, name)), None):
        raise OutputFileError(
            f"{folder} holds {foreign!r}, which was not written here, and is not replaced: name another folder"
        )
    if not os.access(folder.absolute().parent, os.W_OK):
        raise OutputFileError(
            f"{folder} cannot be written: the folder {folder.absolute().parent} is read-only, name another place"
        )


def scratch_array(shape: tuple[int, ...], dtype: DTypeLike, order: Literal["C", "F"]) -> NDArray[Any]:
    """An array in a temporary file, which has no name and is gone with the array. Raises OutputFileError on a full disk."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    try:
        if shutil.disk_usage(tempfile.gettempdir()).free < size:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        with tempfile.TemporaryFile() as file:
            os.posix_fallocate(file.fileno(), 0, size)  # now, as a disk that is full later would kill the process
            return np.asarray(np.memmap(file, dtype, "r+", shape=shape, order=order))
    except (OSError, OverflowError, AttributeError) as error:  # the last where the system cannot set disk space aside
        raise OutputFileError(
            f"{tempfile.gettempdir()} has no room for it ({reason(error)}): name a folder that has by TMPDIR"
        ) from error


def _move_new(temporary: Path, target: Path) -> None:
    """Move a file to a name that nobody has, not even since it was looked at."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise FileExistsError(target) from None
        os.replace(temporary, target)
