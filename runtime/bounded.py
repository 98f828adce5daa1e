"""A cache in memory that keeps within a number of bytes."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, Protocol, TypeVar


class Sized(Protocol):
    """What says how many bytes it holds."""

    @property
    def nbytes(self) -> int: ...


Value = TypeVar("Value", bound=Sized)


class BoundedCache(Generic[Value]):
    """Values by key, up to `max_bytes`; the least recently used leave first, the newest never. Safe between threads."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value kept for a key, or what `make` makes; two threads may both make it."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            self._values[key] = value
            while self._bytes() > self._max_bytes and len(self._values) > 1:
                self._values.popitem(last=False)
        return value

    @property
    def bytes(self) -> int:
        """Bytes held."""
        with self._lock:
            return self._bytes()

    def _bytes(self) -> int:
        return sum(value.nbytes for value in self._values.values())
