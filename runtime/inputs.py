"""What input files claim: sizes that a header gives are believed only after the file's own size is known."""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from .errors import InputFileError, MetasrganError, reason
from .memory import machine_memory

INFLATION = 1032  # the most that deflate makes of a byte
_PIECE = 1 << 14


def believe(path: Path, kind: str, promised: int, held: int, content: Iterable[bytes] | None = None) -> None:
    """Raise InputFileError where a file cannot hold the bytes that its header promises, before memory is asked for them.

    `held` is the size of what there is. `content` are the pieces of what a deflated file holds; they are read to the checksum,
    as damaged pixels must not pass for true ones, unless they go on beyond the promise.
    """
    if not 0 <= promised <= (held if content is None else held * INFLATION):
        raise _truncated(path, promised, held)
    if promised > machine_memory():
        raise InputFileError(
            f"{path} holds {promised / 1e9:,.0f} GB, more than this machine's memory: cut it up, or use a larger machine"
        )
    size = 0
    try:
        for piece in content or ():
            size += len(piece)
            if size > promised + INFLATION * _PIECE:
                return
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, kind, reason(error)) from None
    if content is not None and size < promised:
        raise _truncated(path, promised, size)


def inflated(path: Path, offset: int = 0) -> Iterator[bytes]:
    """The content of the zlib or gzip stream that begins at an offset of a file, of all members that gzip has.

    Raises zlib.error and EOFError.
    """
    engine, rest = zlib.decompressobj(zlib.MAX_WBITS | 32), b""  # of either kind
    with open(path, "rb") as file:
        file.seek(offset)
        while not engine.eof:
            piece = rest + file.read(_PIECE)
            if not piece:
                raise EOFError("it ends in its middle")
            yield engine.decompress(piece)
            rest = engine.unused_data
            if engine.eof and (rest + file.peek(2))[:2] == b"\x1f\x8b":
                engine = zlib.decompressobj(zlib.MAX_WBITS | 16)


@contextlib.contextmanager
def reading(path: Path | str, kind: str) -> Iterator[None]:
    """Turn whatever a library stumbles over in a file into an InputFileError."""
    try:
        yield
    except MetasrganError:
        raise
    except FileNotFoundError as error:
        raise InputFileError(f"{error.filename} does not exist: check the name") from None
    except MemoryError:
        raise InputFileError(f"{path} claims to hold more than this machine's memory: it is damaged, or too large") from None
    except Exception as error:  # readers of damaged files raise everything
        raise unreadable(path, kind, reason(error)) from None


def unreadable(path: Any, kind: str, why: str) -> InputFileError:
    """The error for a file that is there, but not what its name says."""
    return InputFileError(f"{path} cannot be read as {kind} ({why}): check what it is, or save it again with another program")


def _truncated(path: Any, promised: int, held: int) -> InputFileError:
    return InputFileError(f"{path} is truncated: its header promises {promised:,} bytes, it has {held:,}; copy it again")


class _Muted(threading.local):
    """A filter, of warnings as of logs, that stops what a thread says in `quiet`, and keeps the errors among it."""

    def __init__(self) -> None:  # in each thread
        self.errors: list[list[str]] = []

    def match(self, text: str) -> bool:  # as a regular expression, which a filter of warnings has
        return bool(self.errors)

    def __call__(self, record: logging.LogRecord) -> bool:
        if self.errors and record.levelno >= logging.ERROR:
            self.errors[-1].append(" ".join(record.getMessage().split()))
        return not self.errors


_LOCK = threading.Lock()
_MUTED = _Muted()
_ENTRY: Any = ("ignore", _MUTED, Warning, None, 0)
_quiet: list[logging.Logger] = []  # by all threads


@contextlib.contextmanager
def quiet(name: str) -> Iterator[list[str]]:
    """Keep a library, whose logger has this name, from warnings and logs in this thread; the errors that it logs.

    What it says may quote a patient's data, or is said again by an error of ours. Python's filters are the whole process's,
    and `warnings.catch_warnings` would undo what other threads set meanwhile.
    """
    logger, errors = logging.getLogger(name), list[str]()
    with _LOCK:
        _quiet.append(logger)
        logger.addFilter(_MUTED)
        filters: Any = warnings.filters
        if filters[:1] != [_ENTRY]:
            filters.insert(0, _ENTRY)
    _MUTED.errors.append(errors)
    try:
        yield errors
    finally:
        _MUTED.errors.pop()
        with _LOCK:
            _quiet.remove(logger)
            if logger not in _quiet:
                logger.removeFilter(_MUTED)
            filters = warnings.filters
            while not _quiet and _ENTRY in filters:
                filters.remove(_ENTRY)


def library(module: str, purpose: str) -> Any:
    """An imported optional library. Raises MetasrganError, with the command that installs it, where it is not there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise MetasrganError(f"{purpose} needs {missing}: pip install {missing.partition('.')[0]}") from None
