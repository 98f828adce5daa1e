"""Keeping within memory: outputs larger than this machine's, and caches of so many bytes."""

from __future__ import annotations

import math
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Hashable
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .errors import ScaleError, reason

Value = TypeVar("Value")  # what has `nbytes`, such as an array


def allocate(shape: tuple[int, ...], dtype: DTypeLike, order: Literal["C", "F"] = "C") -> NDArray[Any]:
    """Zeros for an output, in a file without a name where they would take more than half of the machine's memory.

    Raises ScaleError, rather than bring the machine down, where it fits neither.
    """
    needed = math.prod(shape) * np.dtype(dtype).itemsize
    if needed <= machine_memory() // 2:
        return np.zeros(shape, dtype, order)
    folder = tempfile.gettempdir()
    try:
        if shutil.disk_usage(folder).free < needed:
            raise OSError("no space left on the disk")
        with tempfile.TemporaryFile() as file:
            os.posix_fallocate(file.fileno(), 0, needed)  # now, as a disk that is full later would kill the process
            return np.asarray(np.memmap(file, dtype, "r+", shape=shape, order=order))
    except (OSError, OverflowError, AttributeError) as error:  # the last where the system cannot set disk space aside
        size = "×".join(map(str, shape))
        raise ScaleError(
            f"the output of {size} values needs {needed / 1e9:,.0f} GB, more than half of this machine's memory, and {folder} "
            f"has no room for it ({reason(error)}): name a folder that has by TMPDIR, or give a smaller scale or shape"
        ) from None


def machine_memory() -> int:
    """Bytes of this machine's memory."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return sys.maxsize


class BoundedCache(Generic[Value]):
    """Values by key, up to `max_bytes`; the least recently used leave first, the newest never. Safe between threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._values: dict[Hashable, Any] = {}  # the newest last
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value kept for a key, or what `make` makes; two threads may both make it."""
        with self._lock:
            if key in self._values:
                value: Value = self._values.pop(key)
                self._values[key] = value
                return value
        value = make()
        with self._lock:
            self._values[key] = value
            while self.bytes > self._max_bytes and len(self._values) > 1:
                del self._values[next(iter(self._values))]
        return value

    @property
    def bytes(self) -> int:
        """Bytes held."""
        return sum(value.nbytes for value in list(self._values.values()))
