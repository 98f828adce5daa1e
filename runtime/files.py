"""Files and folders, each written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from .errors import MetasrganError, OutputFileError

try:
    import fcntl
except ImportError:  # not a Unix: nothing can be locked
    fcntl = None  # type: ignore[assignment]

Write = Callable[[IO[bytes]], Any]

_PART = ".part"  # in the temporary name of what is being written
_TAKEN = "exists already: name another place, or allow replacing it (--force)"


def check_output(path: Path, overwrite: bool, folder: bool = False) -> None:
    """Raise OutputFileError, before any work is done, where `path` cannot become a new file, or a new folder."""
    parent = path.absolute().parent
    if os.path.isdir(path) and not folder:
        raise OutputFileError(f"{path} is a folder: name a file")
    if os.path.lexists(path) and not overwrite:
        raise OutputFileError(f"{path} {_TAKEN}")
    if not os.path.isdir(parent):
        raise OutputFileError(f"{path} cannot be written: the folder {parent} is not there for you, make it first")
    if not os.access(parent, os.W_OK):
        raise OutputFileError(f"{path} cannot be written: the folder {parent} is read-only, name another place")


def write_atomically(
    path: Path, content: Write | bytes, overwrite: bool, first: Callable[[Path], Any] | None = None, like: Path | None = None
) -> None:
    """Write bytes to a temporary file, or call what writes them, then give it its name; on any failure nothing is left behind.

    `first` gets the path of the finished temporary file before that, and may raise to stop it. The file is no more open to
    others than `like`. A link is written through. Raises OutputFileError where the path is taken (without `overwrite`) or
    cannot be written, on a full disk too.
    """
    with writing(path, content, overwrite, like) as draft:
        if first:
            first(draft)


@contextlib.contextmanager
def writing(path: Path, content: Write | bytes, overwrite: bool, like: Path | None = None) -> Iterator[Path]:
    """As `write_atomically`, but the finished file gets its name when the block has ended without an error."""
    check_output(path, overwrite)
    with _draft(path, Path.touch) as (draft, target):
        _fill(draft, content, like)
        yield draft
        if not overwrite:
            with contextlib.suppress(OSError):  # a file system without hard links, or somebody has taken the name meanwhile
                os.link(draft, target)
                return
            if os.path.lexists(target):
                raise FileExistsError
        os.replace(draft, target)


def write_folder(
    folder: Path,
    files: Iterable[tuple[str, Write]],
    overwrite: bool,
    ours: str = r"(?!)",
    like: Path | None = None,
    first: Callable[[Path], Any] | None = None,
) -> None:
    """Make a temporary folder of (name, write) files, then give it its name; else as `write_atomically`.

    A folder that is there is replaced if it is empty, or with `overwrite` if the regular expression `ours` fits every name in
    it. It is renamed first, and comes back if the new one cannot get its name.
    """
    if not os.path.isdir(folder):
        check_output(folder, overwrite=False)
    with _draft(folder, os.mkdir) as (draft, target):
        for name, write in files:
            _fill(draft / name, write, like)
        names = os.listdir(target) if os.path.isdir(target) else []
        if names and not overwrite:
            raise FileExistsError
        if foreign := next((name for name in names if not re.fullmatch(ours, name)), None):
            why = f"{folder} holds {foreign!r}, which was not written here, and is not replaced"
            raise OutputFileError(f"{why}: name another folder")
        if first:
            first(draft)
        old = target.with_name(f".{secrets.token_hex(8)}.old")
        try:
            if names:
                os.rename(target, old)
            os.rename(draft, target)  # which replaces an empty folder, and no other
        finally:
            if not os.path.lexists(target) and os.path.isdir(old):
                os.rename(old, target)
            _remove(old)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Make a folder, hold it for one run until the block or the process ends, and remove what killed runs left in it.

    Raises OutputFileError if it cannot be made or another run holds it. A file system without locks lets everybody in.
    """
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError:
        raise OutputFileError(f"{folder} is a file: name a folder") from None
    except OSError as error:
        raise OutputFileError(f"the folder {folder} cannot be made ({error.strerror or error}): name another place") from None
    with _held(folder) as free:
        if not free:
            raise OutputFileError(f"another run is writing into {folder}: wait for it, or name another folder")
        _clear(folder)
        try:
            yield
        finally:
            _clear(folder)  # what a worker of this run left that died


@contextlib.contextmanager
def _draft(path: Path, make: Callable[[Path], Any]) -> Iterator[tuple[Path, Path]]:
    """A new file or folder under a hidden name beside `path`, locked, and its later name. It is gone after the block."""
    target = path.resolve()  # a link is written through
    draft = target.with_name(f".{secrets.token_hex(8)}{_PART}{path.suffix}")  # libraries look at the suffix
    try:
        make(draft)
        with _held(draft):
            yield draft, target
    except MetasrganError:
        raise
    except OSError as error:
        if isinstance(error, FileExistsError) or error.errno in (errno.ENOTEMPTY, errno.ENOTDIR):  # of a folder's name
            raise OutputFileError(f"{path} {_TAKEN}") from None
        why = f"{path} could not be written ({error.strerror or error})"
        raise OutputFileError(f"{why}: nothing was left behind; free space or choose another place") from error
    finally:
        _remove(draft)


@contextlib.contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Lock a file or folder for the block; false where another process has locked it."""
    if not fcntl:
        yield True
        return
    descriptor, free = os.open(path, os.O_RDONLY), True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:  # or a file system without locks
        free = not isinstance(error, BlockingIOError)
    try:
        yield free
    finally:
        os.close(descriptor)


def _fill(draft: Path, content: Write | bytes, like: Path | None) -> None:
    """Write a file to the disk, no more open to others than `like`."""
    with open(draft, "w+b") as file:
        if like:
            draft.chmod(draft.stat().st_mode & (like.stat().st_mode | 0o700) & 0o777)
        file.write(content) if isinstance(content, bytes) else content(file)
        file.flush()
        os.fsync(file.fileno())


def _clear(folder: Path) -> None:
    """Remove the drafts in a folder that no living process holds."""
    for left in folder.glob(f".*{_PART}*"):
        with contextlib.suppress(OSError), _held(left) as free:
            if free:
                _remove(left)


def _remove(path: Path) -> None:
    """Remove a file or folder, if it is there and that can be done."""
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.unlink()
