"""What input files claim: sizes that a header gives are believed only after the file's own size is known."""

from __future__ import annotations

import contextlib
import importlib
import logging
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from .errors import InputFileError, MetasrganError, reason
from .memory import machine_memory

_INFLATION = 1032  # the most that deflate makes of a byte
_PIECE = 1 << 14


def believe(path: Path, kind: str, promised: int, held: int, inflate: Callable[[], Iterable[bytes]] | None = None) -> None:
    """Raise InputFileError where a file cannot hold the bytes that its header promises, before memory is asked for them.

    `held` is the size of what there is. `inflate` gives the content of a deflated file piece by piece; it is read to its
    checksum, as damaged pixels must not pass for true ones, unless it goes on beyond the promise.
    """
    if not 0 <= promised <= (held * _INFLATION if inflate else held):
        raise _truncated(path, promised, held)
    if promised > machine_memory():
        raise InputFileError(
            f"{path} holds {promised / 1e9:,.0f} GB, more than this machine's memory: cut it up, or use a larger machine"
        )
    if inflate:
        size = 0
        try:
            for piece in inflate():
                size += len(piece)
                if size > promised + _INFLATION * _PIECE:
                    return
        except (OSError, EOFError, zlib.error) as error:
            raise unreadable(path, kind, reason(error)) from None
        if size < promised:
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


def unreadable(path: Any, kind: str, why: str) -> InputFileError:
    """The error for a file that is there, but not what its name says."""
    return InputFileError(f"{path} cannot be read as {kind} ({why}): check what it is, or save it again with another program")


def _truncated(path: Any, promised: int, held: int) -> InputFileError:
    return InputFileError(f"{path} is truncated: its header promises {promised:,} bytes, it has {held:,}; copy it again")


class _Muted:
    """A filter, of warnings as of logs, that stops what the threads in `quiet` say, and keeps the errors among it."""

    def __init__(self) -> None:
        self.threads: dict[int, list[list[str]]] = {}
        self.loggers: set[logging.Logger] = set()

    def match(self, text: str) -> bool:  # as a regular expression, which a filter of warnings has
        return threading.get_ident() in self.threads

    def __call__(self, record: logging.LogRecord) -> bool:
        if not self.match(""):
            return True
        if record.levelno >= logging.ERROR:
            self.threads[threading.get_ident()][-1].append(" ".join(record.getMessage().split()))
        return False


_LOCK = threading.Lock()
_MUTED = _Muted()
_ENTRY: Any = ("ignore", _MUTED, Warning, None, 0)


@contextlib.contextmanager
def quiet(name: str) -> Iterator[list[str]]:
    """Keep a library, whose logger has this name, from warnings and logs in this thread; the errors that it logs.

    What it says may quote a patient's data, or is said again by an error of ours. Python's filters are the whole process's,
    and `warnings.catch_warnings` would undo what other threads set meanwhile.
    """
    logger, thread, errors = logging.getLogger(name), threading.get_ident(), list[str]()
    filters: Any = warnings.filters
    with _LOCK:
        _MUTED.threads.setdefault(thread, []).append(errors)
        _MUTED.loggers.add(logger)
        logger.addFilter(_MUTED)
        if filters[:1] != [_ENTRY]:
            filters.insert(0, _ENTRY)
    try:
        yield errors
    finally:
        with _LOCK:
            _MUTED.threads[thread].pop()
            if not _MUTED.threads[thread]:
                del _MUTED.threads[thread]
            if not _MUTED.threads:
                while _MUTED.loggers:
                    _MUTED.loggers.pop().removeFilter(_MUTED)
                filters = warnings.filters
                while _ENTRY in filters:
                    filters.remove(_ENTRY)


def library(module: str, purpose: str) -> Any:
    """An imported optional library. Raises MetasrganError, with the command that installs it, where it is not there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise MetasrganError(f"{purpose} needs {missing}: pip install {missing.partition('.')[0]}") from None
