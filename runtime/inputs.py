"""What input files claim: sizes that a header gives are believed only after the file's own size is known."""

from __future__ import annotations

import importlib
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
    """The content of the zlib or gzip stream that begins at an offset of a file. Raises zlib.error and EOFError."""
    engine = zlib.decompressobj(zlib.MAX_WBITS | 32)  # of either kind
    with open(path, "rb") as file:
        file.seek(offset)
        while not engine.eof:
            piece = file.read(_PIECE)
            if not piece:
                raise EOFError("it ends in its middle")
            yield engine.decompress(piece)


def unreadable(path: Any, kind: str, why: str) -> InputFileError:
    """The error for a file that is there, but not what its name says."""
    return InputFileError(f"{path} cannot be read as {kind} ({why}): check what it is, or save it again with another program")


def _truncated(path: Any, promised: int, held: int) -> InputFileError:
    return InputFileError(f"{path} is truncated: its header promises {promised:,} bytes, it has {held:,}; copy it again")


def library(module: str, purpose: str) -> Any:
    """An imported optional library. Raises MetasrganError, with the command that installs it, where it is not there."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise MetasrganError(f"{purpose} needs {missing}: pip install {missing.partition('.')[0]}") from None
