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
from types import SimpleNamespace
from typing import Any

from .errors import InputFileError, MetasrganError, reason
from .memory import machine_memory

INFLATION = 1032  # the most that deflate makes of a byte
_PIECE = 1 << 14


def believe(path: Path, promised: int, held: int, content: Iterable[bytes] | None = None) -> None:
    """Raise InputFileError where a file cannot hold the bytes that its header promises, before memory is asked for them.

    `held` is the size of what there is. `content` are the pieces of what a deflated file holds; they are read to the checksum,
    as damaged pixels must not pass for true ones, unless they go on beyond the promise. What they raise is passed on.
    """
    if 0 <= promised <= (held if content is None else held * INFLATION):
        if promised > machine_memory():
            raise InputFileError(
                f"{path} holds {promised / 1e9:,.0f} GB, more than this machine's memory: cut it up, or use a larger machine"
            )
        if content is None:
            return
        held = 0
        for piece in content:
            held += len(piece)
            if held > promised + INFLATION * _PIECE:
                break
        if held >= promised:
            return
    raise InputFileError(f"{path} is truncated: its header promises {promised:,} bytes, it has {held:,}; copy it again")


def inflated(path: Path, offset: int = 0) -> Iterator[bytes]:
    """The content of the zlib or gzip stream that begins at an offset of a file, of all members that gzip has.

    Raises zlib.error and EOFError.
    """
    engine, rest = zlib.decompressobj(zlib.MAX_WBITS | 32), b""  # of either kind
    with open(path, "rb") as file:
        file.seek(offset)
        while piece := rest + file.read(_PIECE):
            yield engine.decompress(piece)
            rest = engine.unused_data
            if engine.eof:
                if (rest + file.peek(2))[:2] != b"\x1f\x8b":
                    return
                engine = zlib.decompressobj(zlib.MAX_WBITS | 16)
    raise EOFError("it ends in its middle")


@contextlib.contextmanager
def reading(path: Path | str, kind: str) -> Iterator[None]:
    """Turn whatever a library stumbles over in a file that should be of a kind into an InputFileError."""
    try:
        yield
    except MetasrganError:
        raise
    except FileNotFoundError as error:
        raise InputFileError(f"{error.filename} does not exist: check the name") from None
    except MemoryError:
        raise InputFileError(f"{path} claims to hold more than this machine's memory: it is damaged, or too large") from None
    except Exception as error:  # readers of damaged files raise everything
        why = f"{path} cannot be read as {kind} ({reason(error)})"
        raise InputFileError(f"{why}: check what it is, or save it again with another program") from None


@contextlib.contextmanager
def quiet(name: str) -> Iterator[list[str]]:
    """Keep a library, whose logger has this name, from warnings and logs in this thread; the errors that it logs.

    What it says may quote a patient's data, or is said again by an error of ours. Python's filters are the whole process's,
    and `warnings.catch_warnings` would undo what other threads set meanwhile.
    """
    logger, thread, errors = logging.getLogger(name), threading.get_ident(), list[str]()

    def is_of_another(record: logging.LogRecord) -> bool:
        if threading.get_ident() != thread:
            return True
        if record.levelno >= logging.ERROR:
            errors.append(" ".join(record.getMessage().split()))
        return False

    here = SimpleNamespace(match=lambda text: threading.get_ident() == thread)  # in place of a regular expression
    entry: Any = ("ignore", here, Warning, None, 0)
    filters: Any = warnings.filters
    logger.addFilter(is_of_another)
    filters.insert(0, entry)
    try:
        yield errors
    finally:
        logger.removeFilter(is_of_another)
        thread = 0  # so that the entry matches nothing in a list that another thread's `catch_warnings` brings back
        filters = warnings.filters
        if entry in filters:
            filters.remove(entry)


def library(module: str, purpose: str) -> Any:
    """An imported optional library. Raises MetasrganError, with the command that installs it, where it is not there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise MetasrganError(f"{purpose} needs {missing}: pip install {missing.partition('.')[0]}") from None
