"""Files, each written whole or not at all, and arrays too large for memory."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from .errors import OutputFileError, reason

try:
    import fcntl
except ImportError:  # not a Unix: nothing can be locked
    fcntl = None  # type: ignore[assignment]

PART = ".part"  # in the temporary name of a file that is being written
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


def make_folder(path: Path) -> None:
    """Make a folder where there is none. Raises OutputFileError where that cannot be done."""
    try:
        path.mkdir(exist_ok=True)
    except FileExistsError:
        raise OutputFileError(f"{path} is a file: name a folder") from None
    except OSError as error:
        raise OutputFileError(f"the folder {path} cannot be made ({error.strerror or error}): name another place") from None


class Draft:
    """A file in the making, under a hidden name beside its own until `publish`. Write to `file`.

    Nobody may read it who may not read the file or folder `like`.
    """

    def __init__(self, path: Path, overwrite: bool, like: Path | None = None) -> None:
        check_output(path, overwrite)
        self._overwrite = overwrite
        self._target = path.resolve()  # a link is written through
        self.path = self._target.with_name(f".{secrets.token_hex(8)}{PART}{path.suffix}")  # libraries look at the suffix
        self.file = open(self.path, "x+b")  # noqa: SIM115
        _lock(self.file.fileno())
        if like:
            _no_more_open(self.path, like)

    def finish(self) -> None:
        """Bring all of it to the disk."""
        self.file.flush()
        os.fsync(self.file.fileno())

    def sha256(self) -> str:
        """Of what was written, in hexadecimal."""
        self.file.flush()
        return sha256(self.path)

    def publish(self) -> None:
        """Give it its name. Raises FileExistsError if another file took the name meanwhile and may not be replaced."""
        if self._overwrite:
            os.replace(self.path, self._target)
        else:
            _move_new(self.path, self._target)

    def discard(self) -> None:
        """Close it, and remove it unless it was published."""
        self.file.close()
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)


@contextlib.contextmanager
def draft(path: Path, overwrite: bool, like: Path | None = None) -> Iterator[Draft]:
    """A `Draft` that is removed afterwards unless it was published.

    Raises OutputFileError where the path is taken (and `overwrite` is false) or cannot be written, a full disk included.
    """
    with _explained(path):
        new = Draft(path, overwrite, like)
        try:
            yield new
        finally:
            with contextlib.suppress(OSError):  # closing writes what a full disk has refused already
                new.discard()


def write_atomically(
    path: Path,
    write: Callable[[IO[bytes]], Any],
    overwrite: bool,
    check: Callable[[Path], Any] = lambda finished: None,
    like: Path | None = None,
) -> None:
    """Call `write` on a temporary file, then give it its name; on any failure nothing is left behind.

    `check` gets the path of the finished temporary file; if it raises, the file does not get its name. A link is written
    through. Raises OutputFileError as `draft` does.
    """
    with draft(path, overwrite, like) as new:
        write(new.file)
        new.finish()
        check(new.path)
        new.publish()


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(content: bytes) -> bytes:
    """Content behind its SHA-256, for a file that may be damaged."""
    return hashlib.sha256(content).digest() + content


def unseal(sealed: bytes) -> bytes | None:
    """The content of `seal`, or None where it is damaged."""
    digest, content = sealed[:32], sealed[32:]
    return content if digest == hashlib.sha256(content).digest() else None


@contextlib.contextmanager
def sole_writer(folder: Path) -> Iterator[None]:
    """Hold a folder for one run at a time, until the block or the process ends, and clear away what killed ones left there.

    Raises OutputFileError where another run holds it. A file system that cannot lock folders lets everybody in.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not _lock(descriptor):
            raise OutputFileError(f"another run is writing into {folder}: wait for it, or name another folder")
        _clear_all(folder)
        try:
            yield
        finally:
            _clear_all(folder)  # what a worker of this run left that died
    finally:
        os.close(descriptor)


def write_folder(
    folder: Path,
    files: Iterable[tuple[str, Callable[[IO[bytes]], Any]]],
    overwrite: bool,
    ours: str = r"(?!)",
    like: Path | None = None,
) -> None:
    """Make a folder of (name, write) files beside its place, then move it there; on any failure nothing is left behind.

    What an existing folder holds is replaced where it is empty, or where `overwrite` is true and the regular expression `ours`
    fits every name in it: it gives way between two renames, and comes back where the second one fails. Raises OutputFileError
    where the place is taken or cannot be written, a full disk included.
    """
    check_folder(folder, overwrite, ours)
    target = folder.resolve()
    temporary, old = (target.with_name(f".{secrets.token_hex(8)}{ending}") for ending in (PART, ".old"))
    with _explained(folder):
        try:
            os.mkdir(temporary)
            for name, write in files:
                with open(temporary / name, "xb") as file:
                    if like:
                        _no_more_open(temporary / name, like)
                    write(file)
                    file.flush()
                    os.fsync(file.fileno())
            if overwrite and os.path.isdir(target):
                check_folder(folder, overwrite, ours)  # somebody may have put something there meanwhile
                os.rename(target, old)
            os.rename(temporary, target)  # which replaces an empty folder, and no other
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.ENOTDIR):  # what is in a folder's way says so in other words
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
            raise
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


def _no_more_open(path: Path, like: Path) -> None:
    """Take from a new file what others than its owner may not do with the file or folder `like`."""
    path.chmod(path.stat().st_mode & (like.stat().st_mode | 0o700) & 0o777)


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


def _lock(descriptor: int) -> bool:
    """Lock a file or folder until its descriptor is closed; false where another process has locked it."""
    try:
        if fcntl:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        pass
    return True


def _clear_all(folder: Path) -> None:
    for left in folder.glob(f".*{PART}*"):
        with contextlib.suppress(OSError):
            _clear(left)


def _clear(left: Path) -> None:
    """Remove a temporary file that no living process holds, or a folder that none has written to for an hour."""
    descriptor = os.open(left, os.O_RDONLY)
    try:
        if not _lock(descriptor):
            return
        if not left.is_dir():
            left.unlink()
        elif time.time() - left.stat().st_mtime > 3600:
            shutil.rmtree(left, ignore_errors=True)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """What goes wrong while `path` is written, as an OutputFileError."""
    try:
        yield
    except OutputFileError:
        raise
    except FileExistsError:
        raise OutputFileError(f"{path} {_TAKEN}") from None
    except OSError as error:
        raise OutputFileError(
            f"{path} could not be written ({error.strerror or error}): nothing was left behind; "
            "free space or choose another place"
        ) from error
